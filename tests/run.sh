#!/usr/bin/env bash
# The gate: sets up .venv, then ruff, mypy and the tests. With --all also the tests marked `full`:
# the whole kill matrix, the slow rest, generated inputs that differ from run to run. Any other
# arguments go to pytest instead.
set -euo pipefail
cd "$(dirname "$0")/.."
bash examples/setup.sh tests/requirements.txt
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .
mypy
also="and not full"
if [ "${1:-}" = --all ]; then
    shift
    also=""
    export ARCD_HYPOTHESIS=random
fi
if [ $# -gt 0 ]; then exec pytest "$@"; fi
# Unit and process tests on both cores; one real engine at a time; what asserts seconds alone.
pytest -n 2 --dist loadgroup --durations=25 -m "not engine and not timing $also"
pytest --durations=25 -m "engine and not timing $also"
pytest -m "timing $also"
