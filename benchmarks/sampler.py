"""Sampling alone, ours against a peer's: the groups of a step's prompts, decoded to text.

Full lengths: both write the same number of tokens. Geometric lengths: every system draws its own, with the same
probability of stopping at each token, and the ratio is of the time per token.
"""

from benchmarks.compare import run
from benchmarks.options import parser


def main(arguments: list[str] | None = None) -> None:
    run("sample", parser(__doc__ or "").parse_args(arguments))


if __name__ == "__main__":
    main()
