"""Imports names and files of the public implementation."""

import collections
import io
import os
import pathlib
import pickle

import jax
import ml_dtypes
import numpy as np
import pytest

from configs import base
from dreamer_tpu.agent.agent import Agent
from dreamer_tpu.agent.spaces import Space
from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.dreamerv3 import names, unpickle
from dreamer_tpu.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
CHECKPOINT = GOLDEN / 'public_checkpoint'


def public_names(file):
  with np.load(GOLDEN / file) as arrays:
    found = [x[7:] for x in arrays.files if x.startswith('params/')]
  return [x for x in found if not x.startswith(('opt/', 'slowval_count/'))]


@pytest.mark.parametrize(
  'file', ['vector_continuous.npz', 'image_discrete.npz']
)
def test_names_map_one_to_one(file):
  theirs = public_names(file)
  ours = [names.from_public(name) for name in theirs]
  assert len(theirs) > 60
  assert len(set(ours)) == len(theirs)


def test_names_are_those_of_the_agent():
  def space(*shape):
    return Space(shape=shape, dtype='float32', classes=0)

  config = base.base().agent
  config.rssm.update(deter=8, hidden=3, stoch=2, classes=4, blocks=4)
  for part in ('encoder', 'decoder'):
    config[part].update(depth=2, units=8, layers=1)
  for part in ('reward', 'cont', 'policy', 'value'):
    config[part].update(units=8, layers=1)
    if 'bins' in config[part]:
      config[part].bins = 41
  agent = Agent(
    {'orientations': space(14), 'height': space(), 'velocity': space(9)},
    {'action': space(6)},
    config,
  )
  state = jax.eval_shape(agent.init, jax.random.key(0))
  parts = {k: state[k] for k in ('slow_value', 'retnorm')}
  ours = layout.flatten({**state['params'], **parts})
  loaded = unpickle.load(unpickle.find(CHECKPOINT))
  shapes = {k: v.shape for k, v in loaded.params.items()}
  bins = next(iter(loaded.params['value/out/bias'].shape))
  expected = {
    k: tuple(bins if x == 41 else x for x in v.shape) for k, v in ours.items()
  }
  assert shapes == expected


def test_keys_with_slashes():
  ours = names.from_public('dec/vec/robot/arm/pred/kernel')
  assert ours == 'decoder/out_robot.arm/kernel'
  assert names.from_public('dec/vec/robot/arm/logits/kernel') == ours


@pytest.mark.parametrize(
  'name', ['opt/step/value', 'dyn/gru/kernel', 'dyn/dyngru/weight', 'enc']
)
def test_unknown_names(name):
  with pytest.raises(KeyError):
    names.from_public(name)


def test_values_equal_those_of_the_full_unpickler():
  loaded = unpickle.load(unpickle.find(CHECKPOINT))
  content = pickle.loads((CHECKPOINT / 'agent.pkl').read_bytes())
  assert loaded.counters == content['counters']
  assert len(loaded.params) + len(loaded.skipped) == len(content['params'])
  for name, theirs in loaded.public.items():
    value = content['params'][theirs]
    assert loaded.params[name].dtype == value.dtype
    np.testing.assert_array_equal(loaded.params[name], value)


def write(folder, content, protocol=4):
  folder.mkdir(exist_ok=True)
  (folder / 'agent.pkl').write_bytes(pickle.dumps(content, protocol))
  return folder


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize(
  'value',
  [
    np.arange(6, dtype='f4').reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype='i8').reshape(2, 3)),
    np.arange(6, dtype='>f4'),
    np.ones((2, 2), ml_dtypes.bfloat16),
    np.array(3, 'i4'),
    np.zeros((0, 4), 'f2'),
    np.array([True, False]),
    np.float32(2.5),
  ],
)
def test_arrays_of_all_kinds(tmp_path, value, protocol):
  content = {'params': {'dyn/dyngru/bias': value}, 'counters': {'updates': 1}}
  folder = write(tmp_path, content, protocol)
  result = unpickle.load(folder).params['rssm/gru/bias']
  assert result.dtype == value.dtype
  assert result.shape == value.shape
  np.testing.assert_array_equal(result, value)


