"""The inline driver: sample, score, step, one after the other (staleness 0). Every rank runs it on its share.

The drivers that sample in other processes are in `train.ray`.
"""

import math
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from maxent_grpo.data.prompts import SeedPrompts
from maxent_grpo.data.stream import PooledStream
from maxent_grpo.errors import RunError
from maxent_grpo.evaluate.training import exploration_metrics, summary
from maxent_grpo.randomness import integer_seed
from maxent_grpo.rollout.sampler import Finished, Sampler, SamplingSettings
from maxent_grpo.rollout.wrappers import with_seeded
from maxent_grpo.stats import mean_stat
from maxent_grpo.train.checkpoint import save_checkpoint
from maxent_grpo.train.ranks import gathered, own_part, share
from maxent_grpo.train.records import RunRecorder
from maxent_grpo.train.seeds import evaluate_seeds
from maxent_grpo.train.state import Run
from maxent_grpo.train.step import step
from maxent_grpo.train.stopping import forget_request, stop_asked, stopped
from maxent_grpo.types import Group, Prompt, Rollout


def train_inline(run: Run, recorder: RunRecorder) -> None:
    """Train from ``run.step`` to the last step, evaluating, logging and saving on the way.

    Raises:
        RunError: too many updates in a row were refused for a non-finite loss or gradient.
        Stopped: after a checkpoint that was asked for (`train.stopping`).
    """
    if run.step == 0 and run.cadence.eval_on_start:
        evaluate(run, recorder)
    while run.step < run.cadence.total_steps:
        started = time.perf_counter()
        seed_libraries(run)
        if run.updates_left == 0:
            collect(run)
        synced = {} if run.sampler_sync is None else {"time/publish": run.sampler_sync.take_seconds()}
        update(run, recorder, started, {"time/sample": time.perf_counter() - started} | synced)
    forget_request(run.output_dir, run.learner.accelerator)


