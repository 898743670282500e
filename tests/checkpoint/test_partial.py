"""Restores parameters chosen by name, from our and public checkpoints."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dreamer_tpu.checkpoint.dreamerv3 import names, unpickle
from dreamer_tpu.checkpoint.manager import Checkpointer
from dreamer_tpu.checkpoint.partial import restore_partial
from dreamer_tpu.errors import UserError

PUBLIC = pathlib.Path(__file__).parents[1] / 'golden' / 'public_checkpoint'


def make_params(value, units=4):
  layer = {'kernel': jnp.full((units, 4), value), 'bias': jnp.full(4, value)}
  return {
    'encoder': {'mlp': layer},
    'encoder_more': {'mlp': layer},
    'rssm': {'gru': layer, 'prior_logits': layer},
    'value': {'out': layer},
    'slow_value': {'out': layer},
  }


@pytest.fixture(scope='module')
def logdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('logdir')
  params = make_params(1.0)
  slow = params.pop('slow_value')
  agent = {
    'params': params,
    'slow_value': slow,
    'opt': {'nu': params},
    'step': jnp.int32(9),
  }
  with Checkpointer(folder / 'checkpoints') as checkpointer:
    checkpointer.save(9, agent, {'updates': 9})
  return folder


def loaded(tree):
  """Returns names of leaves from the checkpoint, which holds ones."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, leaf in leaves
    if (np.asarray(leaf) == 1).all()
  }


@pytest.mark.parametrize(
  ('regex', 'expected'),
  [
    ('rssm/gru/kernel', {'rssm/gru/kernel'}),
    (
      'rssm/.*kernel',
      {'rssm/gru/kernel', 'rssm/prior_logits/kernel'},
    ),
    ('encoder', {'encoder/mlp/kernel', 'encoder/mlp/bias'}),
    ('rssm/gru', {'rssm/gru/kernel', 'rssm/gru/bias'}),
    (
      'slow_value|value/.*/bias',
      {'slow_value/out/kernel', 'slow_value/out/bias', 'value/out/bias'},
    ),
  ],
)
def test_patterns_choose_whole_names_or_modules(logdir, regex, expected):
  fresh = make_params(0.0)
  params, report = restore_partial(logdir, regex, fresh)
  assert set(report.loaded) == expected
  assert loaded(params) == expected
  assert set(report.kept) == set(loaded(make_params(1.0))) - expected
  assert report.missing == ()
  assert params['encoder_more']['mlp'] is not None
  assert jax.tree.structure(params) == jax.tree.structure(fresh)


def test_only_what_is_wanted_is_read(logdir, tmp_path):
  """Reads the bytes of one of eight arrays of 8 MB."""
  agent = {
    'params': {
      f'm{i}': {'kernel': jax.random.normal(jax.random.key(i), (1 << 21,))}
      for i in range(8)
    }
  }
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    checkpointer.save(1, agent, {})
  target = {'m3': {'kernel': jnp.zeros(1 << 21)}}

  def read_bytes():
    text = pathlib.Path('/proc/self/io').read_text()
    return int(text.split('rchar: ')[1].split()[0])

  before = read_bytes()
  params, report = restore_partial(tmp_path, '.*', target)
  assert 4e6 < read_bytes() - before < 16e6
  np.testing.assert_array_equal(
    params['m3']['kernel'], agent['params']['m3']['kernel']
  )
  assert len(report.unused) == 7


def test_optimizer_only_where_the_tree_has_it(logdir):
  params = make_params(0.0)
  nu = {k: v for k, v in params.items() if k != 'slow_value'}
  tree, report = restore_partial(logdir, 'opt', {**params, 'opt': {'nu': nu}})
  assert all(name.startswith('opt/nu/') for name in report.loaded)
  assert len(report.loaded) == 10
  assert loaded(tree) == set(report.loaded)


def test_dtype_and_sharding_are_those_asked_for(logdir):
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec(None))
  shape = jax.ShapeDtypeStruct((4, 4), jnp.bfloat16, sharding=sharding)
  tree = {'rssm': {'gru': {'kernel': shape}}}
  params, _ = restore_partial(logdir / 'checkpoints' / '9', 'rssm', tree)
  kernel = params['rssm']['gru']['kernel']
  assert kernel.dtype == jnp.bfloat16
  assert kernel.sharding == sharding
  assert loaded(params) == {'rssm/gru/kernel'}


def refused(*args, **kwargs):
  with pytest.raises(UserError) as info:
    restore_partial(*args, **kwargs)
  assert '\n' not in str(info.value)
  return str(info.value)


def test_refusals(logdir, tmp_path):
  fresh = make_params(0.0)
  message = refused(logdir, 'gruu', fresh)
  assert "'gruu' matches no parameter" in message
  assert 'encoder, encoder_more, rssm' in message
  # Half a name is none.
  assert "'rss' matches no parameter" in refused(logdir, 'rss', fresh)
  assert 'not a regular expression' in refused(logdir, 'a(', fresh)
  assert 'No checkpoint' in refused(tmp_path, '.*', fresh)


