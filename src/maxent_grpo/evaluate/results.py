"""From the answers to the figures of one model at one temperature."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maxent_grpo.evaluate.intervals import Estimate, estimates
from maxent_grpo.evaluate.passk import per_prompt
from maxent_grpo.evaluate.records import Record, scored_samples


@dataclass(frozen=True)
class MathEvalResult:
    """One model at one temperature on one benchmark. Figures are means over prompts, then over seeds."""

    model_id: str
    label: str
    style: str
    dataset: str
    temperature: float
    seeds: tuple[int, ...]
    num_generations: int
    total: int  # prompts × seeds
    correct: int  # of these, how many are right at the first sample
    accuracy: float  # Pass@1: correct / total
    pass_at_1: float
    pass_at_k: float  # with k = num_generations
    avg_pass_at_1: float  # Pass@1 over all samples in place of the first: fraction of right samples
    avg_at_k: float  # mean score, k = num_generations; the same where scores are 0 or 1
    metrics: Mapping[
        str, Estimate
    ]  # every metric of `maxent_grpo.evaluate.passk`, with interval and seed spread
    per_seed: Mapping[int, Mapping[str, float]]  # seed → metric → mean over prompts
    truncated: float  # fraction of samples that were cut off at max_new_tokens
    generations: Mapping[int, tuple[tuple[str, ...], ...]] = field(
        default_factory=dict
    )  # seed → prompt → samples
    artifacts: tuple[Path, ...] = ()  # one file per seed
    prompt_indices: tuple[int, ...] = ()  # the prompts that count, which may be fewer than the files hold


def result_of(
    answers: Mapping[int, Sequence[Record]],
    ks: Sequence[int],
    *,
    collect_generations: bool = False,
    artifacts: Sequence[Path] = (),
) -> MathEvalResult:
    """The figures of ``answers``: seed → records, one per prompt, the same prompts in the same order for each seed."""
    first = next(iter(answers.values()))[0]
    samples = {seed: scored_samples(records) for seed, records in answers.items()}
    columns = {seed: per_prompt(scored, ks) for seed, scored in samples.items()}
    names = list(next(iter(columns.values())))
    values = np.stack([np.stack([column[name] for name in names], axis=1) for column in columns.values()])
    metrics = dict(zip(names, estimates(values), strict=True))
    n = first["num_generations"]
    right = np.stack([scored.right for scored in samples.values()])  # [seeds, P, n]
    scores = np.stack([scored.scores for scored in samples.values()])
    reasons = [r for records in answers.values() for record in records for r in record["finish_reasons"]]
    return MathEvalResult(
        model_id=first["model_id"],
        label=first["model_label"],
        style=first["style"],
        dataset=first["dataset_id"],
        temperature=first["temperature"],
        seeds=tuple(answers),
        num_generations=n,
        total=right.shape[0] * right.shape[1],
        correct=int(right[:, :, 0].sum()),
        accuracy=float(right[:, :, 0].mean()),
        pass_at_1=float(right[:, :, 0].mean()),
        pass_at_k=float(right.any(axis=2).mean()),
        avg_pass_at_1=float(right.mean()),
        avg_at_k=float(scores.mean()),
        metrics=metrics,
        per_seed={
            seed: {name: float(column[name].mean()) for name in names} for seed, column in columns.items()
        },
        truncated=reasons.count("length") / len(reasons),
        generations={
            seed: tuple(tuple(record["generations"]) for record in records)
            for seed, records in answers.items()
        }
        if collect_generations
        else {},
        artifacts=tuple(artifacts),
        prompt_indices=tuple(record["prompt_index"] for record in next(iter(answers.values()))),
    )
