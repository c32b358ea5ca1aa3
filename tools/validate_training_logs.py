"""Check that runs can be compared: what validate_logs.py checks, and a header with commit and recipe. For CI.

python tools/validate_training_logs.py --pattern 'var/data/*/metrics.jsonl' --required-key train/kl --require-logs
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maxent_grpo.observe.run_files import HEADER_KEYS, find_records, record_problems

REQUIRED = ["train/loss"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pattern", action="append", help="files or run folders (var/data/*/metrics.jsonl)")
    parser.add_argument(
        "--required-key", action="append", help=f"metric, or header key ({', '.join(REQUIRED)})"
    )
    parser.add_argument("--require-logs", action="store_true", help="exit code 1 where nothing matches")
    options = parser.parse_args(arguments)
    patterns = options.pattern or ["var/data/*/metrics.jsonl"]
    keys = options.required_key or REQUIRED
    metrics = [key for key in keys if not key.startswith("run/")]
    header = [*HEADER_KEYS, *(key for key in keys if key.startswith("run/") and key not in HEADER_KEYS)]
    paths = find_records(patterns, Path.cwd())
    if not paths:
        print(f"validate_training_logs: nothing matches {', '.join(patterns)}", file=sys.stderr)
        return int(options.require_logs)
    failed = 0
    for path in paths:
        problems = record_problems(path, metrics, header=header)
        failed += bool(problems)
        print(f"{path}: {'; '.join(problems) or 'ok'}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
