"""The step: sampled and scored groups in, a better policy out. Every driver calls this function and no other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maxent_grpo.controllers.controller import Measurement
from maxent_grpo.objectives.weights import weighs
from maxent_grpo.stats import Metrics
from maxent_grpo.train.collate import collate
from maxent_grpo.train.learner import with_reference
from maxent_grpo.train.micro_batches import micro_batches
from maxent_grpo.train.replay import mode_histories, replay
from maxent_grpo.train.seeds import PooledStates
from maxent_grpo.train.state import Run
from maxent_grpo.train.weight_sync import sampling_ratios
from maxent_grpo.types import Batch, Forward, Group, Signal


@dataclass(frozen=True)
class StepResult:
    """What one step leaves for the logs."""

    metrics: dict[str, float]
    """Names without the ``train/`` prefix."""
    signal: Signal
    """Advantages and weights of the step's groups, in order."""


def step(run: Run, groups: Sequence[Group]) -> StepResult:
    """One optimiser step on ``groups`` (this rank's share). Advances ``run.step``; the policy version follows it.

    Signals come from whole groups and denominators from the whole optimiser batch, so the gradient depends neither
    on the micro-batch size, nor on padding, nor on the number of ranks.
    """
    objective, learner = run.objective, run.learner
    batch = collate(
        groups,
        pad_id=run.pad_id,
        on_policy=run.plan.on_policy,
        answers=objective.needs_answers,
        histories=mode_histories(run, groups),
    )
    batch = batch.to(learner.device)
    if run.reference is not None:
        batch = with_reference(batch, run.reference, learner, run.plan)
    knobs = run.controllers.knobs()  # τ and β of this step
    # Advantages and weights: whole groups, no gradient.
    signal, metrics = objective.signal(batch, knobs, lambda: learner.utility_std(batch))
    run.meter.add(metrics)
    run.meter.add(replay(run, groups))  # right answers of earlier steps: their gradient comes first

    denominators = learner.denominators(batch)
    parts = micro_batches(
        batch, run.plan, objective.has_gradient(batch, signal, knobs), learner.max_over_ranks
    )
    states = PooledStates(objective.info_seed, learner, batch, parts)
    signal = states.prepared(signal)
    for part in parts:
        micro, micro_signal = batch.select(part.groups), signal.select(part.groups)  # groups stay whole
        with torch.set_grad_enabled(part.needs_backward):
            forward = learner.forward(micro, last=part.last)
            loss, metrics = objective.loss(forward, micro, micro_signal, knobs, denominators)
        if part.needs_backward:
            learner.backward(loss if part.counts else 0.0 * loss, forward)
        if part.counts:
            run.meter.add(metrics | sampler_gap(run, forward, micro))
            states.add(part, forward)
    run.meter.add(states.metrics())
    update = learner.update(run.step)

    measured = run.meter.reduced()  # over micro-batches and ranks
    run.step += 1
    run.skipped_in_a_row = 0 if update.applied else run.skipped_in_a_row + 1
    adapted = adapt(run, measured, signal) if update.applied else {"tau": knobs.tau, "beta": knobs.beta}
    return StepResult(measured | update.metrics | adapted, signal)


def sampler_gap(run: Run, forward: Forward, micro: Batch) -> Metrics:
    """How far the log-probs of a sampler that is not the learner's own model are from the learner's."""
    return sampling_ratios(forward.logps, micro) if run.sampled_by_engine else {}


def adapt(run: Run, measured: Mapping[str, float], signal: Signal) -> dict[str, float]:
    """Let the controllers move τ and β by what the step measured; their metrics."""
    controllers, metrics = run.controllers.update(
        Measurement(
            step=run.step,
            kl=measured.get("kl"),
            weight_entropy=measured.get(run.objective.tempered),
            entropy=measured.get("entropy"),
            lr_scale=run.learner.learning_rate.factor(run.step - 1),
            weights=weights_of(run, signal) if run.controllers.needs_weights(run.step) else None,
        )
    )
    # Ranks compute the same from global statistics; rounding must not make them drift apart all the same.
    run.controllers = controllers.from_vector(run.learner.from_first_rank(controllers.as_vector()))
    return metrics


def weights_of(run: Run, signal: Signal) -> Callable[[Tensor, Tensor], Tensor] | None:
    """w(τ, β) of this step's groups on all ranks, for controllers that differentiate it; None: there are none."""
    if signal.weights is None:
        return None
    everywhere = run.learner.gathered(signal)
    if everywhere.scored is not None:
        counted = weighs(everywhere.scored).nonzero().flatten().tolist()
        if not counted:
            return None
        everywhere = everywhere.select(counted)
    return lambda tau, beta: run.objective.weights(everywhere, tau, beta)