def test_other_shapes_are_refused_or_fresh(logdir):
  wide = make_params(0.0, units=6)
  message = refused(logdir, 'rssm', wide)
  assert 'rssm/gru/kernel [6, 4] here, [4, 4] there' in message
  assert 'from_checkpoint_mismatch=fresh' in message
  params, report = restore_partial(logdir, 'rssm', wide, 'fresh')
  assert loaded(params) == {'rssm/gru/bias', 'rssm/prior_logits/bias'}
  assert set(report.loaded) == loaded(params)
  assert [x.split(' ')[0] for x in report.differing] == [
    'rssm/gru/kernel',
    'rssm/prior_logits/kernel',
  ]
  assert report.lines()[2].startswith('Fresh, of another shape')
  message = refused(logdir, '.*/kernel', wide, 'fresh')
  assert 'Nothing to load' in message


def test_missing_names_are_listed(logdir):
  fresh = {**make_params(0.0), 'policy': {'out': {'bias': jnp.zeros(4)}}}
  _, report = restore_partial(logdir, '.*', fresh)
  assert report.missing == ('policy/out/bias',)
  lines = report.lines()
  assert lines[0].startswith('Loaded (12): encoder/mlp/bias')
  assert lines[3] == 'Missing in the checkpoint (1): policy/out/bias'


def public_tree(value):
  """Returns a tree like the agent's, of the public checkpoint's shapes."""
  tree = {}
  for name, array in unpickle.load(unpickle.find(PUBLIC)).params.items():
    *modules, leaf = name.split('/')
    node = tree
    for module in modules:
      node = node.setdefault(module, {})
    node[leaf] = jnp.full(array.shape, value, array.dtype)
  return tree


@pytest.mark.parametrize('regex', ['enc|dyn|dec', 'encoder|rssm|decoder'])
def test_world_model_from_a_public_checkpoint(regex):
  params, report = restore_partial(PUBLIC, regex, public_tree(7.0))
  kept = ('encoder/', 'rssm/', 'decoder/')
  assert report.loaded
  assert all(name.startswith(kept) for name in report.loaded)
  assert not any(name.startswith(kept) for name in report.kept)
  stored = unpickle.load(unpickle.find(PUBLIC)).params
  np.testing.assert_array_equal(
    params['rssm']['gru']['kernel'], stored['rssm/gru/kernel']
  )
  assert (np.asarray(params['policy']['action_mean']['bias']) == 7).all()


def test_everything_from_a_public_checkpoint():
  params, report = restore_partial(PUBLIC, '.*', public_tree(7.0))
  assert len(report.loaded) == 68
  assert report.kept == report.missing == report.unused == ()
  stored = unpickle.load(unpickle.find(PUBLIC)).params
  assert float(params['retnorm']['high']) == stored['retnorm/high'] != 0
  assert isinstance(params['slow_value']['out']['kernel'], jax.Array)


def test_logdir_of_the_public_implementation(tmp_path):
  """A file in its ckpt folder names the newest checkpoint."""
  shutil.copytree(PUBLIC, tmp_path / 'ckpt' / '20260101T000000F000000')
  (tmp_path / 'ckpt' / 'latest').write_text('20260101T000000F000000')
  for path in (tmp_path, tmp_path / 'ckpt'):
    _, report = restore_partial(path, 'rew', public_tree(0.0))
    assert set(report.loaded) == {
      names.from_public(f'rew/{name}')
      for name in (
        'head/logits/bias',
        'head/logits/kernel',
        'mlp/linear0/bias',
        'mlp/linear0/kernel',
        'mlp/norm0/scale',
      )
    }


def bytes_read():
  """Returns the bytes that this process has read from files so far."""
  lines = pathlib.Path('/proc/self/io').read_text().splitlines()
  return int(dict(line.split(': ') for line in lines)['rchar'])


def test_only_what_is_chosen_is_read(tmp_path):
  """A policy is loaded without reading the optimizer."""
  rng = np.random.default_rng(0)
  params = {
    'encoder': {'kernel': rng.normal(size=(512, 512)).astype('f4')},
    'decoder': {'kernel': rng.normal(size=(2048, 1024)).astype('f4')},
  }
  opt = {'mu': params, 'nu': params}
  agent = {'params': params, 'opt': opt, 'step': np.int32(1)}
  agent = jax.tree.map(jnp.asarray, agent)
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    checkpointer.save(1, agent, {})
  whole = sum(x.stat().st_size for x in tmp_path.rglob('*') if x.is_file())
  wanted = jax.eval_shape(lambda: {'encoder': agent['params']['encoder']})
  restore_partial(tmp_path, '.*', wanted)  # Imports what it needs.
  before = bytes_read()
  restored, _ = restore_partial(tmp_path, '.*', wanted)
  read = bytes_read() - before
  print(f'{read:,} bytes read of {whole:,}')
  np.testing.assert_array_equal(
    restored['encoder']['kernel'], params['encoder']['kernel']
  )
  assert 0.9 * 2**20 < read < 1.2 * 2**20 < whole / 20
