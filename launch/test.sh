#!/usr/bin/env bash
# Sets up .venv, checks format, lint and types, and runs the tests.
# Arguments are passed to pytest: launch/test.sh tests/replay -m slow
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

debian_packages iproute2  # For network namespaces, as root.
ruff format --check .
ruff check .
mypy
# Two workers: each compiles on several threads and needs its own memory.
python -m pytest -n 2 "$@"
