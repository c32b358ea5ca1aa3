"""Evaluation while training: the same prompts with the same draws every time, so that two evaluations compare."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from maxent_grpo.data.seeds import SeedPrompts
from maxent_grpo.evaluate.exploration import exploration_scores, with_standard_errors
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.rollout.sampler import Sampler, SamplingSettings
from maxent_grpo.types import Group, Prompt


@dataclass(frozen=True)
class Evaluation:
    """What to ask, how often, and how to score it."""

    prompts: Sequence[Prompt]
    sampling: SamplingSettings
    scorer: Scorer
    prompts_per_batch: int
    greedy: bool = False  # also one greedy completion per prompt
    seeds: SeedPrompts | None = (
        None  # InfoSeed: the variants of the prompts, which `train.seed_evaluation` asks
    )

    def run(self, sampler: Sampler, seed: int, step: int, advance: Callable[[int], None]) -> dict[str, float]:
        """Metrics ``eval/…`` of the policy behind ``sampler`` after ``step`` optimiser steps.

        ``advance(n)`` is called after every ``n`` prompts, for a progress display. A greedy pass adds
        ``eval/greedy/…``: one completion per prompt, the likeliest token each time.

        Draws are keyed by (seed, prompt, sample) and not by the step: common random numbers take the sampling noise
        out of a comparison between steps or between arms.
        """
        metrics = self._metrics(self._groups(sampler, self.sampling, seed, step, advance), "eval")
        if self.greedy:
            settings = replace(
                self.sampling, num_generations=1, temperature=0.0, top_p=1.0, top_k=0, min_p=None
            )
            metrics |= self._metrics(
                self._groups(sampler, settings, seed, step, lambda _: None), "eval/greedy"
            )
        return metrics

    def _groups(
        self,
        sampler: Sampler,
        settings: SamplingSettings,
        seed: int,
        step: int,
        advance: Callable[[int], None],
    ) -> list[Group]:
        groups: list[Group] = []
        size = self.prompts_per_batch * self.sampling.num_generations // settings.num_generations
        for start in range(0, len(self.prompts), size):
            batch = self.prompts[start : start + size]
            rollouts = sampler.sample(batch, settings, (seed, "evaluation"), policy_version=step)
            groups += self.scorer.score(rollouts, step, is_eval=True)[0]
            advance(len(batch))
        return groups

    def _metrics(self, groups: Sequence[Group], prefix: str) -> dict[str, float]:
        utilities = [utility for group in groups for utility in group.utilities]
        lengths = [len(ids) for group in groups for ids in group.rollout.token_ids]
        scores = {
            name: [score for group in groups for score in group.rewards[name] if not math.isnan(score)]
            for name in groups[0].rewards
        }
        return (
            {
                f"{prefix}/rewards/{name}/mean": sum(given) / len(given)
                for name, given in scores.items()
                if given
            }
            | {
                f"{prefix}/mean_reward": sum(utilities) / len(utilities),
                f"{prefix}/mean_length": sum(lengths) / len(lengths),
            }
            | {
                f"{prefix}/{name}": value
                for name, value in with_standard_errors(exploration_scores(groups)).items()
            }
        )
