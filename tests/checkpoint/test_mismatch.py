"""Checkpoints that do not fit the configuration, or are corrupt."""

import shutil

import jax
import jax.numpy as jnp
import pytest

from dreamer_tpu.checkpoint import layout, restore
from dreamer_tpu.checkpoint.manager import Checkpointer
from dreamer_tpu.errors import UserError

CONFIG = {
  'task': 'dmc_walker_walk',
  'agent': {'rssm': {'deter': 8, 'mults': (1, 2)}},
  'run': {'steps': 10, 'envs': 1},
}


def make_agent(size=8):
  return {
    'params': {
      'rssm': {'gru': {'kernel': jnp.ones((size, 3 * size))}},
      'cont': {'out': {'bias': jnp.ones(1)}},
    },
    'step': jnp.int32(0),
  }


def abstract(agent):
  return jax.eval_shape(lambda: agent)


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  logdir = tmp_path_factory.mktemp('original')
  with Checkpointer(logdir / 'checkpoints') as checkpointer:
    checkpointer.save(3, make_agent(), {'config': CONFIG}, lambda: {'a': 1})
    checkpointer.save(4, make_agent(), {'config': CONFIG}, lambda: {'a': 1})
  return logdir


@pytest.fixture
def logdir(original, tmp_path):
  shutil.copytree(original, tmp_path, dirs_exist_ok=True)
  return tmp_path


def files(logdir):
  return {
    p: (p.read_bytes(), p.stat().st_mtime_ns)
    for p in logdir.rglob('*')
    if p.is_file() and p.name != 'lock'
  }


def refuse(logdir, agent, config, match='does not fit'):
  before = files(logdir)
  folder = logdir / 'checkpoints'
  with Checkpointer(folder) as checkpointer, pytest.raises(UserError) as info:
    checkpointer.restore(4, abstract(agent), config)
  assert files(logdir) == before
  assert '\n' not in str(info.value)
  assert match in str(info.value)
  return str(info.value)


def test_both_shapes_and_the_config_keys_are_named(logdir):
  config = {
    **CONFIG,
    'agent': {'rssm': {'deter': 16, 'mults': (1, 2)}},
    'run': {'steps': 20, 'envs': 1},
  }
  message = refuse(logdir, make_agent(16), config)
  assert 'agent.rssm.deter is 16, was 8; run.steps is 20, was 10' in message
  assert (
    'params/rssm/gru/kernel is float32[16, 48], was float32[8, 24]' in message
  )
  assert 'mults' not in message


def test_missing_and_additional_arrays_are_named(logdir):
  agent = make_agent()
  agent['params']['reward'] = agent['params'].pop('cont')
  message = refuse(logdir, agent, CONFIG)
  assert 'params/reward/out/bias float32[1] is not in the chec' in message
  assert 'params/cont/out/bias float32[1] is only in the chec' in message
  assert 'config ' not in message.split('Use its')[0].split(':')[1]


def test_dtype_is_not_cast_silently(logdir):
  agent = make_agent()
  agent['step'] = jnp.float32(0)
  assert 'step is float32[], was int32[]' in refuse(logdir, agent, CONFIG)


def test_another_task_is_refused_even_if_the_arrays_fit(logdir):
  config = {**CONFIG, 'task': 'dmc_walker_run'}
  message = refuse(logdir, make_agent(), config)
  assert "task is 'dmc_walker_run', was 'dmc_walker_walk'" in message


def test_other_run_options_are_accepted(logdir):
  config = {**CONFIG, 'run': {'steps': 99, 'envs': 4}}
  with Checkpointer(logdir / 'checkpoints') as checkpointer:
    checkpointer.restore(4, abstract(make_agent()), config)


def test_long_lists_are_cut():
  assert restore.shorten(list('abcde')) == 'a; b; c and 2 more'


@pytest.mark.parametrize('name', ['run/data.json', 'agent/manifest.ocdbt'])
def test_corrupt_files_name_the_other_steps(logdir, name):
  path = logdir / 'checkpoints' / '4' / name
  path.write_bytes(path.read_bytes()[:10])
  with Checkpointer(logdir / 'checkpoints') as checkpointer:
    with pytest.raises(UserError, match=r'other steps there: \[3\]') as info:
      checkpointer.restore(4, abstract(make_agent()), CONFIG)
    assert '\n' not in str(info.value)
    checkpointer.restore(3, abstract(make_agent()), CONFIG)


def test_truncated_data_is_an_error(logdir):
  for path in (logdir / 'checkpoints/4/agent').rglob('d/*'):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  refuse(logdir, make_agent(), CONFIG, 'cannot be read')


def test_finding_steps(logdir, tmp_path):
  newest = logdir / 'checkpoints' / '4'
  for path in (logdir, logdir / 'checkpoints', newest):
    assert str(layout.find_step(path)) == str(newest)
  with pytest.raises(UserError, match=r'no folder|holds checkpoints'):
    layout.find_step(tmp_path / 'typo')
  (tmp_path / 'checkpoints' / '9').mkdir()  # not committed
  assert layout.steps(logdir / 'checkpoints') == [3, 4]
