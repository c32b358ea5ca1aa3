"""Our losses and their gradients against those of TRL and TorchRL, on one ragged batch, in float32.

    python -m benchmarks.parity

Prints a table: objective × peer × largest difference (loss, gradient in the logits). The peers run their own code:
TRL's `GRPOTrainer._compute_loss` on a stand-in that carries the attributes that it reads; TorchRL's `GRPOLoss` and
`CISPOLoss` (extra ``parity``; left out where it is not installed) with an actor that returns the batch's logits.
Prompts are padded on the left and completions on the right; TorchRL gets each row as one left-padded sequence.
docs/parity.md says where the peers differ in definition.
"""

import importlib.util
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from maxent_grpo.models.lm_head import EntropyMode, logps_of_logits
from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec, build_objective
from maxent_grpo.stats import Metrics
from maxent_grpo.types import Batch, Denominators, Forward, Knobs, Signal

GROUPS, GROUP_SIZE, VOCABULARY, MAX_LENGTH = 4, 3, 13, 11
LENGTHS = [5, 1, 3, 7, 2, 2, 4, 6, 1, 7, 3, 5]
PROMPT_LENGTHS = [4, 1, 3, 2]
TORCHRL_INSTALLED = importlib.util.find_spec("torchrl") is not None


@dataclass(frozen=True)
class Case:
    """One batch as everybody sees it."""

    batch: Batch
    logits: Tensor  # [B, T, V], the leaf that gradients are taken in

    @property
    def forward(self) -> Forward:
        return forward_of(self.logits, self.batch.completion_ids, self.batch.completion_mask, "differentiate")

    @property
    def denominators(self) -> Denominators:
        batch = self.batch
        groups, size = batch.utilities.shape
        return Denominators(groups, groups * size, float(batch.completion_mask.sum()), MAX_LENGTH)


def forward_of(logits: Tensor, ids: Tensor, mask: Tensor, entropy: EntropyMode) -> Forward:
    """Log-probs of ``ids`` [B, T] (and entropies) under ``logits`` [B, T, V]; 0 where ``mask`` is false."""
    logps, entropies = logps_of_logits(logits.flatten(0, 1), ids.flatten(), 1.0, entropy)
    zero = logps.new_zeros(())
    return Forward(
        torch.where(mask, logps.view_as(ids), zero),
        None if entropies is None else torch.where(mask, entropies.view_as(ids), zero),
    )


def make_case(on_policy: bool = False, groups: int = GROUPS, seed: int = 6) -> Case:
    """A ragged batch in float32: off-policy by some tenths of a nat per token, unless ``on_policy``."""
    draw = torch.Generator().manual_seed(seed)
    rows, width, longest_prompt = groups * GROUP_SIZE, max(LENGTHS), max(PROMPT_LENGTHS)
    mask = torch.arange(width) < torch.tensor(LENGTHS[:rows])[:, None]
    prompt_mask = (
        torch.arange(longest_prompt) >= longest_prompt - torch.tensor(PROMPT_LENGTHS[:groups])[:, None]
    )
    ids = torch.where(mask, torch.randint(1, VOCABULARY, (rows, width), generator=draw), 0)
    prompt_ids = torch.where(prompt_mask, torch.randint(1, VOCABULARY, prompt_mask.shape, generator=draw), 0)
    logits = torch.randn(rows, width, VOCABULARY, generator=draw).requires_grad_()

    def logps_near(scale: float) -> Tensor:
        noise = scale * torch.randn(rows, width, VOCABULARY, generator=draw)
        return forward_of(logits.detach() + noise, ids, mask, "none").logps

    utilities = torch.randint(0, 3, (groups, GROUP_SIZE), generator=draw) / 2.0
    utilities[0] = torch.arange(GROUP_SIZE)
    batch = Batch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=ids,
        completion_mask=mask,
        behaviour_logps=logps_near(0.35),
        utilities=utilities,
        reference_logps=logps_near(0.5),
        old_logps=None if on_policy else logps_near(0.4),
    )
    return Case(batch, logits)


def ours(spec: ObjectiveSpec, case: Case, beta: float) -> tuple[Tensor, Signal, Metrics]:
    """Our loss, the signal that it learns from, and its statistics."""
    objective, knobs = build_objective(spec), Knobs(0.0, beta)
    signal, _ = objective.signal(case.batch, knobs)
    loss, metrics = objective.loss(case.forward, case.batch, signal, knobs, case.denominators)
    return loss, signal, metrics


# TRL


