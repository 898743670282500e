"""The command line: flags to a validated configuration, or one line of error.

`--config=FILE[:PRESET,...]` and `--config.KEY=VALUE` are ml_collections'
config flags. What the user wrote is checked and brought into the form that
they take before they see it, because their own errors are long or cryptic.
"""

import importlib.util
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags
from etils import epath
from ml_collections import config_flags
from ml_collections.config_dict import ConfigDict

from dreamer_tpu.cli import logdirs, validate
from dreamer_tpu.errors import UserError

DEFAULT_CONFIG = 'configs/gym.py:size1m'
ROOT = pathlib.Path(__file__).resolve().parents[2]

Override = tuple[str, str | None]

_FLAG = re.compile(r'--?(no)?config(?:\.([^=]*))?(?:=(.*))?', re.DOTALL)
_TRUE = ('true', 't', '1', 'yes')
_FALSE = ('false', 'f', '0', 'no')
_TYPES = {
  bool: 'true or false',
  int: 'an integer, such as 700000 or 7e5',
  float: 'a number, such as 0.5 or 4e-5',
}


def run(main: Callable[[tuple[ConfigDict, epath.Path]], int]) -> NoReturn:
  """Calls main((config, logdir)) and exits with the code that it returns.

  A UserError, from the command line or from `main`, becomes the last line on
  stderr and exit code 1.
  """
  try:
    app.run(main, flags_parser=parse)
  except UserError as error:
    sys.stdout.flush()
    print('error:', *str(error).split(), file=sys.stderr, flush=True)
    sys.exit(1)
  raise AssertionError('app.run always exits')


def parse(argv: Sequence[str]) -> tuple[ConfigDict, epath.Path]:
  """Parses and validates a command line.

  Args:
    argv: as in sys.argv, the program's name first.

  Returns:
    The merged configuration, locked, and the directory of the run.

  Raises:
    UserError: any mistake in it.
  """
  config, rest = take_config(argv[1:])
  if any(arg in ('-h', '-help', '--help') for arg in rest):
    _print_help(config)
  own = flags.FlagValues()
  flags.DEFINE_string('logdir', None, 'Directory of the run.', own)
  try:
    rest = own([argv[0], *rest], known_only=True)
    # absl would choose INFO, where Orbax reports every part of every save.
    rest = flags.FLAGS([rest[0], '--verbosity=-1', *rest[1:]])
  except flags.UnrecognizedFlagError as error:
    raise _unknown_flag(error.flagname, config) from error
  except flags.Error as error:
    raise UserError(str(error)) from error
  if len(rest) > 1:
    raise UserError(
      f"unexpected argument '{rest[1]}'; options are written --NAME=VALUE."
    )
  if not own.logdir:
    raise UserError(
      '--logdir is missing; name a directory for the run, such as '
      '--logdir=runs/{timestamp}'
    )
  return config, logdirs.resolve(own.logdir)


def take_config(argv: Sequence[str]) -> tuple[ConfigDict, list[str]]:
  """Takes --config and --config.KEY out of a command line.

  Args:
    argv: the arguments without the program's name.

  Returns:
    The merged and validated configuration, locked, and the other arguments.

  Raises:
    UserError: an unknown suite, preset or key, or a wrong value.
  """
  argv = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=True)
  chosen, overrides, rest = _split(argv)
  config = load(chosen)
  defaults = dict(validate.flatten(config))
  args: list[str] = []
  for key, text in overrides:
    if key not in defaults:
      raise _unknown_key(key, config, defaults)
    value = _convert(key, text, defaults[key])
    args = [arg for arg in args if not arg.startswith(f'--config.{key}=')]
    args.append(f'--config.{key}={value}')
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    'config', config, flag_values=values, sys_argv=args
  )
  values(['', *args])
  validate.validate(values.config)
  return values.config, rest


