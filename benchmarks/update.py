"""The update alone, ours against a peer's: forward, loss, backward, clip and optimiser step on given completions.

All systems get the same completions, whose lengths are full or drawn once from a geometric distribution.
"""

from benchmarks.compare import run
from benchmarks.options import parser


def main(arguments: list[str] | None = None) -> None:
    run("update", parser(__doc__ or "").parse_args(arguments))


if __name__ == "__main__":
    main()
