"""From rollouts to scored groups: rewards, their weighted sum, and the statistics of a step."""

import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from maxent_grpo.errors import RunError
from maxent_grpo.rewards.calling import Arguments, Caller, Scores
from maxent_grpo.rewards.registry import RewardFunction, one_line
from maxent_grpo.types import Group, Metrics, Rollout, Stat, extreme_stat, mean_stat

logger = logging.getLogger(__name__)

REWARD_METRICS: dict[str, str] = {
    "rewards/<name>/mean": "mean score of reward function <name> over the completions that it gave a score",
    "rewards/<name>/std": "mean over groups of the within-group standard deviation (n − 1; 0 for one score)",
    "reward/errors": "scores lost in the step because a reward function raised or returned no finite number",
    "reward/unscored": "completions that no reward function gave a score: their utility is 0",
    "completions/mean_length_sampled": "mean length of the completions in tokens, end-of-sequence token included",
    "completions/min_length_sampled": "shortest completion in tokens",
    "completions/max_length_sampled": "longest completion in tokens",
    "completions/mean_length_terminated": "the same mean over the completions that ended by themselves",
    "completions/clipped_frac": "share of completions that were cut off at the length limit",
}
"""What `Scorer.score` reports → its definition."""

_RESERVED = frozenset({"prompt", "prompts", "completion", "completions", "completion_ids"})


class Scorer:
    """Scores rollouts with the reward functions of a run.

    Args:
        functions: called in this order, one after the other; see `RewardFunction` for how.
        zero_truncated: give completions that were cut off at the length limit utility 0, whatever their
            scores.
    """

    def __init__(self, functions: Sequence[RewardFunction], zero_truncated: bool = False) -> None:
        self.functions = tuple(functions)
        self.zero_truncated = zero_truncated
        self._caller = Caller()
        self._reported: set[str] = set()

    def close(self) -> None:
        """Release the event loop that async reward functions ran on."""
        self._caller.close()

    def score(self, rollouts: Sequence[Rollout], step: int) -> tuple[list[Group], Metrics]:
        """Score all completions of a step, at least one.

        Each function is called once over all of them. Where that raises it is called again for each
        completion alone, so that only the offending ones lose its score; they are counted, and the first of
        each function is logged. A completion's utility is the weighted sum of the scores that it got, 0
        where it got none.

        Raises:
            RunError: a function failed on every completion, or returned a wrong number of scores.
        """
        arguments = _arguments(rollouts)
        scores = {
            reward.name: self._checked_scores(reward, arguments, rollouts, step) for reward in self.functions
        }
        groups: list[Group] = []
        for rollout, rows in _groups(rollouts):
            rewards = {name: given.values[rows] for name, given in scores.items()}
            groups.append(Group(rollout, rewards, self._utilities(rollout, rewards)))
        return groups, _metrics(groups, sum(len(given.errors) for given in scores.values()))

    def _checked_scores(
        self, reward: RewardFunction, arguments: Arguments, rollouts: Sequence[Rollout], step: int
    ) -> Scores:
        scores = self._caller.scores(reward, arguments)
        if not scores.errors:
            return scores
        row, error = next(iter(scores.errors.items()))
        if len(scores.errors) == len(scores.values):
            raise RunError(
                f"reward function '{reward.name}' failed on all {len(scores.values)} completions "
                f"at step {step} ({one_line(error)}): it is called as {reward.name}("
                f"{', '.join(f'{argument}=[…]' for argument in arguments)}) "
                "and must return one finite number or None per completion"
            ) from error
        if reward.name not in self._reported:
            self._reported.add(reward.name)
            prompt = next(rollout.prompt for rollout, rows in _groups(rollouts) if row < rows.stop)
            logger.warning(
                "reward function '%s' failed on %d of %d completions at step %d, first for prompt %d (%s); "
                "further failures of it are only counted, in reward/errors",
                reward.name,
                len(scores.errors),
                len(scores.values),
                step,
                prompt.index,
                one_line(error),
                exc_info=error,
            )
        return scores

    def _utilities(self, rollout: Rollout, rewards: dict[str, tuple[float, ...]]) -> tuple[float, ...]:
        utilities = []
        for i, reason in enumerate(rollout.finish_reasons):
            given = ((f.weight, rewards[f.name][i]) for f in self.functions)
            utility = math.fsum(weight * score for weight, score in given if not math.isnan(score))
            utilities.append(0.0 if self.zero_truncated and reason == "length" else utility)
        return tuple(utilities)


def _arguments(rollouts: Sequence[Rollout]) -> Arguments:
    """The keyword arguments of TRL's convention: an entry per completion, with its prompt's columns."""
    prompts = [rollout.prompt for rollout in rollouts for _ in rollout.texts]
    arguments: dict[str, list[Any]] = {
        "prompts": [prompt.text for prompt in prompts],
        "completions": [text for rollout in rollouts for text in rollout.texts],
        "completion_ids": [list(ids) for rollout in rollouts for ids in rollout.token_ids],
    }
    columns = [name for name in prompts[0].columns if name not in _RESERVED]
    return arguments | {name: [prompt.columns[name] for prompt in prompts] for name in columns}


def _groups(rollouts: Sequence[Rollout]) -> Iterator[tuple[Rollout, slice]]:
    """Each rollout with its rows among all completions."""
    start = 0
    for rollout in rollouts:
        yield rollout, slice(start, start + len(rollout.texts))
        start += len(rollout.texts)


def _metrics(groups: Sequence[Group], errors: int) -> Metrics:
    metrics: Metrics = {}
    for name in groups[0].rewards:
        scored = [[s for s in group.rewards[name] if not math.isnan(s)] for group in groups]
        stds = [statistics.stdev(given) if len(given) > 1 else 0.0 for given in scored if given]
        metrics[f"rewards/{name}/mean"] = mean_stat(_tensor([s for given in scored for s in given]))
        metrics[f"rewards/{name}/std"] = mean_stat(_tensor(stds))
    unscored = sum(all(map(math.isnan, row)) for g in groups for row in zip(*g.rewards.values(), strict=True))
    metrics["reward/errors"] = _sum_stat(errors)
    metrics["reward/unscored"] = _sum_stat(unscored)
    lengths = _tensor([len(ids) for group in groups for ids in group.rollout.token_ids])
    clipped = [reason == "length" for group in groups for reason in group.rollout.finish_reasons]
    metrics["completions/mean_length_sampled"] = mean_stat(lengths)
    metrics["completions/min_length_sampled"] = extreme_stat(lengths, "min")
    metrics["completions/max_length_sampled"] = extreme_stat(lengths, "max")
    metrics["completions/mean_length_terminated"] = mean_stat(lengths, ~torch.tensor(clipped))
    metrics["completions/clipped_frac"] = mean_stat(_tensor(clipped))
    return metrics


def _tensor(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _sum_stat(count: int) -> Stat:
    return Stat(_tensor([count]).sum(), torch.ones((), dtype=torch.float64), "sum")
