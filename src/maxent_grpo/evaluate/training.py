"""Evaluation while training: of the training groups, and of held-out prompts with the same draws every time."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from maxent_grpo.data.prompts import SeedPrompts
from maxent_grpo.evaluate.passk import exploration_scores, with_standard_errors
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.rollout.sampler import Sampler, SamplingSettings
from maxent_grpo.stats import Metrics, mean_stat
from maxent_grpo.types import Group, Prompt

TRAINING = ("pass", "distinct", "coverage", "pcmd")
"""What is counted in training groups; the share of right completions is the reward's to say."""


@dataclass(frozen=True)
class PromptScore:
    """One held-out prompt with its k completions, scored."""

    utilities: tuple[float, ...]
    rewards: Mapping[str, tuple[float, ...]]  # reward function → k scores; NaN where it gave none
    lengths: tuple[int, ...]  # in tokens
    exploration: Mapping[str, float]  # see `exploration_scores`; NaN where undefined


@dataclass(frozen=True)
class Evaluation:
    """The held-out prompts, how they are sampled, and how completions are scored."""

    prompts: Sequence[Prompt]
    sampling: SamplingSettings
    scorer: Scorer
    prompts_per_batch: int
    greedy: bool = False  # also one greedy completion per prompt
    seeds: SeedPrompts | None = None
    """InfoSeed: the variants of the prompts, which `train.seeds` asks."""

    @property
    def passes(self) -> dict[str, SamplingSettings]:
        """Prefix of the metrics → how completions are drawn for them."""
        passes = {"eval": self.sampling}
        if self.greedy:
            passes["eval/greedy"] = replace(
                self.sampling, num_generations=1, temperature=0.0, top_p=1.0, top_k=0, min_p=None
            )
        return passes

    def scores(
        self,
        sampler: Sampler,
        sampling: SamplingSettings,
        seed: int,
        step: int,
        part: slice,
        advance: Callable[[int], None],
    ) -> list[PromptScore]:
        """One score per prompt of ``part`` (a rank's share), under the policy after ``step`` optimiser steps.

        ``advance(n)`` is called after every ``n`` prompts, for a progress display.

        Draws are keyed by (seed, prompt, sample) and not by the step: common random numbers take the sampling noise
        out of a comparison between steps or between arms, and nothing depends on the number of ranks.
        """
        own = self.prompts[part]
        found: list[PromptScore] = []
        size = self.prompts_per_batch * self.sampling.num_generations // sampling.num_generations
        begin = partial(self.scorer.begin, step=step, is_eval=True) if self.scorer.begins_early else None
        for start in range(0, len(own), size):
            batch = own[start : start + size]
            rollouts = sampler.sample(
                batch, sampling, (seed, "evaluation"), policy_version=step, finished=begin
            )
            groups = self.scorer.score(rollouts, step, is_eval=True)[0]
            scores = exploration_scores(groups)
            for i, group in enumerate(groups):
                lengths = group.rollout.lengths
                exploration = {name: values[i] for name, values in scores.items()}
                found.append(PromptScore(group.utilities, group.rewards, lengths, exploration))
            advance(len(batch))
        return found


def summary(scores: Sequence[PromptScore], prefix: str) -> dict[str, float]:
    """Metrics ``<prefix>/…`` over the scores of all prompts, in their order."""
    utilities = [utility for score in scores for utility in score.utilities if not math.isnan(utility)]
    lengths = [length for score in scores for length in score.lengths]
    metrics = {"mean_reward": sum(utilities) / len(utilities)} if utilities else {}
    metrics["mean_length"] = sum(lengths) / len(lengths)
    for name in scores[0].rewards:
        given = [reward for score in scores for reward in score.rewards[name] if not math.isnan(reward)]
        if given:
            metrics[f"rewards/{name}/mean"] = sum(given) / len(given)
    exploration = {name: [score.exploration[name] for score in scores] for name in scores[0].exploration}
    metrics |= with_standard_errors(exploration)
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def exploration_metrics(groups: Sequence[Group]) -> Metrics:
    """Metrics of `TRAINING` of training groups (k = G), as statistics that add up over ranks.

    A group in which one is undefined does not count in it.
    """
    k = len(groups[0].utilities)
    scores = {name.removesuffix(f"_at_{k}"): values for name, values in exploration_scores(groups).items()}
    tensors = {name: torch.tensor(scores[name], dtype=torch.float64) for name in TRAINING if name in scores}
    return {name: mean_stat(values, ~values.isnan()) for name, values in tensors.items()}
