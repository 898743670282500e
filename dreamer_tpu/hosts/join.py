"""Joins the hosts of a run."""

import os
import socket
import sys
import threading
from typing import Any

import jax

from dreamer_tpu.errors import UserError

# JAX's own heartbeat, for failures that `Heartbeat` does not see.
_HEARTBEAT_SECONDS = 100
_GRACE_SECONDS = 60


def start(config: Any, *, on_tpu: bool) -> None:
  """Joins the hosts of the run, if there are several.

  Call it before any use of a device. Hosts of a TPU slice find each other.
  Elsewhere the configuration names them, or the environment variables
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

  Args:
    config: The `distributed` part of the configuration.
    on_tpu: Whether this is a TPU VM.

  Raises:
    UserError: The names are incomplete, or not all hosts came within
      `distributed.timeout`.
  """
  address = _coordinator(config)
  enabled = config.enabled == 'on' or bool(address) or on_tpu
  if config.enabled == 'off' or not enabled:
    return
  arguments: dict[str, Any] = {}
  if address:
    arguments = dict(
      coordinator_address=address,
      num_processes=_number(config, 'num_processes'),
      process_id=_number(config, 'process_id'),
    )
    _check(arguments)
  # On its own timeout JAX aborts with a stack trace.
  timer = threading.Timer(config.timeout, _give_up, (config, arguments))
  timer.start()
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=int(config.timeout) + _GRACE_SECONDS,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(_failure(config, arguments, reason)) from error
  finally:
    timer.cancel()


def own_address(config: Any) -> str:
  """Returns the address at which other hosts reach process 0, on process 0."""
  return _coordinator(config).rpartition(':')[0] or socket.gethostname()


def _coordinator(config: Any) -> str:
  variable = os.environ.get('JAX_COORDINATOR_ADDRESS', '')
  return config.coordinator_address or variable


def _number(config: Any, name: str) -> int:
  if config[name] >= 0:
    return config[name]
  variable = f'JAX_{name.upper()}'
  text = os.environ.get(variable, '')
  if not text.isdigit():
    raise UserError(
      f'distributed.{name} is missing: with a coordinator address, set '
      f'--config.distributed.{name}=N or {variable}=N on every host.'
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
      f'distributed.process_id={index} is out of range for {count} processes; '
      f'use 0 to {count - 1}.'
    )


def _give_up(config: Any, arguments: dict[str, Any]) -> None:
  text = _failure(config, arguments, 'no answer')
  print(f'error: {text}', file=sys.stderr, flush=True)
  os._exit(1)


def _failure(config: Any, arguments: dict[str, Any], reason: str) -> str:
  if not arguments:
    return (
      f'This machine could not join the hosts of its TPU ({reason}); to run '
      'on it alone, use --config.distributed.enabled=off.'
    )
  return (
    f'Process {arguments["process_id"]} of {arguments["num_processes"]} could '
    f'not join the others at {arguments["coordinator_address"]} within '
    f'{config.timeout:g} s ({reason}); check that all of them are started and '
    'that this port of process 0 is open.'
  )
