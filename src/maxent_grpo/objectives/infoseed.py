"""InfoSeed: completions sampled with a seed in their prompt should differ by that seed, and be told apart by it.

Every prompt's group holds S completions of seeded variants of the prompt besides its originals. To a GRPO loss over
the whole group this adds ``λ·L_seed + α·(H_orig − H_seed)``: L_seed makes the seed readable from a completion's
pooled hidden state, and the entropy gap makes the policy sharper over its originals and flatter over its seeds.
Originals carry seed id −1 and take part in neither the contrast nor the classification.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from maxent_grpo.objectives.parts import LossInputs, Penalty
from maxent_grpo.objectives.reduce import sequence_scores
from maxent_grpo.stats import Metrics, mean_stat, sum_stat
from maxent_grpo.types import Signal


def info_nce(pooled: Tensor, seed_ids: Tensor, temperature: float) -> Tensor:
    """Mean over positive pairs (i, j) of ``−log softmax_j(cos(h_i, h_j)/T)``, j ≠ i (van den Oord et al. 2018;
    several positives to an anchor as in Khosla et al. 2020, L_out).

    Two rows with the same seed are a positive pair; anchors, positives and negatives are the seeded rows alone.

    Args:
        pooled: [N, D] pooled states, of any length: only their directions count.
        seed_ids: [N]; rows with −1 are left out.
        temperature: T > 0.

    Returns:
        Scalar in nats; 0 where no two rows share a seed.
    """
    return info_nce_shares(pooled, seed_ids, temperature).sum()


def info_nce_shares(pooled: Tensor, seed_ids: Tensor, temperature: float) -> Tensor:
    """What each row, as an anchor, contributes to `info_nce`: [N], 0 for rows without a seed or a partner."""
    if temperature <= 0:
        raise ValueError(f"the temperature of the similarities must be positive, got {temperature}")
    directions = _directions(pooled)
    itself = torch.eye(len(seed_ids), dtype=torch.bool, device=pooled.device)
    seeded = seed_ids >= 0
    contrasted = seeded.unsqueeze(1) & seeded & ~itself
    positive = contrasted & (seed_ids.unsqueeze(1) == seed_ids)
    lowest = torch.finfo(directions.dtype).min  # rather than −∞, whose softmax over an empty row would be NaN
    similarities = (directions @ directions.T / temperature).masked_fill(~contrasted, lowest)
    losses = torch.where(positive, -torch.log_softmax(similarities, dim=1), 0.0)
    return losses.sum(dim=1) / positive.sum().clamp(min=1)


def seed_cross_entropy(logits: Tensor, seed_ids: Tensor, count: float | None = None) -> Tensor:
    """Mean cross-entropy of the seed head over seeded rows: a classification of completions by their seed.

    Args:
        logits: [N, S].
        seed_ids: [N]; rows with −1 are left out.
        count: seeded rows of the whole optimiser batch. None: of those given.

    Returns:
        Scalar in nats, one micro-batch's share of the mean; 0 where no row is seeded.
    """
    total = functional.cross_entropy(logits, seed_ids, ignore_index=-1, reduction="sum")
    return total / (float((seed_ids >= 0).sum().clamp(min=1)) if count is None else count)


def subset_entropy(scores: Tensor, subset: Tensor) -> Tensor:
    """Entropy of the softmax of ``scores`` within a part of each group: [P, G], [P, G] bool → [P] in nats.

    Differentiable in the scores; 0 for an empty part.
    """
    lowest = torch.finfo(scores.dtype).min
    logs = torch.log_softmax(scores.masked_fill(~subset, lowest), dim=1)
    return -torch.where(subset, logs.exp() * logs, 0.0).sum(dim=1)


def contrast_gradient(pooled: Tensor, seed_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`info_nce_shares` of a whole optimiser batch, and the gradient of their sum in ``pooled``: [N], [N, D]."""
    with torch.enable_grad():
        leaf = pooled.detach().requires_grad_()
        shares = info_nce_shares(leaf, seed_ids, temperature)
        (gradient,) = torch.autograd.grad(shares.sum(), leaf)
    return shares.detach(), gradient


def nearest_centroid(states: Tensor) -> Tensor:
    """Whether each completion is nearest to the centroid of its own seed: states [P, S, D] → [P, S] bool.

    A centroid is the mean direction of one seed's completions of the *other* prompts, and nearest is by cosine.
    Chance is 1/S. Needs P ≥ 2.
    """
    directions = _directions(states)
    centroids = _directions(directions.sum(dim=0) - directions)  # [P, S, D], without the prompt itself
    nearest = (directions @ centroids.transpose(1, 2)).argmax(dim=2)
    return nearest == torch.arange(states.shape[1], device=states.device)


def nearest_neighbour(states: Tensor) -> Tensor:
    """Whether the completion nearest to each, among those of *other* prompts, has its seed: as `nearest_centroid`."""
    prompts, seeds, _ = states.shape
    directions = _directions(states).flatten(0, 1)
    prompt_of = torch.arange(prompts, device=states.device).repeat_interleave(seeds)
    same_prompt = prompt_of.unsqueeze(1) == prompt_of
    nearest = (directions @ directions.T).masked_fill(same_prompt, -2.0).argmax(dim=1)
    return (nearest % seeds).view(prompts, seeds) == torch.arange(seeds, device=states.device)


