"""Every objective written out once more, one token at a time: slow, and easy to check against the papers."""

import math
from itertools import combinations
from typing import Any

import torch
from objective_batches import MAX_LENGTH
from torch import Tensor

from maxent_grpo.objectives.catalog import ObjectiveSpec
from maxent_grpo.types import Batch, Forward, Knobs, Signal


def clip_range(spec: ObjectiveSpec) -> tuple[float, float]:
    return spec["epsilon"], spec["epsilon"] if spec["epsilon_high"] is None else spec["epsilon_high"]


def surrogate_kind(spec: ObjectiveSpec) -> Any:
    """A name, or somebody's function."""
    named = spec["loss_type"] if spec["loss_type"] in ("cispo", "sapo", "vespo") else "clip"
    return spec["surrogate"] or named


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


def ranks(scores: list[float]) -> list[float]:
    """0 for the highest score; equal scores share their mean rank."""
    order = sorted(scores, reverse=True)
    places = [[place for place, other in enumerate(order) if other == score] for score in scores]
    return [sum(found) / len(found) for found in places]


def shaped(spec: ObjectiveSpec, batch: Batch, knobs: Knobs) -> list[list[float]]:
    result = []
    for p, group in enumerate(batch.utilities.tolist()):
        size = len(group)
        rows = range(p * size, (p + 1) * size)
        values = list(group)
        if spec["gapo"] != "none":
            values = gapo(spec, batch, p)
        if spec["poly_epo_size"]:
            sets = {s: worth_of_set(batch, p, s) for s in combinations(range(size), spec["poly_epo_size"])}
            mine = [[worth for s, worth in sets.items() if g in s] for g in range(size)]
            values = [math.fsum(worths) / len(worths) for worths in mine]
        if spec["mode_entropy"] != "none":
            assert batch.modes is not None
            modes = batch.modes[p].tolist()
            right = [g for g in range(size) if modes[g] >= 0]
            surprise = {g: -math.log(sum(modes[h] == modes[g] for h in right) / len(right)) for g in right}
            for g in right:
                values[g] += knobs.tau * (surprise[g] - sum(surprise.values()) / len(right))
        if spec["unlikeliness_coef"] and len(set(group)) > 1:
            place = ranks([score(batch, batch.behaviour_logps, row, False).item() for row in rows])
            values = [
                u * (1 - spec["unlikeliness_coef"] * (size - r) / size)
                for u, r in zip(values, place, strict=True)
            ]
        if spec["overlong_buffer"]:
            for g, row in enumerate(rows):
                over = len(tokens_of(batch, row)) - (MAX_LENGTH - spec["overlong_buffer"])
                values[g] -= spec["overlong_penalty"] * min(1, max(0, over / spec["overlong_buffer"]))
        result.append(values)
    return with_entropy_bonus(spec, batch, result) if spec["entropy_bonus_coef"] else result


def gapo(spec: ObjectiveSpec, batch: Batch, p: int) -> list[float]:
    answers = batch.modes[p].tolist()
    right = [a for a in answers if a >= 0]
    rewards = [
        -1.0 if a < 0 else 1 - (right.count(a) / len(right) - 1 / int(batch.mode_counts[p])) for a in answers
    ]
    return [(r + 1) / 2 for r in rewards] if spec["gapo"] == "unit" else rewards


def worth_of_set(batch: Batch, p: int, members: tuple[int, ...]) -> float:
    answers = {int(batch.modes[p, i]) for i in members} - {-1}
    return math.fsum(float(batch.utilities[p, i]) for i in members) / len(members) ** 2 * len(answers)


def diversity(answers: list[int]) -> float:
    """SetPO's D of a set, by its answers."""
    size = len(answers)
    return -sum(math.log(1 + answers.count(a) / size) for a in answers) / size if size else 0.0


