"""Several hosts on one machine: one process of main.py per host."""

import contextlib
import os
import secrets
import socket

from tests.helpers import program

GAME = (
  '--config=configs/gym.py:debug',
  '--config.task=gym_tests.helpers.pod_env:Game-v0',
  '--config.env.stepping=serial',
  '--config.run.report_every=0',
)


def free_port():
  """Returns a TCP port of this machine that is free, as is the next.

  They are below those that the system gives to any connection, which may take
  them before they are used, and every worker of pytest has its own.
  """
  worker = int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw'))
  while True:
    port = 12_000 + 2_000 * (worker % 10) + 2 * secrets.randbelow(1_000)
    with (
      contextlib.suppress(OSError),
      socket.socket() as one,
      socket.socket() as two,
    ):
      one.bind(('', port))
      two.bind(('', port + 1))
      return port


@contextlib.contextmanager
def start(logdir, hosts, devices, *args, prefix=lambda host: [], **env):
  """Starts one program per host, and kills them at the end.

  Args:
    logdir: Directory of the run, or a function that returns that of a host.
    hosts: Number of processes.
    devices: CPU devices of each.
    *args: Arguments of main.py.
    prefix: Maps a host to a command that runs another one.
    **env: Environment variables; `ADDRESS` is the address of host 0.
  """
  address = f'{env.pop("ADDRESS", "localhost")}:{free_port()}'
  programs = [
    program.Program(
      logdir(host) if callable(logdir) else logdir,
      *args,
      prefix=prefix(host),
      JAX_PLATFORMS='cpu',
      # JAX caches programs for the first process only; all others compile.
      XLA_FLAGS='--xla_backend_optimization_level=0',
      JAX_NUM_CPU_DEVICES=str(devices),
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES=str(hosts),
      JAX_PROCESS_ID=str(host),
      **env,
    )
    for host in range(hosts)
  ]
  try:
    yield programs
  finally:
    for each in programs:
      each.process.kill()


def run(*args, **kwargs):
  """Runs one program per host to its end; see `start`."""
  with start(*args, **kwargs) as programs:
    return [each.end() for each in programs]
