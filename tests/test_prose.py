"""Docstrings open with a verb or a noun, never with an indirect question."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = [
  ROOT / 'main.py',
  *(
    path
    for folder in ('dreamer_tpu', 'configs', 'tests')
    for path in sorted((ROOT / folder).rglob('*.py'))
  ),
]
QUESTION = re.compile(r'(What|Who|Whose|How|Where|Which|Whether|Of)\b')
ARGUMENT = re.compile(r'^\s*[*\w.]+: (Of|of) ', re.MULTILINE)


def docstrings(path: pathlib.Path) -> list[str]:
  kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
  nodes = ast.walk(ast.parse(path.read_text()))
  found = (ast.get_docstring(node) for node in nodes if isinstance(node, kinds))
  return [text for text in found if text]


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_do_not_open_as_an_indirect_question(path):
  bad = [text for text in docstrings(path) if QUESTION.match(text)]
  assert not bad


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arguments_are_described_by_a_noun(path):
  bad = [
    match[0] for text in docstrings(path) for match in ARGUMENT.finditer(text)
  ]
  assert not bad
