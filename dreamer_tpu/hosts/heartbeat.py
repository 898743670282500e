"""Heartbeats between the hosts of a run.

A host that dies would leave the others waiting in a collective forever. So
every process is connected to process 0, and both ends send a line of JSON each
second. A host that falls silent or reports a failure ends the run on all
hosts, and each of them prints the name of that host. A signal to one host
reaches all.
"""

import contextlib
import dataclasses
import errno
import json
import os
import re
import socket
import sys
import threading
import time
from typing import Any, NoReturn, Self

import jax

from dreamer_tpu.errors import STOPPED, UserError, explain
from dreamer_tpu.hosts.preemption import Preemption

_INTERVAL = 1.0  # Seconds between two heartbeats.
_MAX_LINE = 1 << 20  # Bytes.
_HELLO_TIMEOUT = 10.0  # Seconds.
_LINGER = 10.0  # Seconds.

_STATUS = re.compile('[A-Z_]+: ')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """Place of this process among the hosts.

  Attributes:
    index: Number of this process.
    count: Number of processes.
    address: Name or address of the machine of process 0.
    port: Port of the heartbeat there.
  """

  index: int
  count: int
  address: str
  port: int


class Heartbeat:
  """Watches the hosts of a run; a context manager around the whole run.

  It is entered once all hosts are there. With one process there is nothing to
  watch, and no thread.

  Args:
    place: Place of this process.
    config: The `distributed` part of the configuration.
    preemption: Stop requests, which all hosts share.
  """

  def __init__(self, place: Place, config: Any, preemption: Preemption):
    self._place = place
    self._config = config
    self._preemption = preemption
    self._peers: dict[int, _Peer] = {}
    self._left: set[int] = set()
    self._gone: set[int] = set()
    self._complete = threading.Event()
    self._refusal = ''
    self._stopped = threading.Event()
    self._ending = threading.Lock()

  def __enter__(self) -> Self:
    if self._place.count == 1:
      return self
    if self._place.index:
      self._connect()
    else:
      self._serve()
    threading.Thread(target=self._beat, daemon=True).start()
    self._preemption.share(self._tell, self._exit)
    if self._place.index:
      self._complete.wait()
    else:
      self._gather()
    if self._refusal:
      raise UserError(self._refusal)
    return self

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any):
    if self._place.count == 1:
      return
    if error is None:
      self._leave()
      return
    if is_of_runtime(error):
      # Probably caused by the end of another host, which we will hear about.
      time.sleep(self._config.silence + 5 * _INTERVAL)
    lines, text = explain(error)
    if lines:
      print(lines, file=sys.stderr)
    self._end(self._place.index, text)

  def _connect(self) -> None:
    """Connects to process 0, which may start later."""
    place = self._place
    deadline = time.monotonic() + self._config.timeout
    while True:
      try:
        connection = socket.create_connection(
          (place.address, place.port), _HELLO_TIMEOUT
        )
        break
      except OSError as error:
        if time.monotonic() > deadline:
          raise UserError(
            f'Process {place.index} of {place.count} could not join process 0 '
            f'at {place.address}, port {place.port}, within '
            f'{self._config.timeout:g} s ({error.strerror or error}); check '
            'that process 0 is started and that its firewall lets the other '
            'hosts through to this port and to that of the coordinator.'
          ) from error
      time.sleep(_INTERVAL)
    connection.settimeout(None)
    peer = _Peer(connection)
    peer.send({'kind': 'hello', 'host': place.index, 'hosts': place.count})
    self._add(0, peer)

  def _serve(self) -> None:
    """Starts to accept the connections of other processes."""
    server = bind(self._place.address, self._place.port)
    threading.Thread(target=self._accept, args=(server,), daemon=True).start()

  def _accept(self, server: socket.socket) -> None:
    """Accepts the other processes of this run, and refuses those of others."""
    while True:
      connection, _ = server.accept()
      connection.settimeout(_HELLO_TIMEOUT)
      peer = _Peer(connection)
      hello = peer.receive() or {}
      connection.settimeout(None)
      host = hello.get('host')
      if hello.get('kind') != 'hello' or not isinstance(host, int):
        connection.close()
      elif reason := self._reason_to_refuse(host, hello.get('hosts')):
        peer.send({'kind': 'refused', 'reason': reason})
        connection.close()
      else:
        self._add(host, peer)

  def _reason_to_refuse(self, host: int, hosts: Any) -> str:
    count = self._place.count
    here = (
      f'Port {self._place.port} of {self._place.address} is in use by another '
      'run'
    )
    if hosts != count:
      return (
        f'{here}, of {count} processes instead of {hosts}; use another '
        'distributed.coordinator_address.'
      )
    if host in self._peers or not 0 < host < count:
      return (
        f'{here}, which has a process {host} already; use another '
        'distributed.coordinator_address, or another distributed.process_id '
        'within one run.'
      )
    return ''

  def _gather(self) -> None:
    """Waits for all other processes, on process 0, and lets them begin."""
    deadline = time.monotonic() + self._config.timeout
    while missing := set(range(1, self._place.count)) - self._peers.keys():
      if time.monotonic() > deadline:
        names = ', '.join(map(str, sorted(missing)))
        self._end(
          0,
          f'process {names} did not come within {self._config.timeout:g} s; '
          'check that all are started, and that the firewall of process 0 '
          f'lets them through to port {self._place.port} and to that of the '
          'coordinator',
        )
      time.sleep(_INTERVAL / 10)
    self._send({'kind': 'complete'})

  def _add(self, host: int, peer: '_Peer') -> None:
    self._peers[host] = peer
    threading.Thread(target=self._listen, args=(host,), daemon=True).start()

  def _listen(self, host: int) -> None:
    """Reads the messages of a peer until it leaves."""
    peer = self._peers[host]
    while (message := peer.receive()) is not None:
      kind = message.get('kind')
      if kind == 'failed':
        self._gone.add(host)
        self._end(message['host'], message['reason'])
      elif kind in ('stop', 'quit'):
        self._left |= {host} if kind == 'quit' else set()
        self._send(message, but=host)
        self._preemption.request(message['reason'], at_once=kind == 'quit')
      elif kind == 'left':
        self._left.add(host)
        if self._place.index:  # Process 0 is the last one to leave.
          return
      elif kind in ('complete', 'refused'):
        self._refusal = message.get('reason', '')
        self._complete.set()
    self._gone.add(host)
    if self._refusal or host in self._left or self._stopped.is_set():
      return
    self._end(host, 'its process ended or its connection broke')

  def _beat(self) -> None:
    """Sends heartbeats and checks those of the peers."""
    silence, last = self._config.silence, time.monotonic()
    while not self._stopped.wait(_INTERVAL):
      now = time.monotonic()
      # A time in which this process was stopped is no silence of its peers,
      # whose messages it has not read yet.
      stopped = max(0, now - last - _INTERVAL)
      for peer in list(self._peers.values()):
        peer.heard = min(now, peer.heard + stopped)
      last = now
      for host, peer in list(self._peers.items()):
        # A host that has left still waits for process 0, so it gets them too.
        peer.send({'kind': 'beat'})
        if host not in self._left and now - peer.heard > silence:
          self._end(host, f'no heartbeat for {silence:g} s')

  def _send(self, message: dict[str, Any], but: int | None = None) -> None:
    for host, peer in list(self._peers.items()):
      if host != but:
        peer.send(message)

  def _tell(self, kind: str, reason: str) -> None:
    """Tells the other hosts to 'stop' or to 'quit', see `Preemption.share`."""
    if not reason.startswith('Host'):  # This host got the signal.
      reason = f'Host {self._place.index} of {self._place.count} got {reason}'
    self._send({'kind': kind, 'reason': reason})

  def _end(self, host: int, reason: str) -> NoReturn:
    """Reports the failure of a host to all peers and ends this process."""
    self._ending.acquire()  # Never released: the first reason counts.
    index, count = self._place.index, self._place.count
    self._send({'kind': 'failed', 'host': host, 'reason': reason})
    self._gone.add(host)
    this = ', this one' if host == index else ''
    text = f'error: Host {host} of {count}{this}: {reason.rstrip(".")}.'
    if not this:
      text += (
        f' Host {index} stops too; start all hosts again to resume from the '
        'last checkpoint.'
      )
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
    # JAX's own threads may print a page about the same failure.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    self._exit_last(1)

  def _exit(self) -> NoReturn:
    """Ends this process, which has nothing to save, as stopped."""
    self._ending.acquire()
    self._exit_last(STOPPED)

  def _exit_last(self, code: int) -> NoReturn:
    """Ends this process; process 0, which coordinates, after all others."""
    deadline = time.monotonic() + _LINGER
    while self._place.index == 0 and time.monotonic() < deadline:
      if self._gone >= self._peers.keys():
        break
      time.sleep(0.01)
    os._exit(code)

  def _leave(self) -> None:
    """Disconnects; process 0 waits for all others and leaves last."""
    if self._place.index:
      self._peers[0].send({'kind': 'left'})
    deadline = time.monotonic() + self._config.timeout
    while len(self._left) < len(self._peers) and time.monotonic() < deadline:
      time.sleep(0.01)
    self._stopped.set()
    if self._place.index == 0:
      self._send({'kind': 'left'})


