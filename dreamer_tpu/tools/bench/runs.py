"""Whole runs, as processes of their own: how they start and how fast they are."""

import json
import math
import operator
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dreamer_tpu.config import flatten
from dreamer_tpu.errors import UserError

Row = dict[str, Any]
Record = dict[str, Any]
ROOT = pathlib.Path(__file__).resolve().parents[3]
LIMIT = 3600
# Of its time, below which the learner does not count as waiting.
IDLE = 0.05
CACHE = 'JAX_COMPILATION_CACHE_DIR'


def startup(config: Any, repeat: int) -> list[Row]:
  """Seconds from the start of a run to the end of its first update.

  Once with an empty compilation cache, then with what that left.
  """
  del repeat
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    for cache in ('cold', 'warm'):
      logdir = pathlib.Path(folder) / cache
      start = time.monotonic()
      record = _first_update(config, logdir, {CACHE: f'{folder}/cache'})
      rows.append(
        {
          'task': config.task,
          'cache': cache,
          'first_update_s': time.monotonic() - start,
          'compile_s': record.get('perf/compile_s'),
        }
      )
  return rows


def end_to_end(config: Any, repeat: int) -> list[Row]:
  """Steps and updates per second of a real run of `run.steps` steps.

  The rates are those of the log that covers most of the time after the first,
  so let it log more than once. Of that time, there are the shares of acting
  and learning and, with script='parallel', of waiting.
  """
  del repeat
  with tempfile.TemporaryDirectory() as folder:
    logdir = pathlib.Path(folder) / 'run'
    process = _start(config, logdir, {})
    with process:
      process.wait(LIMIT)
    records = [x for x in _records(logdir) if x.get('fps/train')]
    if process.returncode or not records:
      raise UserError(
        f'The run ended with code {process.returncode}, unlogged.'
      )
  log = steady(records)
  batch = config.batch_size * config.batch_length
  sections = ('learning', 'acting', 'learner_wait', 'actor_wait')
  shares = {name: log.get(f'timer/{name}/frac') for name in sections}
  return [
    {
      'task': config.task,
      'script': config.script,
      'steps': records[-1]['step'],
      'steps_per_s': log['fps/policy'],
      'updates_per_s': log['fps/train'] / batch,
      'update_ms': log.get('perf/update_ms'),
      'mfu': log.get('perf/mfu'),
      **shares,
      'bound': bound(shares),
    }
  ]


def steady(records: Sequence[Record]) -> Record:
  """The record since the one before which most time passed; not the first.

  That covers the start, and the last one may cover a moment.
  """
  times = [x['time'] for x in records]
  spans = [-math.inf, *map(operator.sub, times[1:], times)]
  return records[spans.index(max(spans))]


def bound(shares: Mapping[str, float | None]) -> str:
  """'learner' or 'actor', whichever would make a run faster if it were.

  In parallel that is the learner unless it waits. Where both share a device,
  acting waits for updates without a word.

  Args:
    shares: Of the wall time, by section; None where there is none.
  """
  waited = shares['learner_wait']
  if waited is None:
    acts = (shares['acting'] or 0.0) > (shares['learning'] or 0.0)
  else:
    acts = waited > IDLE
  return 'actor' if acts else 'learner'


def _first_update(
  config: Any, logdir: pathlib.Path, env: Mapping[str, str]
) -> Record:
  """Starts a run, waits for its first update and stops it."""
  config = config.copy_and_resolve_references()
  config.run.log_every = -1.0
  deadline = time.monotonic() + LIMIT
  with _start(config, logdir, env) as process:
    try:
      while process.poll() is None and time.monotonic() < deadline:
        for record in _records(logdir):
          if any(key.startswith('train/') for key in record):
            return record
        time.sleep(0.05)
    finally:
      process.kill()
  raise UserError(f'The run ended with code {process.returncode}, untrained.')


def _start(
  config: Any, logdir: pathlib.Path, env: Mapping[str, str]
) -> subprocess.Popen:
  """main.py with this configuration, which logs to a file alone."""
  options = flatten(config)
  options['metrics.outputs'] = ('jsonl',)
  name = config.task.partition('_')[0]
  suites = {'dmc': 'dmc_vision' if config.env.dmc.image else 'dmc_proprio'}
  command = [
    sys.executable,
    str(ROOT / 'main.py'),
    f'--config={ROOT}/configs/{suites.get(name, name)}.py',
    f'--logdir={logdir}',
    *(f'--config.{key}={_text(value)}' for key, value in options.items()),
  ]
  return subprocess.Popen(
    command,
    env={**os.environ, **env},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )


def _text(value: Any) -> str:
  return str(tuple(value) if isinstance(value, list) else value)


def _records(logdir: pathlib.Path) -> Iterator[Record]:
  path = logdir / 'metrics.jsonl'
  if path.exists():
    for line in path.read_text().splitlines(keepends=True):
      if line.endswith('\n'):
        yield json.loads(line)
