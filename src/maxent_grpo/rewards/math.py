"""Rewards for answers in mathematics: exact match inside ``<answer>`` tags, and those that ask `math_answers`.

`pure_accuracy_math` is deliberately a string comparison after a small normal form, not a computer algebra system:
``1/2`` and ``0.5`` differ. Every pattern here is linear in the length of its text, because a policy under training
writes anything. The others run in worker processes. All have the signature
``(completions, answer, **columns) -> list[float | None]``: N texts, or N chats of which the first message counts, and N
golds; ``None`` says that a row has no gold.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

from math_answers import GraderPolicy, PolicyError, grade, reply, tagged
from maxent_grpo.errors import UsageError
from maxent_grpo.rewards.completions import Completion, text_of

MAX_ANSWER_CHARS = 4096
"""A longer answer is compared as it stands: no gold is that long, and normalising it would only cost time."""

_THINK_OPEN = re.compile(r"<think>", re.IGNORECASE)

_LAST_LINE_TOO = (*GraderPolicy().extraction, "last_line")

_SIGNS = str.maketrans(
    {
        "π": r"\pi",
        "Π": r"\Pi",
        "τ": r"\tau",
        "θ": r"\theta",
        "Θ": r"\Theta",
        "φ": r"\phi",
        "Φ": r"\Phi",
        "∞": r"\infty",
        "−": "-",
    }
)
_LAYOUT = re.compile(r"\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\?\$|\\,|\s+")
_FRACTION = re.compile(r"\\frac\{([^{}]*)\}\{([^{}]*)\}")
_SOLE_BRACES = re.compile(r"\{([^{}]*)\}")
# Parentheses go where they only hold one token. Next to another factor they are a product or a call, "2(3)"
# or "f(x)", and before a power they carry the sign of "(-2)^2": there they stay.
_TOKEN_PARENTHESES = re.compile(r"(?<![A-Za-z0-9)}])\(([A-Za-z0-9]+)\)(?![A-Za-z0-9({\\])")
_NUMBER_PARENTHESES = re.compile(
    r"(?<![A-Za-z0-9)}])\(([+-]?\d+(?:\.\d+)?|\\sqrt\{[^{}]*\})\)(?![A-Za-z0-9({\\^])"
)
_NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?", re.ASCII)


def pure_accuracy_math(
    completions: Sequence[Any], answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1.0 where a completion keeps to the template and answers with the gold, else 0.0; ``None`` if no gold.

    The template is ``<think>…</think>…<answer>…</answer>`` from the first character on, in any letter case;
    the answer is the body of the last ``<answer>`` behind the thought, which evaluation judges, too. Both sides are
    compared in the normal form of `canonical_answer`. A stop string ``</answer>`` must stay in the sampled text.

    Args:
        completions: N texts, or N chats of which the first message counts.
        answer: N golds; see `gold_answers` for what a gold may be.
        columns: the other dataset columns, not read.
    """
    return [_score(text_of(c), gold) for c, gold in zip(completions, answer, strict=True)]


def answer_body(text: str) -> str | None:
    """The body of the last ``<answer>`` behind the thought of a text that begins with a thought, else ``None``."""
    behind = reply(text) if _THINK_OPEN.match(text) else None
    return None if behind is None else tagged(behind)


class GoldError(ValueError):
    """A gold answer of a type that no completion can equal."""


def gold_answers(gold: Any) -> list[str]:
    """The texts that count as right for one gold, as yet without normal form.

    A list, tuple or array offers alternatives; a text or number is its own text; after a GSM8K solution's ``####``
    only the final answer counts (Cobbe et al. 2021, arXiv:2110.14168). ``None`` and blank golds offer nothing.

    Raises:
        GoldError: see `plain_gold`.
    """
    gold = plain_gold(gold)
    if isinstance(gold, list):
        return [text for alternative in gold for text in gold_answers(alternative)]
    text = "" if gold is None else str(gold).rpartition("####")[2]
    return [text] if text.strip() else []