def trl_loss(
    spec: ObjectiveSpec, case: Case, advantages: Tensor, beta: float
) -> tuple[Tensor, dict[str, float]]:
    """`GRPOTrainer._compute_loss` and what it logs, for the settings that both have."""
    from trl import GRPOTrainer

    batch, forward = case.batch, case.forward
    metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
    low = spec["epsilon"]
    high = low if spec["epsilon_high"] is None else spec["epsilon_high"]
    vespo = {
        f"vespo_{name}": spec[f"vespo_{name}"] for name in ("k_pos", "lambda_pos", "k_neg", "lambda_neg")
    }
    args = SimpleNamespace(
        delta=spec["delta"],
        use_bias_correction_kl=False,
        steps_per_generation=1,
        sapo_temperature_pos=spec["sapo_temperature_pos"],
        sapo_temperature_neg=spec["sapo_temperature_neg"],
        **vespo,
    )
    accelerator = SimpleNamespace(
        num_processes=1,
        sync_gradients=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, dim, pad_index: x,
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (forward.logps, forward.entropy, None),
        _metrics=metrics,
        _entropy_bonus_enabled=spec["entropy_coef"] != 0,
        accelerator=accelerator,
        args=args,
        aux_loss_enabled=False,
        beta=beta,
        current_gradient_accumulation_steps=1,
        entropy_coef=spec["entropy_coef"],
        epsilon_high=high,
        epsilon_low=low,
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        importance_sampling_level=spec["importance_sampling_level"],
        loss_type=spec["loss_type"],
        max_completion_length=MAX_LENGTH,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=spec["off_policy_mask_threshold"],
        top_entropy_quantile=spec["top_entropy_quantile"],
        use_adaptive_entropy=False,
        use_vllm=spec["tis_cap"] is not None,
        vllm_importance_sampling_correction=True,
    )
    trainer.get_high_entropy_mask = lambda *args: GRPOTrainer.get_high_entropy_mask(trainer, *args)
    inputs: dict[str, Any] = {
        "prompt_ids": batch.prompt_ids[batch.prompt_rows],
        "prompt_mask": batch.prompt_mask[batch.prompt_rows].long(),
        "completion_ids": batch.completion_ids,
        "completion_mask": batch.completion_mask.long(),
        "advantages": advantages.flatten(),
        "old_per_token_logps": batch.old_logps,
        "ref_per_token_logps": batch.reference_logps,
        "sampling_per_token_logps": batch.behaviour_logps,
        "num_items_in_batch": batch.completion_mask.sum(),
    }
    if spec["tis_cap"] is not None:
        old = forward.logps.detach() if batch.old_logps is None else batch.old_logps
        inputs["importance_sampling_ratio"] = (old - batch.behaviour_logps).exp().clamp(max=spec["tis_cap"])
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, {name: values[0] for name, values in metrics["train"].items()}


TRL_SETTINGS: dict[str, tuple[ObjectiveSpec, float]] = {
    **{
        f"{loss_type}, {level} ratio{kl}": (
            ObjectiveSpec(
                loss_type=loss_type,
                importance_sampling_level=level,
                epsilon=0.2 if level == "token" else 0.05,
                epsilon_high=1.3 if loss_type == "cispo" else 0.28,
            ),
            beta,
        )
        for loss_type in ("grpo", "bnpo", "dapo", "dr_grpo", "luspo", "cispo", "sapo", "vespo")
        for level in ("token", "sequence")
        if (loss_type, level) != ("vespo", "sequence")  # refused here; TRL ignores the level
        for kl, beta in (("", 0.0), (", KL", 0.1))
    },
    **{
        f"{loss_type}, {level} ratio, dual clip": (
            ObjectiveSpec(
                loss_type=loss_type, importance_sampling_level=level, epsilon_high=0.28, delta=1.35
            ),
            0.0,
        )
        for loss_type in ("grpo", "bnpo", "dapo", "dr_grpo", "luspo")
        for level in ("token", "sequence")
    },
    **{
        f"{loss_type}, truncated importance": (CATALOG[loss_type].with_settings(tis_cap=1.02), 0.1)
        for loss_type in ("grpo", "dapo", "cispo", "sapo", "vespo")
    },
    **{
        f"{loss_type}, entropy bonus": (CATALOG[loss_type].with_settings(entropy_coef=0.05), 0.0)
        for loss_type in ("grpo", "dr_grpo")
    },
    "dapo, off-policy mask": (CATALOG["dapo"].with_settings(off_policy_mask_threshold=0.02), 0.0),
}
"""Name → (objective, β). Catalog entries called after a ``loss_type`` are TRL's losses of that name."""


# TorchRL


def torchrl_loss(name: str, case: Case, advantages: Tensor, kl_to_ref: float = 0.0, **settings: Any) -> Any:
    """The output of TorchRL's loss class ``name`` on the rows as left-padded sequences of prompt and completion."""
    from tensordict import TensorDict
    from torchrl.modules.distributions.discrete import LLMMaskedCategorical
    from torchrl.objectives.llm import grpo

    left = left_padded_rows(case)
    dist = LLMMaskedCategorical(logits=left.logits, mask=left.mask)

    class Actor(torch.nn.Module):
        in_keys: tuple[Any, ...] = ()

        def get_dist(self, tensordict: Any, **kwargs: Any) -> LLMMaskedCategorical:
            return dist

    loss = getattr(grpo, name)(
        Actor(),
        entropy_bonus=False,
        masking_strategy="generic",
        kl_to_ref_coeff=kl_to_ref or None,
        **settings,
    )
    rows, width = left.mask.shape
    inputs = TensorDict(
        {
            "advantage": advantages.flatten()[:, None, None].expand(rows, width, 1),
            ("tokens", "full"): left.ids,
            ("log_probs", "full"): left.old_logps,
            ("next", "ref_log_probs", "full"): left.reference_logps,
        },
        batch_size=[rows],
    )
    return loss(inputs)


