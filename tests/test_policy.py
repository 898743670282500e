"""Acts with a checkpoint of the public implementation."""

import shutil

import numpy as np
import pytest

import dreamer_tpu
from dreamer_tpu.errors import UserError
from tests.helpers.golden import PUBLIC


def test_reproduces_the_public_policy():
  with np.load(PUBLIC / 'policy.npz') as file:
    arrays = dict(file)
  policy = dreamer_tpu.load_policy(PUBLIC, seed=None)
  steps, batch = arrays['obs/is_first'].shape
  carry = policy.initial(batch)
  for step in range(steps):
    obs = {
      k: arrays[f'obs/{k}'][step].reshape(batch, *space.shape)
      for k, space in policy.obs_space.items()
    }
    obs['is_first'] = arrays['obs/is_first'][step]
    carry, action = policy(carry, obs)
    np.testing.assert_allclose(
      action['action'], np.clip(arrays['action'][step], -1, 1), atol=1e-4
    )
    np.testing.assert_allclose(
      carry['agent']['deter'], arrays['deter'][step], atol=1e-4
    )


def test_one_environment_needs_no_batch_axis():
  policy = dreamer_tpu.load_policy(PUBLIC)
  obs = {k: np.zeros(v.shape, v.dtype) for k, v in policy.obs_space.items()}
  batched = {k: v[None] for k, v in obs.items()}
  _, alone = policy(policy.initial(), obs)
  _, inside = policy(policy.initial(), batched)
  assert alone['action'].shape == (6,)
  np.testing.assert_array_equal(alone['action'], inside['action'][0])


def test_a_number_may_have_an_axis():
  policy = dreamer_tpu.load_policy(PUBLIC)
  obs = {k: np.ones(v.shape, v.dtype) for k, v in policy.obs_space.items()}
  (number,) = [k for k, v in obs.items() if v.size == 1]
  actions = [
    policy(policy.initial(), {**obs, number: np.ones(shape, np.float32)})[1]
    for shape in ((), (1,))
  ]
  np.testing.assert_array_equal(actions[0]['action'], actions[1]['action'])


def test_wrong_observations_are_one_line():
  policy = dreamer_tpu.load_policy(PUBLIC)
  obs = {k: np.zeros(v.shape, v.dtype) for k, v in policy.obs_space.items()}
  first = next(iter(obs))
  for wrong, words in (
    ({**obs, first: np.full(obs[first].shape, np.nan)}, f'{first}.*not finite'),
    ({**obs, first: np.zeros(77)}, f'{first}.*has shape'),
    ({k: v for k, v in obs.items() if k != first}, 'the observation has'),
    ({k: np.stack([v] * 3) for k, v in obs.items()}, r'policy\.initial'),
  ):
    with pytest.raises(UserError, match=words) as info:
      policy(policy.initial(), wrong)
    assert len(str(info.value)) < 300


def test_missing_checkpoint_is_one_line(tmp_path):
  with pytest.raises(UserError, match='No checkpoint in'):
    dreamer_tpu.load_policy(tmp_path)


@pytest.mark.parametrize('text', ['agent: {}', '[1, 2]', '{', ''])
def test_another_config_is_one_line(tmp_path, text):
  shutil.copy(PUBLIC / 'agent.pkl', tmp_path)
  (tmp_path / 'config.yaml').write_text(text)
  with pytest.raises(UserError, match=r'config\.yaml') as raised:
    dreamer_tpu.load_policy(tmp_path)
  assert '\n' not in str(raised.value)
