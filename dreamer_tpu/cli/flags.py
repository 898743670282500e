"""Parses the command line into a validated configuration.

`--config=FILE[:PRESET,...]` chooses a configuration and `--config.KEY=VALUE`
changes it, through ml_collections' config flags. Every mistake becomes a
UserError of one line.
"""

import pathlib
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags
from etils import epath
from ml_collections import config_flags
from ml_collections.config_dict import ConfigDict

from dreamer_tpu.cli import logdirs, validate
from dreamer_tpu.config import flatten
from dreamer_tpu.errors import UserError, nearest

DEFAULT_CONFIG = 'configs/gym.py:size1m'
ROOT = pathlib.Path(__file__).resolve().parents[2]

_ITEM = re.compile(r'[^\s,()[\]\'"]+')
_OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]*)')
_BOOLS = {
  **dict.fromkeys(('true', 't', '1', 'yes'), True),
  **dict.fromkeys(('false', 'f', '0', 'no'), False),
}


class _Parser(flags.ArgumentParser):
  """Parses the text of a flag; returns other values unchanged."""

  def __init__(self, convert: Callable[[str], Any], expected: str):
    self._convert = convert
    self._expected = expected

  def parse(self, argument: Any) -> Any:
    if not isinstance(argument, str):
      return argument
    try:
      return self._convert(argument)
    except (ValueError, KeyError, OverflowError) as error:
      raise ValueError(f"'{argument}' is not {self._expected}.") from error


def _integer(text: str) -> int:
  try:
    return int(text)
  except ValueError:
    if not float(text).is_integer():
      raise
    return int(float(text))


_PARSERS: dict[type, flags.ArgumentParser] = {
  bool: _Parser(lambda text: _BOOLS[text.lower()], 'true or false'),
  int: _Parser(_integer, 'an integer, such as 700000 or 7e5'),
  float: _Parser(float, 'a number, such as 0.5 or 4e-5'),
  str: flags.ArgumentParser(),
  tuple: _Parser(
    lambda text: tuple(_ITEM.findall(text)), 'a list, such as 64,64'
  ),
}
for _type, _parser in _PARSERS.items():
  config_flags.register_flag_parser_for_type(_type, _parser)


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
    argv: The arguments as in sys.argv, with the program's name first.

  Returns:
    The merged configuration, locked, and the directory of the run.

  Raises:
    UserError: The command line has a mistake.
  """
  config, rest = parse_config(argv[1:])
  if any(arg in ('-h', '-help', '--help') for arg in rest):
    _print_help(config)
  own = flags.FlagValues()
  flags.DEFINE_string('logdir', None, 'Directory of the run.', own)
  try:
    rest = own([argv[0], *rest], known_only=True)
    # At absl's default, INFO, Orbax reports every part of every save.
    rest = flags.FLAGS([rest[0], '--verbosity=-1', *rest[1:]])
  except flags.UnrecognizedFlagError as error:
    name, keys = error.flagname, (f'config.{key}' for key in flatten(config))
    near = nearest(name, ['logdir', 'config', *flags.FLAGS, *keys])
    raise UserError(
      f'unknown option --{name}; did you mean --{near}?'
    ) from error
  except flags.Error as error:
    raise _as_user_error(error) from error
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


def parse_config(argv: Sequence[str]) -> tuple[ConfigDict, list[str]]:
  """Parses --config and --config.KEY, and leaves the other arguments.

  Args:
    argv: The arguments without the program's name.

  Returns:
    The merged and validated configuration, locked, and the other arguments.

  Raises:
    UserError: A suite, preset or key is unknown, or a value is invalid.
  """
  values = flags.FlagValues()
  values.set_gnu_getopt()  # Flags may follow other arguments.
  flags.DEFINE_string('config', DEFAULT_CONFIG, 'FILE[:PRESET,...]', values)
  try:
    _, *rest = values(['', *argv], known_only=True)
    config = load(values.config)
    rest = _override(config, rest)
  except (flags.Error, ValueError) as error:
    raise _as_user_error(error) from error
  validate.validate(config)
  return config, rest


def load(chosen: str) -> ConfigDict:
  """Returns the configuration of FILE[:PRESET,...], without overrides.

  Args:
    chosen: A file with a function get_config(presets), relative to the working
      directory or the project, and presets after a colon.

  Raises:
    UserError: The file or a preset does not exist.
  """
  name, _, presets = chosen.partition(':')
  paths = pathlib.Path(name), ROOT / name
  found = [x for x in paths if x.suffix == '.py' and x.is_file()]
  get_config = (
    runpy.run_path(str(found[0])).get('get_config') if found else None
  )
  if get_config is None:
    suites = sorted(
      f'configs/{path.name}'
      for path in (ROOT / 'configs').glob('*.py')
      if 'def get_config' in path.read_text()
    )
    missing = 'no function get_config() in' if found else 'no Python file'
    raise UserError(
      f"--config={chosen}: {missing} '{name}'; did you mean "
      f"'{nearest(name, suites)}'? Suites: {', '.join(suites)}"
    )
  try:
    return get_config(presets)
  except LookupError as error:
    unknown, *known = error.args
    raise UserError(
      f"--config={chosen}: unknown preset '{unknown}'; did you mean "
      f"'{nearest(unknown, known)}'? Presets: {', '.join(known)}"
    ) from error


def _override(config: ConfigDict, argv: Sequence[str]) -> list[str]:
  """Changes and locks `config`; returns the arguments that are not for it."""
  defaults = flatten(config)
  args: list[str] = []
  for arg in argv:
    # absl accepts no separate value for a boolean: `--config.KEY false`.
    if args and _OVERRIDE.fullmatch(args[-1]) and not arg.startswith('-'):
      args[-1] += f'={arg}'
    else:
      args.append(arg)
  for match in filter(None, map(_OVERRIDE.match, args)):
    if match[1] not in defaults:
      raise _unknown_key(match[1], defaults)
  values = flags.FlagValues()
  values.set_gnu_getopt()
  config_flags.DEFINE_config_dict(
    'config', config, flag_values=values, sys_argv=args
  )
  _, *rest = values(['', *args], known_only=True)
  changed = config_flags.get_override_values(values['config'])
  for key, value in changed.items():
    if isinstance(value, tuple):
      item = _PARSERS[type(defaults[key][0])]
      try:
        items = tuple(map(item.parse, value))
      except ValueError as error:
        text = ','.join(value)
        raise ValueError(f"--config.{key}='{text}': {error}") from error
      config.update_from_flattened_dict({key: items})
  return rest


def _as_user_error(error: Exception) -> UserError:
  text = str(error).removeprefix('flag ')
  return UserError(
    re.sub('Missing value for flag (.*)', r'\1 needs a value.', text)
  )


def _unknown_key(key: str, defaults: dict[str, Any]) -> UserError:
  inside = [name for name in defaults if name.startswith(f'{key}.')]
  if inside:
    return UserError(
      f'--config.{key} is a group of keys; set one of them, such as '
      f'--config.{inside[0]}. Keys: {", ".join(inside)}'
    )
  near = nearest(key, defaults)
  return UserError(
    f'unknown key --config.{key}; did you mean --config.{near}? '
    f'(its value here: {defaults[near]!r})'
  )


def _print_help(config: ConfigDict) -> NoReturn:
  print((sys.modules['__main__'].__doc__ or '').strip())
  print('\nKeys, with their values in the chosen configuration:')
  for key, value in flatten(config).items():
    print(f'  --config.{key}={value}')
  sys.exit(0)
