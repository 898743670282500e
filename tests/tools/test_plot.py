"""Tests of the plot tool against areas by hand and pixels."""

import csv
import gzip
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dreamer_tpu.metrics.writers import Writers
from dreamer_tpu.tools.plot import __main__ as plot
from dreamer_tpu.tools.plot import curves, published


def write_run(path, task, steps, scores, repeat=1, total=1e6, **env):
  """Writes a log directory like that of a run; steps are agent steps."""
  suite = task.partition('_')[0]
  path.mkdir(parents=True)
  env = {suite: {'repeat': repeat, **env}}
  config = {'task': task, 'seed': 0, 'run': {'steps': total}, 'env': env}
  (path / 'config.json').write_text(json.dumps(config))
  with Writers(path, ('jsonl',)) as writers:
    for step, score in zip(steps, scores, strict=True):
      writers.write_score(int(step), float(score), 100, 'train')
    last = int(steps[-1])
    writers.write(last, {'x': 1.0}, frames=last * repeat, update=1)
  return path


def rows_of(task, benchmark):
  path = pathlib.Path(curves.__file__).parent / 'published_scores.csv.gz'
  with gzip.open(path, 'rt') as file:
    return [
      row
      for row in csv.DictReader(file)
      if (row['task'], row['benchmark']) == (task, benchmark)
    ]


def line_of(text, start):
  return next(x for x in text.splitlines() if x.startswith(start))


def test_area_by_hand(tmp_path, capsys):
  # 10 windows of 20k environment steps, two episodes in each, 3 seeds.
  steps = np.arange(5_000, 100_001, 5_000)
  for seed, score in enumerate((100, 300, 800)):
    path = tmp_path / f'seed{seed}'
    write_run(path, 'dmc_walker_walk', steps, [score - 5, score + 5] * 10, 2)
  rows = rows_of('dmc_walker_walk', 'dmc_proprio')
  area = 10 * 300 / sum(float(row['median']) for row in rows[:10])
  out = tmp_path / 'curves.png'
  assert plot.main([str(tmp_path), f'--out={out}']) == 0
  text = capsys.readouterr().out
  cells = line_of(text, 'dmc_walker_walk').split()
  assert cells[1:3] == ['3', '200k']
  assert '300.0 (100.0 to 800.0)' in text
  assert cells[-2] == f'{area:.1%}'
  assert cells[-3] == f'{float(rows[9]["median"]):.1f}'
  assert 'dmc_proprio: mean score 300.0 over 1 task' in text
  with Image.open(out) as image:
    assert image.format == 'PNG'
    pixels = np.asarray(image.convert('RGB'))
  # Both curves are drawn: the line in blue, published scores in gray.
  for color in ((0x00, 0x72, 0xB2), (0x8A, 0x8A, 0x8A)):
    assert (pixels == color).all(-1).sum() > 100


def test_area_only_over_the_common_range(tmp_path):
  # The run covers two windows of 20k and half of the third.
  steps = [4_000, 18_000, 25_000, 50_000]
  path = write_run(tmp_path / 'a', 'dmc_walker_walk', steps, [10, 30, 50, 1e6])
  (run,) = curves.find_runs([str(path)])
  curve = published.find('auto', run)
  rows = rows_of('dmc_walker_walk', 'dmc_proprio')
  expect = (20 + 50) / sum(float(row['median']) for row in rows[:2])
  assert published.relative_area([run], curve) == pytest.approx(expect)
  means = curves.window_means(run, np.array([0, 10e3, 15e3, 20e3, 50e3, 60e3]))
  np.testing.assert_array_equal(means[:4], [10, 10, 30, (50 + 1e6) / 2])
  assert np.isnan(means[4])


