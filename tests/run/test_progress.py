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

  def agree(self, steps, ready, stop, save=False):
    return Consensus(steps, ready, stop, save, self.now)


def make_config(**run):
  config = base.base()
  config.batch_size, config.batch_length = 4, 16
  default = dict(train_ratio=32, log_every=10, steps=1000, envs=ENVS)
  config.run.update({**default, **run})
  return config


def make(replay=(), saved=None, **run):
  return Progress(make_config(**run), Clock(), replay, ENVS, saved or {})


def state(progress, **run):
  """Returns the state as it is saved, with the configuration."""
  return {**progress.state(), 'config': make_config(**run).to_dict()}


def act(progress, steps=1):
  for _ in range(steps):
    assert not progress.should_wait()
    progress.add_steps()


def test_acting_waits_for_other_hosts_when_the_replay_is_filled():
  replay = []
  progress = make(replay)
  assert not progress.should_wait()
  replay += range(64)
  progress.add_steps()
  assert progress.should_wait()
  progress.agree(stop=False)
  assert progress.ready
  assert not progress.should_wait()


def test_the_replay_is_filled_by_steps_that_are_known():
  """The actor stores a step and then counts it, maybe in another thread."""
  replay = []
  progress = make(replay)
  replay += range(64)
  progress.agree(stop=False)
  assert not progress.ready
  progress.add_steps()
  progress.agree(stop=False)
  assert progress.ready
  assert (progress.step, progress.pending) == (ENVS, 1)


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
  assert progress.updates_due(limit=9) == 4
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
  for now in range(50):
    progress._sync.now = now
    progress.agree(stop=False)
    due.append([progress.due(x) for x in ('log', 'report', 'save')])
    progress.add_steps()
  log, report, save = (list(x) for x in zip(*due, strict=True))
  # The two calls after an event belong to it.
  assert [i for i, x in enumerate(log) if x] == [0, 12, 24, 36, 48]
  assert [i for i, x in enumerate(report) if x] == [20, 42]
  assert not any(save)


def test_a_requested_save_is_due_until_it_is_made():
  progress = make(save_every=0)
  progress.agree(stop=False)
  assert not progress.due('save')
  progress.agree(stop=False, save=True)
  for _ in range(3):
    progress.agree(stop=False)
    assert progress.due('save')
  progress.asked_to_save = False
  assert not progress.due('save')


def test_nothing_new_is_not_logged():
  progress = make(range(64))
  progress.agree(stop=False)
  assert not progress.due('log')
  progress.add_steps()
  progress.agree(stop=False)
  assert progress.due('log')


def test_owed_updates_are_made_after_a_resume():
  progress = make(range(64))
  progress.agree(stop=False)
  act(progress, 3)
  progress.agree(stop=False)
  assert progress.pending == 4
  assert make(range(64), state(progress)).pending == 4


@pytest.mark.parametrize(
  'changed', [dict(train_ratio=16), dict(train_ratio=64), dict(envs=1)]
)
def test_no_burst_at_another_pace(changed):
  progress = make(range(64), train_ratio=320)
  progress.agree(stop=False)
  act(progress)
  progress.agree(stop=False)
  assert progress.pending == 11
  saved = state(progress, train_ratio=320)
  assert make(range(64), saved, **{'train_ratio': 320, **changed}).pending == 0


def test_no_burst_after_a_pause_or_while_filling():
  progress = make(range(64))
  progress.agree(stop=False)
  progress.add_update()
  paused = make(range(64), state(progress), train_ratio=0)
  paused.ready = True
  act(paused, 100)
  paused.agree(stop=False)
  assert (paused.step, paused.pending) == (200, 0)
  replay = []
  resumed = make(replay, state(paused, train_ratio=0))
  act(resumed, 100)
  resumed.agree(stop=False)
  due = [resumed.pending]
  replay += range(64)
  for _ in range(4):
    resumed.add_steps()
    resumed.agree(stop=False)
    due.append(resumed.pending)
    resumed.pending = 0
  assert due == [0, 1, 1, 1, 1]


@pytest.mark.parametrize('stop', [True, False])
def test_the_end(stop):
  progress = make(range(64), saved={**state(make()), 'step': 998})
  assert progress.running
  if not stop:
    progress.add_steps()
  progress.agree(stop=stop)
  if not stop:
    # The last steps have their updates as well.
    assert progress.running
    assert progress.should_wait()
    assert not progress.due('log')
    progress.add_update()
  assert not progress.running
  assert progress.exit_code == (75 if stop else 0)


@pytest.mark.parametrize('unroll', [1, 3, 50])
def test_many_steps_at_a_time_have_the_same_updates(unroll):
  replay = []
  progress = Progress(make_config(), Clock(), replay, ENVS, {}, unroll=unroll)
  begin, calls = None, []
  while progress.running:
    if not progress.should_wait():
      replay += range(unroll * ENVS)
      progress.add_steps()
    progress.agree(stop=False)
    due = progress.updates_due(progress.most_pending)
    begin = progress.step if due and begin is None else begin
    calls.append(due)
    for _ in range(due):
      progress.add_update()
  step = unroll * ENVS
  assert progress.step == -(-1000 // step) * step
  # One for each two steps, and the first.
  assert progress.update == 1 + (progress.step - begin) // 2
  assert max(calls) <= 3
  assert begin == -(-64 // step) * step


def test_offline_runs_only_learn():
  progress = make(range(64), updates=2)
  progress.agree(stop=False)
  assert progress.should_wait()
  for update in range(2):
    assert progress.running
    assert progress.updates_due(limit=9) == 1
    progress.add_update()
    assert progress.update == update + 1
  assert progress.done
  assert progress.state()['owed'] == 0


def test_nothing_is_logged_at_the_step_of_a_save_any_more():
  """A resume would keep it, and what it tells of would happen twice."""
  progress = make(range(64), log_every=-1)
  assert progress.add_steps() == ENVS
  progress.agree(stop=False)
  progress.saved = progress.step
  progress.add_update()
  assert not progress.due('log')
  # An episode that ends now belongs to a later step, known to others or not.
  assert progress.add_steps() == progress.saved + ENVS
  progress.agree(stop=False)
  assert progress.due('log')
