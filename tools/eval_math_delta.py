"""Compare a candidate with a baseline on MATH-500: prints both accuracies; exit code 1 if the candidate lost 0.01.

python tools/eval_math_delta.py --baseline PATH --candidate PATH --runner transformers --dataset math_500.jsonl
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.evaluate.delta import compare


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--baseline", default="stub-baseline", help="model name or path")
    parser.add_argument("--candidate", default="stub-candidate", help="model name or path")
    parser.add_argument(
        "--runner",
        choices=("stub", "transformers"),
        default="stub",
        help="stub loads no model and answers the gold",
    )
    parser.add_argument(
        "--dataset", type=Path, help="a JSONL file with problem and answer; toy problems without"
    )
    parser.add_argument("--limit", type=int, default=8, help="questions (8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=768)
    options = parser.parse_args(arguments)
    try:
        found = compare(
            options.baseline,
            options.candidate,
            options.runner,
            options.dataset,
            options.limit,
            options.seed,
            options.max_new_tokens,
        )
    except (UsageError, RunError) as error:
        print(f"eval_math_delta: {error}", file=sys.stderr)
        return error.exit_code
    print(f"baseline_acc={found.baseline:.4f} candidate_acc={found.candidate:.4f} delta={found.delta:+.4f}")
    return int(found.is_loss)


if __name__ == "__main__":
    sys.exit(main())
