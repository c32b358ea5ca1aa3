"""The sample table: completions as they were sampled, with what each was worth to the step."""

from collections.abc import Sequence
from typing import Any

from maxent_grpo.types import Group


def sample_rows(
    step: int,
    group: Group,
    advantages: Sequence[float],
    weights: Sequence[float] | None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Rows of ``completions.jsonl`` for the first ``limit`` completions of ``group`` (all G if None).

    With InfoSeed they say which seed each completion's prompt carried, −1 for none; of several turns, all of them.

    ``advantages`` and ``weights`` have G entries; ``weights`` is None where the objective has none, and the
    rows say null.
    """
    rollout = group.rollout
    rows = []
    for i, text in enumerate(rollout.texts[:limit]):
        rows.append(
            {
                "step": step,
                "prompt_index": rollout.prompt.index,
                "prompt": rollout.prompts[i].text,
                "completion": text,
                "rewards": {name: float(scores[i]) for name, scores in group.rewards.items()},
                "utility": float(group.utilities[i]),
                "advantage": float(advantages[i]),
                "weight": None if weights is None else float(weights[i]),
                "finish_reason": rollout.finish_reasons[i],
            }
            | ({"seed_id": rollout.prompts[i].seed_id} if rollout.seed_prompts else {})
            | ({"transcript": rollout.transcripts[i]} if rollout.transcripts else {})
        )
    return rows
