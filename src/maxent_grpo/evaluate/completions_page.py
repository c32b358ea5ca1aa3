"""A page to read completions by prompt, right and wrong: one HTML file that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from maxent_grpo.evaluate.intervals import Estimate, shown
from maxent_grpo.evaluate.passk import DEFINITIONS, RIGHT
from maxent_grpo.evaluate.records import Record
from maxent_grpo.evaluate.results import MathEvalResult
from maxent_grpo.observe.html_page import filled

TEMPLATE: Final = Path(__file__).with_name("completions.html")
PAGE_CHARACTERS: Final = 20_000_000
"""Prompts are shown until their texts reach this length: a browser still scrolls, and the rest is in the artifacts."""


@dataclass(frozen=True)
class _Sample:
    seed: int
    number: int
    right: bool
    extracted: str | None
    text: str
    truncated: bool


@dataclass(frozen=True)
class _Prompt:
    index: int
    text: str | None
    gold: str
    samples: Sequence[_Sample]

    @property
    def right(self) -> int:
        return sum(sample.right for sample in self.samples)

    @property
    def outcome(self) -> str:
        """ "all", "some" or "none" of the samples are right."""
        return "none" if not self.right else "all" if self.right == len(self.samples) else "some"


def completions_page(
    result: MathEvalResult, records: Mapping[int, Sequence[Record]], limit: int = PAGE_CHARACTERS
) -> str:
    """The page of ``result``; ``records``: seed → its records, the same prompts in the same order for each.

    Completions are hostile text: everything is escaped, directions and control signs are fenced in, and the page's
    policy forbids it to load or run anything but its own script.
    """
    prompts = [_prompt(rows) for rows in zip(*records.values(), strict=True)]
    return filled(
        TEMPLATE,
        result=result,
        kinds=list(dict.fromkeys(kind for kind, _ in map(_split_metric, result.metrics))),
        metrics=_by_k(result.metrics),
        definitions=DEFINITIONS,
        prompts=prompts[: _fitting(prompts, limit)],
        total=len(prompts),
    )


def _split_metric(name: str) -> tuple[str, int]:
    """``pass_at_8_unbiased`` as ("pass@k unbiased", 8)."""
    kind, _, rest = name.partition("_at_")
    k, _, variant = rest.partition("_")
    return f"{kind}@k {variant}".rstrip(), int(k)


def _by_k(metrics: Mapping[str, Estimate]) -> dict[int, dict[str, tuple[str, Estimate]]]:
    """k → kind → its figure as text, and the estimate."""
    table: dict[int, dict[str, tuple[str, Estimate]]] = {}
    for name, estimate in metrics.items():
        kind, k = _split_metric(name)
        table.setdefault(k, {})[kind] = (shown(estimate), estimate)
    return table


def _prompt(rows: Sequence[Record]) -> _Prompt:
    """One prompt from its records under every seed."""
    first = rows[0]
    samples = [
        _Sample(
            row["seed"],
            number,
            row["scores"][number] >= RIGHT,
            None if row["answer_extracted"][number] is None else printable(row["answer_extracted"][number]),
            printable(text),
            row["finish_reasons"][number] == "length",
        )
        for row in rows
        for number, text in enumerate(row["generations"])
    ]
    prompt = first["prompt"]
    return _Prompt(
        first["prompt_index"], None if prompt is None else printable(prompt), _gold(first["answer"]), samples
    )


def _gold(answer: Any) -> str:
    return printable(answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False))


_MADE_VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
    0x7F: "␡",
    **dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000)), "�"),
}


def printable(text: str) -> str:
    """``text`` with control signs made visible: null bytes, escapes and lone surrogates have no place in HTML."""
    return text.translate(_MADE_VISIBLE)


def _fitting(prompts: Sequence[_Prompt], limit: int) -> int:
    """How many of ``prompts``, at least one, have no more than ``limit`` characters together."""
    used = 0
    for count, prompt in enumerate(prompts):
        used += len(prompt.text or "") + sum(len(sample.text) for sample in prompt.samples)
        if used > limit and count:
            return count
    return len(prompts)
