"""Processes of main.py that play the game of ledger_env.py until they end."""

import contextlib
import os
import signal
import subprocess
import time

from tests.helpers import ledger, pods, program

LIMIT = 400  # Seconds to get on, on a busy machine.
SILENCE = 6
HANG = 5  # Seconds until an environment counts as hung.


class Standstill(Exception):
  """A run makes no progress, or does not end."""


class Life:
  """The processes of a run between two starts of them.

  Args:
    logdir: Directory of the run.
    hosts: Number of processes.
    script: Script of main.py.
    stepping: As `env.stepping`.
    game: Folder of ledger_env.py.
    net: Network of the hosts, or None.
    steps: End of the run.
  """

  def __init__(self, logdir, hosts, script, stepping, game, net, steps):
    self.stepping, self.steps = stepping, steps
    self._name = f'{script}, {stepping}, {hosts}'
    self._logdir = logdir
    self._context = contextlib.ExitStack()
    args = (
      '--config=configs/gym.py:debug',
      '--config.task=gym_tests.helpers.ledger_env:Ledger-v0',
      f'--config.script={script}',
      f'--config.env.stepping={stepping}',
      f'--config.env.timeout={HANG}',
      f'--config.distributed.silence={SILENCE}',
      '--config.distributed.timeout=60',
      '--config.checkpoint.timeout=20',
      '--config.replay.size=1e6',
      '--config.metrics.outputs=log,jsonl',
      '--config.run.eval_envs=1',
      '--config.run.log_every=-1',
      '--config.run.save_every=2',
      f'--config.run.report_every={5 if script == "train_eval" else 0}',
      f'--config.run.steps={steps}',
    )
    env = dict(GAME=str(game), GAME_SLEEP='0.02')
    if hosts == 1:
      self.all = [program.Program(logdir, *args, **env)]
    else:
      if net:
        env['ADDRESS'] = net.address(0)
      prefix = net.prefix if net else lambda host: []
      started = pods.start(logdir, hosts, 1, *args, prefix=prefix, **env)
      self.all = self._context.enter_context(started)

  def __str__(self):
    return self._name

  @property
  def pids(self):
    """Processes of main.py by host; each leads a session of its own."""
    return [each.process.pid for each in self.all]

  @property
  def running(self):
    """True until the first process has ended."""
    return all(each.process.poll() is None for each in self.all)

  @property
  def newest(self):
    """The newest committed step, -1 before the first."""
    return max(ledger.committed(self._logdir), default=-1)

  @property
  def progress(self):
    """The last (step, update) in metrics.jsonl."""
    return ledger.last_log(self._logdir / 'metrics.jsonl')

  def says(self, text):
    """Returns whether process 0 has printed a text."""
    return any(text in line for line in list(self.all[0].lines))

  def saving(self):
    """Returns whether a save is being written."""
    folder = self._logdir / 'checkpoints'
    return any('.orbax-checkpoint-tmp' in x.name for x in folder.iterdir())

  def workers(self, pid):
    """Returns the environments' processes of a process."""
    return [
      int(line.split()[0]) for line in _session(pid) if 'spawn_main' in line
    ]

  def wait(self, condition, name):
    """Waits for a condition of a run that must go on."""
    deadline = time.monotonic() + LIMIT
    while not condition():
      if not self.running:
        ended = [(each.code, each.out, each.err) for each in self.end()]
        raise AssertionError(f'the run ended before {name}: {ended}')
      if time.monotonic() > deadline:
        raise Standstill(f'no {name} in {LIMIT} s: {self._state()}')
      time.sleep(0.05)

  def get_on(self, updates=2):
    """Waits for updates."""
    last = self.progress[1] + updates
    self.wait(lambda: self.progress[1] >= last, 'update')

  def commit(self):
    """Waits for a save that has begun after this call."""
    for _ in range(2):
      newest = self.newest
      self.wait(lambda newest=newest: self.newest > newest, 'commit')

  def end(self):
    """Waits for the end of all processes and of their children."""
    deadline = time.monotonic() + LIMIT
    while any(each.process.poll() is None for each in self.all):
      if time.monotonic() > deadline:
        raise Standstill(f'no end in {LIMIT} s: {self._state()}')
      time.sleep(0.05)
    deadline = time.monotonic() + 15
    while left := [line for pid in self.pids for line in _session(pid)]:
      if time.monotonic() > deadline:
        raise Standstill(f'left behind: {left}')
      time.sleep(0.1)
    return [each.end() for each in self.all]

  def kill(self):
    """Ends everything."""
    for pid in self.pids:
      for line in _session(pid):
        with contextlib.suppress(ProcessLookupError):
          os.kill(int(line.split()[0]), signal.SIGKILL)
    self._context.close()
    for each in self.all:
      each.end()

  def _state(self):
    return [
      (each.process.poll(), each.lines[-3:], each._err[-3:])
      for each in self.all
    ]


def _session(session):
  """Returns 'PID STATE COMMAND' of each living process of a session."""
  command = ['ps', '-ww', '-o', 'pid=,stat=,args=', '-s', str(session)]
  found = subprocess.run(command, capture_output=True, text=True, check=False)
  return [
    line.strip()
    for line in found.stdout.splitlines()
    if not line.split()[1].startswith('Z')
  ]
