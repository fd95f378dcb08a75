#!/usr/bin/env bash
# Sets up .venv and runs every check: ruff, mypy, the fast tests, then those on the real engine.
set -euo pipefail
cd "$(dirname "$0")/.."
bash examples/setup.sh tests/requirements.txt
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .
mypy
pytest "$@"
