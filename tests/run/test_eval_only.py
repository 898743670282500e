"""Evaluation of a trained agent."""

import importlib.util
import json

import gymnasium
import numpy as np
import pytest
from etils import epath

import dreamer_tpu
from dreamer_tpu.cli import flags
from dreamer_tpu.envs import vector
from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import video
from dreamer_tpu.run import eval_only, parts, train
from tests.helpers import program, tensorboard
from tests.helpers.golden import PUBLIC

PICTURES = '--config.task=gym_tests.helpers.toys:Pictures-v0'
SMALL = (
  '--config=configs/gym.py:debug',
  '--config.env.gym.size=48,48',
  '--config.env.stepping=serial',
)
# The run ends before its first batch, so that only acting is compiled.
UNTRAINED = (
  '--config.batch_size=1000',
  '--config.replay.size=1e6',
  '--config.run.steps=20',
  '--config.metrics.outputs=jsonl',
)


def config_of(*args):
  config, _ = flags.parse_config([*SMALL, *args])
  return config


def trained(logdir, *args):
  config = config_of(*UNTRAINED, *args)
  assert train.main(config, epath.Path(logdir)) == 0
  return logdir


def evaluated(logdir, source, *args):
  """Runs eval_only; returns exit code, config, metrics and scores."""
  config = config_of(
    '--config.script=eval_only',
    f'--config.run.from_checkpoint={source}',
    *args,
  )
  code = eval_only.main(config, epath.Path(logdir))
  paths = (logdir / name for name in ('metrics.jsonl', 'scores.jsonl'))
  return code, config, *(program.read(path) for path in paths)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """Returns the logdir of a run with images."""
  return trained(tmp_path_factory.mktemp('pictures'), PICTURES)


@pytest.fixture(scope='module')
def cartpole(tmp_path_factory):
  """Returns the logdir of a run with vectors."""
  return trained(tmp_path_factory.mktemp('cartpole'))


def test_scores_are_those_of_its_policy(tmp_path, cartpole, caplog):
  code, config, metrics, scores = evaluated(
    tmp_path,
    cartpole,
    '--config.run.eval_envs=1',
    '--config.run.eval_eps=4',
    '--config.metrics.outputs=jsonl',
  )
  assert code == 0
  # Expected scores, from the public API.
  seed = parts.seed(config, parts.EVAL_ACTING, 0)
  policy = dreamer_tpu.load_policy(cartpole, seed=seed)
  env = gymnasium.make('CartPole-v1')
  (start,) = vector.seeds(parts.seed(config, parts.EVAL_ENVS, 0, 0), 1)
  carry, expected = policy.initial(), []
  for episode in range(4):
    obs, _ = env.reset(seed=None if episode else start)
    first, done, score = True, False, 0.0
    while not done:
      carry, action = policy(carry, obs, is_first=first)
      obs, reward, terminated, truncated, _ = env.step(action)
      first, done, score = False, terminated or truncated, score + reward
    # The last observation is seen, too.
    carry, _ = policy(carry, obs)
    expected.append(score)
  assert [line['episode/score'] for line in scores] == expected
  (line,) = metrics
  assert line['eval/episode/score'] == pytest.approx(np.mean(expected))
  assert line['eval/episode/score_median'] == np.median(expected)
  assert line['eval/episode/score_sem'] == pytest.approx(
    np.std(expected, ddof=1) / 2
  )
  # Gymnasium draws CartPole with pygame, which may be missing.
  path = tmp_path / 'videos' / 'eval' / 'episode' / 'render' / '0.gif'
  if importlib.util.find_spec('pygame'):
    assert len(video.read_gif(path)) == expected[0] + 1
  else:
    (text,) = caplog.messages
    assert 'there is no video, as render() raises' in text
    assert 'pygame is not installed, run `pip install' in text


def test_results_of_a_run_with_images(tmp_path, pictures, capsys):
  code, config, (line,), scores = evaluated(
    tmp_path,
    pictures,
    PICTURES,
    '--config.run.eval_eps=5',
    '--config.env.check=True',
  )
  assert code == 0
  assert line['step'] == program.steps(pictures)[-1]
  assert len(scores) == 5
  assert all(x['mode'] == 'eval' and x['episode/score'] == 3 for x in scores)
  for slot in range(2):
    path = tmp_path / 'videos' / 'eval' / 'episode' / 'image' / f'{slot}.gif'
    frames = video.read_gif(path)
    assert frames[:, 20, 20, 0].tolist() == [0, 80, 160, 240]
  tags = tensorboard.read(tmp_path).Tags()['tensors']
  assert {'eval/episode/score', 'eval/episode/image/0'} <= set(tags)
  said = capsys.readouterr().out
  assert f'no complaints about {config.task}' in said
  assert 'score 3 ± 0 (standard error), median 3, 3 to 3, in 5 episodes' in said
  saved = json.loads((tmp_path / 'config.json').read_text())
  assert saved['script'] == 'eval_only'


def test_a_public_agent(tmp_path):
  code, _, (line,), scores = evaluated(
    tmp_path,
    PUBLIC,
    '--config=configs/dmc_proprio.py:debug',
    '--config.task=dmc_walker_walk',
    '--config.run.eval_envs=1',
    '--config.run.eval_eps=1',
    '--config.policy.eval_mode=sample',
    '--config.run.eval_video=False',
    '--config.metrics.outputs=jsonl',
  )
  assert code == 0
  assert [x['episode/length'] for x in scores] == [1000]
  assert 0 < scores[0]['episode/score'] < 1000
  assert (line['step'], line['update']) == (720, 1073)


def test_told_to_stop(tmp_path, pictures):
  code, _, metrics, scores = evaluated(
    tmp_path,
    pictures,
    '--config.task=gym_tests.helpers.toys:Signals-v0',
    # Each sends a signal, and a second one may end this process.
    '--config.run.eval_envs=1',
    '--config.run.eval_eps=1e6',
    '--config.metrics.outputs=jsonl',
  )
  assert (code, metrics, scores) == (75, [], [])


def test_mistakes_are_one_line(tmp_path, pictures):
  with pytest.raises(UserError, match=r'--config\.run\.from_checkpoint=DIR'):
    config_of('--config.script=eval_only')
  with pytest.raises(UserError, match='No checkpoint in'):
    evaluated(tmp_path, tmp_path / 'none')
  with pytest.raises(UserError, match=r"'image'.* none here, uint8 \[48, 48"):
    evaluated(tmp_path, pictures)
  with pytest.raises(UserError, match=r'holds a training run; choose another'):
    evaluated(pictures, pictures, PICTURES)
  with pytest.raises(UserError, match=r'lacks parameters|other shapes'):
    evaluated(tmp_path, PUBLIC)
