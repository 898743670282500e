"""Tests of mesh sizes and the messages about invalid ones."""

import jax
import ml_collections
import pytest

from configs import base
from dreamer_tpu.errors import UserError
from dreamer_tpu.sharding import mesh as mesh_lib
from dreamer_tpu.sharding import rules
from tests.helpers import small

pytestmark = pytest.mark.skipif(
  jax.device_count() != 8, reason='needs eight devices'
)


def sizes(data=-1, fsdp=1, model=1):
  return ml_collections.ConfigDict(dict(data=data, fsdp=fsdp, model=model))


def message(function, *args):
  with pytest.raises(UserError) as info:
    function(*args)
  text = str(info.value)
  assert '\n' not in text
  assert len(text) < 200
  return text


@pytest.mark.parametrize(
  ('asked', 'shape'),
  [
    (sizes(), (8, 1, 1)),
    (sizes(model=2), (4, 1, 2)),
    (sizes(data=1, fsdp=-1, model=4), (1, 2, 4)),
    (sizes(data=2, fsdp=2, model=2), (2, 2, 2)),
    (sizes(data=1, fsdp=1, model=-1), (1, 1, 8)),
  ],
)
def test_every_device_is_in_the_mesh_once(asked, shape):
  mesh = mesh_lib.make(asked)
  assert mesh.axis_names == ('data', 'fsdp', 'model')
  assert mesh.devices.shape == shape
  assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()}
  assert mesh_lib.batch_shards(mesh) == shape[0] * shape[1]


def test_too_many_devices():
  text = message(mesh_lib.make, sizes(data=16))
  assert 'mesh.data=16' in text
  assert '8 devices' in text
  assert '[1, 2, 4, 8]' in text


@pytest.mark.parametrize(
  'asked', [sizes(data=3), sizes(fsdp=3), sizes(model=3), sizes(2, 2, 3)]
)
def test_sizes_that_do_not_divide(asked):
  text = message(mesh_lib.make, asked)
  assert any(f'{k}=3' in text for k in mesh_lib.AXES)
  assert '[1, 2, 4, 8]' in text


def test_batch_that_does_not_divide():
  mesh = mesh_lib.make(sizes(data=4, fsdp=2))
  mesh_lib.check_batch(mesh, 16)
  text = message(mesh_lib.check_batch, mesh, 12)
  assert 'batch_size=12' in text
  assert 'batch_size=16' in text or 'batch_size=8' in text
  mesh_lib.check_batch(mesh_lib.make(sizes(data=2, model=4)), 12)


def test_blocks_that_do_not_divide():
  config = small.config()
  config.rssm.update(blocks=4, deter=64)
  agent = small.Agent(small.VECTOR_OBS, small.ACT, config)
  table = base.base().sharding.rules
  rules.check(small.make_mesh((1, 1, 4)), table, agent.variables)
  mesh = small.make_mesh((1, 1, 8))
  text = message(rules.check, mesh, table, agent.variables)
  assert 'mesh.model=8' in text
  assert 'rssm/gru/kernel' in text
  assert '[1, 2, 4]' in text