def test_area_lies_above_the_random_score(tmp_path):
  steps = np.arange(1_000, 100_001, 1_000)
  rows = rows_of('atari_pong', 'atari100k')
  medians = np.array([float(row['median']) for row in rows])
  scores = [medians[int(step * 4 - 1) // 20_000] for step in steps]
  path = write_run(tmp_path / 'a', 'atari_pong', steps, scores, 4, total=1.1e5)
  (run,) = curves.find_runs([str(path)])
  assert run.benchmark == 'atari100k'
  assert run.reach == 400_000
  curve = published.find('auto', run)
  assert published.relative_area([run], curve) == pytest.approx(1)
  low = write_run(tmp_path / 'b', 'atari_pong', steps, [-20.7] * 100, 4, 1.1e5)
  (run,) = curves.find_runs([str(low)])
  assert published.relative_area([run], curve) == pytest.approx(0, abs=1e-9)


def test_atari_aggregates(tmp_path, capsys):
  # Human-normalized by hand: 0, (100 - 1.7) / 28.8 and 1.
  for game, score in (
    ('pong', -20.7),
    ('breakout', 100),
    ('up_n_down', 11693.2),
  ):
    write_run(tmp_path / game, f'atari_{game}', [1000], [score], 4, 5e7)
  out = tmp_path / 'x.png'
  assert plot.main([str(tmp_path), f'--out={out}', '--published=none']) == 0
  breakout = (100 - 1.7) / (30.5 - 1.7)
  text = capsys.readouterr().out
  mean = (breakout + 1) / 3
  expect = f'mean {mean:.1%}, median 100.0% over 3 games'
  assert f'atari57: human-normalized {expect}' in text
  assert line_of(text, 'atari_breakout').split()[-1] == f'{breakout:.1%}'


def test_published_tables_are_complete():
  table = published.curves()
  counts = {}
  for benchmark, task in table:
    counts.setdefault(benchmark, set()).add(task)
  assert {name: len(tasks) for name, tasks in counts.items()} == {
    'dmc_proprio': 18,
    'dmc_vision': 20,
    'atari100k': 26,
    'atari57': 57,
    'procgen': 16,
  }
  games = counts['atari57'] | counts['atari100k']
  games |= counts['procgen']
  assert all(np.isfinite(published.normalized(x, 0.0)) for x in games)
  assert len(published.reference_scores()) == 57 + 16


def test_choice_of_published_scores(tmp_path):
  path = write_run(tmp_path / 'a', 'dmc_walker_walk', [10], [1], image=True)
  (run,) = curves.find_runs([str(path)])
  find = lambda choice: published.find(choice, run)
  assert find('auto').benchmark == 'dmc_vision'
  assert find('dmc_proprio/dmc_walker_walk').benchmark == 'dmc_proprio'
  assert find('dmc_walker_run').benchmark == 'dmc_vision'
  assert find('atari_zaxxon').benchmark == 'atari57'
  assert find('none') is None


def test_labels_and_metrics_fallback(tmp_path, capsys):
  steps = np.arange(100, 2001, 100)
  write_run(tmp_path / 'a', 'gym_CartPole-v1', steps, steps / 4)
  path = write_run(tmp_path / 'b', 'gym_CartPole-v1', steps, steps)
  (path / 'scores.jsonl').unlink()
  with Writers(path, ('jsonl',)) as writers:
    for step in steps:
      metrics = {'episode/score': np.nan if step == 2000 else 50.0}
      writers.write(int(step), metrics, frames=int(step), update=0)
  arguments = [f'new={tmp_path}/a', f'old={tmp_path}/b']
  assert plot.main([*arguments, f'--out={tmp_path}/x.png']) == 0
  text = capsys.readouterr().out
  assert '490.0' not in line_of(text, 'old: gym_CartPole-v1')
  assert line_of(text, 'old: gym_CartPole-v1').split()[4] == '50.0'
  # Ten windows with two episodes each: 50 over a quarter of 1050.
  line = 'area of old relative to new: gym_CartPole-v1 0.19'
  assert line_of(text, 'area') == line
  # The mean of the last ten episodes: 1100 to 2000, over four.
  assert line_of(text, 'new: gym_CartPole-v1').split()[4] == '387.5'


def test_tables_of_scores(tmp_path, capsys):
  rows = [
    ('b', seed, step, 2 + 2 * seed) for seed in (0, 1) for step in (9, 99)
  ]
  rows += [('a', 7, step, 1 + 2 * (step > 50)) for step in (5, 60, 100)]
  text = ''.join(f'x,{",".join(map(str, row))}\n' for row in rows)
  path = tmp_path / 'dmc_walker_walk.csv'
  path.write_text('extra,implementation,seed,step,score\n' + text)
  runs = curves.find_runs([str(path)], repeat=2)
  assert [(run.label, run.task) for run in runs] == [
    (label, 'dmc_walker_walk') for label in 'bba'
  ]
  np.testing.assert_array_equal(runs[-1].steps, [10, 120, 200])
  theirs, ours = published.areas(runs[:2], runs[2:])
  np.testing.assert_allclose(theirs, [2, 4])
  # Windows end at 19.8, 39.6 ... 198: six are before the episode at 120.
  np.testing.assert_allclose(ours, [(6 * 1 + 4 * 3) / 10])
  assert plot.main([str(path), '--repeat=2', f'--out={tmp_path}/x.png']) == 0
  line = line_of(capsys.readouterr().out, 'area of a relative to b')
  assert line.endswith(': dmc_walker_walk 0.60 (0.45 to 0.90)')


def test_many_tasks_with_gaps_draw(tmp_path):
  # Published medians of up_n_down are missing in some windows.
  for game in ('pong', 'up_n_down', 'alien', 'zaxxon', 'krull', 'hero'):
    steps = np.linspace(1e5, 5e7, 50)
    write_run(tmp_path / game, f'atari_{game}', steps, steps, 4, 5e7)
  assert plot.main([str(tmp_path), f'--out={tmp_path}/x.png']) == 0
  with Image.open(tmp_path / 'x.png') as image:
    assert image.width > 1000


@pytest.fixture(scope='module')
def logdirs(tmp_path_factory):
  path = tmp_path_factory.mktemp('logdirs')
  (path / 'empty').mkdir()
  (path / 'young').mkdir()
  (path / 'young/scores.jsonl').write_text('')
  write_run(path / 'run', 'dmc_walker_walk', [10], [1])
  (path / 'a.csv').write_text('implementation,seed,step\nx,0,1\n')
  head = 'implementation,seed,step,score\n'
  (path / 'rowless.csv').write_text(head)
  (path / 'nan.csv').write_text(f'{head}x,0,1,nan\n')
  return path


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['missing'], "'missing' does not exist"),
    (['empty'], "'empty' is not a log directory"),
    (['young'], "'young' holds no score"),
    (['run', '--mode=eval'], 'eval episode yet. Use --mode=train'),
    (['run', '--published=atari_pongg'], "did you mean 'atari_pong'?"),
    (['run', '--out=x.jpgg'], 'unknown file type'),
    (['a.csv'], 'not a table of scores with implementation'),
    (['rowless.csv'], 'it has no rows'),
    (['nan.csv'], 'is not finite'),
    (['run', '--openloop'], 'holds no open-loop video'),
  ],
)
def test_errors_are_one_line(logdirs, capsys, monkeypatch, arguments, message):
  monkeypatch.chdir(logdirs)
  assert plot.main(['--out=x.png', *arguments]) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ')
  assert message in line
  assert not (logdirs / 'x.png').exists()


