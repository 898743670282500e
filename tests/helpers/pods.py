"""Several hosts on one machine: one process of main.py per host."""

import contextlib
import socket

from tests.helpers import program

GAME = (
  '--config=configs/gym.py:debug',
  '--config.task=gym_tests.helpers.pod_env:Game-v0',
  '--config.env.stepping=serial',
  '--config.run.report_every=0',
)


def free_port():
  """Returns a free TCP port of this machine."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


@contextlib.contextmanager
def start(logdir, hosts, devices, *args, prefix=lambda host: [], **env):
  """Starts one program per host, and kills them at the end.

  Args:
    logdir: Directory of the run.
    hosts: Number of processes.
    devices: CPU devices of each.
    *args: Arguments of main.py.
    prefix: Maps a host to a command that runs another one.
    **env: Environment variables; `ADDRESS` is the address of host 0.
  """
  address = f'{env.pop("ADDRESS", "localhost")}:{free_port()}'
  programs = [
    program.Program(
      logdir,
      *args,
      prefix=prefix(host),
      JAX_PLATFORMS='cpu',
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
