#!/usr/bin/env bash
# Sets up .venv with optional packages, checks format, lint, types and the API
# reference, and runs the tests.
# Arguments are passed to pytest: launch/test.sh tests/replay -m slow
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

extras() {
  pip_install --editable '.[test,all]'
  # The writer of Scope, without what its viewer requires (140 MB).
  pip_install --no-deps elements==3.22.4 av==18.1.0 \
    "$(sed -n 's/^scope = \["\(.*\)"\]/\1/p' pyproject.toml)"
}

# iproute2 for network namespaces, as root; libqt5gui5 for ProcGen.
debian_packages iproute2 libqt5gui5
once pyproject.toml extras
ruff format --check .
ruff check .
mypy
bash launch/docs.sh "$(mktemp -d)"
# Two workers: each compiles on several threads and needs its own memory.
python -m pytest -n 2 "$@"
