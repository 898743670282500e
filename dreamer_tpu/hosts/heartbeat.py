"""Signs of life between the hosts of a run, and news for process 0.

A host that dies would leave the others waiting in a collective for ever. So
every process has a connection to process 0, over which each sends a line of
JSON a second. Whoever falls silent, or says that it failed, ends the run on
all hosts, and each says which host it was.
"""

import contextlib
import json
import os
import queue
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

_BEAT = 1.0  # Seconds between two signs of life.
_LONGEST = 1 << 20  # Bytes per line.
_JOIN = 60.0  # Seconds that the hosts have to connect.

# What hosts have to tell process 0.
_KINDS = ('episode', 'replay', 'evaluation')


class Pod:
  """The hosts of a run; a context manager around all that the run does.

  With one process there is nothing to watch, and no thread.

  Args:
    config: `distributed` of the configuration.
  """

  def __init__(self, config: Any):
    self.index = jax.process_index()
    self.count = jax.process_count()
    self._silence = config.silence
    self._timeout = config.timeout
    self._peers: dict[int, _Peer] = {}
    self._news: dict[str, queue.SimpleQueue] = {
      kind: queue.SimpleQueue() for kind in _KINDS
    }
    self._doing: dict[int, tuple[str, float]] = {}
    self._gone: set[int] = set()
    self._ended = threading.Event()
    self._dying = threading.Lock()
    if self.count == 1:
      return
    self._connect(config)
    threads = [
      threading.Thread(target=self._listen, args=(host,), daemon=True)
      for host in self._peers
    ]
    threads.append(threading.Thread(target=self._beat, daemon=True))
    for thread in threads:
      thread.start()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any):
    if self.count == 1:
      return
    if error is None:
      self._leave()
      return
    if isinstance(error, jax.errors.JaxRuntimeError):
      # Most likely the echo of another host's end, of which we shall hear.
      time.sleep(self._silence + 5 * _BEAT)
    text = ' '.join(str(error).split())[:500]
    if not isinstance(error, UserError):
      traceback.print_exception(error)
      text = f'{type(error).__name__}: {text}'
    self._fail(text)

  @contextlib.contextmanager
  def watch(self, what: str, limit: float) -> Iterator[None]:
    """Ends the run on all hosts if the body takes more than `limit` seconds.

    Args:
      what: For the message, as in 'environments'.
      limit: Seconds; with a single process there is no limit.
    """
    thread = threading.get_ident()
    self._doing[thread] = what, time.monotonic() + limit
    try:
      yield
    finally:
      del self._doing[thread]

  def tell(self, kind: str, value: Any) -> None:
    """Sends JSON to process 0, which finds it in `news`."""
    if self.index == 0:
      self._news[kind].put(value)
    else:
      self._peers[0].send({'kind': kind, 'value': value})

  def news(self, kind: str) -> list[Any]:
    """On process 0, what the hosts told since the last call."""
    return [self._news[kind].get() for _ in range(self._news[kind].qsize())]

  def gather(self, kind: str, value: Any) -> list[Any]:
    """On process 0 the values of all hosts, which all have to call this.

    On the others, which do not wait, their own value.
    """
    self.tell(kind, value)
    if self.index:
      return [value]
    try:
      return [
        self._news[kind].get(timeout=self._timeout) for _ in range(self.count)
      ]
    except queue.Empty:
      raise UserError(
        f'Not all of the {self.count} hosts told their {kind} figures within '
        f'distributed.timeout={self._timeout:g} s.'
      ) from None

  def _connect(self, config: Any) -> None:
    if self.index == 0:
      family = socket.AF_INET6 if socket.has_dualstack_ipv6() else None
      server = socket.create_server(
        ('', 0),
        family=family or socket.AF_INET,
        dualstack_ipv6=family is not None,
      )
      port = server.getsockname()[1]
      invitation = [join.own_address(config), port, secrets.token_hex(16)]
      join.same(json.dumps(invitation))
      with server:
        self._admit(server, invitation[2])
    else:
      address, port, token = json.loads(join.same(''))
      try:
        connection = socket.create_connection((address, port), _JOIN)
      except OSError as error:
        raise UserError(
          f'Process 0 cannot be reached at {address}:{port} ({error}); are all '
          'of its ports open to the other hosts?'
        ) from error
      connection.settimeout(None)
      peer = _Peer(connection)
      peer.send({'host': self.index, 'token': token})
      self._peers[0] = peer

  def _admit(self, server: socket.socket, token: str) -> None:
    server.settimeout(_JOIN)
    while len(self._peers) < self.count - 1:
      try:
        connection, _ = server.accept()
      except TimeoutError:
        missing = set(range(1, self.count)) - self._peers.keys()
        raise UserError(
          f'Hosts {sorted(missing)} did not connect within {_JOIN:g} s; are '
          'all ports of process 0 open to them?'
        ) from None
      connection.settimeout(_JOIN)
      peer = _Peer(connection)
      hello = peer.receive() or {}
      if secrets.compare_digest(str(hello.get('token')), token):
        connection.settimeout(None)
        self._peers[int(hello['host'])] = peer
      else:
        peer.close()

  def _listen(self, host: int) -> None:
    """Takes what a peer says, until it leaves."""
    peer = self._peers[host]
    while (line := peer.receive()) is not None:
      kind = line.get('kind')
      if kind == 'failed':
        self._end(line['host'], line['why'])
      elif kind == 'bye':
        self._gone.add(host)
        if self.index:  # Process 0 is the last one to leave.
          return
      elif kind in self._news:
        self._news[kind].put(line['value'])
    if host not in self._gone and not self._ended.is_set():
      self._end(host, 'its process ended or its connection broke')

  def _beat(self) -> None:
    while not self._ended.wait(_BEAT):
      now = time.monotonic()
      for what, deadline in list(self._doing.values()):
        if now > deadline:
          self._fail(f'{what} did not come back in time')
      for host, peer in self._peers.items():
        # Also to who is about to leave: it waits until process 0 does.
        peer.send({'kind': 'beat'})
        if host in self._gone:
          continue
        if now - peer.heard > self._silence:
          self._end(host, f'nothing was heard of it for {self._silence:g} s')

  def _fail(self, why: str) -> None:
    """This host cannot go on."""
    self._end(self.index, why)

  def _end(self, host: int, why: str) -> None:
    """Tells everybody whom this process reaches, and ends it."""
    self._dying.acquire()  # Never released: the first reason counts.
    for peer in self._peers.values():
      peer.send({'kind': 'failed', 'host': host, 'why': why})
    sys.stdout.flush()
    print(
      f'error: Host {host} of {self.count}: {why}. Host {self.index} ends too; '
      'start all of them again to go on from the last checkpoint.'
      if host != self.index
      else f'error: Host {host} of {self.count}, this one: {why}',
      file=sys.stderr,
      flush=True,
    )
    os._exit(1)

  def _leave(self) -> None:
    """Ends without alarm; process 0, on which the others rely, is the last."""
    if self.index:
      self._peers[0].send({'kind': 'bye'})
    deadline = time.monotonic() + self._timeout
    while len(self._gone) < len(self._peers) and time.monotonic() < deadline:
      time.sleep(0.01)
    self._ended.set()
    if self.index == 0:
      for peer in self._peers.values():
        peer.send({'kind': 'bye'})


class _Peer:
  """A connection that carries lines of JSON."""

  def __init__(self, connection: socket.socket):
    self._connection = connection
    self._lines = connection.makefile('rb')
    self._sending = threading.Lock()
    self.heard = time.monotonic()

  def send(self, message: dict[str, Any]) -> None:
    """Sends; a broken connection is noticed where it is read."""
    with self._sending, contextlib.suppress(OSError):
      self._connection.sendall(json.dumps(message).encode() + b'\n')

  def receive(self) -> dict[str, Any] | None:
    """The next line, or None at the end of the connection."""
    try:
      line = self._lines.readline(_LONGEST)
      message = json.loads(line) if line else None
    except (OSError, ValueError):
      return None
    self.heard = time.monotonic()
    return message

  def close(self) -> None:
    self._connection.close()
