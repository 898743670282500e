"""The pace of acting and learning, without threads and processes."""

import threading

import pytest

from configs import base
from dreamer_tpu.hosts.sync import Consensus, HostSync
from dreamer_tpu.run.progress import Progress

ENVS = 2


class Clock(HostSync):
  """One host, with a clock that tests set."""

  now = 0.0

  def agree(self, steps, ready, stop):
    return Consensus(steps, ready, stop, self.now)


def make(replay=(), saved=None, **run):
  config = base.base()
  config.batch_size, config.batch_length = 4, 16
  config.run.update(dict(train_ratio=32, log_every=10, steps=1000, **run))
  return Progress(config, Clock(), replay, ENVS, saved or {})


def act(progress, steps=1):
  for _ in range(steps):
    assert not progress.should_wait()
    progress.add_steps()


def test_acting_waits_for_other_hosts_when_the_replay_is_filled():
  replay = []
  progress = make(replay)
  assert not progress.should_wait()
  replay += range(64)
  assert progress.should_wait()
  progress.agree(stop=False)
  assert progress.ready
  assert not progress.should_wait()


def test_acting_waits_for_pending_updates():
  progress = make(range(64))
  progress.agree(stop=False)
  assert progress.pending == 1
  # Each step of two environments makes one update due.
  act(progress, 3)
  assert progress.should_wait()
  assert progress.pending == 1
  progress.agree(stop=False)
  assert (progress.step, progress.pending) == (6, 4)
  assert progress.updates_due() == 4
  assert progress.updates_due(limit=1) == 1
  progress.add_update()
  assert not progress.should_wait()
  assert (progress.update, progress.pending) == (1, 3)


def test_the_learner_is_idle_without_pending_updates():
  progress = make(range(64))
  progress.agree(stop=False)
  assert not progress.idle
  progress.add_update()
  assert progress.idle
  progress.add_steps()
  assert not progress.idle
  progress.agree(stop=False)
  assert not progress.idle


def test_the_first_update_is_waited_for():
  progress = make(range(64))
  progress.pending = 5
  progress.add_update()
  assert progress.caught_up
  progress.add_update()
  assert not progress.caught_up
  progress.pending = 1
  progress.add_update()
  assert progress.caught_up


def test_waiting_ends_with_an_update():
  progress = make(range(64))
  progress.pending = 1
  timer = threading.Timer(0.02, progress.add_update)
  timer.start()
  while progress.pending:
    progress.wait(lambda: not progress.pending)
  timer.join()
  assert progress.update == 1


def test_events_are_due_by_the_shared_clock():
  progress = make(range(64), report_every=20, save_every=0)
  progress.add_steps()
  due = []
  for now in range(0, 50, 5):
    progress._sync.now = now
    progress.agree(stop=False)
    due.append([progress.due(x) for x in ('log', 'report', 'save')])
    progress.add_steps()
  log, report, save = (list(x) for x in zip(*due, strict=True))
  assert [5 * i for i, x in enumerate(log) if x] == [0, 10, 20, 30, 40]
  assert [5 * i for i, x in enumerate(report) if x] == [20, 40]
  assert not any(save)


def test_nothing_new_is_not_logged():
  progress = make(range(64))
  progress.agree(stop=False)
  assert not progress.due('log')
  progress.add_steps()
  progress.agree(stop=False)
  assert progress.due('log')


@pytest.mark.parametrize('stop', [True, False])
def test_the_end(stop):
  progress = make(
    range(64), saved={'step': 998, 'ratio': make()._ratio.state()}
  )
  assert progress.running
  if not stop:
    progress.add_steps()
  progress.agree(stop=stop)
  assert not progress.running
  assert progress.exit_code == (75 if stop else 0)


def test_offline_runs_only_learn():
  progress = make(range(64), updates=2)
  progress.agree(stop=False)
  assert progress.should_wait()
  for update in range(2):
    assert progress.running
    assert progress.updates_due() == 1
    progress.add_update()
    assert progress.update == update + 1
  assert progress.done
  assert progress.state()['owed'] == 0
