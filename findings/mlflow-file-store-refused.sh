#!/usr/bin/env bash
# mlflow-skinny 3.17.2: a folder of runs ("mlruns", MLflow's file store) that a user or a tool has written is refused by default.
#
# What one might expect: MlflowClient(tracking_uri="file:...") makes and reads runs, as in 1.x and 2.x, and perhaps warns.
# What happens: it raises "... is in maintenance mode ..."; MLFLOW_ALLOW_FILE_STORE=true has it work.
# So a trainer that leaves an mlruns folder leaves one that `mlflow ui` of today does not open as it is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check mlflow-skinny==3.17.2
cat >"$work/try.py" <<'PY'
import sys
from mlflow.tracking import MlflowClient
client = MlflowClient(tracking_uri="file:" + sys.argv[1])
run = client.create_run("0")
client.log_metric(run.info.run_id, "train/loss", 0.5, step=1)
print("steps:", [of.step for of in client.get_metric_history(run.info.run_id, "train/loss")])
PY
cd "$work"
if env/bin/python try.py "$work/mlruns" >refused.txt 2>&1; then
  echo "changed: the file store is opened without a variable"
  exit 1
fi
grep -o "MLFLOW_ALLOW_FILE_STORE=true" refused.txt | head -1
MLFLOW_ALLOW_FILE_STORE=true env/bin/python try.py "$work/mlruns" 2>/dev/null | grep -F "steps: [1]"
echo "as stated: refused by default, works with the variable"