def plain_gold(gold: Any) -> Any:
    """A gold as Python's own text, number, None or list of these: scalars and arrays of NumPy and torch unwrapped.

    Raises:
        GoldError: a mapping, boolean, NaN, bytes or anything else: its text would be no answer.
    """
    if hasattr(gold, "tolist") and hasattr(gold, "dtype"):
        gold = gold.tolist()
    if isinstance(gold, list | tuple):
        return [plain_gold(alternative) for alternative in gold]
    if isinstance(gold, Mapping):
        keys = ", ".join(map(str, gold))
        raise GoldError(f"is a mapping with the keys {keys}: name the one that holds it, as in COLUMN.KEY")
    if isinstance(gold, bool):
        raise GoldError(f"is {gold}, a truth value: write it as the text that completions should give")
    if isinstance(gold, float) and math.isnan(gold):
        raise GoldError("is NaN, which no answer equals: leave the row out, or give its answer")
    if gold is not None and not isinstance(gold, str | Number):
        raise GoldError(f"is of type {type(gold).__name__}: give a text, a number, or a list of them")
    return gold


def check_golds(rows: Iterable[tuple[int, Any]], column: str) -> None:
    """Refuse golds that no completion can equal, before anything is sampled.

    Args:
        rows: row number and gold of each.
        column: where they come from, for the message.

    Raises:
        UsageError: the first such gold, by row and column.
    """
    for row, gold in rows:
        try:
            gold_answers(gold)
        except GoldError as error:
            raise UsageError(f"row {row}, column '{column}': the gold answer {error}") from error


def canonical_answer(text: str) -> str:
    """The normal form in which answers are compared; equal forms are equal answers, and nothing else is.

    Greek signs and ∞ become TeX; ``\\frac{a}{b}`` becomes ``(a)/(b)``; ``\\left``, ``\\right``, ``$``,
    ``\\,`` and white space go; parentheses around one token, number or square root and braces around the
    whole go; a decimal number loses thousands commas, needless zeros and the sign of zero (``+1,050.00`` and
    ``1050`` are equal).
    """
    text = text.strip()
    if len(text) > MAX_ANSWER_CHARS:
        return text
    text = _LAYOUT.sub("", text.translate(_SIGNS))
    replaced = 1
    while replaced:  # innermost first, once per level of nesting
        text, replaced = _FRACTION.subn(r"(\1)/(\2)", text)
    if sole := _SOLE_BRACES.fullmatch(text):
        text = sole[1]
    text = _TOKEN_PARENTHESES.sub(r"\1", text)
    text = _NUMBER_PARENTHESES.sub(r"\1", text)
    return _canonical_number(text)


def _canonical_number(text: str) -> str:
    match = _NUMBER.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return text
    sign, whole, fraction = match[1], match[2].replace(",", "").lstrip("0"), (match[3] or "").rstrip("0")
    digits = (whole or "0") + ("." + fraction if fraction else "")
    return "-" + digits if sign == "-" and digits != "0" else digits


def _score(text: str, gold: Any) -> float | None:
    golds = gold_answers(gold)
    if not golds:
        return None
    body = answer_body(text)
    if body is None:
        return 0.0
    return float(canonical_answer(body) in {canonical_answer(g) for g in golds})


PolicyOptions = Mapping[str, Any] | Sequence[tuple[str, Any]] | None
"""Options of `GraderPolicy` by name; pairs where the options have to be hashed."""


def policy_of(options: PolicyOptions, **usual: Any) -> GraderPolicy:
    """The policy with ``options``, else with ``usual``, else with its defaults.

    Raises `UsageError` for an option that does not exist or a value that it cannot have.
    """
    given = dict(options or ())
    if isinstance(given.get("extraction"), str):
        given["extraction"] = (given["extraction"],)
    try:
        return GraderPolicy.from_dict(usual | given)
    except (PolicyError, TypeError) as error:
        raise UsageError(f"grader_policy: {str(error).removeprefix('grader policy: ')}") from error


