"""Reference of all options: values, types, units and descriptions.

Descriptions are the comments above the keys in `configs/base.py`.
"""

import ast
import pathlib
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dreamer_tpu.cli.validate import CHOICES, REGEXES
from dreamer_tpu.config import flatten
from dreamer_tpu.errors import UserError, did_you_mean

WIDTH = 80

_TYPES = {bool: 'true or false', int: 'integer', float: 'number', str: 'text'}
_COMMENT = re.compile(r'(?:\[(?P<unit>[^]]+)\] )?(?P<text>.*)')


class Entry(NamedTuple):
  """Description of a key or of a group of keys.

  Attributes:
    text: Description, a sentence or more.
    unit: Unit, such as 'seconds'; empty if there is none.
  """

  text: str
  unit: str


_EMPTY = Entry('', '')


def read(path: pathlib.Path) -> dict[str, Entry]:
  """Returns the descriptions of all keys and groups in a Python file.

  Args:
    path: File with a function `base()` that returns nested `dict(...)` calls;
      a group may be the call of another function of the file. The lines of a
      comment above a keyword describe it: `# [unit] Text.`
  """
  source = path.read_text()
  lines = source.splitlines()
  functions = {
    node.name: _outer_dict(node)
    for node in ast.parse(source).body
    if isinstance(node, ast.FunctionDef)
  }

  def visit(group: ast.Call, prefix: str) -> Iterator[tuple[str, Entry]]:
    for keyword in group.keywords:
      key = f'{prefix}{keyword.arg}'
      yield key, _entry(lines, keyword.lineno)
      if isinstance(keyword.value, ast.Call):
        name = ast.unparse(keyword.value.func)
        inside = functions.get(name, _outer_dict(keyword.value))
        if inside:
          yield from visit(inside, f'{key}.')

  return dict(visit(functions['base'], ''))


def _outer_dict(node: ast.AST) -> Any:
  """Returns the outermost `dict(...)` call of a node, None if there is none."""
  return next(
    (
      inner
      for inner in ast.walk(node)
      if isinstance(inner, ast.Call) and ast.unparse(inner.func) == 'dict'
    ),
    None,
  )


def _entry(lines: list[str], number: int) -> Entry:
  """Returns the comment that ends above a line, counted from 1."""
  words: list[str] = []
  for line in reversed(lines[: number - 1]):
    if not line.lstrip().startswith('#'):
      break
    words.insert(0, line.strip(' #'))
  found = _COMMENT.fullmatch(' '.join(words))
  return Entry(found['text'], found['unit'] or '') if found else _EMPTY


def show(
  config: Any, entries: Mapping[str, Entry], group: str = ''
) -> list[str]:
  """Returns the lines of a reference.

  Args:
    config: Configuration whose values are shown.
    entries: Descriptions by key.
    group: Key or group to show; all if empty.

  Raises:
    UserError: There is no such key or group.
  """
  flat = flatten(config)
  keys = [key for key in flat if f'{key}.'.startswith(group and f'{group}.')]
  if not keys:
    raise _unknown(group, flat)
  order = {key: number for number, key in enumerate(['', *entries])}
  end = len(order)  # Keys that a suite of the user adds.
  keys.sort(key=lambda key: (order.get(_group(key), end), order.get(key, end)))
  lines, last = [], ''
  for key in keys:
    if _group(key) != last:
      last = _group(key)
      lines += ['', *_wrap(f'{last}: {entries.get(last, _EMPTY).text}')]
    entry = entries.get(key, _EMPTY)
    kind = ', '.join(filter(None, [_type(key, flat[key]), entry.unit]))
    lines.append(f'  --config.{key}={_text(flat[key])}  ({kind})')
    lines += _wrap(entry.text, ' ' * 6)
  return lines


def _unknown(group: str, flat: Mapping[str, Any]) -> UserError:
  groups = dict.fromkeys(filter(None, map(_group, flat)))
  near = did_you_mean(group, [*groups, *flat], '; did you mean --help={}?')
  return UserError(
    f'--help={group}: no such key or group{near or "; --help lists all keys"}'
  )


def _group(key: str) -> str:
  return key.rpartition('.')[0]


def _type(key: str, value: Any) -> str:
  if key in REGEXES:
    return 'regular expression'
  kind = ' | '.join(map(str, CHOICES.get(key, ())))
  if isinstance(value, tuple):
    return f'list of {kind or _TYPES[type(value[0])] + "s"}'
  return kind or _TYPES[type(value)]


def _text(value: Any) -> str:
  """Returns a value as a flag takes it."""
  return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)


def _wrap(text: str, indent: str = '') -> list[str]:
  return textwrap.wrap(
    text, WIDTH, initial_indent=indent, subsequent_indent=indent
  )
