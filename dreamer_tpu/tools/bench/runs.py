"""Benchmarks of whole runs, each in its own process."""

import math
import operator
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dreamer_tpu.config import flatten
from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import jsonl

Row = dict[str, Any]
Record = dict[str, Any]
TIMEOUT = 3600
# Share of its time from which the learner counts as waiting.
WAITING = 0.05
CACHE = 'JAX_COMPILATION_CACHE_DIR'


def startup(config: Any, repeat: int) -> list[Row]:
  """Measures the time from the start of a run to the end of its first update.

  The first row is with an empty compilation cache, the second with a warm one.
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
  """Measures throughput of a run of `run.steps` steps.

  The figures are from the longest log interval except the first, so the run
  should log more than once. They include the shares of time spent acting,
  learning and, with script='parallel', waiting.
  """
  del repeat
  with tempfile.TemporaryDirectory() as folder:
    logdir = pathlib.Path(folder) / 'run'
    process = _start(config, logdir, {})
    with process:
      process.wait(TIMEOUT)
    records = [x for x in _records(logdir) if x.get('fps/train')]
    if process.returncode or not records:
      raise UserError(
        f'The run ended with code {process.returncode} before its first log.'
      )
  log = steady_state_record(records)
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
      'bound': bottleneck(shares),
    }
  ]


def steady_state_record(records: Sequence[Record]) -> Record:
  """Returns the record with the longest interval before it, except the first.

  The first interval includes the start, and the last may be short.
  """
  times = [x['time'] for x in records]
  spans = [-math.inf, *map(operator.sub, times[1:], times)]
  return records[spans.index(max(spans))]


def bottleneck(shares: Mapping[str, float | None]) -> str:
  """Returns 'learner' or 'actor', whichever limits the speed of a run.

  A parallel run is limited by the learner unless it waits: on a shared device,
  the actor's steps include the wait for updates.

  Args:
    shares: Share of the wall time by section, None if it was not timed.
  """
  waiting = shares['learner_wait']
  if waiting is None:
    actor = (shares['acting'] or 0.0) > (shares['learning'] or 0.0)
  else:
    actor = waiting > WAITING
  return 'actor' if actor else 'learner'


def _first_update(
  config: Any, logdir: pathlib.Path, env: Mapping[str, str]
) -> Record:
  """Starts a run, waits for its first update and stops it."""
  config = config.copy_and_resolve_references()
  config.run.log_every = -1.0
  deadline = time.monotonic() + TIMEOUT
  with _start(config, logdir, env) as process:
    try:
      while process.poll() is None and time.monotonic() < deadline:
        for record in _records(logdir):
          if any(key.startswith('train/') for key in record):
            return record
        time.sleep(0.05)
    finally:
      process.kill()
  raise UserError(
    f'The run ended with code {process.returncode} before its first update.'
  )


def _start(
  config: Any, logdir: pathlib.Path, env: Mapping[str, str]
) -> subprocess.Popen:
  """Starts a run with this configuration; it logs to a file only."""
  options = flatten(config)
  options['metrics.outputs'] = ('jsonl',)
  name = config.task.partition('_')[0]
  suites = {'dmc': 'dmc_vision' if config.env.dmc.image else 'dmc_proprio'}
  command = [
    sys.executable,
    '-m',
    'dreamer_tpu',
    f'--config={suites.get(name, name)}',
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


def _records(logdir: pathlib.Path) -> list[Record]:
  path = logdir / 'metrics.jsonl'
  return jsonl.read(path) if path.exists() else []
