"""Rewards that need a math grader. They run in worker processes: symbolic comparison may not end.

Every function has the signature ``(completions, answer, **columns) -> list[float | None]``: N texts, or N chats of
which the first message counts, and N golds. ``None`` says that a row has no gold.
"""

import math
from collections.abc import Sequence
from typing import Any

from maxent_grpo.rewards.completions import Completion, text_of
from maxent_grpo.rewards.math import gold_answers


def accuracy(completions: Sequence[Completion], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """1.0 where the answer equals the gold, else 0.0.

    The answer is the last ``\\boxed{}``, else the body of ``<answer>``, else the last line that is not blank.
    Equality is that of `math_answers.grade` with its default policy.
    """
    return [_graded(text_of(c), gold, last_line=True) for c, gold in zip(completions, answer, strict=True)]


def boxed_accuracy_math(
    completions: Sequence[Completion], answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1.0 where the answer equals the gold, else 0.0.

    The answer is the last ``\\boxed{}``, else the body of ``<answer>``; a text with neither scores 0.0. Equality is
    that of `math_answers.grade` with its default policy.
    """
    return [_graded(text_of(c), gold, last_line=False) for c, gold in zip(completions, answer, strict=True)]


def graded(
    completions: Sequence[Completion], answer: Sequence[Any], policy: Sequence[dict[str, Any]], **columns: Any
) -> list[float | None]:
    """1.0 where `math_answers.grade` under the row's policy says right, else 0.0.

    ``policy`` holds a `GraderPolicy` per row, as its ``as_dict`` gives it.
    """
    from math_answers import GraderPolicy, grade

    rows = zip(completions, answer, policy, strict=True)
    return [float(grade(text_of(c), gold, GraderPolicy.from_dict(p)).right) for c, gold, p in rows]


def cosine(
    completions: Sequence[Completion],
    answer: Sequence[Any],
    cosine_min_value_wrong: float = 0.0,
    cosine_max_value_wrong: float = -0.5,
    cosine_min_value_correct: float = 0.5,
    cosine_max_value_correct: float = 1.0,
    cosine_max_len: int = 1000,
    **columns: Any,
) -> list[float | None]:
    """Correctness as `accuracy` has it, scaled by length: ``lo + ½(hi − lo)(1 + cos(π · characters / max_len))``.

    Right: hi = ``max_value_correct`` (1.0) at length 0 falls to lo = ``min_value_correct`` (0.5) at ``max_len``.
    Wrong: hi = ``min_value_wrong`` (0.0) at length 0 goes to lo = ``max_value_wrong`` (−0.5) at ``max_len``. Open-R1's
    ``cosine`` (Yeo et al. 2025, arXiv:2502.03373, appendix C.1) with other defaults. Like there the length is not
    clamped: past ``max_len`` the value returns to hi, so set ``cosine_max_len`` above the longest completion. TRL's
    `get_cosine_scaled_reward` clamps, and counts tokens.
    """
    right = (cosine_min_value_correct, cosine_max_value_correct)
    wrong = (cosine_max_value_wrong, cosine_min_value_wrong)
    rewards: list[float | None] = []
    for completion, verdict in zip(completions, accuracy(completions, answer), strict=True):
        if verdict is None:
            rewards.append(None)
            continue
        low, high = right if verdict else wrong
        progress = len(text_of(completion)) / cosine_max_len
        rewards.append(low + 0.5 * (high - low) * (1.0 + math.cos(progress * math.pi)))
    return rewards


def length(completions: Sequence[Completion], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """Shorter is better: λ = 0.5 − (len − min) / (max − min) over the completions of a prompt, in characters.

    λ (0.5 … −0.5) for a right answer, min(0, λ) for a wrong one, as `accuracy` judges; 0.0 for all where they are
    equally long. Kimi k1.5 (arXiv:2501.12599, section 2.3.3), Open-R1's ``length``. Where one completion of the group
    overruns its deadline or crashes, the others have nothing to be compared with and score 0.0.
    """
    sizes = [len(text_of(completion)) for completion in completions]
    shortest, spread = min(sizes), max(sizes) - min(sizes)
    verdicts = accuracy(completions, answer)
    rewards: list[float | None] = []
    for size, verdict in zip(sizes, verdicts, strict=True):
        share = 0.5 - (size - shortest) / spread if spread else 0.0
        rewards.append(None if verdict is None else share if verdict else min(0.0, share))
    return rewards


def _graded(text: str, gold: Any, last_line: bool) -> float | None:
    if not gold_answers(gold):
        return None
    # With sympy behind it: only workers should wait for that.
    from math_answers import GraderPolicy, equivalent, grade

    policy = GraderPolicy()
    verdict = grade(text, gold, policy)
    if verdict.extracted is None and last_line:
        lines = text.strip().splitlines()
        verdict = equivalent(lines[-1].strip() if lines else "", gold, policy)
    return float(verdict.right)
