"""A resumed run equals one that was never interrupted."""

import threading

import numpy as np
import pytest

from configs import base
from dreamer_tpu.checkpoint import layout
from dreamer_tpu.replay import Replay, Stream
from dreamer_tpu.run.saving import Saver
from tests.helpers import small

STREAMS = 4
CAPACITY = 600


class Run:
  """Synchronous training on transitions that depend on their number alone."""

  def __init__(self, logdir, *, consec=1, seed=0, start=True):
    self.agent = small.make_agent(small.VECTOR_OBS)
    self.learner = small.make_learner(self.agent, init=False, seed=seed)
    config = base.base()
    config.consec_train = consec
    config.run.save_every = 9.0
    self.replay = self._replay(consec, seed)
    self.stream = Stream(
      self.replay,
      batch=small.ROWS,
      length=small.STEPS,
      context=small.CONTEXT,
      consec=consec,
    )
    self.saver = Saver(config, logdir, self.learner, self.replay)
    self.update = 0
    if start:
      state = self.saver.load_or_init(print)
      self.update = state.get('update', 0)
      if 'local' in state:
        self.stream.load(state['local'])

  def _replay(self, consec, seed):
    spaces = {**self.agent.obs_space, **self.agent.act_space}
    spec = {k: (v.shape, v.dtype) for k, v in spaces.items()}
    spec |= {'reward': ((), 'float32'), **self.agent.latent_spec()}
    spec |= dict.fromkeys(('is_first', 'is_last', 'is_terminal'), ((), 'bool'))
    return Replay(
      spec,
      length=small.CONTEXT + small.STEPS * consec,
      capacity=CAPACITY,
      chunksize=16,
      online=True,
      streams=STREAMS,
      seed=seed,
    )

  def __enter__(self):
    return self

  def __exit__(self, *exc):
    self.saver.__exit__(*exc)

  def train(self, until):
    while self.update < until:
      steps = range(self.update * 3, self.update * 3 + 3)
      for number in [*range(-20, 0), *steps] if not self.update else steps:
        self.replay.add(self._transition(number))
      data, stepid = next(self.stream)
      self.learner.update(self.learner.put(data), stepid)
      result = self.learner.flush()
      assert not result.nonfinite
      self.replay.update(result.stepid, result.latents)
      self.update += 1

  def _transition(self, number):
    batch = small.make_batch(self.agent, steps=1, seed=1000 + number)
    step = {k: v[:STREAMS, 0] for k, v in batch.items() if k != 'consec'}
    # Environments restart where the run is resumed, and elsewhere.
    step['is_first'] = np.full(STREAMS, number % 9 == 0)
    return step

  def save(self):
    self.saver.save(
      self.update, {'update': self.update}, local=self.stream.state()
    )

  def state(self):
    stored = {
      (serial, key): array[: chunk.fill].tobytes()
      for serial, chunk in self.replay._store.chunks.items()
      for key, array in chunk.arrays.items()
    }
    return small.flat(self.learner.state), stored, self.replay.stats()['items']


@pytest.mark.parametrize('consec', [1, 2])
def test_resuming_changes_nothing(tmp_path, consec):
  middle = 99  # With consec == 2 in the middle of sequences.
  with Run(tmp_path / 'straight', consec=consec) as run:
    run.train(200)
    expected = run.state()
  with Run(tmp_path / 'resumed', consec=consec) as run:
    run.train(middle)
    run.save()
    # These updates are lost.
    run.train(middle + 3)
  with Run(tmp_path / 'resumed', consec=consec) as run:
    assert run.update == middle
    run.train(200)
    params, replay, items = run.state()
  assert items == expected[2]
  assert replay == expected[1]
  assert params.keys() == expected[0].keys()
  for name, value in params.items():
    np.testing.assert_array_equal(value, expected[0][name], err_msg=name)


def test_what_is_new_is_saved_under_a_later_number(tmp_path):
  def save(step, update):
    run.saver.save(step, {'step': step, 'update': update})
    assert run.saver.finish()['checkpoint/failed'] == 0
    newest = layout.steps(tmp_path / 'checkpoints')[-1]
    state = layout.read_run(
      layout.absolute(tmp_path / 'checkpoints') / str(newest)
    )
    assert (state['step'], state['update']) == (step, update)
    return newest

  with Run(tmp_path) as run:
    counters = (8, 1), (8, 2), (8, 3), (10, 3), (10, 4), (16, 4)
    assert [save(*x) for x in counters] == [8, 9, 10, 11, 12, 16]


def test_a_slow_save_is_warned_of_and_nothing_is_queued(
  tmp_path, monkeypatch, caplog
):
  begin, go = threading.Event(), threading.Event()
  with Run(tmp_path) as run:
    snapshot = run.saver._shard.snapshot

    def slow_snapshot(local):
      write = snapshot(local)

      def slow_write():
        begin.set()
        assert go.wait(60)
        return write()

      return slow_write

    monkeypatch.setattr(run.saver._shard, 'snapshot', slow_snapshot)
    run.train(1)
    assert run.saver.ready()
    run.save()
    assert begin.wait(60)
    assert not run.saver.ready()
    assert not run.saver.ready()
    (line,) = [
      x.getMessage() for x in caplog.records if x.levelname == 'WARNING'
    ]
    assert 'takes longer than run.save_every=9 seconds' in line
    assert layout.steps(tmp_path / 'checkpoints') == []
    go.set()
    assert run.saver.finish()['checkpoint/failed'] == 0
    assert run.saver.ready()
    assert layout.steps(tmp_path / 'checkpoints') == [1]
