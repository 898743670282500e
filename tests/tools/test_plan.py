"""`plan` as a user runs it: figures, exit codes, and one line per mistake."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from configs import dmc_proprio
from dreamer_tpu.errors import UserError
from dreamer_tpu.sharding import mesh as mesh_lib
from dreamer_tpu.tools.plan import __main__ as plan
from dreamer_tpu.tools.plan import meshes, step, topology

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
  '--config=configs/dmc_proprio.py:debug',
  '--config.dtype.compute=bfloat16',
]


def command(*args, **env):
  inherited = {k: v for k, v in os.environ.items() if k != 'JAX_PLATFORMS'}
  return subprocess.run(
    [sys.executable, '-m', 'dreamer_tpu.tools.plan', *args],
    cwd=ROOT,
    env={**inherited, **env},
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


@pytest.fixture(scope='module')
def planned():
  """Pure data parallelism on sixteen chips."""
  done = command(
    *SMALL, '--config.batch_size=16', '--topology=v5e:4x4', '--json'
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout)


def test_figures(planned):
  assert (planned['chips'], planned['hosts']) == (16, 4)
  assert planned['mesh'] == dict(data=16, fsdp=1, model=1)
  config = dmc_proprio.get_config('debug')
  config.dtype.compute = 'bfloat16'
  agent = step.make_agent(config)
  params = sum(x.size for x in _leaves(agent.variables))
  assert planned['parameters'] == params
  state = 4 * params * 3  # weights and two moments
  # The narrow arrays of this size lie in tiles of 8 x 128.
  assert state < planned['arguments'] < 10 * state
  assert planned['arguments'] < planned['peak'] < planned['hbm']
  assert planned['hbm'] == 15.75 * 2**30
  assert planned['compile_s'] > 1
  # Every weight of the world model is used at B x T steps, forward and back.
  floor = 6 * 16 * config.batch_length * params
  assert 0.5 * floor < planned['flops'] < 20 * floor
  assert planned['replay'] * 4 == step.replay_bytes(config, agent)


def test_floors(planned):
  floors = planned['floors']
  assert floors['compute'] == planned['flops'] / 16 / 197e12
  state = 4 * planned['parameters'] * 3
  assert floors['memory'] > 2 * state / 0.82e12  # read and written
  sent = sum(
    2 * 15 / 16 * x['size'] * x['times']
    for x in planned['collectives']
    if x['kind'] == 'all-reduce'
  )
  assert floors['network'] > sent / 200e9
  bound = floors.pop('bound')
  assert floors[bound] == max(floors.values())


def test_data_parallel_collectives(planned):
  """Gradients, scalars and returns: nothing else, and nothing in a scan."""
  found = planned['collectives']
  assert sum(x['times'] for x in found) <= 6
  assert not any(x['loop'] for x in found)
  sums = [x for x in found if x['kind'] == 'all-reduce']
  # The least that gradients take is two bytes, the most four.
  total = sum(x['size'] for x in sums)
  assert 2 * planned['parameters'] < total < 1.05 * 4 * planned['parameters']


@pytest.mark.parametrize(
  ('args', 'parts'),
  [
    (['--topology=v5e:3x4'], ["'v5e:3x4'", 'v5e:4x4']),
    (['--topology=v5e:4'], ["'v5e:4'", '2 dimensions']),
    (['--topology=v3:4x4'], ["'v3:4x4'", 'v4, v5e, v5p, v6e']),
    (['--topology=v5e:64x64'], ['4096 chips', '256']),
    (['--topology=v5e:2x2', '--chips=5'], ['--chips=5', '4 chips']),
    (['--topology=v5e:4x4', '--chips=6'], ['6 devices', 'hosts']),
    (
      ['--topology=v5e:2x2', '--config.mesh.data=8'],
      ['mesh.data=8', '4 devices'],
    ),
    (
      ['--topology=v5e:4x4', '--config.mesh.model=8'],
      ['mesh.model=8', 'host', '[1, 2, 4]'],
    ),
    (['--topology=v5e:2x2', '--config.mesh.fsdp=3'], ['mesh.fsdp=3', '[1, 2']),
    (
      ['--topology=v5e:4x4', '--config.batch_size=12'],
      ['batch_size=12', 'batch_size=16'],
    ),
    (['--topology=v5e:4x4', '--config.tusk=x'], ['tusk', 'task']),
  ],
)
def test_a_mistake_is_one_line(capfd, args, parts):
  assert plan.main([*SMALL, *args]) == 1
  out, err = capfd.readouterr()
  assert out == ''
  (line,) = [x for x in err.splitlines() if x.startswith('error:')]
  assert len(line) < 250
  for part in parts:
    assert part in line


@pytest.mark.parametrize(
  ('name', 'chips', 'hosts'),
  [('v5e:1x1', 1, 1), ('v5e:4x4', 16, 4), ('v4:2x2x2', 8, 2)],
)
@pytest.mark.parametrize('model', [1, 2, 4])
def test_meshes_of_topologies_keep_rows_on_hosts(name, chips, hosts, model):
  devices = topology.devices(name)
  assert len(devices) == chips
  if model > chips:
    with pytest.raises(UserError):
      mesh_lib.make(dict(data=-1, fsdp=1, model=model), devices)
    return
  for sizes in ((-1, 1), (1, -1), (2, -1)):
    if chips // model < 2 and 2 in sizes:
      continue
    asked = dict(data=sizes[0], fsdp=sizes[1], model=model)
    mesh = mesh_lib.make(asked, devices)
    assert len({x.id for x in mesh.devices.flat}) == chips
    rows = mesh.devices.reshape(-1, model)
    owners = [{x.process_index for x in row} for row in rows]
    assert all(len(x) == 1 for x in owners)
    # Every host's rows are next to one another along the batch.
    assert len(set.union(*owners)) == hosts


def test_prediction_prefers_data_for_small_and_shards_for_large_models():
  config = dmc_proprio.get_config('size1m')
  agent = step.make_agent(config)
  order = sorted(meshes.predictions(config, agent, 'v5e:4x4'))
  assert order[0][1] == (16, 1, 1)
  assert all(d * f * m == 16 and m <= 4 for _, (d, f, m) in order)
  config = dmc_proprio.get_config('size400m')
  agent = step.make_agent(config)
  fitting = [x for _, x in meshes.predictions(config, agent, 'v5e:2x2')]
  assert (1, 4, 1) in fitting


def test_the_text_tells_what_does_not_fit():
  shown = plan.lines(
    step.Plan(
      topology='v5e:1x1',
      chips=1,
      hosts=1,
      mesh=dict(data=1, fsdp=1, model=1),
      batch_size=16,
      batch_length=64,
      parameters=10**9,
      arguments=12 * 2**30,
      temporaries=5 * 2**30,
      peak=17 * 2**30,
      hbm=15.75 * 2**30,
      fits=False,
      compile_s=3,
      flops=1e12,
      collectives=[],
      floors=None,
      replay=1e9,
    )
  )
  text = '\n'.join(shown)
  assert 'does not fit by 1.25 GiB' in text
  assert '17.00 of 15.75 GiB' in text


@pytest.mark.parametrize(
  ('message', 'gib'),
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
      'for HLO temporaries (240.00G) exceeds available HBM (15.75G).',
      240,
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.50G '
      'of 15.75G hbm. Exceeded hbm capacity by 768.00M. Total hbm usage >= '
      '16.75G: reserved 258.00M program 16.50G',
      16.5,
    ),
  ],
)
def test_what_the_compiler_says_when_memory_does_not_suffice(message, gib):
  assert step.needed(message) == gib * 2**30


@pytest.mark.slow
def test_too_large_for_the_chip():
  done = command(
    *SMALL,
    '--topology=v5e:1x1',
    '--config.batch_size=65536',
    '--config.batch_length=1024',
    '--config.replay.size=1e9',
  )
  assert done.returncode == 2, done.stderr[-2000:]
  assert 'does not fit by' in done.stdout


@pytest.mark.slow
def test_memory_of_a_model_with_images():
  """Of 1,024 images of 96 x 96, no more is kept than gradients need."""
  assert peak('size12m', '--topology=v5e:1x1') < 2 * 2**30


@pytest.mark.slow
def test_four_chips_share_the_memory_of_a_model():
  """What each still holds whole is small."""
  mesh = ['--config.mesh.data=1', '--config.mesh.model=4']
  shared = peak('size400m', '--topology=v5e:2x2', *mesh)
  assert shared < 0.35 * peak('size400m', '--topology=v5e:1x1')


def peak(size, *args):
  """Bytes per chip on Atari."""
  # Five times as quick to compile, and good enough for memory.
  quick = dict(JAX_EXEC_TIME_OPTIMIZATION_EFFORT='-1.0')
  config = f'--config=configs/atari.py:{size}'
  done = command(config, *args, '--json', **quick)
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout)['peak']


def _leaves(variables):
  import jax

  return jax.tree.leaves(variables)
