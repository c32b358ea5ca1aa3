"""Grading what a policy under training may write at its worst: ``python -m benchmarks.hostile_rewards``.

200 completions: towers of powers, thousands of brackets, a megabyte of digits, null bytes, right-to-left text, lone
surrogates, programs that hang. Each named reward grades all of them in worker
processes: printed are the seconds and what was lost.
"""

import argparse
import time
from collections.abc import Sequence

from maxent_grpo.rewards.isolation import Isolation, IsolationSettings
from maxent_grpo.rewards.registry import load_rewards
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.types import Prompt, Rollout

ANSWERS = (
    "10^{10^{10}}",
    "10^{10^{10^{10}}}",
    "9^{9^{9^{9}}} - 1",
    "10**10**10",
    "1000000!!!",
    "\\binom{10^9}{5\\cdot 10^8}",
    "\\sum_{i=1}^{10^{12}} i^{i}",
    "\\int_0^1 x^{x^{x^{x}}} dx",
    "\\sqrt{" * 3000 + "2" + "}" * 3000,
    "\\frac{1}{" * 2000 + "2" + "}" * 2000,
    "(" * 5000 + "1" + ")" * 5000,
    "{" * 20000,
    "\\left(" * 4000,
    "9" * 1_000_000,
    "0." + "3" * 1_000_000,
    "1+" * 20_000 + "1",
    "x" * 100_000,
    ",".join(map(str, range(20_000))),
    "\\begin{pmatrix}" + "1 & " * 5000 + "1\\end{pmatrix}",
    "1\0" * 1000,
    "\u202e" + "42" * 500 + "\u05d0" * 500,
    "\ud800" * 100,
    "٤٢" * 2000,
    "\\boxed{" * 5000,
    "<answer>" * 5000,
)
"""What stands where an answer should."""

PROGRAMS = (
    "while True: pass",
    "10**10**10",
    "x = 'a'\nwhile True: x += x",
    "import os\nos._exit(0)",
    "print('x' * (1 << 30))",
    "def f(): f()\nf()",
    "open('f', 'w').write('x' * (1 << 24))",
    "import time; time.sleep(60)",
)


def completions(count: int) -> list[str]:
    """``count`` different hostile texts."""
    texts = [f"```python\n{program}\n```" for program in PROGRAMS]
    n = 0
    while len(texts) < count:
        for answer in ANSWERS:
            texts += [
                f"\\boxed{{{answer} + {n}}}",
                f"<think></think><answer>{answer} + {n}</answer>",
                f"{n}: so it is ${answer}$",
                f"\\boxed{{{n}}} or {answer}",
            ]
        n += 1
    return texts[:count]


def grade(names: Sequence[str], count: int, timeout: float, workers: int) -> dict[str, float]:
    """Seconds, and completions lost to errors and to the deadline, of one pass with the rewards ``names``."""
    texts = completions(count)
    size = 8
    rollouts = [
        Rollout(
            Prompt(
                start,
                f"Q{start}",
                (0,),
                {"answer": "42", "solution": "$42$", "test_list": ["assert True"]},
                messages=[{"role": "user", "content": "?"}],
            ),
            ((0,),) * len(part),
            ((0.0,),) * len(part),
            tuple(part),
            ("stop",) * len(part),
            0,
        )
        for start in range(0, count, size)
        for part in [texts[start : start + size]]
    ]
    scorer = Scorer(load_rewards(names), isolation=Isolation(IsolationSettings(timeout, 1024, workers)))
    began = time.perf_counter()
    try:
        groups, metrics = scorer.score(rollouts, 1)
    finally:
        scorer.close()
    assert sum(len(group.utilities) for group in groups) == count
    return {
        "seconds": time.perf_counter() - began,
        "errors": float(metrics["reward/errors"].value),
        "timeouts": float(metrics["reward/timeouts"].value),
        "right": sum(
            score == 1.0 for group in groups for scores in group.rewards.values() for score in scores
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rewards", nargs="*", default=["accuracy", "trl.rewards:accuracy_reward", "code"])
    parser.add_argument("--count", type=int, default=200, help="completions")
    parser.add_argument("--timeout", type=float, default=1.0, help="reward_timeout in seconds")
    parser.add_argument("--workers", type=int, default=2, help="reward_workers")
    args = parser.parse_args()
    for name in args.rewards:
        result = grade([name], args.count, args.timeout, args.workers)
        print(
            f"{name:30} {args.count} completions in {result['seconds']:5.1f} s: {result['timeouts']:.0f} overran "
            f"{args.timeout:g} s, {result['errors'] - result['timeouts']:.0f} failed otherwise, "
            f"{result['right']:.0f} right"
        )


if __name__ == "__main__":
    main()
