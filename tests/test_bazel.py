"""BUILD, as Bazel reads it: Debian's bazel-bootstrap, without a network."""

import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not shutil.which('bazel'), reason='apt-get install bazel-bootstrap'
  ),
]

# Bazel's own rules in place of rules_python, which would be downloaded.
FILES = {
  'WORKSPACE': 'local_repository(name = "rules_python", path = "rules")\n',
  'rules/WORKSPACE': '',
  'rules/python/BUILD': '',
  'rules/python/defs.bzl': (
    'py_binary = native.py_binary\n'
    'py_library = native.py_library\n'
    'py_test = native.py_test\n'
  ),
}


@pytest.fixture(scope='module')
def query(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bazel')
  space = folder / 'space'
  shutil.copytree(
    ROOT, space, ignore=shutil.ignore_patterns('.*', '__pycache__', 'runs')
  )
  for name, text in FILES.items():
    (space / name).parent.mkdir(parents=True, exist_ok=True)
    (space / name).write_text(text)

  def query(expression):
    done = subprocess.run(
      [
        'bazel',
        '--batch',
        f'--output_user_root={folder / "out"}',
        'query',
        '--noimplicit_deps',
        '--output=label_kind',
        expression,
      ],
      cwd=space,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    return re.findall(r'^(\w+ \w+) //:(\S+)$', done.stdout, re.M)

  return query


def test_every_file_belongs_to_a_room(query):
  found = {
    name for _, name in query('kind("source file", deps(kind(py_library, :*)))')
  }
  assert found == {
    str(path.relative_to(ROOT))
    for folder in ('dreamer_tpu', 'configs')
    for path in (ROOT / folder).rglob('*.py')
  }


def test_program_needs_no_tools(query):
  found = query('labels(srcs, :main) + deps(labels(deps, :main))')
  assert ('py_library rule', 'run') in found
  assert ('py_library rule', 'tools') not in found
  assert ('source file', 'main.py') in found


def test_every_test_is_in_a_target(query):
  found = {name for _, name in query('labels(srcs, kind(py_test, :*))')}
  files = {str(path.relative_to(ROOT)) for path in ROOT.glob('tests/*/**/*.py')}
  # Scripts need the whole source tree.
  assert {
    x for x in files - found if not x.startswith('tests/launch/')
  } == set()
