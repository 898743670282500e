"""How the hosts of a run find each other."""

import os
import socket
import sys
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dreamer_tpu.cli import platform
from dreamer_tpu.errors import UserError

# Whatever the run's own check misses ends after this many seconds.
_HEARTBEAT = 100
_GRACE = 60


def start(config: Any) -> None:
  """Joins the hosts of the run, if there are several; before any device.

  On a TPU VM they are found by themselves. Elsewhere the configuration names
  them, or the environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID.

  Args:
    config: `distributed` of the configuration.

  Raises:
    UserError: They are not named completely, or did not all come within
      `distributed.timeout`.
  """
  address = _address(config)
  on_tpu = platform.has_tpu()
  if config.enabled == 'off' or not (
    address or on_tpu or config.enabled == 'on'
  ):
    return
  arguments: dict[str, Any] = {}
  if address:
    arguments = dict(
      coordinator_address=address,
      num_processes=_number(config, 'num_processes'),
      process_id=_number(config, 'process_id'),
    )
    _check(arguments)
  # JAX itself aborts with a stack trace when its time is over.
  late = threading.Timer(config.timeout, _give_up, (config, arguments))
  late.start()
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=int(config.timeout) + _GRACE,
      heartbeat_timeout_seconds=_HEARTBEAT,
    )
  except (RuntimeError, ValueError) as error:
    raise _failed(config, arguments, str(error).splitlines()[0]) from error
  finally:
    late.cancel()


def same(text: str) -> str:
  """Process 0's text, on all hosts; such as a path with the time in it."""
  if jax.process_count() == 1:
    return text
  data = np.zeros(4096, np.uint8)
  encoded = text.encode()
  data[: len(encoded)] = np.frombuffer(encoded, np.uint8)
  data = np.asarray(multihost_utils.broadcast_one_to_all(data))
  return bytes(data).rstrip(b'\0').decode()


def own_address(config: Any) -> str:
  """A name or address by which other hosts reach this one, on process 0."""
  address = _address(config)
  return address.rpartition(':')[0] if address else socket.gethostname()


def _address(config: Any) -> str:
  return config.coordinator_address or os.environ.get(
    'JAX_COORDINATOR_ADDRESS', ''
  )


def _number(config: Any, name: str) -> int:
  variable = f'JAX_{name.upper()}'
  text = os.environ.get(variable, '')
  if config[name] >= 0:
    return config[name]
  if not text.isdigit():
    raise UserError(
      f'distributed.{name} is missing: there is a coordinator address, so '
      f'give --config.distributed.{name}=N or {variable}=N on every host.'
    )
  return int(text)


def _check(arguments: dict[str, Any]) -> None:
  address, count, index = arguments.values()
  if not address.rpartition(':')[2].isdigit():
    raise UserError(
      f"distributed.coordinator_address='{address}' has no port; write "
      'HOST:PORT, such as 10.0.0.2:8476.'
    )
  if not 0 <= index < count:
    raise UserError(
      f'distributed.process_id={index} is none of the {count} processes; they '
      f'are numbered 0 to {count - 1}.'
    )


def _give_up(config: Any, arguments: dict[str, Any]) -> None:
  error = _failed(config, arguments, 'no answer')
  print(f'error: {error}', file=sys.stderr, flush=True)
  os._exit(1)


def _failed(config: Any, arguments: dict[str, Any], reason: str) -> UserError:
  if not arguments:
    return UserError(
      f'This machine could not join the hosts of its TPU ({reason}); for a run '
      'of its own use --config.distributed.enabled=off.'
    )
  return UserError(
    f'Process {arguments["process_id"]} of {arguments["num_processes"]} could '
    f'not join the others at {arguments["coordinator_address"]} within '
    f'{config.timeout:g} s ({reason}); are all of them started, and is that '
    'port of process 0 open to them?'
  )
