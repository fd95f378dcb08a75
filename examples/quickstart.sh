#!/usr/bin/env bash
# From nothing to solved ARC tasks: sets up .venv, starts a daemon, submits a dozen real tasks to
# it, asks how they are doing, fetches the result and draws one of them.
set -euo pipefail
cd "$(dirname "$0")/.."
bash examples/setup.sh
export ARCD_HOME=${ARCD_HOME:-$PWD/.venv/arcd-home}
arcd() { .venv/bin/arcd "$@"; }
# Shown before it is done.
show() { printf '\n$ %s\n' "$*" && "$@"; }

# The daemon's first line says that it takes jobs; the models still load.
printf '\n$ arcd serve &\n'
exec 3< <(exec .venv/bin/arcd serve)
trap 'arcd stop >/dev/null 2>&1 || true' EXIT
read -r line <&3 && echo "$line"

echo
echo "12 tasks of the ARC-AGI-1 evaluation set, never seen in training (examples/tasks):"
show arcd submit examples/tasks --watch
job=$(arcd jobs --json | .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)[-1]["job"])')
show arcd status
show arcd result "$job" --out "$ARCD_HOME/submission.json"
show arcd eval "$job"

# A task that was solved, to look at: the one that took the largest share of the votes.
solved=$(arcd eval "$job" --json | .venv/bin/python -c '
import json, sys
tasks = json.load(sys.stdin)["tasks"]
print(max(tasks, key=lambda task: (tasks[task]["pass_2"], tasks[task]["accuracy"])))')
show arcd show "$solved" --job "$job"
show arcd report "$job" --out "$ARCD_HOME/report.html"
show arcd stop
cat <&3 >/dev/null
printf '\nTo go on in this shell:\n  export PATH="%s/.venv/bin:$PATH" ARCD_HOME="%s"\n' "$PWD" "$ARCD_HOME"
