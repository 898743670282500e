"""Runs whose agent reads some observations and reconstructs others."""

import numpy as np
import pytest

import dreamer_tpu
from dreamer_tpu.cli import flags
from dreamer_tpu.errors import UserError
from dreamer_tpu.run import train
from tests.helpers import program

ARGS = (
  '--config.task=gym_tests.helpers.toys:Simulator-v0',
  '--config.env.stepping=serial',
  # The run ends before its first batch, so that only acting is compiled.
  '--config.batch_size=1000',
  '--config.replay.size=1e6',
  '--config.metrics.outputs=log,jsonl',
)
# The options of before.
OLD = """
from configs import gym

def get_config(presets=''):
  config = gym.get_config(presets)
  for part in (config.agent.encoder, config.agent.decoder):
    del part['keys']
  return config
"""


def run(logdir, *args, config='configs/gym.py'):
  command = ['main.py', f'--config={config}:debug', f'--logdir={logdir}']
  return train.main(*flags.parse([*command, *ARGS, *args]))


def test_a_checkpoint_without_the_options(tmp_path, capsys):
  (tmp_path / 'old.py').write_text(OLD)
  old, config = tmp_path / 'old', tmp_path / 'old.py'
  assert run(old, '--config.run.steps=0', config=config) == 0
  assert 'keys' not in program.state(old)['config']['agent']['encoder']
  policy = dreamer_tpu.load_policy(old)
  assert set(policy.obs_space) == {'sensors', 'state'}
  # Another agent is refused, and the option is named.
  with pytest.raises(
    UserError, match=r"encoder\.keys is 'sensors', was absent"
  ):
    run(old, '--config.agent.encoder.keys=sensors')
  capsys.readouterr()
  assert run(old, '--config.run.steps=20') == 0
  assert 'encoder.keys' not in capsys.readouterr().out
  assert program.state(old)['step'] == 20
  assert program.state(old)['config']['agent']['encoder']['keys'] == '.*'


def test_acting_needs_what_the_encoder_reads(tmp_path):
  encoder = '--config.agent.encoder.keys=sens.*'
  decoder = '--config.agent.decoder.keys=state'
  assert run(tmp_path, encoder, decoder, '--config.run.steps=20') == 0
  policy = dreamer_tpu.load_policy(tmp_path)
  assert set(policy.obs_space) == {'sensors'}
  _, action = policy(policy.initial(), {'sensors': np.zeros(3, np.float32)})
  assert action in (0, 1)
