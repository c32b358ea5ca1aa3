"""A Slurm job array of a study: one task per run, and a last job that writes the report."""

import shlex
import shutil
import subprocess
from pathlib import Path

from maxent_grpo.errors import RunError
from maxent_grpo.study.plan import Plan

SCRIPT = "study.sbatch"


def slurm_script(plan_file: Path, plan: Plan, runs: int, at_once: int) -> str:
    """The text of the array script. Requeued tasks go on from their run's checkpoint: the same line serves both."""
    files = {"study.plan": plan_file, "study.output_dir": plan.output_dir}
    command = " ".join(
        ["maxent-grpo-study", *(f"{key}={shlex.quote(str(path))}" for key, path in files.items())]
    )
    return f"""#!/bin/bash
#SBATCH --job-name=maxent-grpo-study
#SBATCH --array=0-{runs - 1}%{at_once}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={plan.output_dir}/slurm/%a.log
# {runs} runs, {at_once} at a time. After the last one:
#   {command} study.analyse=true
set -euo pipefail
export OMP_NUM_THREADS=1
{command} study.index="$SLURM_ARRAY_TASK_ID"
"""


def submit(script: str, output_dir: Path) -> str:
    """Write the script into the study's directory and hand it to ``sbatch``. Returns its answer.

    Raises `RunError` where there is no Slurm, or it refuses.
    """
    (output_dir / "slurm").mkdir(parents=True, exist_ok=True)
    path = output_dir / SCRIPT
    path.write_text(script, encoding="utf-8")
    if shutil.which("sbatch") is None:
        raise RunError(
            f"study.slurm: there is no sbatch here; submit {path} on a Slurm machine, or add study.dry_run=true"
        )
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"study.slurm: sbatch refused {path}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()