def credited(spec: ObjectiveSpec, batch: Batch, p: int, values: list[float]) -> list[float]:
    """Advantages with what is added for a right answer that is rare."""
    size, answers = len(values), batch.modes[p].tolist()
    keyed = [g for g in range(size) if answers[g] >= 0]
    values = list(values)
    if spec["ucpo_coef"]:
        right = [g for g in range(size) if float(batch.utilities[p, g]) >= 1]
        per_token = spec["ucpo_likelihood"] == "token"
        scores = [score(batch, batch.behaviour_logps, p * size + g, per_token).item() for g in right]
        if len(right) > 1:
            inverse = [1 / max(q, 1e-6 if per_token else 0) for q in softmax(scores)]
            for g, v in zip(right, inverse, strict=True):
                values[g] *= 1 - spec["ucpo_coef"] + spec["ucpo_coef"] * len(right) * v / sum(inverse)
    if spec["semantic_maxent_coef"]:
        cap, is_open = spec["semantic_maxent_cap"], spec["semantic_maxent_support"] == "open"
        for g in keyed:
            found = dict(enumerate(batch.mode_history[p].tolist()))
            for other in keyed:
                if other != g:
                    found[answers[other]] += 1
            support = {a for a, times in found.items() if times}
            if not is_open:
                support.add(answers[g])
            places = sum(found.values()) + len(support) + is_open
            share = {a: (found[a] + 1) / places for a in support}
            unseen = [1 / places] if is_open else []
            expected = sum(q * min(-math.log(q), cap) for q in [*share.values(), *unseen])
            bonus = min(-math.log(share.get(answers[g], 1 / places)), cap) - expected
            values[g] += spec["semantic_maxent_coef"] * (bonus / cap if is_open else bonus)
    given = [answers[g] for g in keyed]
    n = len(given)
    if spec["pcmd_coef"] and n >= 3:
        pairs = [a == b for a, b in combinations(given, 2)]
        for g in keyed:
            share = (given.count(answers[g]) - 1) / (n - 1)
            values[g] += spec["pcmd_coef"] * n / (n - 2) * (sum(pairs) / len(pairs) - share)
    if spec["setpo_coef"] and n > 1:
        for k, g in enumerate(keyed):
            values[g] += spec["setpo_coef"] * (diversity(given) - diversity(given[:k] + given[k + 1 :]))
    return values


def with_entropy_bonus(spec: ObjectiveSpec, batch: Batch, groups: list[list[float]]) -> list[list[float]]:
    every, size = [u for group in groups for u in group], batch.group_size
    mean = sum(every) / len(every)
    spread = math.sqrt(sum((u - mean) ** 2 for u in every) / len(every)) or 1.0
    result = []
    for p, group in enumerate(groups):
        rows = range(p * size, (p + 1) * size)
        surprise = [-score(batch, batch.behaviour_logps, row, True).item() for row in rows]
        centre = sum(surprise) / size
        deviation = max(math.sqrt(sum((x - centre) ** 2 for x in surprise) / size), 1e-6)
        bonus = [spec["entropy_bonus_coef"] * spread * (x - centre) / deviation for x in surprise]
        result.append([u + b for u, b in zip(group, bonus, strict=True)])
    return result


def of_kind(spec: ObjectiveSpec, group: list[float]) -> list[float]:
    """The unscaled advantages of one group."""
    size, mean = len(group), sum(group) / len(group)
    match spec["advantage"]:
        case "rloo":
            return [u - (sum(group) - u) / (size - 1) for u in group]
        case "maxrl":
            return [(u - mean) / mean for u in group]
        case "risk_sensitive":
            expected = sum(math.exp(spec["risk_sensitivity"] * u) for u in group) / size
            return [
                (math.exp(spec["risk_sensitivity"] * u) / expected - 1) / spec["risk_sensitivity"]
                for u in group
            ]
        case "pass_at_k":
            right = [u >= 1 for u in group]
            subsets = [set(s) for s in combinations(range(size), spec["pass_k"])]
            passed = [any(right[i] for i in s) for s in subsets]
            mu = sum(passed) / len(subsets)
            sigma = math.sqrt(mu * (1 - mu))
            if sigma == 0:
                return [0.0] * size
            of = [[ok for s, ok in zip(subsets, passed, strict=True) if i in s] for i in range(size)]
            return [(sum(mine) / len(mine) - mu) / sigma for mine in of]
        case "max_at_k":
            k, result = spec["max_k"], []
            for i in range(size):
                others = [j for j in range(size) if j != i]
                best = [(max([group[i], *(group[j] for j in s)]), max([group[j] for j in s], default=0.0))
                        for s in combinations(others, k - 1)]  # fmt: skip
                outside = [max(group[j] for j in s) for s in combinations(others, k)]
                mine = sum(with_i for with_i, _ in best) / len(best)
                if spec["max_k_baseline"] == "within":
                    result.append(mine - sum(without for _, without in best) / len(best))
                else:
                    result.append(mine - sum(outside) / len(outside))
            return result
        case "centered":
            return [u - mean for u in group]
        case function:
            return function(torch.tensor([group], dtype=torch.float64))[0].tolist()


