"""The step: sampled and scored groups in, a better policy out. Every driver calls this function and no other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maxent_grpo.controllers.controller import Measurement
from maxent_grpo.train.collate import collate
from maxent_grpo.train.learner import with_reference
from maxent_grpo.train.micro_batches import micro_batches
from maxent_grpo.train.seeds import seed_metrics, with_contrast
from maxent_grpo.train.state import Run
from maxent_grpo.train.weight_sync import sampling_ratios
from maxent_grpo.types import Group, Signal


@dataclass(frozen=True)
class StepResult:
    """What one step leaves for the logs."""

    metrics: dict[str, float]  # names without the ``train/`` prefix
    signal: Signal  # advantages and weights of the step's groups, in order


def step(run: Run, groups: Sequence[Group]) -> StepResult:
    """One optimiser step on ``groups`` (this rank's share). Advances ``run.step``; the policy version follows it.

    Signals come from whole groups and denominators from the whole optimiser batch, so the gradient depends neither
    on the micro-batch size, nor on padding, nor on the number of ranks.
    """
    answers = run.objective.spec.needs_answers
    batch = collate(groups, pad_id=run.pad_id, on_policy=run.plan.on_policy, answers=answers)
    batch = batch.to(run.learner.device)
    if run.reference is not None:
        batch = with_reference(batch, run.reference, run.learner, run.plan)
    knobs = run.controllers.knobs()  # τ and β of this step
    spread = run.learner.utility_std(batch) if run.objective.spec.scale_rewards == "batch" else None
    # Advantages and weights: whole groups, no gradient.
    signal, metrics = run.objective.signal(batch, knobs, spread)
    run.meter.add(metrics)

    denominators = run.learner.denominators(batch)
    teaching = run.objective.teaching(batch, signal, knobs)  # the other groups need no backward pass
    parts = micro_batches(batch, run.plan, teaching, run.learner.most)  # groups stay whole
    signal = with_contrast(run, batch, signal, parts)  # InfoSeed: what its loss needs of the whole batch
    passes = sum(part.teaches for part in parts)  # these come first
    states = []
    for number, part in enumerate(parts, start=1):
        micro, micro_signal = batch.select(part.groups), signal.select(part.groups)
        with torch.set_grad_enabled(part.teaches):
            forward = run.learner.forward(micro, last=number == passes)
            loss, metrics = run.objective.loss(forward, micro, micro_signal, knobs, denominators)
        if part.teaches:
            run.learner.backward(loss if part.counts else 0.0 * loss, forward)
        if part.counts:
            run.meter.add(metrics)
            if run.sampled_by_engine:
                run.meter.add(sampling_ratios(forward.logps, micro))
            states.append((part.groups, forward.pooled))
    run.meter.add(seed_metrics(run, batch, states))
    update = run.learner.update(run.step)

    measured = run.meter.reduced()  # over micro-batches and ranks
    run.step += 1
    run.skipped_in_a_row = 0 if update.applied else run.skipped_in_a_row + 1
    if not update.applied:
        return StepResult(measured | update.metrics | {"tau": knobs.tau, "beta": knobs.beta}, signal)
    controllers, controller_metrics = run.controllers.update(
        Measurement(
            step=run.step,
            kl=measured.get("kl"),
            weight_entropy=measured.get("weight_entropy"),
            entropy=measured.get("entropy"),
            lr_scale=run.learner.learning_rate.factor(run.step - 1),
            weights=weights_of(run, signal) if run.controllers.needs_weights(run.step) else None,
        )
    )
    # Ranks compute the same from global statistics; rounding must not make them drift apart all the same.
    run.controllers = controllers.from_vector(run.learner.from_first_rank(controllers.as_vector()))
    return StepResult(measured | update.metrics | controller_metrics, signal)


def weights_of(run: Run, signal: Signal) -> Callable[[Tensor, Tensor], Tensor] | None:
    """w(τ, β) of this step's groups on all ranks, for controllers that differentiate it; None: there are none."""
    if signal.weights is None:
        return None
    everywhere = run.learner.gathered(signal)
    return lambda tau, beta: run.objective.weights(everywhere, tau, beta)
