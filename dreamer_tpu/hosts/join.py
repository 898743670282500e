"""Joins the hosts of a run."""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax

from dreamer_tpu.errors import UserError
from dreamer_tpu.hosts import heartbeat
from dreamer_tpu.hosts.heartbeat import Heartbeat, Place
from dreamer_tpu.hosts.preemption import Preemption
from dreamer_tpu.hosts.sync import HostSync

# JAX's own heartbeat, for failures that `Heartbeat` does not see.
_HEARTBEAT_SECONDS = 100
_GRACE_SECONDS = 60

# Port of JAX's coordinator on TPU slices, unless JAX_COORDINATOR_PORT is set.
_TPU_PORT = 8482
_MAX_PORT = 65535


@contextlib.contextmanager
def joined(
  config: Any, preemption: Preemption, *, on_tpu: bool
) -> Iterator[HostSync]:
  """Joins the hosts of the run for the body, if there are several.

  Enter it before any use of a device. Hosts of a TPU slice find each other.
  Elsewhere the configuration names them, or the environment variables
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Their heartbeat
  begins before JAX joins them, because JAX would take a process of another run
  for a restarted one of this run.

  Args:
    config: The `distributed` part of the configuration.
    preemption: Stop requests, which all hosts share.
    on_tpu: Whether this is a TPU VM.

  Yields:
    Exchange between the hosts.

  Raises:
    UserError: The names are incomplete, a port is in use, or not all hosts came
      within `distributed.timeout`.
  """
  variable = os.environ.get('JAX_COORDINATOR_ADDRESS', '')
  coordinator = config.coordinator_address or variable
  enabled = config.enabled == 'on' or bool(coordinator) or on_tpu
  if config.enabled == 'off' or not enabled:
    yield HostSync()
  elif coordinator:
    place = _place(config, coordinator)
    if place.index == 0:
      port = int(coordinator.rpartition(':')[2])
      heartbeat.bind(place.address, port).close()  # JAX would not notice.
    with Heartbeat(place, config, preemption):
      _initialize(
        config,
        coordinator_address=coordinator,
        num_processes=place.count,
        process_id=place.index,
      )
      yield HostSync()
  else:
    _initialize(config)
    with Heartbeat(_tpu_place(config), config, preemption):
      yield HostSync()


def _place(config: Any, coordinator: str) -> Place:
  """Returns the place of this process from its configuration."""
  address, _, text = coordinator.rpartition(':')
  index, count = _number(config, 'process_id'), _number(config, 'num_processes')
  if not text.isdigit() or not 0 < int(text) < _MAX_PORT:
    raise UserError(
      f"distributed.coordinator_address='{coordinator}' has no port; write "
      'HOST:PORT, such as 10.0.0.2:8476.'
    )
  if not 0 <= index < count:
    raise UserError(
      f'distributed.process_id={index} is out of range for {count} processes; '
      f'use 0 to {count - 1}.'
    )
  port = config.heartbeat_port or int(text) + 1
  if port == int(text):
    raise UserError(
      f'distributed.heartbeat_port={port} is also the port of distributed.'
      f'coordinator_address={coordinator}; use another one.'
    )
  return Place(index=index, count=count, address=address.strip('[]'), port=port)


def _tpu_place(config: Any) -> Place:
  """Returns the place of this process on a TPU slice, once it has joined."""
  used = int(os.environ.get('JAX_COORDINATOR_PORT', _TPU_PORT))
  return Place(
    index=jax.process_index(),
    count=jax.process_count(),
    address=HostSync().broadcast(socket.gethostname()),
    port=config.heartbeat_port or used + 1,
  )


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


def _initialize(config: Any, **arguments: Any) -> None:
  """Lets JAX join the hosts."""
  # It would replace the handler of SIGTERM.
  jax.config.update('jax_enable_preemption_service', False)
  # On its own timeout JAX aborts with a stack trace.
  timer = threading.Timer(config.timeout, _give_up, (config, arguments))
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=int(config.timeout) + _GRACE_SECONDS,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(_failure(arguments, reason)) from error
  finally:
    timer.cancel()


def _give_up(config: Any, arguments: dict[str, Any]) -> None:
  text = _failure(arguments, f'no answer within {config.timeout:g} s')
  print(f'error: {text}', file=sys.stderr, flush=True)
  os._exit(1)


def _failure(arguments: dict[str, Any], reason: str) -> str:
  if not arguments:
    return (
      f'This machine could not join the hosts of its TPU ({reason}); check '
      'that this program was started on all of them and that the firewall lets '
      'them reach all ports of each other, or, to run on this one alone, use '
      '--config.distributed.enabled=off.'
    )
  return (
    f'Process {arguments["process_id"]} of {arguments["num_processes"]} could '
    f'not join the others at {arguments["coordinator_address"]} ({reason}); '
    'check that the firewall of process 0 lets them through to this port.'
  )