def load(chosen: str) -> ConfigDict:
  """The configuration of FILE[:PRESET,...], without overrides.

  Args:
    chosen: a file with a function get_config(presets), from here or from the
      directory of the project, and presets after a colon.

  Raises:
    UserError: no such file or preset.
  """
  name, _, presets = chosen.partition(':')
  suites = {
    f'configs/{path.name}'
    for path in (ROOT / 'configs').glob('*.py')
    if 'def get_config' in path.read_text()
  }
  known = ', '.join(sorted(suites))
  path = next(
    (x for x in (pathlib.Path(name), ROOT / name) if x.is_file()), None
  )
  if path is None:
    near = validate.nearest(name, suites)
    raise UserError(
      f"--config={chosen}: no file '{name}'; did you mean '{near}'? "
      f'Suites: {known}'
    )
  spec = importlib.util.spec_from_file_location('dreamer_config', path)
  if spec is None or spec.loader is None:
    raise UserError(f"--config={chosen}: '{name}' is not a Python file.")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise UserError(
      f"--config={chosen}: '{name}' has no get_config(). Suites: {known}"
    )
  try:
    return module.get_config(presets)
  except LookupError as error:
    raise UserError(f'--config={chosen}: {error.args[0]}') from error


def _split(argv: Sequence[str]) -> tuple[str, list[Override], list[str]]:
  """Sorts arguments into the config file, the overrides and the rest."""
  chosen = DEFAULT_CONFIG
  overrides: list[Override] = []
  rest: list[str] = []
  pending = list(argv)
  while pending:
    arg = pending.pop(0)
    match = _FLAG.fullmatch(arg)
    if arg == '--' or not match:
      rest.append(arg)
      continue
    negated, key, text = match.groups()
    follows = bool(pending) and not pending[0].startswith('--')
    if text is None and not negated and follows:
      text = pending.pop(0)
    if key is not None:
      overrides.append((key, 'false' if negated and text is None else text))
    elif text and not negated:
      chosen = text
    else:
      raise UserError(
        f"{arg} needs a value, such as '--config={DEFAULT_CONFIG}'."
      )
  return chosen, overrides, rest


def _convert(key: str, text: str | None, default: Any) -> Any:
  """The value of `text`, with the type of `default`."""
  if isinstance(default, bool) and text is None:
    return True
  if text is None:
    raise UserError(f'--config.{key} needs a value, such as {default!r}.')
  if not isinstance(default, tuple):
    return _scalar(key, text, type(default), text)
  items = [item.strip().strip('\'"') for item in text.strip('([ ])').split(',')]
  kind = type(default[0])
  return tuple(_scalar(key, item, kind, text) for item in items if item)


def _scalar(key: str, text: str, kind: type, whole: str) -> Any:
  if kind is str:
    return text
  try:
    if kind is bool:
      return {x: x in _TRUE for x in _TRUE + _FALSE}[text.lower()]
    if kind is int and not text.strip('+-').isdigit():
      number = float(text)
      if number.is_integer():
        return int(number)
      raise ValueError(text)
    return kind(text)
  except (ValueError, KeyError) as error:
    raise UserError(
      f"--config.{key}='{whole}' has the wrong type: expected {_TYPES[kind]}."
    ) from error


def _unknown_key(key: str, config: Any, known: Any) -> UserError:
  inside = [name for name in known if name.startswith(f'{key}.')]
  if inside:
    return UserError(
      f'--config.{key} is a group of keys; set one of them, such as '
      f'--config.{inside[0]}. Keys: {", ".join(inside)}'
    )
  near = validate.nearest(key, known)
  return UserError(
    f'unknown key --config.{key}; did you mean --config.{near}? '
    f'(its value here: {validate.get(config, near)!r})'
  )


def _unknown_flag(name: str, config: Any) -> UserError:
  keys = [f'config.{key}' for key, _ in validate.flatten(config)]
  near = validate.nearest(name, ['logdir', 'config', *flags.FLAGS, *keys])
  return UserError(f'unknown option --{name}; did you mean --{near}?')


def _print_help(config: Any) -> NoReturn:
  print((sys.modules['__main__'].__doc__ or '').strip())
  print('\nKeys, with their values in the chosen configuration:')
  for key, value in validate.flatten(config):
    print(f'  --config.{key}={value}')
  sys.exit(0)
