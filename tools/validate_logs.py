"""Check metrics.jsonl files: finite numbers, steps in order, the metrics that you require. Exit code 1 says no.

python tools/validate_logs.py --glob 'var/data/*' --require-key train/loss --strict-missing
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maxent_grpo.observe.run_files import find_records, record_problems

REQUIRED = ["train/loss", "train/learning_rate"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--glob", action="append", help="run folders or metrics.jsonl files (var/data/*/metrics.jsonl)"
    )
    parser.add_argument(
        "--require-key", action="append", help=f"metric of every training record ({', '.join(REQUIRED)})"
    )
    parser.add_argument("--allow-non-finite", action="append", default=[], metavar="KEY", help="not for KEY")
    parser.add_argument("--strict-missing", action="store_true", help="exit code 1 where nothing matches")
    options = parser.parse_args(arguments)
    patterns = options.glob or ["var/data/*/metrics.jsonl"]
    paths = find_records(patterns, Path.cwd())
    if not paths:
        print(f"validate_logs: nothing matches {', '.join(patterns)}", file=sys.stderr)
        return int(options.strict_missing)
    failed = 0
    for path in paths:
        problems = record_problems(
            path, options.require_key or REQUIRED, header=(), allowed=options.allow_non_finite
        )
        failed += bool(problems)
        print(f"{path}: {'; '.join(problems) or 'ok'}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
