"""The wrapper chain against values computed by hand."""

import fractions

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as gs
from gymnasium.vector import SyncVectorEnv

from dreamer_tpu.agent import spaces as agent_spaces
from dreamer_tpu.envs import conversion, wrappers
from dreamer_tpu.errors import UserError
from tests.helpers.sample_envs import Spaces

VECTOR = gs.Box(-1, 1, (3,), np.float64)
MOVE = gs.Discrete(3)


def wrap(obs_space=VECTOR, act_space=MOVE, obs=None):
  env = Spaces(obs_space, act_space, obs)
  return env, wrappers.Converted(env)


def observe(obs_space, obs):
  _, env = wrap(obs_space, obs=obs)
  result = env.reset()[0]
  assert env.observation_space.contains(result), result
  return env.observation_space, result


@pytest.mark.parametrize(
  ('space', 'value', 'key', 'kind', 'expected'),
  [
    (VECTOR, np.arange(3) / 3, 'vector', 'float32', np.arange(3) / 3),
    (gs.Box(0, 1, (), np.float64), 0.5, 'vector', 'float32', 0.5),
    (gs.Box(0, 9, (2, 2), np.int64), np.eye(2, dtype=int), 'vector',
     'float32', np.eye(2)),
    (gs.Box(0, 255, (2,), np.uint8), np.array([1, 255], np.uint8), 'vector',
     'float32', [1, 255]),
    (gs.Box(0, 1, (2,), bool), np.array([True, False]), 'vector', 'int32',
     [1, 0]),
    (gs.Discrete(4, start=-2), -1, 'vector', 'int32', 1),
    (gs.MultiDiscrete([2, 5], start=[1, 1]), np.array([2, 5]), 'vector',
     'int32', [1, 4]),
    (gs.MultiBinary(3), np.array([1, 0, 1], np.int8), 'vector', 'int32',
     [1, 0, 1]),
    (gs.Box(0, 255, (48, 64), np.uint8), np.full((48, 64), 7, np.uint8),
     'image', 'uint8', np.full((48, 64, 1), 7)),
    (gs.Box(0, 255, (48, 64, 3), np.uint8),
     np.full((48, 64, 3), 7, np.uint8), 'image', 'uint8',
     np.full((48, 64, 3), 7)),
  ],
)  # fmt: skip
def test_observation(space, value, key, kind, expected):
  space, obs = observe(space, value)
  assert list(obs) == [key]
  assert space[key].dtype == kind
  np.testing.assert_allclose(obs[key], expected, rtol=1e-6)


def test_nested_dict():
  space = gs.Dict(
    a=gs.Dict(b=gs.Discrete(2), c=gs.Dict(d=VECTOR, none=gs.Tuple([]))),
    e=gs.MultiDiscrete([3, 3]),
  )
  flat, obs = observe(space, space.sample())
  assert sorted(obs) == ['a/b', 'a/c/d', 'e']
  assert isinstance(flat['a/b'], gs.Discrete)
  np.testing.assert_array_equal(flat['e'].nvec, [3, 3])


@pytest.mark.parametrize(
  ('space', 'action', 'expected'),
  [
    (gs.Box(-2, 2, (1,), np.float32), [0.25], [0.5]),
    (gs.Box(0, 10, (2,), np.float64), [-1, 0.5], [0, 7.5]),
    (gs.Box(0, 10, (1,), np.float32), [3.0], [10]),
    (gs.Box(np.array([-1, -np.inf]), np.array([3, np.inf])), [1, 5], [3, 5]),
    (gs.Box(np.array([0.0]), np.array([np.inf])), [-2], [0]),
    (gs.Discrete(3, start=5), 2, 7),
    (gs.MultiDiscrete([3, 3], start=[1, 2]), [0, 2], [1, 4]),
    (gs.MultiBinary(2), [0, 1], [0, 1]),
    (gs.Box(2, 5, (2,), np.int16), [0, 3], [2, 5]),
    (gs.Box(2, 5, (), np.int16), 3, 5),
  ],
)
def test_action(space, action, expected):
  inner, env = wrap(act_space=space)
  own = env.action_space['action']
  assert own.dtype in (np.float32, np.int32)
  env.reset()
  env.step({'action': np.asarray(action, own.dtype)})
  assert space.contains(inner.action)
  np.testing.assert_allclose(inner.action, expected)


