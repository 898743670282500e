"""Updates on one device: state, results, randomness, transfers, NaN."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small
from tests.helpers.compilations import compilations


class Bench:
  """One compiled learner that every test starts from the same state."""

  def __init__(self, dtype=jnp.float32):
    self.agent = small.make_agent(small.VECTOR_OBS, dtype=dtype)
    self.learner = small.make_learner(self.agent)
    self.start = small.flat(self.learner.state)
    self._saved = jax.device_get(self.learner.state)

  def reset(self):
    self.learner.state = jax.device_put(self._saved, self.learner.shardings)
    self.learner.carry = self.learner.steps.new_carry()
    self.learner.flush()
    return self.learner

  def put(self, **kw):
    return self.learner.put(small.make_batch(self.agent, **kw))

  def step(self, **kw):
    """One update and its result."""
    self.learner.update(self.put(**kw), small.make_stepid())
    return self.learner.flush()


@pytest.fixture(scope='module')
def bench():
  return Bench()


@pytest.fixture
def learner(bench):
  return bench.reset()


def test_state_is_donated_and_keeps_its_sharding(bench, learner):
  before = jax.tree.leaves(learner.state)
  places = [x.sharding for x in before]
  bench.step()
  assert all(x.is_deleted() for x in before)
  after = jax.tree.leaves(learner.state)
  assert [x.sharding for x in after] == places


def test_compiled_update_aliases_the_whole_state(bench, learner):
  args = (learner.state, learner.steps.new_carry(), bench.put(), learner._seed)
  compiled = learner.steps.train.lower(*args).compile()
  (line,) = [
    x for x in compiled.as_text().splitlines() if 'input_output_alias' in x
  ]
  leaves = jax.tree.leaves(args[:2])
  for output in range(len(leaves)):  # state and carry come first in both
    assert f'{{{output}}}: ({output}, {{}}' in line
  aliased = compiled.memory_analysis().alias_size_in_bytes
  assert aliased == sum(x.nbytes for x in leaves)


def test_abstract_arguments_are_those_of_an_update(bench, learner):
  """`plan` compiles the program of a run."""
  args = (learner.state, learner.steps.new_carry(), bench.put(), learner._seed)
  expected = learner.steps.train_arguments(small.STEPS)
  assert jax.tree.structure(args) == jax.tree.structure(expected)
  pairs = zip(jax.tree.leaves(args), jax.tree.leaves(expected), strict=True)
  for x, y in pairs:
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


def test_everything_compiles_once(bench, learner):
  def everything():
    bench.step()
    learner.publish(jax.devices()[0])
    learner.report([bench.put()], 0)

  everything()
  with compilations() as seen:
    jax.jit(lambda x: x * 3)(1.0)
    assert len(seen) == 1  # the listener works
    for _ in range(3):
      everything()
    assert len(seen) == 1


def test_updates_transfer_nothing_implicitly(bench, learner):
  bench.step()
  with jax.transfer_guard('disallow'):
    with pytest.raises(Exception, match='host-to-device'):
      jax.jit(lambda x: x + 1)(np.zeros(3))  # the guard works
    learner.update(bench.put(seed=1), small.make_stepid())
    learner.update(bench.put(seed=2), small.make_stepid())
    assert learner.flush() is not None
    learner.report([bench.put()], 1)
    learner.publish(jax.devices()[0])


def test_one_vector_and_the_latents_come_back(bench, learner):
  args = (learner.state, learner.steps.new_carry(), bench.put(), learner._seed)
  _, _, latents, metrics = jax.eval_shape(learner.steps.train, *args)
  assert sorted(latents) == ['latent/deter', 'latent/stoch', 'priority']
  assert metrics.values.ndim == 1


def test_results_come_one_update_late(bench, learner):
  one, two = small.make_stepid(), small.make_stepid() + 1000
  assert learner.flush() is None
  assert learner.update(bench.put(seed=1), one) is None
  first = learner.update(bench.put(seed=2), two)
  second = learner.flush()
  assert learner.flush() is None
  np.testing.assert_array_equal(first.stepid, one[:, small.CONTEXT :])
  np.testing.assert_array_equal(second.stepid, two[:, small.CONTEXT :])
  rows, steps = one[:, small.CONTEXT :].shape
  for result in (first, second):
    assert result.latents['latent/deter'].shape == (rows, steps, 64)
    assert result.latents['latent/stoch'].shape == (rows, steps, 8)
    assert result.latents['latent/stoch'].dtype == np.uint8
    assert sorted(result.latents) == ['latent/deter', 'latent/stoch']
    # The world model's loss of each step.
    actor = ('loss/total', 'loss/policy', 'loss/value', 'loss/repval')
    scales = dict(bench.agent.config.loss_scales)
    mean = sum(
      scales[name.split('/')[1]] * value
      for name, value in result.metrics.items()
      if name.startswith('loss/') and name not in actor
    )
    assert result.priority.shape == (rows, steps)
    assert np.std(result.priority) > 0
    np.testing.assert_allclose(result.priority.mean(), mean, rtol=1e-4)
  assert first.metrics['loss/total'] != second.metrics['loss/total']
  assert int(learner.state['step']) == 2


def test_same_seed_same_update(bench, learner):
  first = bench.step()
  state = small.flat(learner.state)
  bench.reset()
  again = bench.step()
  assert again.metrics == first.metrics
  for name, value in small.flat(learner.state).items():
    np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_another_seed_another_start_and_update(bench, learner):
  first = bench.step()
  other = small.make_learner(bench.agent, seed=1)
  start = small.flat(other.state)
  kernels = [k for k, v in start.items() if v.ndim > 1 and v.any()]
  assert kernels
  for name in kernels:
    assert (start[name] != bench.start[name]).any(), name
  other.state = jax.device_put(bench._saved, other.shardings)
  other.update(bench.put(), small.make_stepid())
  assert other.flush().metrics['loss/policy'] != first.metrics['loss/policy']


def test_every_update_has_its_own_noise(bench, learner):
  """The same parameters and data at another update sample other latents."""
  first = bench.step()
  state = bench.reset().state
  learner.state = {**state, 'step': state['step'] + 1}
  second = bench.step()
  key = 'latent/stoch'
  assert (first.latents[key] != second.latents[key]).any()


@pytest.mark.parametrize(
  ('key', 'first'),
  [
    # Of cont, decoder, encoder, ... a reward reaches the encoder first.
    ('reward', 'encoder/mlp/layer0/linear/bias'),
    ('speed', 'cont/mlp/layer0/linear/bias'),
  ],
)
def test_nonfinite_gradient_is_skipped_counted_and_named(
  bench, learner, key, first
):
  bench.step(seed=1)
  before = small.flat(learner.state)
  batch = small.make_batch(bench.agent, seed=2)
  batch[key][3, -1] = np.nan
  learner.update(learner.put(batch), small.make_stepid())
  result = learner.flush()
  after = small.flat(learner.state)
  for name, value in after.items():
    if name not in ('step', 'skipped'):
      np.testing.assert_array_equal(value, before[name], err_msg=name)
  assert (after['step'], after['skipped']) == (2, 1)
  assert result.metrics['opt/skipped'] == 1
  assert result.nonfinite == first

  good = bench.step(seed=3)
  assert good.nonfinite == ''
  assert good.metrics['opt/skipped'] == 1
  trained = small.flat(learner.state)
  name = 'params/encoder/mlp/layer0/linear/kernel'
  assert (trained[name] != after[name]).any()
  assert all(np.isfinite(x).all() for x in trained.values())


def test_second_part_goes_on_from_the_first(bench, learner):
  """Only a sequence's first part starts from the stored latents."""
  results = {}
  for consec in (0, 1):
    for changed in (False, True):
      bench.reset()
      bench.step(seed=1)
      batch = small.make_batch(bench.agent, seed=2, consec=consec)
      if changed:
        batch['latent/deter'] = -batch['latent/deter']
      batch['is_first'][:] = False
      learner.update(learner.put(batch), small.make_stepid())
      results[consec, changed] = learner.flush().latents['latent/deter']
  assert (results[0, False] != results[0, True]).any()
  np.testing.assert_array_equal(results[1, False], results[1, True])
  assert (results[0, False] != results[1, False]).any()


