"""Breaks runs of main.py at random, and checks that nothing is lost.

python -m tests.run.campaign --faults=300 --seed=0 --logdir=/tmp/campaign

Prints a line per fault and a table, and exits with 1 if anything was lost. The
same command continues a run until it has had RUN_FAULTS faults and ends by
itself. After each restart its newest commit must be there, intact and equal to
what was logged; see `tests.helpers.ledger`.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import shutil
import signal
import sys
import time

from tests.helpers import ledger, network
from tests.helpers.disk import Disk
from tests.helpers.life import HANG, SILENCE, Life, Standstill

RUN_FAULTS = 40
DISK = '128m'
FOREVER = 10**9
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
LOGS = ('metrics.jsonl', 'scores.jsonl')
KINDS = (
  'kill', 'stop', 'exception', 'hang', 'full', 'removed', 'clock', 'cut',
  'death', 'signal',
)  # fmt: skip


class Row:
  """Counts of a kind of fault."""

  def __init__(self):
    self.number = self.lost = self.standstills = 0
    self.longest = 0.0


class Campaign:
  """Breaks runs, one after the other, in a folder.

  Args:
    folder: Folder of all runs.
    seed: Seed of all choices.
    hosts: Numbers of processes to choose from for each run.
    kinds: Kinds of faults.
    faults: Number of faults.

  Attributes:
    rows: Counts by kind.
    failures: Descriptions of everything that was lost.
  """

  def __init__(self, folder, seed, hosts, kinds, faults):
    self._folder = folder
    self._rng = random.Random(seed)
    self._hosts = hosts
    self._deck = collections.Counter(
      kinds[i % len(kinds)] for i in range(faults)
    )
    self._runs = 0
    self.rows = {kind: Row() for kind in kinds}
    self.failures = []

  def run(self):
    """Strikes until all faults have happened."""
    while self._deck.total():
      self._runs += 1
      hosts = self._rng.choice(self._hosts)
      disk = Disk(self._folder / f'run{self._runs}', DISK)
      self._break(Run(disk, hosts, self._rng))
      disk.release()

  def _break(self, run):
    """Strikes one run, and lets it come to its end."""
    try:
      run.begin()
      for _ in range(min(RUN_FAULTS, self._deck.total())):
        kind = self._draw(run)
        if kind is None:
          break
        self._deck[kind] -= 1
        self._strike(run, kind)
      run.finish()
      print(f'run {self._runs} of {run.hosts}: done', flush=True)
    except Exception as error:  # Also of files that cannot be read.
      self._fail(run, error)
    finally:
      run.close()

  def _draw(self, run):
    choices = [kind for kind in self._deck if run.can(kind)]
    weights = [self._deck[kind] for kind in choices]
    if not any(weights):
      return None
    return self._rng.choices(choices, weights)[0]

  def _strike(self, run, kind):
    row = self.rows[kind]
    row.number += 1
    story = run.strike(kind)
    row.longest = max(row.longest, run.recovery)
    number = sum(x.number for x in self.rows.values())
    print(
      f'{number:4d} {kind:9s} {story}: on in {run.recovery:.1f} s, newest '
      f'{run.newest}',
      flush=True,
    )

  def _fail(self, run, error):
    row = self.rows.setdefault(run.struck, Row())
    row.standstills += isinstance(error, Standstill)
    row.lost += not isinstance(error, Standstill)
    text = f'{run.struck} in {run.life}: {type(error).__name__}: {error}'
    self.failures.append(text)
    kept = self._folder / f'failed{len(self.failures)}'
    shutil.copytree(
      run.disk.path, kept, ignore=shutil.ignore_patterns('filler')
    )
    (kept / 'fault').write_text(text)
    text = text if len(text) < 500 else f'{text[:200]} ... {text[-300:]}'
    print(f'FAULT {text}; kept in {kept}', flush=True)

  def table(self):
    """Returns the table of results."""
    lines = [f'{"kind":10s}{"faults":>8}{"lost":>6}{"still":>7}{"longest":>9}']
    lines += [
      f'{kind:10s}{x.number:8d}{x.lost:6d}{x.standstills:7d}{x.longest:8.1f}s'
      for kind, x in self.rows.items()
    ]
    return '\n'.join(lines)


class Run:
  """A run, its faults and its restarts.

  Args:
    disk: Disk of its logdir and its game.
    hosts: Number of processes.
    rng: Random numbers of all choices.

  Attributes:
    life: The processes, None between two starts.
    newest: Newest checkpoint that was seen.
    recovery: Seconds from the last fault to the next updates.
    struck: Kind of the last fault.
  """

  def __init__(self, disk, hosts, rng):
    self.disk, self.hosts = disk, hosts
    self.life = None
    self.newest, self.recovery, self.struck = -1, 0.0, 'start'
    self._logdir = disk.path / 'logdir'
    self._game = disk.path / 'game'
    self._game.mkdir(parents=True)
    self._rng = rng
    self._expected = {}
    self._context = contextlib.ExitStack()
    self._net = None
    if hosts > 1 and network.AVAILABLE:
      self._net = self._context.enter_context(network.Network(hosts))

  def begin(self):
    """Starts the run."""
    self._start()
    self._up()

  def can(self, kind):
    """Returns whether a kind of fault is possible now."""
    return {
      'full': self.disk.own,
      'cut': self._net is not None,
      'death': self.life.stepping == 'workers',
    }.get(kind, True)

  def strike(self, kind):
    """Makes a fault, and checks what follows.

    Returns:
      The story in a few words.
    """
    self.struck, self._begin = kind, time.monotonic()
    life, newest = self.life, self.life.newest
    assert newest >= self.newest, f'step {self.newest} is gone'
    self.newest = newest
    story = getattr(self, f'_{kind}')()
    if not self.life.running:
      self._inspect()
      self._start()
      self._up()
    else:
      self.life.get_on()
    self.recovery = time.monotonic() - self._begin
    return f'{story} in {life}'

  def finish(self):
    """Lets the run come to its end."""
    self._terminate(signal.SIGTERM)
    self._start(steps=self.newest + 100)
    self._expect(self.life.end(), {0})
    self._inspect()
    step, _ = self.life.progress
    assert step == self.newest >= self.life.steps, (step, self.newest)

  def close(self):
    """Ends all processes."""
    if self.life:
      self.life.kill()
    self._context.close()

  def _start(self, steps=FOREVER):
    script = self._rng.choice(('train', 'train_eval', 'parallel'))
    stepping = self._rng.choice(('serial', 'workers'))
    self.life = Life(
      self._logdir, self.hosts, script, stepping, self._game, self._net, steps
    )

  def _up(self):
    """Waits until a started run makes updates, and checks what it restored."""
    self.life.get_on()
    if self.newest >= 0:
      text = f'Restoring the checkpoint of step {self.newest:,}.'
      assert self.life.says(text), (text, self.life.all[0].lines[:4])
    for name, lines in self._expected.items():
      content = (self._logdir / name).read_bytes()
      assert content.startswith(b''.join(lines)), f'{name} lost lines'

  def _inspect(self, intact=None):
    """Checks the files of a run that has ended.

    Args:
      intact: Newest checkpoint that is intact, by default the newest.
    """
    steps = ledger.committed(self._logdir)
    if intact is None:
      intact = max(steps, default=-1)
      assert intact >= self.newest, f'step {self.newest} is gone: {steps}'
    self.newest = intact
    checkpoint, step = None, 0
    if steps:
      checkpoint = ledger.read_checkpoint(self._logdir, intact)
      ledger.check_checkpoint(checkpoint)
      step = checkpoint.step
    self._expected = {}
    checks = (ledger.check_metrics, ledger.check_scores)
    for name, check in zip(LOGS, checks, strict=True):
      path = self._logdir / name
      content = path.read_bytes() if path.exists() else b''
      lines = self._expected[name] = ledger.upto(content, step)
      check(ledger.parse(lines), checkpoint)
      check(ledger.parse(ledger.upto(content, FOREVER)))

  def _expect(self, ended, *codes, text=''):
    """Checks exit codes of hosts, and the last lines of those that failed."""
    codes = codes * self.hosts if len(codes) == 1 else codes
    for each, allowed in zip(ended, codes, strict=True):
      assert each.code in allowed, (each.code, allowed, each.err[-5:])
      if each.code == 1:
        assert each.err[-1].startswith('error: '), each.err[-5:]
        assert len(each.err) < 30, each.err
    if text:
      assert any(text in line for x in ended for line in x.err), ended

  def _victim(self):
    host = self._rng.randrange(self.hosts)
    return host, self.life.pids[host]

  def _others(self, host, own):
    """Returns the exit codes if one host ends and the others follow."""
    return [own if i == host else {1} for i in range(self.hosts)]

  # Kinds of faults: each returns its story.

  def _kill(self):
    moment = self._rng.choice(('at once', 'in a save', 'and while starting'))
    if moment == 'in a save':
      self.life.wait(self.life.saving, 'save')
      time.sleep(self._rng.uniform(0, 0.2))
    host, pid = self._victim()
    os.kill(pid, signal.SIGKILL)
    self._expect(self.life.end(), *self._others(host, {-signal.SIGKILL}))
    if moment == 'and while starting':
      self._inspect()
      self._start()
      time.sleep(self._rng.uniform(0, 12))
      for pid in self.life.pids:
        os.kill(pid, signal.SIGKILL)
      self._expect(self.life.end(), {-signal.SIGKILL})
    return f'of host {host} {moment}'

  def _signal(self):
    number = self._rng.choice((*STOPS, signal.SIGUSR1))
    host, pid = self._victim()
    if number == signal.SIGUSR1:
      os.kill(pid, number)
      self.life.commit()
    else:
      self._terminate(number)
    return f'{number.name} to host {host}'

  def _terminate(self, number):
    _, pid = self._victim()
    begin = time.monotonic()
    os.kill(pid, number)
    self._expect(self.life.end(), {75})
    self._inspect()
    logged, saved = self.life.progress[0], self.newest
    assert saved >= logged, f'saved step {saved} of {logged}'
    return time.monotonic() - begin

  def _stop(self):
    host, pid = self._victim()
    long = self.hosts > 1 and self._rng.random() < 0.5
    seconds = self._rng.uniform(0.5, SILENCE - 3)
    if long:
      seconds = SILENCE + 4
    elif self.hosts == 1:
      seconds *= 3
    send = self._rng.choice((os.kill, os.killpg))
    send(pid, signal.SIGSTOP)
    time.sleep(seconds)
    send(pid, signal.SIGCONT)
    if long:
      self._expect(self.life.end(), {1})
    return f'of host {host} ({send.__name__}) for {seconds:.1f} s'

  def _exception(self):
    host, _ = self._victim()
    if self._rng.random() < 0.7:
      self._game_fault('raise', host)
      return f'of host {host}'
    fault = self._game / f'broken.{host}'
    fault.touch()
    self._expect(self.life.end(), {1}, text='the game is broken')
    fault.unlink()
    if self.hosts == 1:
      self._inspect()
      assert self.newest >= self.life.progress[0], 'nothing saved at the end'
    return f'of host {host}, for good'

  def _hang(self):
    host, _ = self._victim()
    self._game_fault('hang', host)
    if self._rng.random() < 0.7:
      return f'of host {host}'
    time.sleep(self._rng.uniform(0, HANG))
    seconds = self._terminate(signal.SIGTERM)
    assert seconds < 60, f'{seconds:.0f} s from the signal to the end'
    return f'of host {host}, then SIGTERM'

  def _game_fault(self, kind, host):
    """Asks the first environment that sees it for a fault."""
    path = self._game / f'{kind}.{host}'
    path.touch()
    self.life.wait(lambda: not path.exists(), f'environment that takes {kind}')

  def _death(self):
    host, pid = self._victim()
    workers = self.life.workers(pid)
    os.kill(self._rng.choice(workers), signal.SIGKILL)
    return f'of one of {len(workers)} workers of host {host}'

  def _clock(self):
    host, _ = self._victim()
    seconds = self._rng.choice((-(10**6), -3600, -5, 5, 3600, 10**6, 10**8))
    (self._game / f'clock.{host}').write_text(str(seconds))
    self.life.commit()
    return f'of host {host} by {seconds} s'

  def _cut(self):
    host = self._rng.randrange(self.hosts)
    long = self._rng.random() < 0.5
    # TCP tries again after pauses that double, so a cut lasts twice as long.
    seconds = SILENCE + 4 if long else self._rng.uniform(0.5, SILENCE / 4)
    self._net.connect(host, up=False)
    time.sleep(seconds)
    if long:
      self._expect(self.life.end(), {1})
    self._net.connect(host)
    return f'link of host {host} for {seconds:.1f} s'

  def _full(self):
    self.disk.fill()
    time.sleep(self._rng.uniform(3, 8))
    end = self._rng.choice(('emptied', 'emptied', 'killed', 'SIGTERM'))
    if end == 'killed':
      for pid in self.life.pids:
        os.kill(pid, signal.SIGKILL)
      self._expect(self.life.end(), {-signal.SIGKILL})
    if end == 'SIGTERM':
      os.kill(self.life.pids[0], signal.SIGTERM)
      self._expect(self.life.end(), {1, 75})
    self.disk.empty()
    if end == 'emptied':
      self._begin = time.monotonic()
      self.life.commit()
    return f'disk, {end}'

  def _removed(self):
    thing = self._rng.choice(
      ('log', 'newest', 'folder', 'replay', 'newest, then killed')
    )
    checkpoints = self._logdir / 'checkpoints'
    self.life.commit()
    previous, newest = ledger.committed(self._logdir)[-2:]
    if thing == 'log':
      self._move_log()
    elif thing == 'replay':
      self._rng.choice(list(self._logdir.glob('replay/*/steps*'))).unlink()
      self.life.commit()
    elif thing == 'folder':
      step = self._rng.choice((previous, newest))
      shutil.rmtree(checkpoints / str(step), ignore_errors=True)
      self.newest = -1
      self.life.commit()
    elif thing == 'newest':
      self._remove_arrays(newest)
      self.life.commit()
    else:
      for pid in self.life.pids:
        os.kill(pid, signal.SIGKILL)
      self._expect(self.life.end(), {-signal.SIGKILL})
      previous, newest = ledger.committed(self._logdir)[-2:]
      self._remove_arrays(newest)
      self._inspect(previous)
      self._start()
      self._up()
      assert (checkpoints / f'{newest}.damaged').exists(), 'not quarantined'
    return thing

  def _remove_arrays(self, step):
    folder = self._logdir / 'checkpoints' / str(step) / 'agent'
    names = sorted(x for x in folder.rglob('*') if x.is_file())
    self._rng.choice(names).unlink()

  def _move_log(self):
    """Moves a log away, and back once the run has ended."""
    path = self._logdir / self._rng.choice(LOGS)
    moved = path.rename(self.disk.path / 'moved')
    self.life.commit()
    os.kill(self.life.pids[0], signal.SIGTERM)
    self._expect(self.life.end(), {75})
    later = path.read_bytes() if path.exists() else b''
    path.write_bytes(moved.read_bytes() + later)
    moved.unlink()


def main():
  """Runs a campaign; returns 1 if anything was lost."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--faults', type=int, default=300)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--logdir', type=pathlib.Path, required=True)
  parser.add_argument('--hosts', default='1,2', help='processes of a run')
  parser.add_argument('--kinds', default=','.join(KINDS))
  args = parser.parse_args()
  hosts = [int(x) for x in args.hosts.split(',')]
  kinds = possible(args.kinds.split(','), hosts)
  shutil.rmtree(args.logdir, ignore_errors=True)
  begin = time.monotonic()
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Leaves nothing.
  signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Runs ignore it under nohup.
  campaign = Campaign(args.logdir, args.seed, hosts, kinds, args.faults)
  campaign.run()
  print(campaign.table())
  print(f'{len(campaign.failures)} lost, {time.monotonic() - begin:.0f} s')
  return int(bool(campaign.failures))


def possible(kinds, hosts):
  """Returns the kinds that this machine can make; prints the others."""
  wanting = {
    'full': '' if not os.geteuid() else 'needs root',
    'cut': ''
    if network.AVAILABLE and max(hosts) > 1
    else 'needs root, iproute2 and two processes',
  }
  for kind, reason in wanting.items():
    if kind in kinds and reason:
      print(f'no {kind}: {reason}')
  return [kind for kind in kinds if not wanting.get(kind)]


if __name__ == '__main__':
  sys.exit(main())