def test_command(logdirs):
  result = subprocess.run(
    [sys.executable, '-m', 'dreamer_tpu.tools.plot', '--out=x.png', 'missing'],
    cwd=logdirs,
    env={**os.environ, 'PYTHONPATH': os.getcwd()},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 1
  (line,) = result.stderr.splitlines()
  assert "'missing' does not exist" in line


def test_openloop_strip(tmp_path):
  # Two sequences of 16x24 images; each tile is a unique shade of gray.
  frames = np.zeros((8, 3 * 16, 2 * 24, 3), np.uint8)
  for time, row, sample in np.ndindex(8, 3, 2):
    rows, columns = (
      slice(row * 16, row * 16 + 16),
      slice(sample * 24, sample * 24 + 24),
    )
    frames[time, rows, columns] = 10 + 5 * time + 40 * row + 120 * sample
  path = write_run(tmp_path / 'a', 'dmc_x', [10], [1], size=[16, 24])
  with Writers(path, ('jsonl',)) as writers:
    writers.write(10, {'openloop/image': frames}, frames=10, update=1)
  out = tmp_path / 'strip.png'
  assert plot.main([str(path), '--openloop', f'--out={out}']) == 0
  pixels = np.asarray(Image.open(out).convert('RGB')).astype(int)
  for time, row in np.ndindex(8, 3):
    value = 10 + 5 * time + 40 * row
    assert (np.abs(pixels - value).max(-1) <= 1).sum() > 2000, (time, row)
  with pytest.raises(SystemExit):
    plot.main([str(path), '--openloop'])
  wrong = [str(path), '--openloop', '--key=depth', f'--out={out}']
  assert plot.main(wrong) == 1
