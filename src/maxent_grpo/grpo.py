"""``train-baseline`` with TRL-style flags: ``python -m maxent_grpo.grpo --config FILE --flag value``."""

import sys
from collections.abc import Sequence

from maxent_grpo.cli.main import run_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Parse TRL-style flags and train; returns the exit code (see `maxent_grpo.cli.boundary`)."""
    return run_flags("train-baseline", argv)


if __name__ == "__main__":
    sys.exit(main())
