"""Evaluation while training: the same prompts with the same draws every time, so that two evaluations compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from maxent_grpo.evaluate.exploration import exploration_scores, with_standard_errors
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.rollout.sampler import Sampler, SamplingSettings
from maxent_grpo.types import Prompt


@dataclass(frozen=True)
class PromptScore:
    """What an evaluation found out about one prompt."""

    utilities: tuple[float, ...]  # of its k completions
    lengths: tuple[int, ...]  # in tokens
    exploration: Mapping[str, float]  # see `exploration_scores`


@dataclass(frozen=True)
class Evaluation:
    """What to ask, how often, and how to score it."""

    prompts: Sequence[Prompt]
    sampling: SamplingSettings
    scorer: Scorer
    prompts_per_batch: int

    def scores(
        self, sampler: Sampler, seed: int, step: int, part: slice, advance: Callable[[int], None]
    ) -> list[PromptScore]:
        """One score per prompt of ``part`` (a rank's share), under the policy after ``step`` optimiser steps.

        ``advance(n)`` is called after every ``n`` prompts, for a progress display.

        Draws are keyed by (seed, prompt, sample) and not by the step: common random numbers take the sampling noise
        out of a comparison between steps or between arms, and nothing depends on the number of ranks.
        """
        own = self.prompts[part]
        found: list[PromptScore] = []
        for start in range(0, len(own), self.prompts_per_batch):
            batch = own[start : start + self.prompts_per_batch]
            rollouts = sampler.sample(batch, self.sampling, (seed, "evaluation"), policy_version=step)
            groups = self.scorer.score(rollouts, step)[0]
            scores = exploration_scores(groups)
            for i, group in enumerate(groups):
                lengths = tuple(len(ids) for ids in group.rollout.token_ids)
                exploration = {name: values[i] for name, values in scores.items()}
                found.append(PromptScore(group.utilities, lengths, exploration))
            advance(len(batch))
        return found


def summary(scores: Sequence[PromptScore]) -> dict[str, float]:
    """Metrics ``eval/…`` over the scores of all prompts, in their order."""
    utilities = [utility for score in scores for utility in score.utilities]
    lengths = [length for score in scores for length in score.lengths]
    exploration = {name: [score.exploration[name] for score in scores] for name in scores[0].exploration}
    return {
        "eval/mean_reward": sum(utilities) / len(utilities),
        "eval/mean_length": sum(lengths) / len(lengths),
    } | {f"eval/{name}": value for name, value in with_standard_errors(exploration).items()}
