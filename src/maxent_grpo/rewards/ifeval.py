"""Instruction following: IFEval's verifiable instructions (Zhou et al. 2023, arXiv:2311.07911) as a reward."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maxent_grpo.errors import UsageError
from maxent_grpo.rewards.completions import Completion, blocks, text_of

STRICT_PROMPT, STRICT_INSTRUCTIONS, LOOSE_PROMPT, LOOSE_INSTRUCTIONS = 0.4, 0.3, 0.2, 0.1
ONE_ANSWER, ONE_THOUGHT = 0.1, 0.05


@dataclass(frozen=True)
class Followed:
    """Which instructions of a prompt a response follows, in their order."""

    strict: tuple[bool, ...]  # as it stands
    loose: tuple[bool, ...]  # in any of eight versions: without its first line, its last, or its asterisks


def ifeval(
    completions: Sequence[Completion],
    instruction_id_list: Sequence[Sequence[str]],
    kwargs: Sequence[Sequence[Mapping[str, Any]]],
    problem: Sequence[str] | None = None,
    **columns: Any,
) -> list[float]:
    """0.4·prompt strict + 0.3·instructions strict + 0.2·prompt loose + 0.1·instructions loose + form: 0 … 1.15.

    ``prompt`` is 1 if all instructions are followed, ``instructions`` the share that is. Judged is the body of the
    first ``<answer>…</answer>``, and the empty text, which follows nothing, where there is none. Form is 0.1 for
    exactly one ``<answer>…</answer>`` and 0.05 for exactly one ``<think>…</think>``. TorchRL's `IfEvalScorer` with its
    default weights.

    The columns are those of google/IFEval; ``problem`` is the text of the prompt, which the instruction to repeat it
    reads when its arguments do not hold it.
    """
    asked = problem if problem is not None else [""] * len(completions)
    rows = zip(completions, instruction_id_list, kwargs, asked, strict=True)
    return [_score(text_of(c), ids, arguments, prompt) for c, ids, arguments, prompt in rows]


def followed(
    response: str, instructions: Sequence[str], arguments: Sequence[Mapping[str, Any]], prompt: str
) -> Followed:
    """Check a response against the instructions of its prompt.

    Args:
        response: the text to judge.
        instructions: ids such as ``punctuation:no_comma``; 25 types.
        arguments: the keyword arguments of each; None values are left out.
        prompt: the text of the prompt.

    Raises:
        UsageError: the checkers or their data are not installed.
    """
    from maxent_grpo.rewards.ifeval_checkers import INSTRUCTIONS

    versions = _versions(response)
    strict, loose = [], []
    for name, given in zip(instructions, arguments, strict=True):
        checker = INSTRUCTIONS[name](name)
        checker.build_description(**{key: value for key, value in given.items() if value})
        if "prompt" in (checker.get_instruction_args() or {}):
            checker.build_description(prompt=prompt)
        passed = [bool(text.strip()) and bool(checker.check_following(text)) for text in versions[:1]]
        strict.append(passed[0])
        loose.append(
            passed[0] or any(text.strip() and checker.check_following(text) for text in versions[1:])
        )
    return Followed(tuple(strict), tuple(loose))


def _versions(response: str) -> list[str]:
    """The response, and what the loose criterion forgives: a first line, a last line, Markdown asterisks."""
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [response, response.replace("*", ""), *cut, *(text.replace("*", "") for text in cut)]


def _score(
    text: str, instructions: Sequence[str], arguments: Sequence[Mapping[str, Any]], prompt: str
) -> float:
    answers = blocks(text, "<answer>", "</answer>")
    verdict = followed(answers[0] if answers else "", instructions, arguments, prompt)
    return (
        STRICT_PROMPT * all(verdict.strict)
        + STRICT_INSTRUCTIONS * sum(verdict.strict) / len(verdict.strict)
        + LOOSE_PROMPT * all(verdict.loose)
        + LOOSE_INSTRUCTIONS * sum(verdict.loose) / len(verdict.loose)
        + ONE_ANSWER * (len(answers) == 1)
        + ONE_THOUGHT * (len(blocks(text, "<think>", "</think>")) == 1)
    )


PACKAGES = ("lm_eval", "langdetect", "nltk", "immutabledict")

_DATA = "tokenizers/punkt_tab/english"
_BUNDLE = "core/_static/nltk_cache"  # inside the package llama_index, which carries NLTK's data in its wheel
_REMEDY = "install maxent-grpo[ifeval]"


def ensure_ifeval() -> None:
    """Point NLTK to its ``punkt_tab`` data: where NLTK_DATA and its own places have them, else a wheel that does.

    Raises `UsageError` with the remedy where a package or the data are missing, or NLTK will not read them.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"reward ifeval: the package {package} is not installed; {_REMEDY}")
    import nltk

    for folder in ["", *_bundles()]:
        if folder and folder not in nltk.data.path:
            nltk.data.path.append(folder)
        try:
            nltk.data.find(_DATA)
        except LookupError:
            continue
        try:
            nltk.tokenize.PunktTokenizer("english")
        except (
            PermissionError
        ) as error:  # of a file with a second name, as uv's hard links into its cache are
            raise UsageError(
                f"reward ifeval: NLTK refuses its data ({error}); install again with UV_LINK_MODE=copy, or name a "
                "folder of copies in NLTK_DATA"
            ) from error
        return
    raise UsageError(
        "reward ifeval: NLTK's punkt_tab data are not here; "
        f"{_REMEDY}, which brings them, or name their folder in NLTK_DATA"
    )


def _bundles() -> list[str]:
    spec = importlib.util.find_spec("llama_index")
    folders = (spec.submodule_search_locations or []) if spec else []
    return [str(Path(folder) / _BUNDLE) for folder in folders]