def test_published_weights_are_a_copy(bench, learner):
  published = learner.publish(jax.devices()[0])
  assert sorted(published) == ['encoder', 'policy', 'rssm']
  expected = {
    k: v
    for k, v in small.flat(learner.state['params']).items()
    if k.split('/')[0] in published
  }
  bench.step()
  bench.step()
  actual = small.flat(published)
  assert actual.keys() == expected.keys()
  for name, value in actual.items():
    np.testing.assert_array_equal(value, expected[name], err_msg=name)
  devices = {d for x in jax.tree.leaves(published) for d in x.devices()}
  assert devices == {jax.local_devices()[0]}


def test_parameter_counts(bench, learner):
  counts = learner.parameter_counts()
  flat = small.flat(learner.state['params'])
  for module, count in counts.items():
    inside = [v.size for k, v in flat.items() if k.startswith(module + '/')]
    assert count == sum(inside)
  assert sum(counts.values()) == sum(x.size for x in flat.values())


def test_report_changes_nothing_and_repeats(bench, learner):
  before = small.flat(learner.state)
  parts = [bench.put(seed=1), bench.put(seed=2, consec=1)]
  metrics, arrays = learner.report(parts, 7)
  again, _ = learner.report(parts, 7)
  other, _ = learner.report(parts, 8)
  assert metrics == again
  assert metrics['loss/total'] != other['loss/total']
  assert set(arrays) == {f'imagined/{k}' for k in ('return', 'move', 'tool')}
  for name, value in small.flat(learner.state).items():
    np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_histograms_are_of_what_was_imagined(bench, learner):
  metrics, arrays = learner.report([bench.put()], 0)
  starts, horizon = small.ROWS * small.STEPS, small.config().imag_length
  returns = arrays['imagined/return']
  assert returns.shape == (starts * horizon,)
  assert returns.mean() == pytest.approx(metrics['ret/mean'], abs=1e-5)
  assert arrays['imagined/move'].shape == (starts * horizon * 2,)
  assert set(arrays['imagined/tool']) == set(range(4))


