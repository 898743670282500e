"""Conversion of spaces: any there and back, and images by what they are."""

import json
import string

import gymnasium
import hypothesis
import numpy as np
import pytest
from gymnasium import spaces as gs
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from hypothesis import strategies as st
from PIL import Image

from dreamer_tpu import image_size
from dreamer_tpu.envs import Conversion, Rules
from dreamer_tpu.errors import UserError

MOVE = gs.Discrete(3)
U8 = np.uint8

shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
starts = st.integers(-3, 3)


@st.composite
def boxes(draw):
  dtype = draw(
    st.sampled_from(['f2', 'f4', 'f8', 'i1', 'u1', 'i4', 'u2', 'i8'])
  )
  shape = draw(shapes)
  unsigned = dtype.startswith('u')
  low = draw(st.integers(0 if unsigned else -9, 5))
  high = low + draw(st.integers(1, 100))
  if dtype.startswith('f') and draw(st.booleans()):
    low = draw(st.sampled_from([low, -np.inf]))
    high = draw(st.sampled_from([high, np.inf]))
  return gs.Box(low, high, shape, np.dtype(dtype).type)


leaves = st.one_of(
  boxes(),
  st.builds(lambda n, a: gs.Discrete(n, start=a), st.integers(1, 9), starts),
  st.builds(
    gs.MultiBinary, st.lists(st.integers(1, 3), min_size=1, max_size=2)
  ),
  st.builds(
    lambda shape, top, start: gs.MultiDiscrete(
      np.random.default_rng(top).integers(1, top + 1, shape),
      start=np.full(shape, start),
    ),
    st.lists(st.integers(1, 3), min_size=1, max_size=2),
    st.integers(1, 6),
    starts,
  ),
)
keys = st.text(string.ascii_lowercase, min_size=1, max_size=3)
spaces = st.recursive(
  leaves,
  lambda inside: st.one_of(
    st.dictionaries(keys, inside, min_size=1, max_size=3).map(gs.Dict),
    st.lists(inside, min_size=1, max_size=3).map(gs.Tuple),
  ),
  max_leaves=6,
)


def flat(space, value, prefix=''):
  """Returns the leaves of a value and their spaces, in order."""
  if isinstance(space, gs.Dict):
    pairs = [(k, space[k], value[k]) for k in space]
  elif isinstance(space, gs.Tuple):
    pairs = [(str(i), *x) for i, x in enumerate(zip(space, value, strict=True))]
  else:
    return [(prefix, space, value)]
  return [
    x for k, s, v in pairs for x in flat(s, v, f'{prefix}/{k}' if prefix else k)
  ]


def decode(space, value):
  """Returns a value of the agent as the environment gave it."""
  start = getattr(space, 'start', 0)
  if isinstance(space, gs.Box) and value.dtype == np.int32:  # A board.
    start = space.low if space.dtype != bool else 0
  return np.asarray(value).reshape(space.shape) + start


@hypothesis.settings(
  max_examples=150, deadline=None, derandomize=True, database=None
)
@hypothesis.given(spaces, spaces, st.integers(0, 10**6))
def test_any_space_there_and_back(obs_space, act_space, seed):
  obs_space = gs.Dict(own=obs_space)  # The same key would be refused.
  trained = Conversion(obs_space, act_space)
  loaded = Conversion.from_json(json.loads(json.dumps(trained.to_json())))
  obs_space.seed(seed)
  agent = gs.Dict(trained.act_space)
  agent.seed(seed)
  for conversion in (trained, loaded):
    assert conversion.observation_space == obs_space
    assert conversion.action_space == act_space
    given = obs_space.sample()
    seen = conversion.observation(given)
    assert gs.Dict(conversion.obs_space).contains(seen)
    assert conversion.batch_axes(given) == 0
    for name, space, value in flat(obs_space, given):
      got = decode(space, seen[name])
      np.testing.assert_allclose(got, value, rtol=1e-6, atol=1e-6)
    chosen = agent.sample()
    action = conversion.action(chosen)
    assert act_space.contains(action), action
    recovered: dict = {}
    leaves_of_action = [value for _, _, value in flat(act_space, action)]
    for name, value in zip(
      conversion.own_actions, leaves_of_action, strict=True
    ):
      recovered |= conversion.invert(name, value, 0)
    assert agent.contains(recovered), recovered
    again = flat(act_space, conversion.action(recovered))
    for (_, _, one), two in zip(again, leaves_of_action, strict=True):
      np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)
    # A batch of two is the same as one after the other.
    batch = concatenate(
      obs_space, [given, given], create_empty_array(obs_space, 2)
    )
    assert conversion.batch_axes(batch) == 1
    for name, value in conversion.observation(batch, 1).items():
      np.testing.assert_array_equal(value, np.stack([seen[name]] * 2))
    pair = conversion.action(
      {k: np.stack([v] * 2) for k, v in chosen.items()}, 1
    )
    assert batch_space(act_space, 2).contains(pair), pair
    for (_, _, one), (_, _, two) in zip(
      flat(act_space, action),
      flat(batch_space(act_space, 2), pair),
      strict=True,
    ):
      np.testing.assert_array_equal(two, np.stack([one] * 2))