def semantic_scale(spec: ObjectiveSpec, batch: Batch, p: int) -> float:
    size = batch.group_size
    rows = range(p * size, (p + 1) * size)
    per_token = spec["seed_grpo_length_normalize_logprobs"]
    mass = [math.exp(score(batch, batch.behaviour_logps, row, per_token).item()) for row in rows]
    clusters = batch.answer_clusters[p].tolist()
    shares = [
        sum(m for m, c in zip(mass, clusters, strict=True) if c == cluster) / sum(mass)
        for cluster in set(clusters)
    ]
    entropy = -sum(share * math.log(share) for share in shares)
    alpha = spec["seed_grpo_alpha"]
    if spec["seed_grpo_alpha_normalize_by_max_entropy"]:
        alpha /= math.log(size)
    return 1 / (1 + alpha * entropy)


def advantages(spec: ObjectiveSpec, batch: Batch, knobs: Knobs) -> list[list[float]]:
    groups = shaped(spec, batch, knobs)
    every = [u for group in groups for u in group]
    result = []
    for p, group in enumerate(groups):
        if len(set(group)) == 1:
            result.append(credited(spec, batch, p, [0.0] * len(group)))
            continue
        scale = {"group": sample_std(group) + 1e-4, "batch": sample_std(every) + 1e-4, "none": 1.0}
        values = [a / scale[spec["scale_rewards"]] for a in of_kind(spec, group)]
        if spec["positive_only"]:
            values = [max(a, 0.0) for a in values]
        values = credited(spec, batch, p, values)
        if spec["seed_grpo_enabled"]:
            values = [a * semantic_scale(spec, batch, p) for a in values]
        result.append(values)
    return result


def weights(spec: ObjectiveSpec, batch: Batch, knobs: Knobs) -> list[list[float]]:
    result = []
    for p, group in enumerate(shaped(spec, batch, knobs)):
        size = len(group)
        rows = range(p * size, (p + 1) * size)
        ref = [
            score(batch, batch.reference_logps, row, spec["maxent_length_normalize_ref"]).item()
            for row in rows
        ]
        tau = knobs.tau
        if spec["maxent_tau_mode_adaptive"]:
            tau /= math.log(1 + int(batch.mode_counts[p]))
        divisor = tau + knobs.beta
        if spec["policy_loss"] == "tilted":
            target = advantages(spec, batch, knobs)[p]
            if spec["maxent_tilted_utility"] == "dr_grpo":
                lengths = [len(tokens_of(batch, row)) for row in rows]
                target = [a * n / MAX_LENGTH for a, n in zip(target, lengths, strict=True)]
        else:
            q = softmax([u / spec["maxent_q_temperature"] for u in group])
            target = [
                math.log(x * (1 - spec["maxent_q_epsilon"] * size) + spec["maxent_q_epsilon"]) for x in q
            ]
            if spec["maxent_weight_denominator"] == "tau":
                divisor = tau
        result.append(softmax([(a + knobs.beta * b) / divisor for a, b in zip(target, ref, strict=True)]))
    return result


