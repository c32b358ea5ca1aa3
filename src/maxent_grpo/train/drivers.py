"""The inline driver: sample, score, step, in one process, one after the other (staleness 0)."""

import random
import time
from collections.abc import Sequence

import numpy as np
import torch

from maxent_grpo.errors import RunError
from maxent_grpo.evaluate.exploration import exploration_metrics
from maxent_grpo.randomness import integer_seed
from maxent_grpo.train.checkpoint import save_checkpoint
from maxent_grpo.train.journal import Journal
from maxent_grpo.train.state import Run
from maxent_grpo.train.step import step
from maxent_grpo.types import Group, mean_stat


def train_inline(run: Run, journal: Journal) -> None:
    """Train from ``run.step`` to the last step, evaluating, logging and saving on the way.

    Raises `RunError` after too many updates in a row were refused for a non-finite loss or gradient.
    """
    if run.step == 0 and run.cadence.eval_on_start:
        evaluate(run, journal)
    while run.step < run.cadence.total_steps:
        started = time.perf_counter()
        seed_libraries(run)
        if run.updates_left == 0:
            collect(run)
        sampled = time.perf_counter()
        groups = next_groups(run)
        result = step(run, groups)
        run.updates_done += 1
        tokens = sum(len(ids) for group in groups for ids in group.rollout.token_ids)
        run.tokens_seen += tokens
        finished = time.perf_counter()
        journal.step(run, groups, result, {
            "time/sample": sampled - started,
            "time/update": finished - sampled,
            "time/step": finished - started,
            "tokens/s": tokens / (finished - started),
        })  # fmt: skip
        if run.skipped_in_a_row >= run.cadence.max_nonfinite_steps:
            raise RunError(
                f"step {run.step}: {run.skipped_in_a_row} updates in a row had a non-finite loss or gradient and were "
                "not applied; lower learning_rate, check the rewards, or resume from an earlier checkpoint"
            )
        last = run.step == run.cadence.total_steps
        if last or _due(run.step, run.cadence.eval_steps):
            evaluate(run, journal)
        if run.cadence.save_steps and (last or _due(run.step, run.cadence.save_steps)):
            save_checkpoint(run)


def collect(run: Run) -> None:
    """Sample and score a new rollout with the current weights. Its statistics go to the next step's record.

    With ``dynamic_sampling`` a rollout is filled with groups that carry signal (DAPO, Yu et al. 2025, arXiv
    2503.14476, section 3.2): prompts whose utilities are all equal are replaced by the next ones of the stream, for
    at most ``sampling_rounds`` rounds; what is missing then are the last groups without signal, so that every
    step has its size. The statistics are those of everything sampled. The stream's position is all that a resumed
    run needs, as a rollout is collected between two steps.
    """
    wanted = run.plan.prompts_per_rollout
    kept: list[Group] = []
    silent: list[Group] = []
    rounds = 0
    while len(kept) < wanted and rounds < run.plan.sampling_rounds:
        rounds += 1
        for group in sample_groups(run, wanted - len(kept)):
            dropped = run.plan.dynamic_sampling and len(set(group.utilities)) == 1
            (silent if dropped else kept).append(group)
    missing = wanted - len(kept)
    run.rollout = kept + silent[len(silent) - missing :] if missing else kept
    run.updates_done = 0
    if run.plan.dynamic_sampling:
        counts = {"rounds": rounds, "dropped": len(silent) - missing, "filled": missing}
        run.meter.add(
            {f"dynamic_sampling/{name}": mean_stat(torch.tensor(float(n))) for name, n in counts.items()}
        )


def sample_groups(run: Run, count: int) -> Sequence[Group]:
    """The next ``count`` prompts of the stream, sampled with the current weights and scored."""
    prompts = run.stream.take(count)
    rollouts = run.sampler.sample(
        prompts, run.sampling, (run.seed, "completion", run.step), policy_version=run.step
    )
    groups, metrics = run.scorer.score(rollouts, run.step + 1)
    run.meter.add(metrics | exploration_metrics(groups))
    return groups


def next_groups(run: Run) -> Sequence[Group]:
    """The groups of the next optimiser step: the rollout's parts in order, ``num_iterations`` times over."""
    size = run.plan.prompts_per_step
    part = run.updates_done % (len(run.rollout) // size)
    return run.rollout[part * size : (part + 1) * size]


def evaluate(run: Run, journal: Journal) -> None:
    """Evaluate the current weights and record it."""
    if run.evaluation is None:
        return
    with journal.loop("evaluation: prompt", len(run.evaluation.prompts)) as loop:
        metrics = run.evaluation.run(run.sampler, run.seed, run.step, loop.advance)
    journal.evaluation(run.step, metrics)


def seed_libraries(run: Run) -> None:
    """Seed what draws outside our keys (dropout, user reward functions) by (run seed, step): a resumed run repeats."""
    seed = integer_seed(run.seed, "libraries", run.step)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _due(step_done: int, every: int) -> bool:
    return every > 0 and step_done % every == 0
