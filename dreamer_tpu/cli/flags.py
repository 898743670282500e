"""Parses the command line into a validated configuration.

`--config=SUITE[:PRESET,...]` chooses a configuration and `--config.KEY=VALUE`
changes it. Every mistake becomes a UserError of one line. The flags of
ml_collections would take a key such as `keys` for the method of that name.
"""

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import re
import runpy
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn

from absl import app, flags
from etils import epath
from ml_collections.config_dict import ConfigDict

import dreamer_tpu
from dreamer_tpu.cli import logdirs, reference, validate
from dreamer_tpu.config import flatten
from dreamer_tpu.errors import (
  STOPPED,
  Interrupted,
  UserError,
  did_you_mean,
  explain,
  nearest,
)

DEFAULT_CONFIG = 'gym:size1m'

# The wheel has configs/ inside of the package, the repository beside it.
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
ROOT = _PACKAGE if (_PACKAGE / 'configs').is_dir() else _PACKAGE.parent

# Seconds that threads and processes get to end with the program.
_PATIENCE = 10.0

_ITEM = re.compile(r'[^\s,()[\]\'"]+')
_HELP = re.compile(r'(?:-h|--?help)(?:=(.+))?')
_OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]*)')
_BOOLS = {
  **dict.fromkeys(('true', 't', '1', 'yes'), True),
  **dict.fromkeys(('false', 'f', '0', 'no'), False),
}


class _Parser(flags.ArgumentParser):
  """Parses the text of a flag; returns other values unchanged."""

  def __init__(self, convert: Callable[[str], Any], expected: str):
    self._convert = convert
    self.expected = expected

  def parse(self, argument: Any) -> Any:
    if not isinstance(argument, str):
      return argument
    try:
      return self._convert(argument)
    except (ValueError, KeyError, OverflowError) as error:
      raise ValueError(f"'{argument}' is not {self.expected}.") from error


def _integer(text: str) -> int:
  try:
    return int(text)
  except ValueError:
    if not float(text).is_integer():
      raise
    return int(float(text))


_PARSERS = {
  bool: _Parser(lambda text: _BOOLS[text.lower()], 'true or false'),
  int: _Parser(_integer, 'an integer, such as 700000 or 7e5'),
  float: _Parser(float, 'a number, such as 0.5 or 4e-5'),
  str: _Parser(str, 'text'),
}


def _parser(default: Any) -> _Parser:
  """Returns the parser of a key for the type of its default."""
  if not isinstance(default, tuple):
    return _PARSERS[type(default)]
  item = _PARSERS[type(default[0])]
  return _Parser(
    lambda text: tuple(map(item.parse, _ITEM.findall(text))),
    f'a list with commas, each {item.expected}',
  )


def run(
  main: Callable[[tuple[ConfigDict, epath.Path]], int], usage: str | None = ''
) -> NoReturn:
  """Calls main((config, logdir)) and exits with the code that it returns.

  A UserError, from the command line or from `main`, becomes the last line on
  stderr, after its notes, and exit code 1. So does any other error, after at
  most ten lines of its traceback in this project and in the user's code. An
  interruption at the start, with nothing to save, becomes exit code 75.

  The process ends within seconds, also if threads or processes that an
  environment has started do not.

  Args:
    main: Returns the exit code.
    usage: Text with which --help begins.
  """
  code: Any = 1

  def leave() -> None:
    _flush()
    os._exit(_number(code))

  # The first handler runs last, and skips the end of the interpreter: native
  # threads of libraries abort the process if that ends them.
  atexit.register(leave)
  try:
    app.run(main, flags_parser=functools.partial(parse, usage=usage or ''))
  except SystemExit as ended:
    code = ended.code
  except Interrupted:
    code = STOPPED
  except Exception as error:
    _flush()
    lines, text = explain(error)
    if lines:
      print(lines, file=sys.stderr)
    print(f'error: {text}', file=sys.stderr, flush=True)
  _flush()
  timer = threading.Timer(_PATIENCE, _kill, [code])
  timer.daemon = True
  timer.start()
  sys.exit(code)


def _kill(code: Any) -> None:
  """Ends the process and its children at once."""
  import psutil

  for child in psutil.Process().children(recursive=True):
    with contextlib.suppress(psutil.NoSuchProcess):
      child.kill()
  os._exit(_number(code))


def _number(code: Any) -> int:
  """Returns the exit code of a process for that of `sys.exit`."""
  return code if isinstance(code, int) else int(code is not None)