def update(run: Run, recorder: RunRecorder, started: float, timing: Mapping[str, float]) -> None:
    """One optimiser step on the rollout's next part, its record, and the evaluation and checkpoint that follow it.

    ``started``: the clock when the step's own work began, sampling included; ``timing`` is recorded beside the rest.
    """
    sampled = time.perf_counter()
    groups = next_groups(run)
    result = step(run, groups)
    run.updates_done += 1
    tokens = tokens_of(run, groups)
    run.tokens_seen += tokens
    finished = time.perf_counter()
    recorder.step(groups, result, {
        **timing,
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
        evaluate(run, recorder)
    stopping = not last and stop_asked(run.output_dir, run.learner.accelerator)
    if stopping or (run.cadence.save_steps and (last or _due(run.step, run.cadence.save_steps))):
        save_checkpoint(run)
    if stopping:
        raise stopped(run.output_dir, run.learner.accelerator, run.step)


def collect(run: Run) -> None:
    """Sample and score a new rollout with the current weights. Its statistics go to the next step's record.

    With ``dynamic_sampling`` a rollout is filled with groups that carry signal (DAPO, Yu et al. 2025, arXiv
    2503.14476, section 3.2): prompts whose utilities are all equal are replaced by the next ones of the stream, for
    at most ``sampling_rounds`` rounds; what is missing then are the last groups without signal, so that every
    step has its size. The statistics are those of everything sampled. The stream's state is all that a resumed
    run needs, as a rollout is collected between two steps. Difficulty pools learn of every group that was sampled.
    """
    ranks = run.plan.ranks
    wanted = run.plan.prompts_per_rollout // ranks  # this rank's groups
    kept: list[Group] = []
    silent: list[Group] = []
    rounds = 0
    while len(kept) < wanted and rounds < run.plan.sampling_rounds:
        rounds += 1
        for group in sample_groups(run, (wanted - len(kept)) * ranks):
            dropped = run.plan.dynamic_sampling and not run.objective.has_signal(group)
            (silent if dropped else kept).append(group)
    missing = wanted - len(kept)
    run.rollout = kept + silent[len(silent) - missing :] if missing else kept
    run.updates_done = 0
    counts: dict[str, int] = {}
    if run.plan.dynamic_sampling:
        filling = {"rounds": rounds, "dropped": len(silent) - missing, "filled": missing}
        counts |= {f"dynamic_sampling/{name}": n for name, n in filling.items()}
    if isinstance(run.stream, PooledStream):
        counts |= {f"difficulty_pools/{pool}": n for pool, n in run.stream.sizes().items()}
    run.meter.add({name: mean_stat(torch.tensor(float(n))) for name, n in counts.items()})


def sample_groups(run: Run, count: int) -> Sequence[Group]:
    """This rank's share of the next ``count`` prompts of the stream, sampled with the current weights and scored."""
    prompts = own_part(run.stream.take(count), run.plan.prompts_per_step, run.learner.accelerator)
    rollouts = run.sampled(lambda: rollouts_of(run, prompts))
    if run.sampler_sync is not None:
        run.meter.add(run.sampler_sync.metrics(run.step, run.weights_step))
    groups, metrics = run.scorer.score(rollouts, run.step + 1)
    # Of the originals alone: with the same draws and the same k, whatever is trained.
    originals = [group.originals() for group in groups]
    run.meter.add(metrics | exploration_metrics(originals))
    if isinstance(run.stream, PooledStream):
        run.stream.judged(gathered(shares_right(originals), run.learner.accelerator))
    return groups


def shares_right(groups: Sequence[Group]) -> list[tuple[int, int, float]]:
    """Index and epoch of each group's prompt, and the share of right ones among its completions with a utility.

    A group in which none has one is left out.
    """
    found = []
    for group in groups:
        assert group.right is not None, (
            "train.build refuses difficulty pools where nothing tells what is right"
        )
        right = [
            r for r, utility in zip(group.right, group.utilities, strict=True) if not math.isnan(utility)
        ]
        if right:
            found.append((group.rollout.prompt.index, group.rollout.prompt.epoch, sum(right) / len(right)))
    return found


def rollouts_of(run: Run, prompts: Sequence[Prompt]) -> list[Rollout]:
    """Completions of ``prompts``, and of their seeded variants, with the weights that the sampler has now."""
    return sample_rollouts(
        run.sampler,
        run.sampling,
        run.seeds,
        prompts,
        seed=run.seed,
        step=run.step,
        version=run.sampler_version,
        finished=partial(run.scorer.begin, step=run.step + 1) if run.scorer.begins_early else None,
    )


def sample_rollouts(
    sampler: Sampler,
    sampling: SamplingSettings,
    seeds: SeedPrompts | None,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    step: int,
    version: int,
    finished: Finished | None = None,
) -> list[Rollout]:
    """A rollout of each prompt, with InfoSeed's seeded completions where it is on.

    The draws are keyed by the run's ``seed`` and ``step``, the optimiser steps behind the learner when it trains on
    these prompts first, whatever ``version`` of the policy samples: every driver draws alike.
    """
    rollouts = sampler.sample(
        prompts, sampling, (seed, "completion", step), policy_version=version, finished=finished
    )
    if seeds is None:
        return rollouts
    variants = [seeds.variants(prompt) for prompt in prompts]
    return with_seeded(rollouts, variants, sampler, sampling, (seed, "seeded completion", step))


def tokens_of(run: Run, groups: Sequence[Group]) -> int:
    """Completion tokens of the groups of all ranks."""
    own = sum(sum(group.rollout.lengths) for group in groups)
    return sum(gathered([own], run.learner.accelerator))


def next_groups(run: Run) -> Sequence[Group]:
    """This rank's groups of the next optimiser step: the rollout's parts in order, ``num_iterations`` times over."""
    size = run.plan.prompts_per_rank
    part = run.updates_done % (len(run.rollout) // size)
    return run.rollout[part * size : (part + 1) * size]


def evaluate(run: Run, recorder: RunRecorder) -> None:
    """Evaluate the current weights and record it."""
    if run.evaluation is None:
        return
    recorder.evaluation(run.sampled(lambda: evaluation_metrics(run, recorder), newest=True))


def evaluation_metrics(run: Run, recorder: RunRecorder) -> dict[str, float]:
    """The run's evaluation with the weights that the sampler has now."""
    assert run.evaluation is not None, "evaluate has looked"
    evaluation, accelerator = run.evaluation, run.learner.accelerator
    own = share(len(evaluation.prompts), accelerator)
    metrics: dict[str, float] = {}
    for prefix, sampling in evaluation.passes.items():
        with recorder.loop(f"{prefix}: prompt", len(evaluation.prompts[own])) as loop:
            scores = evaluation.scores(run.sampler, sampling, run.seed, run.step, own, loop.advance)
        metrics |= summary(gathered(scores, accelerator), prefix)
    if evaluation.seeds is not None:
        with recorder.loop("seed evaluation: prompt", len(evaluation.prompts)) as loop:
            metrics |= evaluate_seeds(run, evaluation, evaluation.seeds, loop.advance)
    return metrics


def seed_libraries(run: Run) -> None:
    """Seed what draws outside our keys (dropout, user reward functions) by (run seed, step, rank): a resumed run
    repeats, and ranks do not repeat each other."""
    rank = run.learner.accelerator.process_index
    seed = integer_seed(run.seed, "libraries", run.step, *([rank] if rank else []))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _due(step_done: int, every: int) -> bool:
    return every > 0 and step_done % every == 0
