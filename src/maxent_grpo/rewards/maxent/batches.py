"""From prompts to scored groups on plain lists: generation with retries, rewards, advantages, q."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from maxent_grpo.objectives import advantages, semantic
from maxent_grpo.objectives.weights import target_log_q
from maxent_grpo.tasks.registry import answer_clusters


class GenerationFn(Protocol):
    """Samples ``per_prompt_counts`` completions of each prompt, ``num`` where that is None.

    Returns the completions grouped per prompt, and metadata of the same shape, or None; None where it failed.
    """

    def __call__(
        self, prompts: list[str], num: int, per_prompt_counts: list[int] | None = None
    ) -> tuple[list[list[str]], list[list[Any]] | None] | None: ...


@dataclass
class RewardSpec:
    """Reward functions, called as ``function(completions, answers)``, and their weights."""

    reward_funcs: Sequence[Callable[..., Sequence[float]]]
    reward_weights: Sequence[float]


@dataclass
class GenerationBatch:
    """Completions grouped per prompt; prompts without any are left out."""

    prompts: list[str]
    answers: list[str]
    grouped_completions: list[list[str]]
    grouped_ref_meta: list[list[Any]] | None = None  # {"logprob_sum", "token_count", …} of each completion
    grouped_completion_info: list[list[dict[str, Any]]] | None = None  # {"truncated", "finish_reason", …}


@dataclass
class PromptCompletionBatch:
    """Prompts and completions side by side, flat."""

    prompts: list[str]
    completions: list[str]
    metadata: list[dict[str, Any]] | None = None


@dataclass
class AdvantageStats:
    grouped: list[list[float]]
    samples: list[float]


@dataclass
class QDistribution:
    grouped: list[list[float]]
    samples: list[float]


@dataclass
class RewardMoments:
    """Mean and population standard deviation of the utilities."""

    mean: float
    std: float


@dataclass
class RewardComputation:
    """Everything that the rewards of a batch say."""

    total_utils: list[float]
    per_reward_values: dict[str, list[float]]
    advantage: AdvantageStats
    pairs: PromptCompletionBatch
    q_distribution: QDistribution
    moments: RewardMoments
    ref_logprob_meta: list[Any] | None = None
    completion_metadata: list[dict[str, Any]] | None = None
    controller_beta: float | None = None  # β and τ at which it was made, for the log
    controller_tau: float | None = None

    @property
    def advantage_samples(self) -> list[float]:
        return self.advantage.samples

    @property
    def q_grouped(self) -> list[list[float]]:
        return self.q_distribution.grouped

    @property
    def train_reward_mean(self) -> float:
        return self.moments.mean

    @property
    def train_reward_std(self) -> float:
        return self.moments.std


def compute_reward_totals(
    reward_spec: RewardSpec, completion_batch: Sequence[str], flat_answers: Sequence[str]
) -> tuple[list[float], dict[str, list[float]]]:
    """Weighted sums of the rewards, NaN scores left out, and the scores of each as ``reward_0``, ``reward_1``, ….

    As many weights as functions; any other number of them weighs all functions 1.

    Raises:
        ValueError: a function returned another number of scores than there are completions.
    """
    functions, weights = list(reward_spec.reward_funcs), list(reward_spec.reward_weights)
    if len(weights) != len(functions):
        weights = [1.0] * len(functions)
    values: dict[str, list[float]] = {}
    for i, function in enumerate(functions):
        scores = [float(score) for score in function(list(completion_batch), list(flat_answers))]
        if len(scores) != len(completion_batch):
            raise ValueError(f"reward_{i} gave {len(scores)} scores for {len(completion_batch)} completions")
        values[f"reward_{i}"] = scores
    if not values:
        return [0.0] * len(completion_batch), values
    scores_of = torch.tensor(list(values.values()), dtype=torch.float64)  # [functions, B]
    totals = (scores_of * torch.tensor(weights, dtype=torch.float64).unsqueeze(1)).nansum(dim=0)
    return [float(total) for total in totals], values


def reward_moments(total_utils: Sequence[float], device: torch.device) -> tuple[float, float]:
    """Mean and population standard deviation, computed on ``device``; zeros where there is nothing."""
    if not total_utils:
        return 0.0, 0.0
    utilities = torch.tensor(list(total_utils), dtype=torch.float32, device=device)
    return float(utilities.mean()), float(utilities.std(correction=0))


def group_advantages(
    grouped_comps: Sequence[Sequence[str]], total_utils: Sequence[float], *, scale_rewards: bool = True
) -> tuple[list[list[float]], list[float]]:
    """Utilities minus their group's mean, divided by its standard deviation + 1e-4 if scaled; and the same flat.

    Raises:
        ValueError: there are not as many utilities as completions.
    """
    grouped: list[list[float]] = []
    for utilities in _grouped(grouped_comps, total_utils):
        if not utilities:
            grouped.append([])
            continue
        row = torch.tensor([utilities], dtype=torch.float64)
        centred = advantages.grpo(row) if scale_rewards and len(utilities) > 1 else advantages.dr_grpo(row)
        grouped.append([float(a) for a in centred[0]])
    return grouped, [a for group in grouped for a in group]


def prepare_generation_batch(
    batch: Mapping[str, list[str]],
    generator: GenerationFn,
    generation_stats: dict[str, int],
    expected_generations: int,
    max_retry_rounds: int | None = None,
) -> GenerationBatch | None:
    """Sample every prompt ``expected_generations`` times, asking again for what is missing.

    At most ``max_retry_rounds`` further rounds (None: as many as expected generations). Prompts that stay without a
    completion are left out, incomplete groups are kept, surplus completions are cut off; ``generation_stats`` counts
    ``vllm_retry_rounds``, ``dropped_prompts``, ``partial_prompts``, ``vllm_excess_prompts`` and
    ``vllm_excess_completions``. None where nothing was sampled.
    """
    prompts = list(batch["prompt"])
    completions: list[list[str]] = [[] for _ in prompts]
    metadata: list[list[Any]] = [[] for _ in prompts]

    def take(rows: list[int], groups: Sequence[Sequence[str]], infos: Sequence[Sequence[Any]] | None) -> None:
        for i, row in enumerate(rows[: len(groups)]):
            completions[row] += groups[i]
            metadata[row] += infos[i] if infos is not None else [None] * len(groups[i])

    def count(name: str, number: int) -> None:
        generation_stats[name] = generation_stats.get(name, 0) + number

    def ask(rows: list[int], counts: list[int] | None = None) -> None:
        sampled = generator(
            [prompts[row] for row in rows], expected_generations, *([counts] if counts else [])
        )
        if sampled is not None:
            take(rows, *sampled)

    if not prompts:
        return None
    ask(list(range(len(prompts))))
    for _ in range(expected_generations if max_retry_rounds is None else max_retry_rounds):
        missing = [row for row, group in enumerate(completions) if len(group) < expected_generations]
        if not missing:
            break
        count("vllm_retry_rounds", 1)
        wanted = [expected_generations - len(completions[row]) for row in missing]
        ask(missing, wanted)

    surplus = [max(0, len(group) - expected_generations) for group in completions]
    kept = [row for row, group in enumerate(completions) if group]
    count("vllm_excess_prompts", sum(number > 0 for number in surplus))
    count("vllm_excess_completions", sum(surplus))
    count("dropped_prompts", len(prompts) - len(kept))
    count("partial_prompts", sum(len(completions[row]) < expected_generations for row in kept))
    if not kept:
        return None
    grouped_meta = [metadata[row][:expected_generations] for row in kept]
    return GenerationBatch(
        prompts=[prompts[row] for row in kept],
        answers=[batch["answer"][row] for row in kept],
        grouped_completions=[completions[row][:expected_generations] for row in kept],
        grouped_ref_meta=grouped_meta
        if any(m is not None for group in grouped_meta for m in group)
        else None,
    )


def compute_reward_statistics(
    gen_batch: GenerationBatch,
    reward_spec: RewardSpec,
    device: torch.device,
    q_temperature: float,
    q_epsilon: float,
    controller_beta: float | None = None,
    controller_tau: float | None = None,
    scale_rewards: bool = True,
    zero_truncated_completion_rewards: bool = False,
    max_completion_len: int | None = None,
    seed_grpo_enabled: bool = False,
    seed_grpo_alpha: float = 0.0417,
    seed_grpo_alpha_normalize_by_max_entropy: bool = True,
    seed_grpo_length_normalize_logprobs: bool = True,
    seed_grpo_num_generations: int | None = None,
) -> RewardComputation | None:
    """Utilities, advantages and q of a batch; None where it has no completion.

    ``zero_truncated_completion_rewards`` sets the utility of a completion to 0 whose information says truncated, whose
    finish reason is "length", or that has ``max_completion_len`` tokens or more. ``seed_grpo_num_generations`` is the
    K of α / ln K; None: each group's own size.

    Raises:
        ValueError: SEED-GRPO without log-probs (``logprob_sum``, and ``token_count`` if per token) of every completion.
    """
    groups = gen_batch.grouped_completions
    completions = [text for group in groups for text in group]
    if not completions:
        return None
    answers = [a for a, group in zip(gen_batch.answers, groups, strict=True) for _ in group]
    prompts = [p for p, group in zip(gen_batch.prompts, groups, strict=True) for _ in group]
    infos = _flat(gen_batch.grouped_completion_info)
    metas = _flat(gen_batch.grouped_ref_meta)
    totals, per_reward = compute_reward_totals(reward_spec, completions, answers)
    if zero_truncated_completion_rewards:
        for i in range(len(totals)):
            said = [x[i] for x in (infos, metas) if x is not None and isinstance(x[i], Mapping)]
            if any(_truncated(info, max_completion_len) for info in said):
                totals[i] = 0.0
    grouped, flat = group_advantages(groups, totals, scale_rewards=scale_rewards)
    if seed_grpo_enabled:
        scores = _seed_scores(groups, metas, seed_grpo_length_normalize_logprobs)
        for i, group in enumerate(groups):
            size = seed_grpo_num_generations or len(group)
            alpha = semantic.effective_alpha(seed_grpo_alpha, size, seed_grpo_alpha_normalize_by_max_entropy)
            clusters = torch.tensor([answer_clusters(group, {})])
            scale = float(semantic.seed_scale(semantic.semantic_entropy(clusters, scores[i]), alpha))
            grouped[i] = [a * scale for a in grouped[i]]
        flat = [a for group in grouped for a in group]
    q = [
        target_log_q(torch.tensor([utilities], dtype=torch.float64), q_temperature, q_epsilon)
        .exp()[0]
        .tolist()
        if utilities
        else []
        for utilities in _grouped(groups, totals)
    ]
    return RewardComputation(
        total_utils=totals,
        per_reward_values=per_reward,
        advantage=AdvantageStats(grouped, flat),
        pairs=PromptCompletionBatch(prompts, completions, infos),
        q_distribution=QDistribution(q, [value for group in q for value in group]),
        moments=RewardMoments(*reward_moments(totals, device)),
        ref_logprob_meta=metas,
        completion_metadata=infos,
        controller_beta=controller_beta,
        controller_tau=controller_tau,
    )


def _truncated(info: Mapping[str, Any], longest: int | None) -> bool:
    tokens = info.get("token_count")
    too_long = longest is not None and tokens is not None and int(tokens) >= longest
    return bool(info.get("truncated")) or info.get("finish_reason") == "length" or too_long


def _seed_scores(groups: Sequence[Sequence[str]], metas: list[Any] | None, per_token: bool) -> list[Tensor]:
    """Log-probs [1, K] of each group under the policy that sampled it."""
    scores = []
    for i, meta in enumerate(metas or [None] * sum(map(len, groups))):
        known = isinstance(meta, Mapping) and meta.get("logprob_sum") is not None
        if not known or (per_token and not meta.get("token_count")):
            raise ValueError(
                f"SEED-GRPO weighs answers by their log-probs, and completion {i} has none: sample with log-probs"
            )
        scores.append(float(meta["logprob_sum"]) / (max(int(meta["token_count"]), 1) if per_token else 1))
    return [torch.tensor([row], dtype=torch.float64) for row in _grouped(groups, scores)]


def _flat(grouped: list[list[Any]] | None) -> list[Any] | None:
    return None if grouped is None else [item for group in grouped for item in group]


def _grouped(groups: Sequence[Sequence[str]], values: Sequence[float]) -> list[list[float]]:
    if len(values) != sum(map(len, groups)):
        raise ValueError(f"{len(values)} values for {sum(map(len, groups))} completions: give one for each")
    taken = iter(values)
    return [[next(taken) for _ in group] for group in groups]
