#!/usr/bin/env bash
# Makes .venv with arcd and its CPU set, pinned; does nothing where that stands already.
# PYTHON names the interpreter (default: python3.11, else python3). More requirement files may be
# given as arguments.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-$(command -v python3.11 || command -v python3)}
wanted=$(cat pyproject.toml examples/requirements-cpu.txt "$@" | cksum)
stamp=.venv/installed
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "arcd needs Python 3.11 or newer; found $("$python" --version). Set PYTHON." >&2
    exit 1
}
echo "Setting up .venv (2.5 GB, a few minutes the first time) ..."
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"; }
# torch with its dependencies: which these are depends on the build that the machine gets.
pip install torch==2.13.0 -c examples/requirements-cpu.txt
requirements=(-r examples/requirements-cpu.txt)
for file in "$@"; do requirements+=(-r "$file"); done
pip install --no-deps "${requirements[@]}"
pip install --no-deps --editable .
echo "$wanted" >"$stamp"