def is_of_runtime(error: BaseException) -> bool:
  """Returns whether JAX's runtime raised an error, as collectives do.

  Where an array is copied to the host, that may be a ValueError whose message
  begins with a status code, such as 'UNKNOWN: '.
  """
  return isinstance(error, jax.errors.JaxRuntimeError) or (
    isinstance(error, ValueError) and bool(_STATUS.match(str(error)))
  )


def bind(address: str, port: int) -> socket.socket:
  """Listens on a port of this machine.

  Args:
    address: Its address, for the error message.
    port: The port.

  Raises:
    UserError: The port is in use.
  """
  dual = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if dual else socket.AF_INET
  try:
    return socket.create_server(
      ('', port), family=family, dualstack_ipv6=dual, backlog=128
    )
  except OSError as error:
    if error.errno != errno.EADDRINUSE:
      raise UserError(
        f'Process 0 cannot listen on port {port} of {address} '
        f'({error.strerror or error}); use another '
        'distributed.coordinator_address.'
      ) from error
    raise UserError(
      f'Port {port} of {address} is in use by another run or program; use '
      'another distributed.coordinator_address (the heartbeat takes the next '
      'port, or distributed.heartbeat_port).'
    ) from error


class _Peer:
  """A connection that carries lines of JSON.

  Attributes:
    heard: Time of the last message.
  """

  def __init__(self, connection: socket.socket):
    self._connection = connection
    self._lines = connection.makefile('rb')
    self._sending = threading.Lock()
    self.heard = time.monotonic()

  def send(self, message: dict[str, Any]) -> None:
    """Sends a message; `receive` notices a broken connection."""
    with self._sending, contextlib.suppress(OSError):
      self._connection.sendall(json.dumps(message).encode() + b'\n')

  def receive(self) -> dict[str, Any] | None:
    """Waits for a message; returns None at the end of the connection."""
    try:
      line = self._lines.readline(_MAX_LINE)
      message = json.loads(line) if line else None
    except (OSError, ValueError):
      return None
    self.heard = time.monotonic()
    return message if isinstance(message, dict) else None
