#!/bin/bash
# ray_cluster.sh: a Ray cluster over the nodes of this Slurm job (or on this machine), for as long as a command runs.
#
#   ops/scripts/ray_cluster.sh [options] -- COMMAND …
#
#   --port N             RAY_PORT            6379 (Ray avoids some others)
#   --health-timeout S   RAY_HEALTH_TIMEOUT  300    deadline of each wait, for the head's health and for all nodes
#   --temp-dir DIR       RAY_TEMP_DIR        /tmp/ray_JOBID; a short path, as Ray's sockets lie in it
#   --cpus-per-node N    SLURM_CPUS_ON_NODE
#   --on-restart "…"     RAY_ON_RESTART      resume_from_checkpoint=true; added to COMMAND when Slurm has requeued the job
#   --dry-run            print which node and device runs what; --nodes N --gpus-per-node N imagine a job
#   --help
#
# COMMAND finds RAY_ADDRESS, and MAXENT_RAY_NODE_ADDRESS for ray.init(_node_ip_address=…), which Ray needs where several
# nodes share a machine. Its exit code is the script's. Logs: var/artifacts/logs/ray-JOBID-NODE.out, train_JOBID.log
set -euo pipefail
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n '/^# ray_cluster.sh:/,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
  exit 0
fi
for root in "${MAXENT_ROOT:-}" "${SLURM_SUBMIT_DIR:-}" "$(dirname "$0")/../.."; do
  [[ -f $root/ops/scripts/environment.sh ]] && break
done
# shellcheck source=ops/scripts/environment.sh
source "$root/ops/scripts/environment.sh"
exec "$PYTHON" -m maxent_grpo.launch ray "$@"