def test_action_bounds_are_minus_one_to_one():
  for high in (2.0, 1e-3):
    _, env = wrap(act_space=gs.Box(-high, 3 * high, (4,), np.float64))
    expected = gs.Box(-1, 1, (4,), np.float32)
    assert env.action_space['action'] == expected


def test_unequal_choices_become_an_action_each():
  inner, env = wrap(act_space=gs.MultiDiscrete([2, 5]))
  assert {k: v.n for k, v in env.action_space.spaces.items()} == {
    'action/0': 2,
    'action/1': 5,
  }
  env.reset()
  env.step({'action/0': np.int32(1), 'action/1': np.int32(4)})
  np.testing.assert_array_equal(inner.action, [1, 4])


def test_dict_action():
  move = gs.Dict(x=gs.Box(0, 4, (1,)), none=gs.Dict())
  space = gs.Dict(move=move, fire=gs.Discrete(2))
  inner, env = wrap(act_space=space)
  env.reset()
  env.step({'move/x': np.zeros(1, np.float32), 'fire': np.int32(1)})
  assert inner.action['fire'] == 1
  np.testing.assert_allclose(inner.action['move']['x'], 2)
  for _ in range(20):
    env.step(env.action_space.sample())
    assert space.contains(inner.action)


@pytest.mark.parametrize(
  ('obs_space', 'act_space', 'words'),
  [
    (None, MOVE, "'vector' is a builtins.NoneType, not a space of Gymnasium"),
    (VECTOR, gs.Box(-1, 1, (0,)), 'no elements'),
    (VECTOR, gs.Dict(a=gs.Dict()), 'empty'),
    (gs.Text(5), MOVE, 'Text'),
    (gs.Sequence(MOVE), MOVE, 'Sequence'),
    (gs.Graph(VECTOR, None), MOVE, 'Graph'),
    (VECTOR, gs.Tuple([]), 'empty'),
    (gs.Dict(), MOVE, 'empty'),
    (gs.Dict(reward=VECTOR), MOVE, "'reward' is reserved"),
    (gs.Dict({'latent/deter': VECTOR}), MOVE, 'reserved'),
    (gs.Dict(action=VECTOR), MOVE, 'in the observations and in the actions'),
    (VECTOR, gs.Dict(is_first=MOVE), "'is_first' is reserved"),
    (gs.Dict({'a/b': VECTOR, 'a': gs.Dict(b=VECTOR)}), MOVE, "'a/b'"),
    (gs.Dict({'log/a': gs.Box(0, 1, ())}), MOVE, 'nothing to observe'),
    (VECTOR, gs.Text(5), 'Text'),
    (gs.Dict({'log/a': gs.Box(0, 1, (3,)), 'b': VECTOR}), MOVE, 'scalars'),
  ],
)
def test_refused_spaces(obs_space, act_space, words):
  with pytest.raises(UserError, match=words) as info:
    wrap(obs_space, act_space, obs={})
  assert '\n' not in str(info.value)


@pytest.mark.parametrize(
  ('space', 'value', 'words'),
  [
    (VECTOR, np.zeros(4), r"'vector' has shape \(4,\), its space says \(3,\)"),
    (VECTOR, [0, np.nan, 0], 'not finite'),
    (gs.Discrete(3), 3, 'outside'),
    (gs.Discrete(3), 1.0, 'float64'),
    (gs.Box(0, 255, (48, 48), np.uint8), np.zeros((48, 48)), 'float64'),
    (gs.Box(0, 1, (48, 48)), np.full((48, 48), 9), '2304 of 2304 values'),
    (gs.Dict(a=VECTOR), {'b': np.zeros(3)}, r"has \['b'\]"),
    (gs.Dict(a=VECTOR), np.zeros(3), 'ndarray'),
    (VECTOR, None, "'vector'"),
  ],
)
def test_wrong_values(space, value, words):
  _, env = wrap(space, obs=space.sample())
  env.reset()
  env.unwrapped.obs = value
  with pytest.raises(UserError, match=words):
    env.step({'action': np.int32(0)})


def test_tuples_are_dicts_with_numbers_as_keys():
  inside = gs.Tuple([gs.Discrete(3, start=1), gs.Dict(a=VECTOR)])
  act = gs.Tuple([MOVE, gs.Dict(b=gs.Tuple([gs.Discrete(4, start=-1)]))])
  inner, env = wrap(gs.Tuple([MOVE, inside]), act, (1, (3, {'a': np.ones(3)})))
  obs, _ = env.reset()
  assert {k: v.tolist() for k, v in obs.items()} == {
    '0': 1,
    '1/0': 2,
    '1/1/a': [1, 1, 1],
  }
  assert set(env.action_space.spaces) == {'action/0', 'action/1/b/0'}
  env.step({'action/0': np.int32(1), 'action/1/b/0': np.int32(0)})
  assert inner.action == (1, {'b': (-1,)})
  inner.obs = (1, 2, 3)
  with pytest.raises(UserError, match='has 3 parts, its space has 2'):
    env.reset()


