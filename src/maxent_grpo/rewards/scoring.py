"""From rollouts to scored groups: rewards, their weighted sum, and the statistics of a step."""

import logging
import math
import re
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from maxent_grpo.errors import RunError
from maxent_grpo.named import one_line
from maxent_grpo.rewards.isolation import LOST, Isolation, IsolationSettings, Pending, RewardTimeoutError
from maxent_grpo.rewards.modes import ModeKey, ModeKeys
from maxent_grpo.rewards.registry import (
    RIGHT,
    Arguments,
    CallContext,
    Caller,
    RewardFunction,
    Scores,
    TrainerState,
)
from maxent_grpo.stats import Metrics, Stat, extreme_stat, mean_stat
from maxent_grpo.types import Group, Rollout

logger = logging.getLogger(__name__)

# Names that mean something else in a call; a dataset column of such a name is not passed.
_RESERVED = frozenset(
    {"prompt", "prompts", "completion", "completions", "completion_ids", "turns"}
    | {"trainer_state", "log_extra", "log_metric", "is_eval"}
)


_OPENED = re.compile(r"<think>\s*$")


class Scorer:
    """Scores rollouts with the reward functions of a run.

    Args:
        functions: see `RewardFunction` for how they are called. Isolated ones work while the others are called,
            one after the other.
        zero_truncated: give completions that were cut off at the length limit utility 0, whatever their
            scores.
        isolation: the worker processes of isolated functions, which scorers may share; they start when needed.
        max_steps: optimiser steps of the run, for functions that follow a schedule; 0: not known.
        mode_key: names right answers; None: see `ModeKeys`.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        zero_truncated: bool = False,
        isolation: Isolation | None = None,
        max_steps: int = 0,
        mode_key: ModeKey | None = None,
    ) -> None:
        self.functions = tuple(functions)
        alone = len(functions) == 1 and not functions[0].scaled
        self.judge = next((reward for reward in functions if reward.correctness or alone), None)
        self.zero_truncated = zero_truncated
        self.max_steps = max_steps
        self._modes = None if self.judge is None else ModeKeys(self.judge, mode_key)
        self._caller = Caller()
        self._isolation = isolation or Isolation(IsolationSettings())
        self._reported: set[str] = set()

    @property
    def cache_hits(self) -> int:
        """Completions so far whose verdict an isolated function had given before."""
        return self._isolation.cache_hits

    def close(self) -> None:
        """End the worker processes, and the event loop that async reward functions ran on."""
        self._isolation.close()
        self._caller.close()

    @property
    def begins_early(self) -> bool:
        """Whether `begin` starts anything: some function judges each completion by itself in a worker process."""
        return any(reward.isolated and reward.rowwise for reward in self.functions)

    def begin(self, rollout: Rollout, step: int, is_eval: bool = False) -> None:
        """Start on completions while others are still sampled, with the arguments of the later `score`.

        It changes no score: `score` finds the verdicts that were begun, and asks for the others.
        """
        arguments, context = _arguments([rollout]), self._context(step, is_eval)
        for reward in self.functions:
            if reward.isolated and reward.rowwise:
                self._isolation.begin(reward, _shown_to(reward, arguments, [rollout]), context)

    def score(
        self, rollouts: Sequence[Rollout], step: int, is_eval: bool = False
    ) -> tuple[list[Group], Metrics]:
        """Score all completions of a step, at least one.

        Each function is called once over all of them (an isolated one as `Isolation` says). Where that raises it is
        called again for each completion alone, so that only the offending ones lose its score; they are counted, and
        the first of each function is logged. A completion's utility is the weighted sum of the scores that it got; it
        has none (NaN) where no function gave a score, or where one that has a weight lost it.

        Args:
            rollouts: the completions.
            step: the step that they are for, counted from 1; on evaluation the steps done.
            is_eval: say so to the functions, by a keyword of this name.

        Raises:
            RunError: a function raised on every completion, or returned a wrong number of scores.
        """
        arguments = _arguments(rollouts)
        context = self._context(step, is_eval)
        rows = [rows for _, rows in _groups(rollouts)]
        shown = {reward.name: _shown_to(reward, arguments, rollouts) for reward in self.functions}
        pending: dict[str, Pending] = {
            reward.name: self._isolation.submit(reward, shown[reward.name], rows, context)
            for reward in self.functions
            if reward.isolated
        }
        scores = {
            reward.name: self._caller.scores(reward, shown[reward.name], context)
            for reward in self.functions
            if not reward.isolated
        } | {name: scores.scores() for name, scores in pending.items()}
        for reward in self.functions:
            self._report(reward, scores[reward.name], arguments, rollouts, step)

        def equal(grader: RewardFunction, chosen: Sequence[int], golds: Sequence[str]) -> Sequence[float]:
            columns = _shown_to(grader, arguments, rollouts).items()
            pairs = {name: [column[row] for row in chosen] for name, column in columns} | {"answer": [*golds]}
            if grader.isolated:
                whole = [slice(0, len(chosen))]
                return self._isolation.submit(grader, pairs, whole, context).scores().values
            return self._caller.scores(grader, pairs, context).values

        groups: list[Group] = []
        for rollout, part in _groups(rollouts):
            rewards = {reward.name: scores[reward.name].values[part] for reward in self.functions}
            lost = [
                any(reward.weight and row in scores[reward.name].errors for reward in self.functions)
                for row in range(part.start, part.stop)
            ]
            utilities = self._utilities(rollout, rewards, lost)
            groups.append(Group(rollout, rewards, utilities, *self._verdicts(rollout, rewards)))
        if self._modes is not None:
            keys = self._modes(rollouts, [group.right or () for group in groups], equal)
            groups = [replace(group, modes=modes) for group, modes in zip(groups, keys, strict=True)]
        return groups, group_metrics(groups) | _call_metrics(scores.values())

    def _context(self, step: int, is_eval: bool) -> CallContext:
        return CallContext(TrainerState(step if is_eval else max(0, step - 1), self.max_steps), is_eval)

    def _report(
        self,
        reward: RewardFunction,
        scores: Scores,
        arguments: Arguments,
        rollouts: Sequence[Rollout],
        step: int,
    ) -> None:
        """Log what failed for the first time. Raises `RunError` where the function itself seems broken."""
        if not scores.errors:
            return
        row, error = next(iter(scores.errors.items()))
        lost = all(isinstance(error, LOST) for error in scores.errors.values())
        if len(scores.errors) == len(scores.values) and not lost:
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
                exc_info=None if isinstance(error, LOST) else error,
            )

    def _utilities(
        self, rollout: Rollout, rewards: dict[str, tuple[float, ...]], lost: Sequence[bool]
    ) -> tuple[float, ...]:
        utilities = []
        for i, reason in enumerate(rollout.finish_reasons):
            scores = [(f.weight, rewards[f.name][i]) for f in self.functions]
            given = [(weight, score) for weight, score in scores if not math.isnan(score)]
            if self.zero_truncated and reason == "length":
                utilities.append(0.0)
            elif lost[i] or not given:
                utilities.append(math.nan)
            else:
                utilities.append(math.fsum(weight * score for weight, score in given))
        return tuple(utilities)

    def _verdicts(
        self, rollout: Rollout, rewards: dict[str, tuple[float, ...]]
    ) -> tuple[tuple[bool, ...], tuple[float, ...]] | tuple[None, None]:
        """`Group.right` and `Group.correctness`: the word of the correctness reward, if there is one."""
        if self.judge is None:
            return None, None
        scores = [
            0.0 if math.isnan(score) or (self.zero_truncated and reason == "length") else score
            for score, reason in zip(rewards[self.judge.name], rollout.finish_reasons, strict=True)
        ]
        weight = self.judge.weight
        return tuple(score >= RIGHT for score in scores), tuple(weight * score for score in scores)


def _arguments(rollouts: Sequence[Rollout]) -> Arguments:
    """The keyword arguments of TRL's convention: an entry per completion, with its prompt's columns."""
    prompts = [rollout.prompt for rollout in rollouts for _ in rollout.texts]
    texts = [text for rollout in rollouts for text in rollout.texts]
    chats = prompts[0].messages is not None  # a dataset has chats throughout, or texts
    arguments: dict[str, list[Any]] = {
        "prompts": [[dict(m) for m in prompt.messages or ()] if chats else prompt.text for prompt in prompts],
        "completions": [[{"role": "assistant", "content": text}] for text in texts] if chats else texts,
        "completion_ids": [list(ids) for rollout in rollouts for ids in rollout.token_ids],
    }
    if any(rollout.turns for rollout in rollouts):
        arguments["turns"] = [list(turns) for rollout in rollouts for turns in rollout.turns]
    columns = [name for name in prompts[0].columns if name not in _RESERVED]
    return arguments | {name: [prompt.columns[name] for prompt in prompts] for name in columns}


def _shown_to(reward: RewardFunction, arguments: Arguments, rollouts: Sequence[Rollout]) -> Arguments:
    """``arguments`` as ``reward`` gets them: where the prompt ends with an open ``<think>``, a function that reads tags
    finds it in front of the completion, which is the rest of that thought."""
    if not reward.reads_tags:
        return arguments
    opened = [_OPENED.search(rollout.prompt.text) for rollout in rollouts for _ in rollout.texts]
    if not any(opened):
        return arguments
    completions = []
    for found, completion in zip(opened, arguments["completions"], strict=True):
        tag = found.group() if found else ""
        chat = isinstance(completion, list)
        completions.append(
            [completion[0] | {"content": tag + completion[0]["content"]}] if chat else tag + completion
        )
    return {**arguments, "completions": completions}


def _groups(rollouts: Sequence[Rollout]) -> Iterator[tuple[Rollout, slice]]:
    """Each rollout with its rows among all completions."""
    start = 0
    for rollout in rollouts:
        yield rollout, slice(start, start + len(rollout.texts))
        start += len(rollout.texts)


def group_metrics(groups: Sequence[Group]) -> Metrics:
    """The metrics that the scored groups themselves tell."""
    metrics: Metrics = {}
    for name in groups[0].rewards:
        scored = [[s for s in group.rewards[name] if not math.isnan(s)] for group in groups]
        stds = [statistics.stdev(given) if len(given) > 1 else 0.0 for given in scored if given]
        metrics[f"rewards/{name}/mean"] = mean_stat(_tensor([s for given in scored for s in given]))
        metrics[f"rewards/{name}/std"] = mean_stat(_tensor(stds))
    metrics["reward/unscored"] = _sum_stat(sum(math.isnan(u) for group in groups for u in group.utilities))
    lengths = _tensor([length for group in groups for length in group.rollout.lengths])
    clipped = [reason == "length" for group in groups for reason in group.rollout.finish_reasons]
    metrics["completions/mean_length_sampled"] = mean_stat(lengths)
    metrics["completions/min_length_sampled"] = extreme_stat(lengths, "min")
    metrics["completions/max_length_sampled"] = extreme_stat(lengths, "max")
    metrics["completions/mean_length_terminated"] = mean_stat(lengths, ~torch.tensor(clipped))
    metrics["completions/clipped_frac"] = mean_stat(_tensor(clipped))
    return metrics


def _call_metrics(scores: Collection[Scores]) -> Metrics:
    errors = [error for given in scores for error in given.errors.values()]
    logged: dict[str, list[float]] = {}
    for given in scores:
        for name, value in given.logged:
            logged.setdefault(name, []).append(value)
    return {
        "reward/errors": _sum_stat(len(errors)),
        "reward/timeouts": _sum_stat(sum(isinstance(error, RewardTimeoutError) for error in errors)),
    } | {f"reward/logged/{name}": mean_stat(_tensor(values)) for name, values in logged.items()}


def _tensor(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _sum_stat(count: int) -> Stat:
    return Stat(_tensor([count]).sum(), torch.ones((), dtype=torch.float64), "sum")
