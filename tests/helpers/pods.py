"""Several hosts on one machine: main.py in so many processes."""

import contextlib
import socket

from tests.helpers import program


def free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


@contextlib.contextmanager
def start(logdir, hosts, devices, *args, prefix=lambda host: [], **env):
  """A program per host; those that are left are killed in the end.

  Args:
    logdir: Of the run.
    hosts: Processes.
    devices: Of each, on the CPU.
    *args: Of main.py.
    prefix: Command, by host, in which it is started.
    **env: Environment variables, `ADDRESS` for that of host 0.
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
  """Runs all to their end."""
  with start(*args, **kwargs) as programs:
    return [each.end() for each in programs]
