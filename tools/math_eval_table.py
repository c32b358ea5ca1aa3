"""Three tables of evaluations (Pass@1, Pass@8, Avg@8), averaged over all seeds that the artifacts hold.

python tools/math_eval_table.py --artifact-root var/artifacts/inference
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.tables import plot_tables, read_scores, tables_text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact-root", type=Path, default=Path("var/artifacts/inference"))
    parser.add_argument("--precision", type=int, default=1, help="digits behind the point, in per cent (1)")
    parser.add_argument(
        "--min-datasets", type=int, default=1, help="leave out rows with fewer benchmarks (1)"
    )
    parser.add_argument("--plot-name", type=Path, help="also draw the averages into this file")
    options = parser.parse_args(arguments)
    try:
        scores = read_scores(options.artifact_root)
    except UsageError as error:
        print(f"math_eval_table: {error}", file=sys.stderr)
        return error.exit_code
    print(tables_text(scores, options.precision, options.min_datasets))
    for line in scores.left_out:
        print(f"left out  {line}")
    if options.plot_name is not None:
        plot_tables(scores, options.plot_name, options.min_datasets)
        print(f"plot  {options.plot_name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