@pytest.mark.parametrize(
  ('low', 'high', 'shape', 'dtype', 'to_image'),
  [
    (0, 255, (48, 64, 3), U8, lambda x: x),
    (0, 255, (3, 48, 64), U8, lambda x: x.transpose(1, 2, 0)),
    (0, 255, (4, 80, 80), U8, lambda x: np.stack(list(x), -1)),
    (0, 255, (4, 48, 48, 3), U8, lambda x: np.concatenate(list(x), -1)),
    (0, 255, (2, 3, 48, 48), U8,
     lambda x: np.concatenate([f.transpose(1, 2, 0) for f in x], -1)),
    (0, 255, (48, 48), np.int64, lambda x: x[..., None]),
    (0, 1, (48, 48), np.float32, lambda x: np.rint(255 * x)[..., None]),
    (0, 1, (3, 48, 48), np.float64,
     lambda x: np.rint(255 * x).transpose(1, 2, 0)),
  ],
)  # fmt: skip
def test_images_of_any_order(low, high, shape, dtype, to_image):
  space = gs.Box(low, high, shape, dtype, seed=0)
  conversion = Conversion(space, MOVE)
  value = space.sample()
  expected = to_image(value)
  (seen,) = conversion.observation(value).values()
  assert conversion.obs_space['image'].shape == expected.shape
  np.testing.assert_array_equal(seen, expected)
  plain = shape[:2] == expected.shape[:2] and dtype == U8
  assert bool(conversion.table()) == (not plain)


@pytest.mark.parametrize(
  ('space', 'kind', 'shape'),
  [
    (gs.Box(0, 1, (8, 8, 12), U8), np.int32, (768,)),
    (gs.Box(0, 1, (64, 64), U8), np.int32, (64, 64)),
    (gs.Box(-1, 1, (19, 19), np.int8), np.int32, (19, 19)),
    (gs.Box(0, 255, (7, 7, 3), U8), np.float32, (147,)),
    (gs.Box(0, 200, (64, 64, 3), U8), np.float32, (12288,)),
    (gs.Box(-1, 1, (84, 84), np.float32), np.float32, (84, 84)),
    (gs.Box(-np.inf, np.inf, (4, 5, 6), np.float32), np.float32, (120,)),
    (gs.Discrete(10**9), np.float32, ()),
  ],
)
def test_other_arrays_are_numbers_or_categories(space, kind, shape):
  conversion = Conversion(space, MOVE)
  assert conversion.obs_space['vector'].dtype == kind
  assert conversion.obs_space['vector'].shape == shape
  value = space.sample()
  (seen,) = conversion.observation(value).values()
  start = space.low if kind == np.int32 else 0
  np.testing.assert_allclose(seen.reshape(space.shape) + start, value)