def reduce(spec: ObjectiveSpec, batch: Batch, per_token: dict[tuple[int, int], Tensor]) -> Tensor:
    """Per-token values keyed by (row, token) to the loss."""
    rows = batch.completion_mask.shape[0]
    result = torch.zeros((), dtype=torch.float64)
    for (row, _), value in per_token.items():
        if spec["loss_type"] == "grpo" or spec["loss_type"] == "sapo":
            result = result + value / len(tokens_of(batch, row)) / rows
        elif spec["loss_type"] == "luspo":
            result = result + value / rows
        elif spec["loss_type"] in ("bnpo", "dapo", "cispo", "vespo"):
            result = result + value / len(per_token)
        else:
            result = result + value / (rows * MAX_LENGTH)
    return result


def kl(estimator: str, policy: Tensor, other: Tensor) -> Tensor:
    r = policy - other.detach()
    return {"k1": r, "k2": r * r / 2, "k3": (-r).exp() - 1 + r}[estimator]


def old_of(batch: Batch, forward: Forward) -> Tensor:
    return forward.logps.detach() if batch.old_logps is None else batch.old_logps


def group_tokens(batch: Batch, row: int) -> list[tuple[int, int]]:
    """Every (row, token) of the group that ``row`` belongs to."""
    first = row // batch.group_size * batch.group_size
    return [(r, t) for r in range(first, first + batch.group_size) for t in tokens_of(batch, r)]


def covariances(batch: Batch, forward: Forward, a: list[float], row: int) -> dict[tuple[int, int], float]:
    every = group_tokens(batch, row)
    mean_a = sum(a[r] for r, _ in every) / len(every)
    mean_logp = sum(forward.logps[i].item() for i in every) / len(every)
    return {(r, t): (a[r] - mean_a) * (forward.logps[r, t].item() - mean_logp) for r, t in every}


def highest(values: dict[tuple[int, int], float], share: float, of: int) -> set[tuple[int, int]]:
    return set(sorted(values, key=lambda i: -values[i])[: math.ceil(share * of - 1e-9)])


def log_rho(spec: ObjectiveSpec, batch: Batch, forward: Forward, row: int, t: int) -> Tensor:
    old, tokens = old_of(batch, forward), tokens_of(batch, row)
    mean_gap = sum(forward.logps[row, t] - old[row, t] for t in tokens) / len(tokens)
    gap = forward.logps[row, t] - old[row, t]
    if spec["importance_sampling_level"] == "sequence":
        return mean_gap
    if spec["importance_sampling_level"] == "sequence_token":
        return mean_gap.detach() + gap - gap.detach()
    return gap


def is_clipped(spec: ObjectiveSpec, rho: float, a: float) -> bool:
    low, high = clip_range(spec)
    if surrogate_kind(spec) != "clip":
        return False
    return (rho < 1 - low and a < 0) or (rho > 1 + high and a > 0)


def correction(spec: ObjectiveSpec, batch: Batch, forward: Forward, row: int, t: int) -> float:
    if spec["tis_cap"] is None:
        return 1.0
    weight = math.exp(old_of(batch, forward)[row, t] - batch.behaviour_logps[row, t])
    if spec["tis_low"] is not None:
        return weight if spec["tis_low"] <= weight <= spec["tis_cap"] else 0.0
    return min(weight, spec["tis_cap"])


