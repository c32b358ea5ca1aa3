"""LightEval's benchmarks of a model, by Slurm or here. Results land in the tables of tools/math_eval_table.py.

python tools/lighteval_jobs.py --model Qwen/Qwen2.5-1.5B-Instruct --benchmarks all --dry-run
LIGHTEVAL=var/venv-lighteval/bin/lighteval python tools/lighteval_jobs.py --model DIR --benchmarks math_500 --local
python tools/math_eval_table.py --artifact-root var/artifacts/lighteval
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.launch.lighteval import TASKS, run_benchmark_jobs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="hub id, or a saved model's folder")
    parser.add_argument("--benchmarks", default="all", help=f"all, or some of {','.join(TASKS)}")
    parser.add_argument("--revision", default="main")
    parser.add_argument("--system-prompt-file", type=Path, help="what the model is told first")
    parser.add_argument("--num-gpus", type=int, help="in place of what fits the model")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument(
        "--local", action="store_true", help="run here, one after the other; else sbatch each"
    )
    parser.add_argument("--backend", choices=("vllm", "accelerate"), default="vllm", help="with --local")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and start nothing")
    options, extra = parser.parse_known_args(arguments)
    try:
        prompt = options.system_prompt_file and options.system_prompt_file.read_text(encoding="utf-8").strip()
        run_benchmark_jobs(
            options.benchmarks.split(","),
            options.model,
            revision=options.revision,
            trust_remote_code=options.trust_remote_code,
            system_prompt=prompt,
            num_gpus=options.num_gpus,
            where="local" if options.local else "slurm",
            backend=options.backend,
            extra=extra,
            environ=os.environ,
            dry_run=options.dry_run,
        )
    except (UsageError, RunError) as error:
        print(f"lighteval_jobs: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"lighteval_jobs: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
