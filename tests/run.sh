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
# Two workers, a file each at a time, in this order: the long ones first. (xdist 3.8 has no groups
# with pytest 9.2: https://github.com/pytest-dev/pytest-xdist/issues/1386)
shared=(-n 2 --dist loadfile --no-loadscope-reorder --durations=25)
light="not engine and not timing $also"
pytest "${shared[@]}" -m "$light" tests/process tests/unit tests/engine/test_engine_contract.py
pytest "${shared[@]}" -m "engine and not timing $also" tests/engine
# What asserts seconds runs alone.
grep -rl --include="test_*.py" mark.timing tests | xargs pytest --durations=25 -m "timing $also"
