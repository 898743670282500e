"""Tests of final scores, their statistics, and gates.

Statistics are compared with their definitions in plain loops, aggregates of the
published runs with known numbers.
"""

import gzip
import itertools
import json
import math
import random
import shutil

import numpy as np
import pytest
import scipy.stats

from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics.writers import Writers
from dreamer_tpu.tools.plot import __main__ as plot
from dreamer_tpu.tools.plot import (
  bsuite_scores,
  curves,
  drawing,
  protocol,
  published,
  statistics,
  tables,
)

SCORES = [np.array([0.1, 0.5, 0.9]), np.array([3.0]), np.array([-1.0, 0.4])]


def write_run(path, task, steps, scores, *, repeat=1, stats=None, **env):
  suite = task.partition('_')[0]
  path.mkdir(parents=True)
  config = {'task': task, 'env': {suite: {'repeat': repeat, **env}}}
  (path / 'config.json').write_text(json.dumps(config))
  stats = stats or [{}] * len(steps)
  with Writers(path, ('jsonl',)) as writers:
    for step, score, values in zip(steps, scores, stats, strict=True):
      writers.write_score(int(step), float(score), 100, 'train', values)
  return path


def final(benchmark, width=None):
  runs = [run for run in published.runs() if run.benchmark == benchmark]
  (item,) = protocol.finals(runs, width)
  return item, list(item.agents[0].scores.values())


def test_aggregates_of_the_published_runs_are_the_known_ones():
  _, scores = final('atari100k')
  assert sum(x.size for x in scores) == 122  # Eight end no episode in time.
  assert float(statistics.mean(scores)) == pytest.approx(1.247, abs=5e-4)
  assert float(statistics.median(scores)) == pytest.approx(0.494, abs=5e-4)
  assert float(statistics.iqm(scores)) == pytest.approx(0.463, abs=5e-4)
  for width, mean in ((None, 742.6), (10e3, 757.5)):
    _, scores = final('dmc_proprio', width)
    assert float(statistics.mean(scores)) == pytest.approx(mean, abs=0.05)
  _, scores = final('atari57')
  assert float(statistics.median(scores)) == pytest.approx(8.30, abs=5e-3)
  _, scores = final('procgen')
  assert float(statistics.mean(scores)) == pytest.approx(0.6601, abs=5e-5)


