"""Evaluation while training: the same prompts with the same draws every time, so that two evaluations compare."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maxent_grpo.data.seeds import SeedPrompts
from maxent_grpo.evaluate.exploration import exploration_scores, with_standard_errors
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.rollout.sampler import Sampler, SamplingSettings
from maxent_grpo.types import Prompt


@dataclass(frozen=True)
class Evaluation:
    """What to ask, how often, and how to score it."""

    prompts: Sequence[Prompt]
    sampling: SamplingSettings
    scorer: Scorer
    prompts_per_batch: int
    seeds: SeedPrompts | None = (
        None  # InfoSeed: the variants of the prompts, which `train.seed_evaluation` asks
    )

    def run(self, sampler: Sampler, seed: int, step: int, advance: Callable[[int], None]) -> dict[str, float]:
        """Metrics ``eval/…`` of the policy behind ``sampler`` after ``step`` optimiser steps.

        ``advance(n)`` is called after every ``n`` prompts, for a progress display.

        Draws are keyed by (seed, prompt, sample) and not by the step: common random numbers take the sampling noise
        out of a comparison between steps or between arms.
        """
        groups = []
        for start in range(0, len(self.prompts), self.prompts_per_batch):
            batch = self.prompts[start : start + self.prompts_per_batch]
            rollouts = sampler.sample(batch, self.sampling, (seed, "evaluation"), policy_version=step)
            groups += self.scorer.score(rollouts, step)[0]
            advance(len(batch))
        utilities = [utility for group in groups for utility in group.utilities]
        lengths = [len(ids) for group in groups for ids in group.rollout.token_ids]
        return {
            "eval/mean_reward": sum(utilities) / len(utilities),
            "eval/mean_length": sum(lengths) / len(lengths),
        } | {
            f"eval/{name}": value for name, value in with_standard_errors(exploration_scores(groups)).items()
        }