def token_loss(spec: ObjectiveSpec, batch: Batch, forward: Forward, a: float, row: int, t: int) -> Tensor:
    """The surrogate, by cases on the sign of the advantage."""
    rho = log_rho(spec, batch, forward, row, t).exp()
    low, high = clip_range(spec)
    logp, factor = forward.logps[row, t], correction(spec, batch, forward, row, t)

    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64)

    match surrogate_kind(spec):
        case "clip":
            if a >= 0:
                kept = rho if rho < 1 + high else number(1 + high)
            else:
                kept = rho if rho > 1 - low else number(1 - low)
                if spec["delta"] is not None and rho > spec["delta"]:
                    kept = number(spec["delta"])
            return -kept * a * factor
        case "unclipped":
            return -rho * a * factor
        case "cispo":
            return -min(rho.item(), high) * a * logp * factor
        case "sapo":
            heat = spec["sapo_temperature_pos"] if a > 0 else spec["sapo_temperature_neg"]
            return -4 / heat / (1 + (-heat * (rho - 1)).exp()) * a * factor
        case "vespo":
            log_w = 0.0
            for other in tokens_of(batch, row):
                log_w += (forward.logps[row, other] - old_of(batch, forward)[row, other]).item()
                log_w += math.log(correction(spec, batch, forward, row, other))
            k, rate = (
                (spec["vespo_k_pos"], spec["vespo_lambda_pos"])
                if a >= 0
                else (spec["vespo_k_neg"], spec["vespo_lambda_neg"])
            )
            return -math.exp(rate + k * log_w - rate * math.exp(log_w)) * a * logp
        case "gmpo":
            logs = [log_rho(spec, batch, forward, row, u) for u in tokens_of(batch, row)]
            if a > 0:
                logs = [gap if gap < high else number(high) for gap in logs]
            else:
                logs = [gap if gap > -low else number(-low) for gap in logs]
            return -a * (sum(logs) / len(logs)).exp() * factor
        case function:
            return function(rho.view(1, 1), number(a).view(1))[0, 0] * factor


def dropped(spec: ObjectiveSpec, batch: Batch, forward: Forward, a: list[float], row: int) -> set:
    """The (row, token)s of the row's group that lose their policy gradient."""
    every = group_tokens(batch, row)
    gone: set[tuple[int, int]] = set()
    if spec["off_policy_mask_threshold"] is not None:
        for r, t in every:
            moved = [(batch.behaviour_logps[r, u] - forward.logps[r, u]).item() for u in tokens_of(batch, r)]
            if a[r] < 0 and sum(moved) / len(moved) > spec["off_policy_mask_threshold"]:
                gone.add((r, t))
    if spec["top_entropy_quantile"] < 1:
        entropies = sorted(forward.entropy[i].item() for i in every)
        place = (1 - spec["top_entropy_quantile"]) * (len(entropies) - 1)
        below = math.floor(place)
        above = min(below + 1, len(entropies) - 1)
        threshold = entropies[below] + (place - below) * (entropies[above] - entropies[below])
        gone |= {i for i in every if forward.entropy[i].item() < threshold}
    if spec["clip_cov_fraction"]:
        cov = covariances(batch, forward, a, row)
        candidates = {
            (r, t): c
            for (r, t), c in cov.items()
            if spec["clip_cov_low"] < c < spec["clip_cov_high"]
            and not is_clipped(spec, log_rho(spec, batch, forward, r, t).exp().item(), a[r])
        }
        gone |= highest(candidates, spec["clip_cov_fraction"], len(every))
    return gone


def surrogate(spec: ObjectiveSpec, batch: Batch, forward: Forward, a: list[float]) -> Tensor:
    per_token = {}
    for row in range(len(a)):
        gone = dropped(spec, batch, forward, a, row)
        for t in tokens_of(batch, row):
            loss = token_loss(spec, batch, forward, a[row], row, t)
            per_token[row, t] = loss * 0 if (row, t) in gone else loss
    return reduce(spec, batch, per_token)


def kl_cov(spec: ObjectiveSpec, batch: Batch, forward: Forward, a: list[float]) -> Tensor:
    old, per_token = old_of(batch, forward), {}
    for row in range(len(a)):
        held = highest(
            covariances(batch, forward, a, row), spec["kl_cov_fraction"], len(group_tokens(batch, row))
        )
        for t in tokens_of(batch, row):
            distance = (forward.logps[row, t] - old[row, t]).abs()
            per_token[row, t] = distance if (row, t) in held else distance * 0
    return spec["kl_cov_coef"] * reduce(spec, batch, per_token)