def test_iqm_is_the_trimmed_mean():
  for size in (1, 2, 3, 4, 5, 8, 130):
    pooled = np.random.default_rng(size).normal(size=size)
    expect = scipy.stats.trim_mean(pooled, 0.25)
    halves = [pooled[: size // 2], pooled[size // 2 :]]
    assert float(statistics.iqm(halves)) == pytest.approx(expect)


def test_improvement_and_profile_by_hand():
  others = [np.array([0.5, 0.2]), np.array([4.0, 2.0]), np.array([0.4])]
  wins = []
  for ours, theirs in zip(SCORES, others, strict=True):
    pairs = list(itertools.product(ours, theirs))
    wins.append(sum((x > y) + (x == y) / 2 for x, y in pairs) / len(pairs))
  result = statistics.improvement(SCORES, others)
  assert float(result) == pytest.approx(sum(wins) / 3)
  levels = np.array([-2.0, 0.4, 3.0])
  profile = statistics.profile(SCORES, levels)
  np.testing.assert_allclose(profile, [1, 3 / 6, 0])


@pytest.mark.parametrize('name', ['mean', 'median', 'iqm'])
def test_interval_is_a_stratified_bootstrap(name):
  statistic = getattr(statistics, name)
  generator, rng = np.random.default_rng(0), random.Random(1)
  scores = [generator.normal(task, 1, 8 + task) for task in range(3)]
  draws = sorted(
    float(statistic([np.array(rng.choices(x, k=len(x))) for x in scores]))
    for _ in range(4000)
  )
  low, high = statistics.interval(statistic, scores)
  assert high - low > 0.4
  assert low == pytest.approx(draws[100], abs=0.06)
  assert high == pytest.approx(draws[3900], abs=0.06)
  # Tasks are strata: seeds that agree leave nothing to resample.
  equal = [np.full(5, 1.0), np.full(3, 9.0)]
  low, high = statistics.interval(statistic, equal)
  assert low == high == statistic(equal)


def test_windows_of_final_scores(tmp_path):
  # Environment steps: 389,999 to 400,001; only two are from 390k to 400k.
  steps = [389_999, 390_000, 400_000, 400_001]
  run = curves.make_run(
    '',
    'atari_pong',
    'atari100k',
    [*zip(steps, (9, 14.6, -20.7, 9), strict=True)],
  )
  rule = protocol.RULES['atari100k']
  assert protocol.final_score(run, rule) == pytest.approx(0.5)
  # The last 50k steps of a run that ends shortly before the budget of 500k.
  rule = protocol.RULES['dmc_proprio']
  points = [(439_999, 1), (440_000, 2), (490_000, 4)]
  run = curves.make_run('', 'dmc_walker_walk', 'dmc_proprio', points)
  assert protocol.final_score(run, rule) == 3
  # Later episodes do not count, and a run that is too short has no score.
  longer = [*points, (500_000, 6), (600_000, 100)]
  run = curves.make_run('', 'dmc_walker_walk', 'dmc_proprio', longer)
  assert protocol.final_score(run, rule) == (4 + 6) / 2
  run = curves.make_run('', 'dmc_walker_walk', 'dmc_proprio', points[:2])
  assert math.isnan(protocol.final_score(run, rule))
  assert tables.final(protocol.finals([run])) == []
  with pytest.raises(UserError, match='at most 50,000 environment steps'):
    protocol.finals([run], 60_000)


def test_files_of_scores(tmp_path, capsys):
  rows = [
    {
      'task': run.task,
      'method': 'other',
      'seed': seed,
      'xs': [0, *run.steps],
      'ys': [None, *run.scores],
    }
    for seed, run in enumerate(published.runs())
    if run.benchmark == 'dmc_proprio'
  ]
  path = tmp_path / 'dmc_proprio-other.json.gz'
  path.write_bytes(gzip.compress(json.dumps(rows).encode()))
  runs = curves.find_runs([str(path)])
  text = '\n'.join(tables.final(protocol.finals(runs)))
  other, theirs = (x.split() for x in text.splitlines() if ' of 90' in x)
  assert other[:4] == ['other', '90', 'of', '90']
  assert (other[4], other[-4]) == ('742.6', '0.50')
  assert theirs[4:-1] == other[4:-4]
  # A baseline of another label is compared with the first.
  low = [{**row, 'ys': [0] * len(row['ys'])} for row in rows]
  base = tmp_path / 'dmc_proprio-base.json'
  base.write_text(json.dumps(low))
  runs = curves.find_runs([str(path), f'low={base}'])
  finals = protocol.finals(runs)
  assert 'P(low better than other): 0.0' in '\n'.join(tables.final(finals))
  (profile,) = drawing.draw({}, finals=finals).axes
  assert profile.get_xlabel() == 'Final score'
  assert len(profile.lines) == 3
  base.write_text('{"task": 1}')
  assert plot.main([str(base), f'--out={tmp_path}/x.png']) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert 'nor a file of scores' in line


def test_crafter(tmp_path):
  # Two achievements: unlocked in one and in three of four episodes; the fifth
  # is beyond the budget.
  counts = [(0, 1), (2, 5), (0, 0), (0, 1), (1, 1)]
  stats = [
    {'epstats/achievement_a/max': a, 'epstats/achievement_b/max': b}
    for a, b in counts
  ]
  steps = [1e5, 5e5, 9.5e5, 9.9e5, 1.01e6]
  path = write_run(
    tmp_path / 'a', 'crafter_reward', steps, [1, 2, 4, 6, 99], stats=stats
  )
  (run,) = curves.find_runs([str(path)])
  score = math.exp((math.log(1 + 25) + math.log(1 + 75)) / 2) - 1
  assert protocol.success_score(run) == pytest.approx(score)
  text = '\n'.join(tables.final(protocol.finals([run])))
  row = next(x for x in text.splitlines() if '1 of 1' in x).split()
  assert row[-4] == '5.0'  # Mean of the last 100,000 steps.
  assert f'score {score:.1f} % over 1 seed' in text


def test_bsuite(tmp_path):
  pytest.importorskip('bsuite', reason='an optional suite')
  from bsuite import bsuite

  def play(folder, act):
    env = bsuite.load_and_record_to_csv('catch/0', str(folder / 'train0'))
    for episode in range(300):
      step = env.reset()
      while not step.last():
        step = env.step(act(step.observation, episode))

  def follow(board, _, miss=False):
    ball = int(np.argmax(board[:-1].max(0)))
    aim = 4 * (ball == 0) if miss else ball
    return 1 + int(np.sign(aim - int(np.argmax(board[-1]))))

  def sometimes(board, episode):
    return follow(board, episode, miss=episode % 2)

  # The columns of the balls have no seed, so nothing is left to chance. Half
  # of the rewards are 1 and half -1: a regret of 1, where chance has 1.6.
  for name, act, expect in (
    ('good', follow, 1.0),
    ('half', sometimes, 0.6 / 1.6),
  ):
    play(tmp_path / name, act)
    folder = str(tmp_path / name)
    write_run(
      tmp_path / f'run_{name}', 'bsuite_catch/0', [1], [1], folder=folder
    )
    (run,) = curves.find_runs([str(tmp_path / f'run_{name}')])
    score = bsuite_scores.score([run])
    assert score.experiments['catch'] == pytest.approx(expect)
    assert score.unfinished == ['catch']
  (line, *more) = tables.bsuite([run])[1:]
  assert 'over 1 experiment' in line
  assert 'with too few episodes: catch' in more[-1]
  write_run(tmp_path / 'none', 'bsuite_catch/0', [1], [1], folder='')
  runs = curves.find_runs([str(tmp_path / 'none')])
  assert 'no score' in tables.bsuite(runs)[1]


def test_gate_of_the_published_range(tmp_path, capsys):
  curve = published.curves()['dmc_proprio', 'dmc_walker_walk']
  # Three seeds cover four windows; the median is just below the worst seed.
  for seed, offset in enumerate((-50, -0.1, 50)):
    scores = [*curve.high[:3], curve.low[3] + offset, 0]
    steps = [*(curve.ends[:4] / 2 - 1), curve.ends[3] / 2 + 100]
    write_run(tmp_path / f'{seed}', 'dmc_walker_walk', steps, scores, repeat=2)
  arguments = [str(tmp_path), f'--out={tmp_path}/x.png']
  assert plot.main([*arguments]) == 0
  assert plot.main([*arguments, '--gate=published']) == 1
  out = capsys.readouterr().out
  assert f'FAILED: {curve.low[3] - 0.1:.1f} at 80,000 steps' in out
  # A fourth seed lifts the median into the range.
  scores[3] = curve.low[3] + 50
  write_run(tmp_path / '3', 'dmc_walker_walk', steps, scores, repeat=2)
  assert plot.main([*arguments, '--gate=published']) == 0
  # There is nothing to compare with.
  assert plot.main([*arguments, '--gate=published', '--published=none']) == 1
  write_run(tmp_path / 'short/0', 'dmc_walker_walk', [10], [999], repeat=2)
  short = [str(tmp_path / 'short'), f'--out={tmp_path}/x.png']
  assert plot.main([*short, '--gate=published']) == 1
  assert 'no complete window' in capsys.readouterr().out
  assert plot.main([*arguments, '--gate=published', '--mode=eval']) == 1
  assert '--gate is about training' in capsys.readouterr().err
  write_run(tmp_path / 'cart/0', 'gym_CartPole-v1', [10], [9])
  other = [str(tmp_path / 'cart'), f'--out={tmp_path}/x.png', '--window=10']
  assert plot.main(other) == 1
  assert '--window=10 is for the final scores' in capsys.readouterr().err


def test_gate_of_walker_walk(tmp_path, capsys):
  arguments = [str(tmp_path), f'--out={tmp_path}/x.png', '--gate=walker_walk']
  # Episodes before the last 50,000 environment steps do not count.
  steps = [70_000, 80_000, 100_000]
  for seed, scores in enumerate(((0, 899, 899), (0, 899, 903))):
    write_run(tmp_path / f'{seed}', 'dmc_walker_walk', steps, scores, repeat=2)
  assert plot.main(arguments) == 1
  assert '2 of 3 seeds' in capsys.readouterr().out
  path = tmp_path / '2'
  write_run(path, 'dmc_walker_walk', steps, (0, 100, 100), repeat=2)
  assert plot.main(arguments) == 1
  assert 'FAILED: 899.0' in capsys.readouterr().out
  shutil.rmtree(path)
  write_run(path, 'dmc_walker_walk', steps, (0, 950, 950), repeat=2)
  assert plot.main(arguments) == 0
  assert 'passed: 901.0' in capsys.readouterr().out
