#!/usr/bin/env bash
# Sets up .venv, then checks format, lint and types and runs all tests.
# Arguments go to pytest: launch/test.sh tests/replay -m slow
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

debian_packages iproute2  # Hosts in network namespaces, as root.
ruff format --check .
ruff check .
mypy
# Two workers: each compiles on its own threads, and the memory adds up.
python -m pytest -n 2 "$@"