def test_gradient_norms_of_the_terms(bench, learner, monkeypatch):
  monkeypatch.setattr(learner, '_report_grads', True)
  metrics, _ = learner.report([bench.put()], 3)
  terms = {k[len('loss/') :] for k in metrics if k.startswith('loss/')}
  norms = {k for k in metrics if k.startswith('grad_norm/')}
  assert norms == {f'grad_norm/{k}' for k in terms - {'total'}}
  checked = ('dyn', 'decoder/speed', 'policy')

  @jax.jit
  @jax.grad
  def gradient(params, weights):
    state = {**learner.state, 'params': params}
    carry = learner.steps.new_carry()
    count = np.int32(3)
    inputs = (state, carry, bench.put(), learner._seed, count)
    _, metrics, _ = learner.steps.report(*inputs)
    return sum(weights[k] * metrics[f'loss/{k}'] for k in checked)

  scales = small.config().loss_scales
  for name in checked:
    weights = {k: float(k == name) for k in checked}
    grads = gradient(learner.state['params'], weights)
    norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(grads)))
    expected = scales[name.split('/')[0]] * norm
    assert metrics[f'grad_norm/{name}'] == pytest.approx(expected, rel=1e-3)
    assert expected > 0


def test_sizes_of_parameters_and_updates_by_module(bench, learner):
  before = jax.device_get(learner.state['params'])
  metrics = bench.step().metrics
  flat = lambda tree: np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
  for module, params in jax.device_get(learner.state['params']).items():
    new, old = flat(params), flat(before[module])
    for name, value in (('param', new), ('update', new - old)):
      rms = np.sqrt(np.mean(np.square(value, dtype=np.float64)))
      actual = metrics[f'opt/{name}_rms/{module}']
      assert actual == pytest.approx(rms, rel=1e-3), (name, module)


def test_bfloat16_weights_and_latents():
  bench = Bench(jnp.bfloat16)
  types = {
    x.dtype for x in jax.tree.leaves(bench.learner.publish(jax.devices()[0]))
  }
  assert types == {jnp.dtype(jnp.bfloat16)}
  result = bench.step()
  assert result.latents['latent/deter'].dtype == jnp.bfloat16
  assert np.isfinite(result.metrics['loss/total'])
  params = jax.tree.leaves(bench.learner.state['params'])
  assert {x.dtype for x in params} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize('devices', [1, 2])
def test_one_cpu_takes_images_a_row_at_a_time(devices):
  learner = small.make_learner(small.make_agent(), (devices, 1, 1), init=False)
  arguments = learner.steps.train_arguments(small.STEPS)
  text = learner.steps.train.lower(*arguments).as_text()
  images = re.findall(r'stablehlo\.convolution.* : \(tensor<(\d+)x', text)
  rows = 1 if devices == 1 else small.ROWS
  assert set(map(int, images)) == {rows * small.STEPS}
