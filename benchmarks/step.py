"""A whole training step, ours against a peer's: sampling, scoring and update, phase by phase.

Both train Dr. GRPO on copies of one random policy, on the same prompts with the same reward, in turns within one
process; the ratio is the peer's median over ours, in CPU seconds of all threads and in wall seconds. Before the clock
starts, log-probs, loss and gradient norm of both are checked to be equal on one rollout. How the peers are set up,
and what counts as which phase, is in benchmarks/systems/.
"""

from benchmarks.compare import run
from benchmarks.options import parser


def main(arguments: list[str] | None = None) -> None:
    run("step", parser(__doc__ or "").parse_args(arguments))


if __name__ == "__main__":
    main()
