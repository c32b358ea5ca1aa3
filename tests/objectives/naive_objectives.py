"""Every objective written out once more, one token at a time: slow, and easy to check against the papers."""

import math

import torch
from objective_batches import MAX_LENGTH
from torch import Tensor

from maxent_grpo.objectives.catalog import ObjectiveSpec
from maxent_grpo.types import Batch, Forward, Knobs, Signal


def softmax(values: list[float]) -> list[float]:
    exps = [math.exp(v - max(values)) for v in values]
    return [e / sum(exps) for e in exps]


def sample_std(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def tokens_of(batch: Batch, row: int) -> range:
    return range(int(batch.completion_mask[row].sum()))


def score(batch: Batch, logps: Tensor, row: int, per_token: bool) -> Tensor:
    tokens = tokens_of(batch, row)
    return sum((logps[row, t] for t in tokens), logps.new_zeros(())) / (len(tokens) if per_token else 1)


def advantages(spec: ObjectiveSpec, batch: Batch) -> list[list[float]]:
    every = batch.utilities.flatten().tolist()
    result = []
    for group in batch.utilities.tolist():
        if len(set(group)) == 1:
            result.append([0.0] * len(group))
            continue
        scale = {"group": sample_std(group) + 1e-4, "batch": sample_std(every) + 1e-4, "none": 1.0}
        mean = sum(group) / len(group)
        result.append([(u - mean) / scale[spec.scale_rewards] for u in group])
    return result


def weights(spec: ObjectiveSpec, batch: Batch, knobs: Knobs) -> list[list[float]]:
    result = []
    for p, group in enumerate(batch.utilities.tolist()):
        size = len(group)
        rows = range(p * size, (p + 1) * size)
        ref = [score(batch, batch.reference_logps, row, spec.length_normalize_ref).item() for row in rows]
        divisor = knobs.tau + knobs.beta
        if spec.policy_loss == "tilted":
            target = advantages(spec, batch)[p]
            if spec.tilted_utility == "dr_grpo":
                lengths = [len(tokens_of(batch, row)) for row in rows]
                target = [a * n / MAX_LENGTH for a, n in zip(target, lengths, strict=True)]
        else:
            q = softmax([u / spec.q_temperature for u in group])
            target = [math.log(x * (1 - spec.q_epsilon * size) + spec.q_epsilon) for x in q]
            if spec.weight_denominator == "tau":
                divisor = knobs.tau
        result.append(softmax([(a + knobs.beta * b) / divisor for a, b in zip(target, ref, strict=True)]))
    return result


def reduce(spec: ObjectiveSpec, batch: Batch, per_token: dict[tuple[int, int], Tensor]) -> Tensor:
    """Per-token values keyed by (row, token) to the loss."""
    rows = batch.completion_mask.shape[0]
    result = torch.zeros((), dtype=torch.float64)
    for (row, _), value in per_token.items():
        if spec.loss_type == "grpo":
            result = result + value / len(tokens_of(batch, row)) / rows
        elif spec.loss_type in ("bnpo", "dapo"):
            result = result + value / len(per_token)
        else:
            result = result + value / (rows * MAX_LENGTH)
    return result


def kl(estimator: str, policy: Tensor, other: Tensor) -> Tensor:
    r = policy - other.detach()
    return {"k1": r, "k2": r * r / 2, "k3": (-r).exp() - 1 + r}[estimator]


def surrogate(spec: ObjectiveSpec, batch: Batch, forward: Forward, row_advantages: list[float]) -> Tensor:
    """The clipped surrogate, by cases on the sign of the advantage."""
    low = 1 - spec.epsilon
    high = 1 + (spec.epsilon if spec.epsilon_high is None else spec.epsilon_high)
    old = forward.logps.detach() if batch.old_logps is None else batch.old_logps
    per_token = {}
    for row, a in enumerate(row_advantages):
        tokens = tokens_of(batch, row)
        mean_gap = sum(forward.logps[row, t] - old[row, t] for t in tokens) / len(tokens)
        for t in tokens:
            gap = (
                mean_gap
                if spec.importance_sampling_level == "sequence"
                else forward.logps[row, t] - old[row, t]
            )
            rho = gap.exp()
            if a >= 0:
                kept = rho if rho < high else torch.tensor(high, dtype=torch.float64)
            else:
                kept = rho if rho > low else torch.tensor(low, dtype=torch.float64)
                if spec.delta is not None and rho > spec.delta:
                    kept = torch.tensor(spec.delta, dtype=torch.float64)
            loss = -kept * a
            if spec.tis_cap is not None:
                loss = loss * min(math.exp(old[row, t] - batch.behaviour_logps[row, t]), spec.tis_cap)
            per_token[row, t] = loss
    return reduce(spec, batch, per_token)


def group_losses(spec: ObjectiveSpec, batch: Batch, forward: Forward, w: list[list[float]]) -> Tensor:
    """Listwise or likelihood."""
    total = torch.zeros((), dtype=torch.float64)
    groups, size = batch.utilities.shape
    for p in range(groups):
        if spec.skip_zero_spread_groups and len(set(batch.utilities[p].tolist())) == 1:
            continue
        per_token = spec.policy_loss == "likelihood" or spec.length_normalize_policy
        scores = [score(batch, forward.logps, p * size + g, per_token) for g in range(size)]
        norm = torch.stack(scores).exp().sum().log()
        for g in range(size):
            if spec.policy_loss == "likelihood":
                total = total - (w[p][g] - 1 / size) * scores[g] / groups
            else:
                total = total - w[p][g] * (scores[g] - norm) / groups / (1 if per_token else MAX_LENGTH)
    return total


def loss(spec: ObjectiveSpec, batch: Batch, forward: Forward, knobs: Knobs) -> tuple[Tensor, Signal]:
    """The whole loss, and the weights and scaled advantages behind it."""
    a = advantages(spec, batch)
    w = weights(spec, batch, knobs) if spec.policy_loss != "clip" else None
    flat = [x for group in a for x in group]
    if spec.policy_loss == "tilted":
        flat = [len(a[0]) * x * y for x, y in zip(flat, [x for group in w for x in group], strict=True)]
    if spec.policy_loss in ("clip", "tilted"):
        result = surrogate(spec, batch, forward, flat)
    else:
        result = group_losses(spec, batch, forward, w)
    every = [(row, t) for row in range(len(flat)) for t in tokens_of(batch, row)]
    if spec.kl_in_loss:
        per_token = {i: kl(spec.kl_estimator, forward.logps[i], batch.reference_logps[i]) for i in every}
        result = result + knobs.beta * reduce(spec, batch, per_token)
    per_token = {
        i: kl(spec.behaviour_kl_estimator, forward.logps[i], batch.behaviour_logps[i]) for i in every
    }
    result = result + spec.behaviour_kl_coef * reduce(spec, batch, per_token)
    result = result - spec.entropy_coef * sum(forward.entropy[i] for i in every) / len(every)
    exact = torch.float64
    return result, Signal(
        torch.tensor(flat, dtype=exact), None if w is None else torch.tensor(w, dtype=exact)
    )