def test_modules_of_numpy_1(tmp_path):
  data = (CHECKPOINT / 'agent.pkl').read_bytes()
  old, new = b'numpy._core.multiarray', b'numpy.core.multiarray'
  assert data.count(old) == 1
  # The string's length byte and the frame's length shrink by one with it.
  start = data.index(old)
  frame = int.from_bytes(data[3:11], 'little') - 1
  data = (
    data[:3]
    + frame.to_bytes(8, 'little')
    + data[11 : start - 1]
    + bytes([len(new)])
    + new
    + data[start + len(old) :]
  )
  (tmp_path / 'agent.pkl').write_bytes(data)
  assert len(unpickle.load(tmp_path).params) == 68


class Reduce:
  def __init__(self, *call):
    self.call = call

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize(
  ('payload', 'name'),
  [
    (lambda path: Reduce(os.system, (f'touch {path}',)), 'posix.system'),
    (
      lambda path: Reduce(eval, (f'open({str(path)!r}, "w")',)),
      'builtins.eval',
    ),
    (lambda path: Reduce(np.save, (str(path), 0)), 'numpy.save'),
    (lambda path: Reduce(getattr, ('a', 'join')), 'builtins.getattr'),
    (lambda path: collections.deque([1]), 'collections.deque'),
  ],
)
@pytest.mark.parametrize('place', ['params', 'array', 'counters'])
def test_hostile_pickles_are_refused_by_name(tmp_path, payload, name, place):
  trap = tmp_path / 'trap.npy'
  content = {'params': {'dyn/dyngru/bias': np.zeros(2)}, 'counters': {}}
  if place == 'array':
    content['params']['dyn/dyngru/kernel'] = payload(trap)
  else:
    content[place] = payload(trap)
  folder = write(tmp_path / 'checkpoint', content)
  with pytest.raises(UserError) as info:
    unpickle.load(folder)
  assert name in str(info.value)
  assert '\n' not in str(info.value)
  assert not trap.exists()


def test_dotted_names_do_not_reach_attributes(tmp_path):
  """Writes 'numpy' 'ndarray.tofile' by hand, as protocol 4 resolves it."""
  data = io.BytesIO()
  data.write(b'\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.')
  (tmp_path / 'agent.pkl').write_bytes(data.getvalue())
  with pytest.raises(UserError, match=r'numpy\.ndarray\.tofile'):
    unpickle.load(tmp_path)


@pytest.mark.parametrize(
  'value',
  [
    np.array(['text']),
    np.array([1, None]),
    np.zeros(2, [('a', 'f4'), ('b', 'i4')]),
    'text',
    None,
    [1, 2],
  ],
)
def test_anything_but_numbers_is_refused(tmp_path, value):
  content = {'params': {'dyn/dyngru/bias': value}, 'counters': {}}
  with pytest.raises(UserError, match='corrupt or not an agent'):
    unpickle.load(write(tmp_path, content))


@pytest.mark.parametrize('cut', [0, 1, 100, 5000, 30000])
def test_truncated_files(tmp_path, cut):
  data = (CHECKPOINT / 'agent.pkl').read_bytes()
  (tmp_path / 'agent.pkl').write_bytes(data[:cut])
  with pytest.raises(UserError, match='corrupt or not an agent') as info:
    unpickle.load(tmp_path)
  assert '\n' not in str(info.value)


def test_other_content(tmp_path):
  with pytest.raises(UserError, match='corrupt or not an agent'):
    unpickle.load(write(tmp_path, 5))
  content = {'params': {'dyn/tssm/kernel': np.zeros(2)}, 'counters': {}}
  with pytest.raises(UserError, match="'dyn/tssm/kernel'"):
    unpickle.load(write(tmp_path, content))