@pytest.mark.parametrize(
  'one', [np.ones(1), np.float32(1), 1, True, [1.0], fractions.Fraction(1)]
)
def test_rewards_and_flags_of_one_element(one):
  inner, env = wrap()
  env.reset()
  inner.step = lambda action: (inner.obs, one, one, [False], None)
  assert env.step({'action': np.int32(0)})[1:] == (1.0, True, False, {})


@pytest.mark.parametrize(
  ('wrong', 'reason'),
  [
    *((x, 'one number') for x in (None, np.ones(2), 'one', 10**400, 1j)),
    *((x, 'finite float32') for x in (np.nan, -np.inf, 1e39)),
  ],
)
def test_rewards_that_are_no_float32(wrong, reason):
  inner, env = wrap()
  env.reset()
  inner.step = lambda action: (inner.obs, wrong, False, False, {})
  with pytest.raises(UserError, match=f'the reward is .* {reason}'):
    env.step({'action': np.int32(0)})


@pytest.mark.parametrize(
  'info',
  [
    [1],
    'text',
    object(),
    {0: 1, b'log/x': 2, None: 3},
    *({'log/x': x} for x in ('text', None, 10**400, 1j, {'y': 1}, np.ones(3))),
  ],
)
def test_what_is_no_log_scalar_is_dropped(info):
  inner, env = wrap()
  inner.reset = lambda **kwargs: (inner.obs, info)
  assert env.reset()[1] == {}
  whole = SyncVectorEnv([lambda: gymnasium.make('CartPole-v1')] * 2)
  obs, _ = whole.reset()
  whole.reset = lambda **kwargs: (obs, info)
  whole.step = lambda action: (obs, [1, 1], [False] * 2, [False] * 2, info)
  wrapped = wrappers.ConvertedVector(whole)
  wrapped.reset()
  assert wrapped.step({'action': np.zeros(2, np.int32)})[-1] == {}


def test_the_old_interface_of_gym_is_named():
  inner, env = wrap(gs.Box(-1, 1, (2,)))
  env.reset()
  inner.step = lambda action: (inner.obs, 1.0, False, {})
  with pytest.raises(UserError, match=r'step\(\) returned 4 values instead of'):
    env.step({'action': np.int32(0)})
  inner.reset = lambda **kwargs: inner.obs
  with pytest.raises(UserError, match=r'reset\(\) returned ndarray instead'):
    env.reset()


def test_wrong_values_are_named_briefly():
  space = gs.Box(-np.inf, np.inf, (84, 84), np.float32)
  _, env = wrap(space, obs=np.full((84, 84), np.nan, np.float32))
  with pytest.raises(
    UserError, match='7056 of 7056 values: nan, nan, nan'
  ) as e:
    env.reset()
  assert len(str(e.value)) < 300


def test_log_keys():
  space = gs.Dict({
    'x': VECTOR,
    'log/n': gs.Discrete(9),
    'log/view': gs.Box(0, 255, (4, 4, 3), np.uint8),
  })  # fmt: skip
  flat, _ = observe(space, space.sample())
  assert flat['log/n'].dtype == np.float32
  assert flat['log/view'].shape == (4, 4, 3)


def test_pendulum_actions_are_scaled():
  direct = gymnasium.make('Pendulum-v1')
  wrapped = wrappers.Converted(gymnasium.make('Pendulum-v1'))
  first, _ = direct.reset(seed=3)
  np.testing.assert_array_equal(wrapped.reset(seed=3)[0]['vector'], first)
  rng = np.random.default_rng(0)
  for _ in range(50):
    action = rng.uniform(-1.5, 1.5, 1).astype(np.float32)
    obs, reward, *_ = direct.step(2 * np.clip(action, -1, 1))
    ours = wrapped.step({'action': action})
    np.testing.assert_array_equal(ours[0]['vector'], obs)
    assert ours[1] == reward


def test_agent_and_environments_reserve_the_same_names():
  assert conversion.RESERVED == agent_spaces.RESERVED
