#!/usr/bin/env bash
# Sets up .venv and runs every check: ruff, mypy, the fast tests, then those with real models.
# Arguments go to pytest instead of the two default selections.
set -euo pipefail
cd "$(dirname "$0")/.."
bash examples/setup.sh tests/requirements.txt
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .
mypy
if [ $# -gt 0 ]; then exec pytest "$@"; fi
pytest -m "not engine"
pytest -m engine
