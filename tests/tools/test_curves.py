"""Tests of the curves next to those of the public implementation.

Areas and intervals are computed again here, from the files alone.
"""

import csv
import itertools
import json
import pathlib

import numpy as np
import pytest

from dreamer_tpu.tools.plot import __main__ as plot
from dreamer_tpu.tools.plot import curves, published

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'tests/golden/curves'
SETTINGS = json.loads((FOLDER / 'settings.json').read_text())
TASKS = sorted(path.stem for path in FOLDER.glob('*.csv'))


def episodes(task):
  """Returns steps and scores by implementation and seed."""
  found = {}
  with (FOLDER / f'{task}.csv').open() as file:
    for row in csv.DictReader(file):
      key = row['implementation'], int(row['seed'])
      found.setdefault(key, []).append((int(row['step']), float(row['score'])))
  return found


def areas(task, name):
  """Returns the area of each seed: every window has the same episodes."""
  return np.array(
    [
      np.mean([score for _, score in points])
      for (other, _), points in episodes(task).items()
      if other == name
    ]
  )


def exact_interval(ours, theirs):
  """Returns the quantiles over all ways to draw the seeds of both."""
  draws = lambda x: np.mean([*itertools.product(x, repeat=len(x))], axis=1)
  ratios = draws(ours)[:, None] / draws(theirs)
  return np.quantile(ratios, (0.025, 0.975))


def readme_rows():
  """Returns ratio, low and high of the README's table, by task."""
  rows = {}
  for line in (ROOT / 'README.md').read_text().splitlines():
    cells = [x.strip() for x in line.strip('|').split('|')]
    if len(cells) == 4 and cells[0].strip('`') in TASKS:
      ratio, low, _, high = cells[3].replace('(', '').replace(')', '').split()
      rows[cells[0].strip('`')] = float(ratio), float(low), float(high)
  return rows


def test_every_run_is_complete():
  assert sorted(SETTINGS['tasks']) == TASKS
  envs, count = SETTINGS['environments'], SETTINGS['episodes']
  for task in TASKS:
    found = episodes(task)
    names = 'public', 'ours'
    assert set(found) == set(itertools.product(names, SETTINGS['seeds']))
    for points in found.values():
      # Rounds of one episode per environment, of 501 observations each.
      expect = [501 * envs * (i // envs + 1) - envs for i in range(count)]
      assert [step for step, _ in points] == expect


@pytest.mark.parametrize('task', TASKS)
def test_areas_are_those_of_the_readme(task, capsys, tmp_path):
  ours, theirs = areas(task, 'ours'), areas(task, 'public')
  low, high = exact_interval(ours, theirs)
  ratio = ours.mean() / theirs.mean()
  assert high >= 1, 'the public implementation learns faster'
  quoted = readme_rows()[task]
  assert quoted[0] == pytest.approx(ratio, abs=0.0051)
  assert quoted[1:] == pytest.approx((low, high), abs=0.02)
  # The plot tool says so, too.
  runs = curves.find_runs([str(FOLDER / f'{task}.csv')])
  groups = [[r for r in runs if r.label == x] for x in ('ours', 'public')]
  for got, expect in zip(published.areas(*groups), (ours, theirs), strict=True):
    np.testing.assert_allclose(got, expect)
  path = tmp_path / 'x.png'
  assert plot.main([str(FOLDER / f'{task}.csv'), f'--out={path}']) == 0
  text = '{:.2f} ({:.2f} to {:.2f})'.format(*quoted)
  line = f'area of ours relative to public: {task} {text}'
  assert line in capsys.readouterr().out.splitlines()
