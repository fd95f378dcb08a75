#!/usr/bin/env bash
# From nothing to solved ARC tasks: sets up .venv, runs arcd on a dozen real tasks, draws one.
set -euo pipefail
cd "$(dirname "$0")/.."
bash examples/setup.sh
export ARCD_HOME=${ARCD_HOME:-$PWD/.venv/arcd-home}
arcd=.venv/bin/arcd

echo
echo "12 tasks of the ARC-AGI-1 evaluation set, never seen in training (examples/tasks):"
"$arcd" run examples/tasks --out "$ARCD_HOME/submission.json"

# A task that was solved, to look at: the one that took the largest share of the votes.
run=$(ls -d "$ARCD_HOME"/runs/* | tail -n 1)
solved=$("$arcd" eval "$run" --json | .venv/bin/python -c '
import json, sys
tasks = json.load(sys.stdin)["tasks"]
print(max(tasks, key=lambda task: (tasks[task]["pass_2"], tasks[task]["accuracy"])))')
echo
"$arcd" show "$solved" --run "$run"