def seed_distances(states: Tensor) -> Tensor:
    """Mean L2 distance between the directions of one prompt's seeded completions: [P, S, D] → [P], in [0, 2]."""
    seeds = states.shape[1]
    directions = _directions(states)
    above = torch.triu_indices(seeds, seeds, offset=1, device=states.device)
    distances: Tensor = (directions[:, above[0]] - directions[:, above[1]]).norm(dim=2)
    return distances.mean(dim=1)


@dataclass(frozen=True)
class InfoSeed(Penalty):
    """A micro-batch's share of ``λ·L_seed + α·(H_orig − H_seed)``, and of its metrics.

    The entropies are those of the policy's own softmax over the group's originals, and over its seeded completions,
    of log-probs per token: with gradient, unlike entropies of weights that the loss holds constant.
    """

    num_seeds: int
    """S, the seeded completions of a group."""
    classifies: bool = False
    """False: contrast of pooled states over the whole optimiser batch. True: cross-entropy of a seed head."""
    coefficient: float = 0.0
    """λ"""
    temperature: float = 0.1
    """Of the contrast's similarities."""
    alpha_entropy: float = 0.0
    """α"""

    @property
    def contrasts(self) -> bool:
        """Whether the loss contrasts completions of different groups, so that it needs all of them at once."""
        return not self.classifies and self.coefficient > 0

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        """The term, a scalar, and its metrics.

        Raises:
            ValueError: no seed ids, pooled states or seed logits where they are needed, or a contrast over one
                micro-batch of several.
        """
        batch, forward = inputs.batch, inputs.forward
        seed_ids = _given(batch.seed_ids, "seed ids of the batch")
        scores = sequence_scores(forward.logps, inputs.mask, batch.group_size, length_normalize=True)
        seeded = seed_ids.view_as(scores) >= 0
        original_entropy, seed_entropy = subset_entropy(scores, ~seeded), subset_entropy(scores, seeded)
        metrics: Metrics = {
            "seed/entropy/orig": mean_stat(original_entropy),
            "seed/entropy/seed_aug": mean_stat(seed_entropy),
            "seed/seed_aug_frac": mean_stat(seeded.float()),
        }
        seed_loss = entropy_gap = inputs.zero
        if self.alpha_entropy > 0:
            gap = (original_entropy - seed_entropy).sum()
            entropy_gap = self.alpha_entropy * gap / inputs.denominators.groups
        if self.classifies:
            logits = _given(forward.seed_logits, "seed logits of the forward")
            right = logits.argmax(dim=1) == seed_ids
            metrics["seed/seed_pred_acc_aug"] = mean_stat(right.float(), seed_ids >= 0)
            if self.coefficient > 0:
                count = inputs.denominators.groups * self.num_seeds
                seed_loss = self.coefficient * seed_cross_entropy(logits, seed_ids, count)
        elif self.coefficient > 0:
            seed_loss = self.coefficient * self._contrast(inputs, seed_ids)
        metrics |= {"loss/seed": sum_stat(seed_loss), "info_seed/entropy": sum_stat(entropy_gap)}
        return seed_loss + entropy_gap, metrics

    def _contrast(self, inputs: LossInputs, seed_ids: Tensor) -> Tensor:
        """A micro-batch's share of the contrast over the whole optimiser batch, in value and gradient.

        The gradient in the pooled states was computed over the whole batch beforehand (`prepared`), so that
        ``⟨pooled, gradient⟩`` has the parameter gradient of the loss, whatever the split (GradCache, Gao et al. 2021).
        """
        signal, pooled = inputs.signal, _given(inputs.forward.pooled, "pooled states of the forward")
        if signal.contrast_losses is None or signal.contrast_gradient is None:
            if inputs.batch.utilities.shape[0] != inputs.denominators.groups:
                raise ValueError("a contrast needs the pooled states of the whole optimiser batch")
            return info_nce(pooled, seed_ids, self.temperature)
        tangent = (pooled - pooled.detach()) * signal.contrast_gradient.view_as(pooled)  # 0, with a gradient
        return signal.contrast_losses.sum() + tangent.sum()

    def prepared(self, signal: Signal, states: Tensor, seed_ids: Tensor, own: slice) -> Signal:
        """The signal with the contrast over all ranks, for micro-batches that see a part of it.

        Args:
            states: [N, D] pooled states of the optimiser batch.
            seed_ids: [N]
            own: this rank's rows.
        """
        shares, gradient = contrast_gradient(states, seed_ids, self.temperature)
        shape = signal.advantages.shape
        return replace(
            signal,
            contrast_losses=shares[own].view(shape),
            contrast_gradient=gradient[own].view(*shape, -1),
        )

    @torch.no_grad()
    def state_metrics(self, states: Tensor) -> Metrics:
        """How far seeds are told apart in the pooled states [P·S, D] of all seeded rows, seeds in order."""
        states = states.view(-1, self.num_seeds, states.shape[-1])
        metrics: Metrics = {"seed/seed_diversity_l2": mean_stat(seed_distances(states))}
        if states.shape[0] > 1:  # both compare across prompts
            metrics["seed/seed_pred_acc"] = mean_stat(nearest_centroid(states).float())
            if not self.classifies:
                metrics["seed/seed_pred_acc_aug"] = mean_stat(nearest_neighbour(states).float())
        return metrics


def _directions(vectors: Tensor) -> Tensor:
    """Unit vectors, at least in float32."""
    return functional.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def _given(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"InfoSeed needs the {name}")
    return tensor