def test_sizes_of_images_against_pillow():
  image = lambda *shape: gs.Box(0, 255, shape, U8)
  both = gs.Dict(a=image(96, 96, 3), b=image(4, 120, 160), c=gs.Discrete(2))
  conversion = Conversion(both, MOVE)
  value = both.sample()
  seen = conversion.observation(value)
  assert conversion.obs_space['a'].shape == (64, 64, 3)
  assert conversion.obs_space['b'].shape == (64, 64, 4)
  resize = lambda x: np.asarray(
    Image.fromarray(x).resize((64, 64), Image.Resampling.BILINEAR)
  )
  np.testing.assert_array_equal(seen['a'], resize(value['a']))
  np.testing.assert_array_equal(seen['b'][..., 2], resize(value['b'][2]))
  assert conversion.table() == [
    'a  uint8 [96, 96, 3] in 0..255    image [64, 64, 3], resized',
    'b  uint8 [4, 120, 160] in 0..255  image [64, 64, 4], transposed, resized',
  ]

  for space, rules, size in (
    (image(96, 96, 3), Rules(), (96, 96)),
    (image(96, 96, 3), Rules(size=(64, 48)), (64, 48)),
    (image(84, 84, 3), Rules(), (64, 64)),
    (image(84, 84, 3), Rules(size=(0, 0)), (84, 84)),
    (image(84, 84, 3), Rules(stages=3), (32, 32)),
  ):
    conversion = Conversion(space, MOVE, rules)
    assert conversion.obs_space['image'].shape == (*size, 3)
    again = Conversion.from_json(json.loads(json.dumps(conversion.to_json())))
    assert again.rules == rules
  assert image_size.fits((96, 96), 4)
  assert not image_size.fits((84, 84), 4)


def test_keys():
  space = gs.Dict(
    image=gs.Box(0, 255, (7, 7, 3), U8),
    direction=gs.Discrete(4),
    mission=gs.Text(64),
    state=gs.Dict(x=gs.Box(-1, 1, (2,)), graph=gs.Graph(gs.Box(0, 1), None)),
  )
  conversion = Conversion(space, MOVE)
  assert sorted(conversion.obs_space) == ['direction', 'image', 'state/x']
  assert len([x for x in conversion.table() if 'not seen: the agent' in x]) == 2
  value = {'direction': 2, 'state': {'x': np.zeros(2, np.float32)}}
  chosen = Conversion(space, MOVE, Rules(keys='dir.*|state/x'))
  assert list(chosen.observation(value)) == ['direction', 'state/x']
  again = Conversion.from_json(json.loads(json.dumps(chosen.to_json())))
  assert list(again.observation(value)) == ['direction', 'state/x']
  with pytest.raises(UserError, match=r"env\.keys=m.* chooses 'mission'"):
    Conversion(space, MOVE, Rules(keys='m.*'))
  with pytest.raises(UserError, match=r'image \(env\.keys=none\)'):
    Conversion(space, MOVE, Rules(keys='none'))


def test_actions_without_bounds():
  space = gs.Box(np.array([-np.inf, -2]), np.array([np.inf, 4]), dtype='f8')
  conversion = Conversion(gs.Discrete(2), space, Rules(action_scale=50.0))
  act = {'action': np.array([0.5, -1], np.float32)}
  np.testing.assert_allclose(conversion.action(act), [25, -2])
  (line,) = conversion.table()
  assert 'env.action_scale=50' in line
  wide = gs.Box(0, 10**6, (1,), np.int64)
  conversion = Conversion(gs.Discrete(2), wide)
  assert conversion.action({'action': np.ones(1, 'f4')}) == [10**6]


def test_numbers_may_have_an_axis():
  one, none = gs.Box(-1, 1, (1,)), gs.Box(-1, 1, ())
  for space, value in ((one, 0.5), (none, np.array([0.5]))):
    seen = Conversion(space, MOVE).observation(np.float32(value))
    assert seen['vector'].shape == space.shape
  env = gymnasium.make('Pendulum-v1')
  conversion = Conversion(env.observation_space, env.action_space)
  obs, _ = env.reset(seed=0)
  np.testing.assert_array_equal(conversion.observation(obs)['vector'], obs)
  assert conversion.action({'action': np.ones(1, np.float32)}) == [2]