def flow_loss(
    spec: ObjectiveSpec, batch: Batch, forward: Forward, knobs: Knobs
) -> tuple[Tensor, list[float]]:
    """Trajectory balance, and the advantages that it has on the behaviour policy."""
    total, first_order, size = torch.zeros((), dtype=torch.float64), [], batch.group_size
    low, high = clip_range(spec)
    for p, rewards in enumerate(advantages(spec, batch, knobs)):
        rows = range(p * size, (p + 1) * size)
        if len(set(rewards)) == 1:
            first_order += [0.0] * size
            continue
        ref = [score(batch, batch.reference_logps, row, True) for row in rows]
        target = [spec["flow_reward_scale"] * r + b for r, b in zip(rewards, ref, strict=True)]
        sampled = [
            score(batch, batch.behaviour_logps, row, True) - x for row, x in zip(rows, target, strict=True)
        ]
        first_order += [-2 * (x - sum(sampled) / size).item() for x in sampled]
        gaps = [score(batch, forward.logps, row, True) - x for row, x in zip(rows, target, strict=True)]
        level = spec.with_settings(importance_sampling_level="sequence")
        v = [min(max(log_rho(level, batch, forward, row, 0).exp().item(), 1 - low), 1 + high) for row in rows]
        log_z = -sum(x.item() * y for x, y in zip(gaps, v, strict=True)) / sum(v)
        total = (
            total + sum(y * (log_z + x) ** 2 for x, y in zip(gaps, v, strict=True)) / batch.utilities.numel()
        )
    return total, first_order


def group_losses(
    spec: ObjectiveSpec, batch: Batch, forward: Forward, w: list[list[float]], knobs: Knobs
) -> Tensor:
    """Listwise or likelihood."""
    total = torch.zeros((), dtype=torch.float64)
    groups, size = batch.utilities.shape
    for p in range(groups):
        if spec["skip_zero_spread_groups"] and len(set(shaped(spec, batch, knobs)[p])) == 1:
            continue
        per_token = spec["policy_loss"] == "likelihood" or spec["maxent_length_normalize_policy"]
        scores = [score(batch, forward.logps, p * size + g, per_token) for g in range(size)]
        norm = torch.stack(scores).exp().sum().log()
        for g in range(size):
            if spec["policy_loss"] == "likelihood":
                total = total - (w[p][g] - 1 / size) * scores[g] / groups
            else:
                total = total - w[p][g] * (scores[g] - norm) / groups / (1 if per_token else MAX_LENGTH)
    return total


def loss(spec: ObjectiveSpec, batch: Batch, forward: Forward, knobs: Knobs) -> tuple[Tensor, Signal]:
    """The whole loss, and the weights and scaled advantages behind it."""
    a = advantages(spec, batch, knobs)
    w = weights(spec, batch, knobs) if spec["policy_loss"] not in ("clip", "flow") else None
    flat = [x for group in a for x in group]
    if spec["policy_loss"] == "tilted":
        flat = [len(a[0]) * x * y for x, y in zip(flat, [x for group in w for x in group], strict=True)]
    if spec["policy_loss"] in ("clip", "tilted"):
        result = surrogate(spec, batch, forward, flat)
        if spec["kl_cov_fraction"]:
            result = result + kl_cov(spec, batch, forward, flat)
    elif spec["policy_loss"] == "flow":
        result, flat = flow_loss(spec, batch, forward, knobs)
    else:
        result = group_losses(spec, batch, forward, w, knobs)
    every = [(row, t) for row in range(len(flat)) for t in tokens_of(batch, row)]
    if spec["kl_in_loss"]:
        per_token = {i: kl(spec["kl_estimator"], forward.logps[i], batch.reference_logps[i]) for i in every}
        result = result + knobs.beta * reduce(spec, batch, per_token)
    per_token = {
        i: kl(spec["behaviour_kl_estimator"], forward.logps[i], batch.behaviour_logps[i]) for i in every
    }
    result = result + spec["behaviour_kl_coef"] * reduce(spec, batch, per_token)
    result = result - spec["entropy_coef"] * sum(forward.entropy[i] for i in every) / len(every)
    exact = torch.float64
    return result, Signal(
        torch.tensor(flat, dtype=exact), None if w is None else torch.tensor(w, dtype=exact)
    )
