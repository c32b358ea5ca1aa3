"""IFEval on recorded responses: ``python -m benchmarks.ifeval FOLDER`` (a folder with IFEval's two files).

Google's files: ``input_data.jsonl`` and ``input_response_data_*.jsonl`` (GPT-4, November 2023), joined by the prompt.
Published for these responses: 76.89 % prompt-strict and 83.57 % instruction-strict (Zhou et al. 2023, table 3). Two
prompts ask to count a character that is no letter, where implementations differ.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maxent_grpo.rewards.ifeval import followed


@dataclass(frozen=True)
class Accuracies:
    """Counts of what was followed."""

    prompts: int
    prompt_strict: int
    prompt_loose: int
    instructions: int
    instruction_strict: int
    instruction_loose: int


def accuracies(folder: Path) -> Accuracies:
    """Grade the recorded responses of ``folder``."""
    (responses,) = folder.glob("input_response_data_*.jsonl")
    by_prompt = {row["prompt"]: row["response"] for row in _rows(responses)}
    verdicts = [
        followed(by_prompt[row["prompt"]], row["instruction_id_list"], row["kwargs"], row["prompt"])
        for row in _rows(folder / "input_data.jsonl")
    ]
    return Accuracies(
        prompts=len(verdicts),
        prompt_strict=sum(all(v.strict) for v in verdicts),
        prompt_loose=sum(all(v.loose) for v in verdicts),
        instructions=sum(len(v.strict) for v in verdicts),
        instruction_strict=sum(sum(v.strict) for v in verdicts),
        instruction_loose=sum(sum(v.loose) for v in verdicts),
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    began = time.perf_counter()
    counts = accuracies(Path(sys.argv[1]))
    for name, right, total in (
        ("prompt-strict", counts.prompt_strict, counts.prompts),
        ("prompt-loose", counts.prompt_loose, counts.prompts),
        ("instruction-strict", counts.instruction_strict, counts.instructions),
        ("instruction-loose", counts.instruction_loose, counts.instructions),
    ):
        print(f"{name:20} {right:4} of {total}  {right / total:7.2%}")
    print(f"{time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
