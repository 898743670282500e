"""Saves and restores real steps on disk."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.manager import Checkpointer
from dreamer_tpu.errors import UserError


def mesh(*shape):
  axes = ('data', 'fsdp', 'model')
  kinds = (jax.sharding.AxisType.Auto,) * 3
  return jax.make_mesh(shape, axes, axis_types=kinds)


def make_agent(value=0.0, where=None):
  agent = {
    'params': {
      'rssm': {'gru': {'kernel': jnp.arange(64.0).reshape(8, 8) + value}},
      'value': {'out': {'bias': jnp.ones(8, jnp.bfloat16)}},
    },
    'opt': (jnp.full((8,), float(value)), {'count': jnp.int32(3)}),
    'step': jnp.int32(value),
  }
  if where is None:
    return agent
  return jax.tree.map(jax.device_put, agent, shardings(where, agent))


def shardings(where, agent):
  """Shards axis 0 over two mesh axes and axis 1 over the third."""
  spec = [('data', 'fsdp'), 'model']
  return jax.tree.map(
    lambda x: NamedSharding(where, PartitionSpec(*spec[: x.ndim])), agent
  )


def abstract(agent, where=None):
  places = (
    shardings(where, agent) if where else jax.tree.map(lambda _: None, agent)
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    agent,
    places,
    is_leaf=lambda x: x is None,
  )


def test_everything_comes_back_on_another_mesh(tmp_path):
  agent = make_agent(5.0, mesh(2, 2, 2))
  run = {'updates': 5, 'rng': {'state': 2**127 + 1}, 'config': {'task': 'a'}}
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    checkpointer.save(5, agent, run, lambda: {'chunks': ['x', 'y']})
    (result,) = checkpointer.wait()
    assert not result.error
    assert result.step == 5
    assert result.bytes > 0
    assert 0 < result.blocking_s <= result.total_s
  for other in (mesh(1, 4, 2), mesh(8, 1, 1)):
    with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
      assert checkpointer.steps() == [5]
      shapes = abstract(agent, other)
      restored = checkpointer.restore(5, shapes, {'task': 'a'})
    assert restored.run == run
    assert restored.replay == {'0': {'chunks': ['x', 'y']}}
    jax.tree.map(np.testing.assert_array_equal, restored.agent, agent)
    jax.tree.map(
      lambda x, s: (
        pytest.fail(f'{x.sharding}')
        if x.sharding != s.sharding or x.dtype != s.dtype
        else None
      ),
      restored.agent,
      shapes,
    )


def test_arrays_may_be_donated_right_after_save(tmp_path):
  change = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
  big = jax.random.normal(jax.random.key(0), (1 << 21,))
  expected = np.array(big)
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    run = {'updates': 1}
    checkpointer.save(1, {'big': big}, run)
    run['updates'] = 99
    for _ in range(3):
      big = change(big)
    checkpointer.wait()
    shapes = {'big': jax.ShapeDtypeStruct(big.shape, big.dtype)}
    restored = checkpointer.restore(1, shapes)
  np.testing.assert_array_equal(restored.agent['big'], expected)
  assert restored.run == {'updates': 1}


def test_replay_is_written_before_the_commit_and_off_the_main_thread(tmp_path):
  begin, go = threading.Event(), threading.Event()
  seen = {}

  def write_replay():
    seen['thread'] = threading.current_thread()
    begin.set()
    assert go.wait(600)
    seen['steps'] = layout.steps(tmp_path / 'checkpoints')
    (tmp_path / 'chunk').write_text('data')
    return {'chunks': ['chunk']}

  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    checkpointer.save(1, make_agent(), {}, write_replay)
    assert begin.wait(600)
    assert checkpointer.saving()
    assert checkpointer.poll() == []
    assert checkpointer.steps() == []
    go.set()
    assert not checkpointer.wait()[0].error
    assert checkpointer.steps() == [1]
  assert seen['steps'] == []
  assert seen['thread'] is not threading.main_thread()


def test_newest_steps_are_kept_and_their_manifests_handed_over(tmp_path):
  commits = []
  with Checkpointer(
    tmp_path / 'checkpoints', keep=2, on_commit=commits.append
  ) as checkpointer:
    for step in (10, 20, 30, 120):
      checkpointer.save(step, make_agent(step), {}, lambda s=step: {'s': s})
    checkpointer.wait()
    assert checkpointer.steps() == [30, 120]
  assert [list(x) for x in commits] == [
    ['10'],
    ['10', '20'],
    ['20', '30'],
    ['30', '120'],
  ]
  assert commits[-1] == {'30': {'0': {'s': 30}}, '120': {'0': {'s': 120}}}


def test_saving_the_step_that_was_restored_does_nothing(tmp_path):
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    checkpointer.save(1, make_agent(1.0), {'n': 1})
    checkpointer.save(1, make_agent(2.0), {'n': 2})
    assert [x.error for x in checkpointer.wait()] == ['']
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    shapes = abstract(make_agent())
    checkpointer.restore(1, shapes)
    checkpointer.save(1, make_agent(3.0), {'n': 3})
    assert checkpointer.wait() == []
    restored = checkpointer.restore(1, shapes)
  assert restored.run == {'n': 1}
  assert int(restored.agent['step']) == 1


def test_steps_after_the_restored_one_are_deleted(tmp_path):
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    for step in (1, 2):
      checkpointer.save(step, make_agent(step), {'n': step})
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    checkpointer.restore(1, abstract(make_agent()))
    checkpointer.save(2, make_agent(9.0), {'n': 9})
    assert not checkpointer.wait()[0].error
    assert checkpointer.steps() == [1, 2]
    assert checkpointer.restore(2, abstract(make_agent())).run == {'n': 9}


def test_steps_of_another_run_are_not_touched(tmp_path):
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    checkpointer.save(5, make_agent(5.0), {})
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    with pytest.raises(UserError, match=r'already holds checkpoints.*5'):
      checkpointer.save(2, make_agent(2.0), {})
    assert checkpointer.steps() == [5]


def test_unknown_step_is_named(tmp_path):
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    checkpointer.save(5, make_agent(), {})
    checkpointer.wait()
    with pytest.raises(UserError, match=r'step 6 .* \[5\]'):
      checkpointer.restore(6, abstract(make_agent()))


def test_a_failing_replay_is_reported_and_the_run_continues(tmp_path):
  def fail():
    raise OSError(28, 'No space left on device')

  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    checkpointer.save(1, make_agent(1.0), {})
    checkpointer.save(2, make_agent(2.0), {}, fail)
    first, second = checkpointer.wait()
    assert not first.error
    assert second.step == 2
    assert 'No space left' in second.error
    assert '\n' not in second.error
    assert checkpointer.steps() == [1]
    for step in (2, 3):
      checkpointer.save(step, make_agent(step), {})
    assert [x.error for x in checkpointer.wait()] == ['', '']
    assert checkpointer.steps() == [2, 3]


def test_folder_that_cannot_be_created(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='Cannot write checkpoints') as info:
    Checkpointer(tmp_path / 'file' / 'checkpoints')
  assert '\n' not in str(info.value)


def test_state_that_is_not_json_is_refused_at_once(tmp_path):
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    with pytest.raises(TypeError):
      checkpointer.save(1, make_agent(), {'a': np.zeros(2)})
    checkpointer.save(1, make_agent(), {'a': 0})
    assert not checkpointer.wait()[0].error


def test_size_of_a_step_in_which_another_host_renames_files(tmp_path):
  (tmp_path / 'array').write_bytes(bytes(1000))
  ended = threading.Event()

  def rename():
    while not ended.is_set():
      (tmp_path / 'tmp-sums').write_bytes(bytes(10))
      (tmp_path / 'tmp-sums').rename(tmp_path / 'sums')

  thread = threading.Thread(target=rename)
  thread.start()
  try:
    sizes = {layout.size(epath.Path(tmp_path)) for _ in range(2000)}
  finally:
    ended.set()
    thread.join()
  assert min(sizes) >= 1000
  assert layout.size(epath.Path(tmp_path)) == 1010