@dataclass(frozen=True)
class LeftPadded:
    logits: Tensor  # [B, W, V] that predict each position; differentiable in the case's
    ids: Tensor  # [B, W]
    mask: Tensor  # [B, W] bool: completion tokens
    old_logps: Tensor  # [B, W]
    reference_logps: Tensor  # [B, W]


def left_padded_rows(case: Case) -> LeftPadded:
    """Each prompt with its completion as one sequence, padded on the left, as TorchRL's wrappers lay them out."""
    batch = case.batch
    old = case.forward.logps.detach() if batch.old_logps is None else batch.old_logps
    prompts = batch.prompt_mask.sum(dim=1)[batch.prompt_rows]
    width = int((prompts + batch.lengths).max())
    rows = batch.completion_ids.shape[0]
    logits = torch.zeros(rows, width, VOCABULARY)
    ids = torch.full((rows, width), -100)
    mask = torch.zeros(rows, width, dtype=torch.bool)
    logps = torch.zeros(2, rows, width)
    parts = []
    for row, length in enumerate(batch.lengths.tolist()):
        parts.append(torch.cat([logits[row, : width - length], case.logits[row, :length]]))
        ids[row, width - length :] = batch.completion_ids[row, :length]
        mask[row, width - length :] = True
        for which, source in enumerate((old, batch.reference_logps)):
            assert source is not None
            logps[which, row, width - length :] = source[row, :length]
    return LeftPadded(torch.stack(parts), ids, mask, logps[0], logps[1])


TORCHRL_SETTINGS: dict[str, tuple[str, ObjectiveSpec, dict[str, Any]]] = {
    "token mean": ("GRPOLoss", ObjectiveSpec(loss_type="dapo"), {"clip_epsilon": 0.2}),
    "clip-higher": (
        "DAPO",
        ObjectiveSpec(loss_type="dapo", epsilon_high=0.28),
        {"clip_epsilon": (0.2, 0.28)},
    ),
    "sequence mean": (
        "GRPOLoss",
        ObjectiveSpec(loss_type="grpo"),
        {"clip_epsilon": 0.2, "aggregation": "prompt_mean"},
    ),
}
"""Name → (TorchRL's class, our objective, its settings)."""


# The table


@dataclass(frozen=True)
class Difference:
    objective: str
    peer: str
    loss: float
    gradient: float


def difference(objective: str, peer: str, case: Case, our_loss: Tensor, peer_loss: Tensor) -> Difference:
    """How far the losses, and their gradients in the logits, are apart."""
    (our_gradient,) = torch.autograd.grad(our_loss, case.logits, retain_graph=True)
    (peer_gradient,) = torch.autograd.grad(peer_loss, case.logits, retain_graph=True)
    largest = (our_gradient - peer_gradient).abs().max()
    return Difference(objective, peer, float((our_loss - peer_loss).abs().detach()), float(largest))


def trl_differences() -> Iterator[Difference]:
    for policy, on_policy in (("off-policy", False), ("on-policy", True)):
        case = make_case(on_policy)
        for name, (spec, beta) in TRL_SETTINGS.items():
            loss, signal, _ = ours(spec, case, beta)
            theirs, _ = trl_loss(spec, case, signal.advantages, beta)
            yield difference(f"{name}, {policy}", "TRL", case, loss, theirs)
    case = make_case(groups=1)  # TRL selects within a micro-batch, we within a group
    for share in (0.2, 0.5):
        spec = CATALOG["dapo"].with_settings(top_entropy_quantile=share)
        loss, signal, _ = ours(spec, case, 0.0)
        theirs, _ = trl_loss(spec, case, signal.advantages, 0.0)
        yield difference(f"dapo, top entropy {share}, one group", "TRL", case, loss, theirs)


def torchrl_differences() -> Iterator[Difference]:
    for policy, on_policy in (("off-policy", False), ("on-policy", True)):
        case = make_case(on_policy)
        for name, (kind, spec, settings) in TORCHRL_SETTINGS.items():
            loss, signal, _ = ours(spec, case, 0.0)
            theirs = torchrl_loss(kind, case, signal.advantages, **settings).loss_objective.squeeze()
            yield difference(f"{name}, {policy}", f"TorchRL {kind}", case, loss, theirs)


def main() -> None:
    rows = list(trl_differences())
    if TORCHRL_INSTALLED:
        rows += torchrl_differences()
    else:
        print("TorchRL is not installed: pip install 'maxent-grpo[parity]' adds its rows\n")
    print(f"{'objective':<52}{'peer':<18}{'loss':>10}{'gradient':>10}")
    for row in rows:
        print(f"{row.objective:<52}{row.peer:<18}{row.loss:>10.1e}{row.gradient:>10.1e}")
    print(f"\n{len(rows)} comparisons in float32, all of largest difference "
          f"{max(max(row.loss, row.gradient) for row in rows):.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
