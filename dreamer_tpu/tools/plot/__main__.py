"""Plots learning curves with published ones, or an open-loop video.

python -m dreamer_tpu.tools.plot LOGDIR... --out=curves.png
python -m dreamer_tpu.tools.plot new=RUN1 old=RUN2 --out=curves.png
python -m dreamer_tpu.tools.plot RUNS --gate=published --out=curves.png
python -m dreamer_tpu.tools.plot LOGDIR --openloop --out=openloop.png
"""

import argparse
import sys
from collections.abc import Sequence

from etils import epath
from matplotlib.figure import Figure

from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import video
from dreamer_tpu.tools.plot import (
  curves,
  drawing,
  gates,
  openloop,
  protocol,
  tables,
)


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints tables and writes a picture.

  Returns:
    The exit code: 1 for an error or if a gate fails, else 0.
  """
  options = _parser().parse_args(arguments)
  passed = True
  try:
    if options.openloop:
      _save(_openloop(options), options.out)
    else:
      passed = _curves(options)
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 1
  print(f'wrote {options.out}')
  return 0 if passed else 1


def _curves(options: argparse.Namespace) -> bool:
  """Prints tables, draws curves. Returns: all gates are passed."""
  if options.gate and options.mode == 'eval':
    raise UserError('--gate is about training episodes; omit --mode=eval.')
  runs = curves.find_runs(options.logdir, options.mode, options.repeat)
  groups = curves.group(runs)
  # Published scores are of training episodes.
  train = options.mode == 'train'
  finals = protocol.finals(runs, options.window) if train else []
  if options.window is not None and not finals:
    raise UserError(
      f'--window={options.window:g} is for the final scores of training in '
      f'{", ".join(protocol.RULES)}; there are none of these here.'
    )
  lines = tables.current(groups, options.published)
  lines += tables.final(finals) + tables.bsuite(runs)
  print('\n'.join(lines))
  _save(drawing.draw(groups, options.published, finals), options.out)
  results = [
    _passes(gate, task, label, members, options.published)
    for gate in options.gate
    for (_, task, label), members in groups.items()
  ]
  return all(results)


def _passes(
  gate: str, task: str, label: str, runs: Sequence[curves.Run], choice: str
) -> bool:
  """Prints the result of one gate for the seeds of one task."""
  passed, reason = gates.GATES[gate](runs, choice)
  name = f'{label}: {task}' if label else task
  print(f'gate {gate}: {name}: {"passed" if passed else "FAILED"}: {reason}')
  return passed


def _openloop(options: argparse.Namespace) -> Figure:
  logdir = epath.Path(options.logdir[0])
  if len(options.logdir) > 1:
    raise UserError('--openloop takes a single log directory.')
  frames = video.read_gif(openloop.find_video(logdir, options.key))
  return openloop.draw(
    frames, openloop.tile_width(logdir, frames), options.samples
  )


def _save(figure: Figure, name: str) -> None:
  path = epath.Path(name)
  kinds = figure.canvas.get_supported_filetypes()
  kind = path.suffix.removeprefix('.').lower()
  if kind not in kinds:
    raise UserError(f'--out={name}: unknown file type; use .png.')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('wb') as file:
      figure.savefig(file, format=kind, bbox_inches='tight')
  except OSError as e:
    raise UserError(f'--out={name} cannot be written: {e.strerror}.') from e


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m dreamer_tpu.tools.plot', description=__doc__.splitlines()[0]
  )
  parser.add_argument(
    'logdir',
    nargs='+',
    help='log directories, folders of them, or files of scores as the public '
    'implementation keeps them; optionally as LABEL=PATH',
  )
  parser.add_argument('--out', required=True, help='picture to write')
  parser.add_argument(
    '--published', default='auto', help='auto, none, TASK or BENCHMARK/TASK'
  )
  parser.add_argument(
    '--gate',
    action='append',
    default=[],
    choices=tuple(gates.GATES),
    help='exit with code 1 if a task fails: published: its median is below the '
    'published range in the last window; walker_walk: the median of three '
    'seeds is below 900 in the last 50,000 steps',
  )
  parser.add_argument(
    '--window',
    type=float,
    help='environment steps of the final scores, if not those of the benchmark',
  )
  parser.add_argument('--mode', choices=('train', 'eval'), default='train')
  parser.add_argument(
    '--repeat',
    type=float,
    help='environment steps per agent step, if not that of the run',
  )
  parser.add_argument(
    '--openloop', action='store_true', help='draw the open-loop video'
  )
  parser.add_argument('--key', default='', help='observation key of the video')
  parser.add_argument(
    '--samples', type=int, default=1, help='sequences of the video to draw'
  )
  return parser


if __name__ == '__main__':
  sys.exit(main())