def _flush() -> None:
  """Flushes stdout. If it is lost, the exit code must not depend on it."""
  try:
    if sys.stdout and not sys.stdout.closed:
      sys.stdout.flush()
  except OSError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(
  argv: Sequence[str], usage: str = ''
) -> tuple[ConfigDict, epath.Path]:
  """Parses and validates a command line.

  Args:
    argv: The arguments as in sys.argv, with the program's name first.
    usage: Text with which --help begins.

  Returns:
    The merged configuration, locked, and the directory of the run.

  Raises:
    UserError: The command line has a mistake.
  """
  if '--version' in argv:
    print(f'dreamer_tpu {dreamer_tpu.__version__}')
    sys.exit(0)
  config, rest = parse_config(argv[1:])
  for arg in rest:
    if wanted := _HELP.fullmatch(arg):
      _print_help(config, usage, wanted[1] or '')
    if arg in ('-print_config', '--print_config'):
      _print(json.dumps(config.to_dict(), indent=2))
  own = flags.FlagValues()
  flags.DEFINE_string('logdir', None, 'Directory of the run.', own)
  try:
    rest = own([argv[0], *rest], known_only=True)
    # At absl's default, INFO, Orbax reports every part of every save.
    rest = flags.FLAGS([rest[0], '--verbosity=-1', *rest[1:]])
  except flags.UnrecognizedFlagError as error:
    name, keys = error.flagname, (f'config.{key}' for key in flatten(config))
    near = did_you_mean(
      name, ['logdir', 'config', *flags.FLAGS, *keys], '; did you mean --{}?'
    )
    raise UserError(
      f'unknown option --{name}{near or "; --help lists them"}'
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
  flags.DEFINE_string('config', DEFAULT_CONFIG, 'SUITE[:PRESET,...]', values)
  try:
    _, *rest = values(['', *argv], known_only=True)
    config = load(values.config)
    rest = _override(config, rest)
  except (flags.Error, ValueError) as error:
    raise _as_user_error(error) from error
  validate.validate(config)
  return config, rest


def load(chosen: str) -> ConfigDict:
  """Returns the configuration of SUITE[:PRESET,...], without overrides.

  Args:
    chosen: A suite of this project, or a file with a function
      get_config(presets), relative to the working directory or the project;
      and presets after a colon.

  Raises:
    UserError: The file or a preset does not exist.
  """
  name, _, presets = chosen.partition(':')
  paths = pathlib.Path(name), ROOT / name, ROOT / 'configs' / f'{name}.py'
  found = [x for x in paths if x.suffix == '.py' and x.is_file()]
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())  # For modules that a user's file imports.
  with _own_configs():
    get_config = (
      runpy.run_path(str(found[0])).get('get_config') if found else None
    )
    if get_config is None:
      raise _no_config(chosen, name, bool(found))
    try:
      return get_config(presets)
    except LookupError as error:
      unknown, *known = error.args
      raise UserError(
        f"--config={chosen}: unknown preset '{unknown}'; did you mean "
        f"'{nearest(unknown, known)}'? Presets: {', '.join(known)}"
      ) from error


@contextlib.contextmanager
def _own_configs() -> Iterator[None]:
  """Makes `configs` this project's package, whatever else has that name.

  Folders of that name are common: beside the user's own files, too.
  """

  def take() -> dict[str, ModuleType]:
    names = [x for x in sys.modules if x.partition('.')[0] == 'configs']
    return {name: sys.modules.pop(name) for name in names}

  others = take()
  spec = importlib.util.spec_from_file_location(
    'configs', ROOT / 'configs' / '__init__.py'
  )
  assert spec
  sys.modules['configs'] = importlib.util.module_from_spec(spec)
  try:
    yield
  finally:
    take()
    sys.modules.update(others)


def _no_config(chosen: str, name: str, found: bool) -> UserError:
  suites = sorted(
    path.stem
    for path in (ROOT / 'configs').glob('*.py')
    if 'def get_config' in path.read_text()
  )
  missing = 'no function get_config() in' if found else 'no suite or file'
  near = nearest(pathlib.Path(name).stem, suites)
  return UserError(
    f"--config={chosen}: {missing} '{name}'; did you mean '{near}'? "
    f'Suites: {", ".join(suites)}'
  )


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
  values = flags.FlagValues()
  values.set_gnu_getopt()
  keys = {match[1]: None for match in map(_OVERRIDE.match, args) if match}
  for key in keys:
    if key not in defaults:
      raise _unknown_key(key, defaults)
    flag: flags.Flag = flags.Flag(
      _parser(defaults[key]),
      None,
      f'config.{key}',
      None,
      '',
      boolean=isinstance(defaults[key], bool),
    )
    flags.DEFINE_flag(flag, values)
  _, *rest = values(['', *args], known_only=True)
  config.update_from_flattened_dict(
    {key: values[f'config.{key}'].value for key in keys}
  )
  config.lock()
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
  near = did_you_mean(key, defaults, '{}')
  if not near:
    group = key.rpartition('.')[0]
    inside = [name for name in defaults if name.rpartition('.')[0] == group]
    listed = '--help lists all keys'
    if group and inside:
      listed = f'keys in {group}: {", ".join(inside)}'
    return UserError(f'unknown key --config.{key}; {listed}')
  return UserError(
    f'unknown key --config.{key}; did you mean --config.{near}? '
    f'(its value here: {defaults[near]!r})'
  )


def _print_help(config: ConfigDict, usage: str, group: str) -> NoReturn:
  entries = reference.read(ROOT / 'configs' / 'base.py')
  keys = reference.show(config, entries, group)
  head = [
    usage.strip(),
    '\nOptions, with their values in the chosen configuration:',
  ]
  _print('\n'.join(keys if group else [*head, *keys]))


def _print(text: str) -> NoReturn:
  """Prints a text and ends the program, even if nobody reads all of it."""
  with contextlib.suppress(BrokenPipeError):
    print(text.strip())
  sys.exit(0)