def check_policy(grader_policy: PolicyOptions = None, **options: Any) -> None:
    """Raise `UsageError` for a setting ``grader_policy`` that is no policy."""
    policy_of(grader_policy)


def accuracy(
    completions: Sequence[Completion],
    answer: Sequence[Any],
    grader_policy: PolicyOptions = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the answer equals the gold, else 0.0.

    Behind the thought, the answer is the body of the last ``<answer>``, else the last ``\\boxed{}``, else the last
    line, unless ``grader_policy`` says otherwise. Equality is that of `math_answers.grade`.
    """
    policy = policy_of(grader_policy, extraction=_LAST_LINE_TOO)
    return [_graded(text_of(c), gold, policy) for c, gold in zip(completions, answer, strict=True)]


def boxed_accuracy_math(
    completions: Sequence[Completion],
    answer: Sequence[Any],
    grader_policy: PolicyOptions = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the answer equals the gold, else 0.0.

    Behind the thought, the answer is the body of the last ``<answer>``, else the last ``\\boxed{}``; a text with
    neither scores 0.0, unless ``grader_policy`` says otherwise. Equality is that of `math_answers.grade`.
    """
    policy = policy_of(grader_policy)
    return [_graded(text_of(c), gold, policy) for c, gold in zip(completions, answer, strict=True)]


def graded(
    completions: Sequence[Completion], answer: Sequence[Any], policy: Sequence[dict[str, Any]], **columns: Any
) -> list[float | None]:
    """1.0 where `math_answers.grade` under the row's policy says right, else 0.0.

    ``policy`` holds a `GraderPolicy` per row, as its ``as_dict`` gives it.
    """
    rows = zip(completions, answer, policy, strict=True)
    return [
        float(grade(text_of(c), plain_gold(gold), GraderPolicy.from_dict(p)).right) for c, gold, p in rows
    ]


def cosine(
    completions: Sequence[Completion],
    answer: Sequence[Any],
    cosine_min_value_wrong: float = 0.0,
    cosine_max_value_wrong: float = -0.5,
    cosine_min_value_correct: float = 0.5,
    cosine_max_value_correct: float = 1.0,
    cosine_max_len: int = 1000,
    grader_policy: PolicyOptions = None,
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
    for completion, verdict in zip(completions, accuracy(completions, answer, grader_policy), strict=True):
        if verdict is None:
            rewards.append(None)
            continue
        low, high = right if verdict else wrong
        progress = len(text_of(completion)) / cosine_max_len
        rewards.append(low + 0.5 * (high - low) * (1.0 + math.cos(progress * math.pi)))
    return rewards


def length(
    completions: Sequence[Completion],
    answer: Sequence[Any],
    grader_policy: PolicyOptions = None,
    **columns: Any,
) -> list[float | None]:
    """Shorter is better: λ = 0.5 − (len − min) / (max − min) over the completions of a prompt, in characters.

    λ (0.5 … −0.5) for a right answer, min(0, λ) for a wrong one, as `accuracy` judges; 0.0 for all where they are
    equally long. Kimi k1.5 (arXiv:2501.12599, section 2.3.3), Open-R1's ``length``. Where one completion of the group
    overruns its deadline or crashes, the others have nothing to be compared with and score 0.0.
    """
    sizes = [len(text_of(completion)) for completion in completions]
    shortest, spread = min(sizes), max(sizes) - min(sizes)
    verdicts = accuracy(completions, answer, grader_policy)
    rewards: list[float | None] = []
    for size, verdict in zip(sizes, verdicts, strict=True):
        share = 0.5 - (size - shortest) / spread if spread else 0.0
        rewards.append(None if verdict is None else share if verdict else min(0.0, share))
    return rewards


def _graded(text: str, gold: Any, policy: GraderPolicy) -> float | None:
    gold = plain_gold(gold)
    if not gold_answers(gold):
        return None
    return float(grade(text, gold, policy).right)
