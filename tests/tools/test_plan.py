"""Tests of `plan`: figures, exit codes and one-line errors."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import dmc_proprio
from dreamer_tpu.errors import UserError
from dreamer_tpu.run import memory
from dreamer_tpu.sharding import mesh as mesh_lib
from dreamer_tpu.tools.plan import __main__ as plan
from dreamer_tpu.tools.plan import (
  hardware,
  meshes,
  step,
  topology,
)

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
  '--config=configs/dmc_proprio.py:debug',
  '--config.dtype.compute=bfloat16',
]
DOES_NOT_FIT = step.UpdatePlan(
  topology='v5e:1x1',
  chips=1,
  devices=1,
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


def plan_json(*args, code=0):
  # Five times faster to compile; good enough for memory and collectives.
  done = command(*args, '--json', JAX_EXEC_TIME_OPTIMIZATION_EFFORT='-1.0')
  assert done.returncode == code, done.stderr[-2000:]
  return json.loads(done.stdout)


@pytest.fixture(scope='module')
def planned():
  """The suggestion for sixteen chips; one block leaves two candidates."""
  args = ['--config.batch_size=16', '--config.agent.rssm.blocks=1']
  return plan_json(*SMALL, *args, '--topology=v5e:4x4', '--suggest')


def small_config(**sizes):
  config = dmc_proprio.get_config('debug')
  config.dtype.compute = 'bfloat16'
  config.update(sizes)
  return config


def test_figures(planned):
  assert (planned['chips'], planned['hosts']) == (16, 4)
  config = small_config()
  config.agent.rssm.blocks = 1
  agent = step.make_agent(config)
  params = sum(x.size for x in jax.tree.leaves(agent.variables))
  assert planned['parameters'] == params
  state = 4 * params * 3  # Weights and two moments.
  # Narrow arrays of this size are padded to tiles of 8 x 128.
  assert state < planned['arguments'] < 10 * state
  assert planned['arguments'] < planned['peak'] < planned['hbm']
  assert planned['arguments'] + planned['temporaries'] == planned['peak']
  assert planned['hbm'] == 15.75 * 2**30
  assert planned['compile_s'] > 1
  # Every weight of the world model is used at B x T steps, forward and back.
  floor = 6 * 16 * config.batch_length * params
  assert 0.5 * floor < planned['flops'] < 20 * floor
  assert planned['replay'] == memory.replay_bytes(
    config, agent, hosts=4, steps=config.run.steps
  )


def test_floors(planned):
  floors = dict(planned['floors'])
  bound = floors.pop('bound')
  assert floors['compute'] == planned['flops'] / 16 / 197e12
  state = 4 * planned['parameters'] * 3
  assert floors['memory'] > 2 * state / 0.82e12  # Read and written.
  sent = sum(
    2 * 15 / 16 * x['size'] * x['times']
    for x in planned['collectives']
    if x['kind'] == 'all-reduce'
  )
  assert floors['network'] > sent / 200e9
  assert floors[bound] == max(floors.values())


def test_data_parallel_collectives(planned):
  """Gradients, scalars and returns only, and none of them in a scan."""
  found = planned['collectives']
  assert sum(x['times'] for x in found) <= 6
  assert not any(x['loop'] for x in found)
  sums = [x for x in found if x['kind'] == 'all-reduce']
  # Gradients take two to four bytes per parameter.
  total = sum(x['size'] for x in sums)
  assert 2 * planned['parameters'] < total < 1.05 * 4 * planned['parameters']


def test_the_suggested_mesh_is_the_best_of_those_compiled(planned):
  compared = planned['compared']
  assert 1 < len(compared) <= 4
  assert len({tuple(x['mesh'].values()) for x in compared}) == len(compared)
  fitting = [x for x in compared if x['fits']]
  best = min(fitting, key=lambda x: x['floor'])
  assert planned['mesh'] == best['mesh'] == dict(data=16, fsdp=1, model=1)
  assert best['floor'] == planned['floors'][planned['floors']['bound']]
  assert best['floor'] < 0.5 * max(x['floor'] for x in fitting)


@pytest.mark.parametrize(
  ('batch_size', 'expected'),
  [
    (16, [(16, 1, 1), (1, 16, 1), (4, 1, 4), (1, 4, 4)]),
    (8, [(8, 1, 2), (1, 8, 2), (4, 1, 4), (1, 4, 4)]),
    (4, [(4, 1, 4), (1, 4, 4)]),
    (2, []),
  ],
)
def test_candidates_divide_hosts_and_batch(batch_size, expected):
  config = small_config(batch_size=batch_size)
  agent = step.make_agent(config)
  assert meshes.candidates(config, agent, 'v5e:4x4') == expected


def test_ranking_prefers_what_fits_then_time_then_memory():
  def fits(*floors):
    floors = hardware.Floors(*floors)
    return dataclasses.replace(DOES_NOT_FIT, fits=True, floors=floors)

  plans = [
    fits(3, 1, 1),
    fits(3, 2, 1),
    fits(1, 4, 1),
    DOES_NOT_FIT,
    dataclasses.replace(DOES_NOT_FIT, peak=18 * 2**30),
  ]
  shuffled = [plans[i] for i in (3, 0, 4, 2, 1)]
  assert sorted(shuffled, key=meshes.rank) == plans


@pytest.mark.parametrize(
  ('args', 'parts'),
  [
    (['--topology=v5e:3x4'], ["'v5e:3x4'", 'v5e:4x4']),
    (['--topology=v5e:4'], ["'v5e:4'", '2 dimensions']),
    (['--topology=v3:4x4'], ["'v3:4x4'", 'v4, v5e, v5p, v6e, tpu7x']),
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
    (
      ['--topology=v5e:4x4', '--config.batch_size=2', '--suggest'],
      ['v5e:4x4', 'batch_size=2', 'blocks'],
    ),
    (['--topology=v5e:4x4', '--config.tusk=x'], ['tusk', 'task']),
  ],
)
def test_errors_are_one_line(capfd, args, parts):
  assert plan.main([*SMALL, *args]) == 1
  out, err = capfd.readouterr()
  assert out == ''
  (line,) = [x for x in err.splitlines() if x.startswith('error:')]
  assert len(line) < 250
  for part in parts:
    assert part in line


@pytest.mark.parametrize(
  ('name', 'count', 'hosts'),
  [
    ('v5e:1x1', 1, 1),
    ('v5e:4x4', 16, 4),
    ('v4:2x2x2', 8, 2),
    ('tpu7x:2x2x2', 16, 2),  # Two devices per chip.
  ],
)
@pytest.mark.parametrize('model', [1, 2, 4])
def test_meshes_of_topologies_keep_rows_on_hosts(name, count, hosts, model):
  devices = topology.devices(name)
  assert len(devices) == count
  if model > count:
    with pytest.raises(UserError):
      mesh_lib.make(dict(data=-1, fsdp=1, model=model), devices)
    return
  for sizes in ((-1, 1), (1, -1), (2, -1)):
    if count // model < 2 and 2 in sizes:
      continue
    config = dict(data=sizes[0], fsdp=sizes[1], model=model)
    mesh = mesh_lib.make(config, devices)
    assert len({x.id for x in mesh.devices.flat}) == count
    rows = mesh.devices.reshape(-1, model)
    owners = np.array([[x.process_index for x in row] for row in rows])
    assert (owners == owners[:, :1]).all()
    # The rows of each host are adjacent along the batch.
    assert (np.diff(owners[:, 0]) != 0).sum() == hosts - 1
    assert len(set(owners[:, 0])) == hosts


def test_chips_of_tpu7x_have_two_devices():
  assert len(topology.devices('tpu7x:2x2x1', chips=3)) == 6
  with pytest.raises(UserError, match='has 4 chips'):
    topology.devices('tpu7x:2x2x1', chips=5)
  assert hardware.CHIPS['tpu7x'].flops * 2 == 2307e12


def test_text_of_a_plan_that_does_not_fit():
  text = '\n'.join(plan.lines(DOES_NOT_FIT))
  assert 'does not fit by 1.25 GiB' in text
  assert '17.00 of 15.75 GiB' in text
  assert '(arguments 12.00 + temporaries 5.00)' in text
  line = plan.comparison(DOES_NOT_FIT)
  assert line.endswith('data=1 fsdp=1 model=1: does not fit')


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
def test_required_bytes_from_the_message_of_the_compiler(message, gib):
  assert step.required_bytes(message) == gib * 2**30


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
def test_the_peak_is_what_the_compiler_compares_with_the_chip():
  """A refused batch needs as much as the peak of an accepted one says."""
  options = [*SMALL, '--topology=v5e:1x1', '--config.replay.size=1e9']
  accepted = plan_json(*options, '--config.batch_size=8192')
  refused = plan_json(*options, '--config.batch_size=131072', code=2)
  assert refused['peak'] == pytest.approx(16 * accepted['peak'], rel=0.1)


@pytest.mark.slow
def test_memory_of_a_model_with_images():
  """Stores only what gradients need of 1,024 images of 96 x 96."""
  assert peak('size12m', '--topology=v5e:1x1') < 2 * 2**30


@pytest.mark.slow
def test_a_model_axis_divides_memory():
  """Replicates only small arrays."""
  mesh = ['--config.mesh.data=1', '--config.mesh.model=4']
  shared = peak('size400m', '--topology=v5e:2x2', *mesh)
  assert shared < 0.35 * peak('size400m', '--topology=v5e:1x1')


def peak(size, *args):
  """Returns the peak bytes per chip on Atari."""
  return plan_json(f'--config=configs/atari.py:{size}', *args)['peak']
