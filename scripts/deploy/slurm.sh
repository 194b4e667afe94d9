#!/usr/bin/env bash
# A run over the nodes of a SLURM job, one stage a task; a job that is requeued continues from its checkpoints.
#
#   sbatch --nodes=4 --gpus-per-task=1 scripts/deploy/slurm.sh recipe.toml
#
# mlora, the recipe, its data, its base model and its output have the same path on all nodes. The first node coordinates.
#SBATCH --job-name=mlora
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mlora-%j.log
set -euo pipefail

recipe="${1:?name the recipe: sbatch slurm.sh recipe.toml}"
shift
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MLORA_COORDINATOR="$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')"
MLORA_PORT="${MLORA_PORT:-$((20000 + SLURM_JOB_ID % 20000))}"
secret() { od -An -tx1 -N32 /dev/urandom | tr -d ' \n'; }
# others for each job: what the processes say is encrypted by the key, and the server takes in those with the token
MLORA_RUN_KEY="$(secret)"
MLORA_NATS_TOKEN="$(secret)"
export MLORA_COORDINATOR MLORA_PORT MLORA_RUN_KEY MLORA_NATS_TOKEN

# shellcheck disable=SC2016 # expanded by each task
exec srun --kill-on-bad-exit=1 bash -c '
  if [[ "$SLURM_PROCID" == 0 ]]; then
    exec mlora run "$0" --stages "$SLURM_NTASKS" --here 1 --run "slurm-$SLURM_JOB_ID" \
      --listen "$MLORA_COORDINATOR:$MLORA_PORT" --insecure "$@"
  fi
  exec mlora stage --nats "nats://$MLORA_COORDINATOR:$MLORA_PORT" --run "slurm-$SLURM_JOB_ID"
' "$recipe" "$@"
