"""Heartbeats between the hosts of a run.

A host that dies would leave the others waiting in a collective forever. So
every process is connected to process 0, and both ends send a line of JSON each
second. A host that falls silent or reports a failure ends the run on all
hosts, and each of them prints the name of that host.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, Self

import jax

from dreamer_tpu.errors import UserError
from dreamer_tpu.hosts import join
from dreamer_tpu.hosts.sync import HostSync

_INTERVAL = 1.0  # Seconds between two heartbeats.
_MAX_LINE = 1 << 20  # Bytes.
_CONNECT_TIMEOUT = 60.0  # Seconds.


class Heartbeat:
  """Watches the hosts of a run; a context manager around the whole run.

  With one process there is nothing to watch, and no thread.

  Args:
    config: The `distributed` part of the configuration.
    sync: Exchange between the hosts.
  """

  def __init__(self, config: Any, sync: HostSync):
    self._index = jax.process_index()
    self._count = jax.process_count()
    self._config = config
    self._sync = sync
    self._peers: dict[int, _Peer] = {}
    self._watched: dict[int, tuple[str, float]] = {}
    self._left: set[int] = set()
    self._stopped = threading.Event()
    self._failing = threading.Lock()

  def __enter__(self) -> Self:
    if self._count == 1:
      return self
    if self._index:
      self._connect()
    else:
      self._accept_all()
    threads = [
      threading.Thread(target=self._listen, args=(host,), daemon=True)
      for host in self._peers
    ]
    threads.append(threading.Thread(target=self._beat, daemon=True))
    for thread in threads:
      thread.start()
    return self

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any):
    if self._count == 1:
      return
    if error is None:
      self._leave()
      return
    if isinstance(error, jax.errors.JaxRuntimeError):
      # Probably caused by the end of another host, which we will hear about.
      time.sleep(self._config.silence + 5 * _INTERVAL)
    text = ' '.join(str(error).split())[:500]
    if not isinstance(error, UserError):
      traceback.print_exception(error)
      text = f'{type(error).__name__}: {text}'
    self._end(self._index, text)

  @contextlib.contextmanager
  def watch(self, name: str, limit: float) -> Iterator[None]:
    """Ends the run on all hosts if the body exceeds a time limit.

    Args:
      name: Name of the body for the error message.
      limit: Seconds; with one process there is no limit.
    """
    thread = threading.get_ident()
    message = f'{name} took more than {limit:g} s'
    self._watched[thread] = message, time.monotonic() + limit
    try:
      yield
    finally:
      del self._watched[thread]

  def _connect(self) -> None:
    """Connects to process 0."""
    address, port, token = self._sync.broadcast(None)
    try:
      connection = socket.create_connection((address, port), _CONNECT_TIMEOUT)
    except OSError as error:
      raise UserError(
        f'Cannot reach process 0 at {address}:{port} ({error}); open all of '
        'its ports to the other hosts.'
      ) from error
    connection.settimeout(None)
    self._peers[0] = peer = _Peer(connection)
    peer.send({'host': self._index, 'token': token})

  def _accept_all(self) -> None:
    """Accepts the connections of all other processes, on process 0."""
    dual = socket.has_dualstack_ipv6()
    with socket.create_server(
      ('', 0),
      family=socket.AF_INET6 if dual else socket.AF_INET,
      dualstack_ipv6=dual,
    ) as server:
      server.settimeout(_CONNECT_TIMEOUT)
      token = secrets.token_hex(16)
      port = server.getsockname()[1]
      self._sync.broadcast([join.own_address(self._config), port, token])
      while missing := set(range(1, self._count)) - self._peers.keys():
        try:
          connection, _ = server.accept()
        except TimeoutError:
          raise UserError(
            f'Hosts {sorted(missing)} did not connect within '
            f'{_CONNECT_TIMEOUT:g} s; open all ports of process 0 to them.'
          ) from None
        connection.settimeout(_CONNECT_TIMEOUT)
        peer = _Peer(connection)
        hello = peer.receive() or {}
        if secrets.compare_digest(str(hello.get('token')), token):
          connection.settimeout(None)
          self._peers[int(hello['host'])] = peer
        else:
          connection.close()

  def _listen(self, host: int) -> None:
    """Reads the messages of a peer until it leaves."""
    peer = self._peers[host]
    while (message := peer.receive()) is not None:
      kind = message.get('kind')
      if kind == 'failed':
        self._end(message['host'], message['reason'])
      elif kind == 'left':
        self._left.add(host)
        if self._index:  # Process 0 is the last one to leave.
          return
    if host not in self._left and not self._stopped.is_set():
      self._end(host, 'its process ended or its connection broke')

  def _beat(self) -> None:
    """Sends heartbeats and checks those of the peers."""
    silence = self._config.silence
    while not self._stopped.wait(_INTERVAL):
      now = time.monotonic()
      for message, deadline in list(self._watched.values()):
        if now > deadline:
          self._end(self._index, message)
      for host, peer in self._peers.items():
        # A host that has left still waits for process 0, so it gets them too.
        peer.send({'kind': 'beat'})
        if host not in self._left and now - peer.heard > silence:
          self._end(host, f'no heartbeat for {silence:g} s')

  def _end(self, host: int, reason: str) -> None:
    """Reports the failure of a host to all peers and ends this process."""
    self._failing.acquire()  # Never released: the first reason counts.
    for peer in self._peers.values():
      peer.send({'kind': 'failed', 'host': host, 'reason': reason})
    this = ', this one' if host == self._index else ''
    text = f'error: Host {host} of {self._count}{this}: {reason.rstrip(".")}.'
    if not this:
      text += (
        f' Host {self._index} stops too; start all hosts again to resume from '
        'the last checkpoint.'
      )
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
    os._exit(1)

  def _leave(self) -> None:
    """Disconnects; process 0 waits for all others and leaves last."""
    if self._index:
      self._peers[0].send({'kind': 'left'})
    deadline = time.monotonic() + self._config.timeout
    while len(self._left) < len(self._peers) and time.monotonic() < deadline:
      time.sleep(0.01)
    self._stopped.set()
    if self._index == 0:
      for peer in self._peers.values():
        peer.send({'kind': 'left'})


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
    return message
