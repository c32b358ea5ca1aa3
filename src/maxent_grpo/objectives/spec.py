"""What an objective is made of, in plain numbers and names. τ and β are not here: the controllers set them.

An `ObjectiveSpec` is flat, and reads in four parts: what is rewarded (`AdvantageSpec`), how an advantage becomes a
loss (`SurrogateSpec`), how candidates of a group are weighted (`WeightSpec`), and what is added to or taken out of
the loss (`RegularizerSpec`). Parts compose freely; `contradictions` names the combinations that make no sense.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.corrections import CorrectionLevel
from maxent_grpo.objectives.infoseed import InfoSeedSpec
from maxent_grpo.objectives.reduce import LossType
from maxent_grpo.objectives.regularizers import KLEstimator
from maxent_grpo.objectives.surrogates import RatioLevel
from maxent_grpo.objectives.weights import WeightDenominator

PolicyLoss = Literal["clip", "listwise", "likelihood", "tilted", "flow"]
ScaleRewards = Literal["group", "batch", "none"]
TiltedUtility = Literal["length_free", "dr_grpo"]
AdvantageName = Literal["centred", "rloo", "maxrl", "pass_at_k", "risk_sensitive"]
SurrogateName = Literal["clip", "unclipped", "cispo", "sapo", "vespo"]

AdvantageFunction = Callable[[Tensor], Tensor]
"""Utilities [P, G] → advantages [P, G]. Groups without spread are set to 0 afterwards."""
SurrogateFunction = Callable[[Tensor, Tensor], Tensor]
"""(importance ratio [B, T] or [B, 1], advantages [B]) → loss per token, of the ratio's shape."""

GROUP_LOSSES = ("listwise", "likelihood", "flow")
"""Values of ``policy_loss`` that score whole completions against their group: they have no token surrogate."""
OWN_SCALE = ("maxrl", "pass_at_k", "risk_sensitive")
"""Advantages that carry their published scale: ``scale_rewards`` must be ``none``."""
SURROGATE_OF: dict[str, SurrogateName] = {"cispo": "cispo", "sapo": "sapo", "vespo": "vespo"}
"""``loss_type`` → the surrogate that it names, as in TRL."""


@dataclass(frozen=True)
class AdvantageSpec:
    """What is rewarded: utilities, shaped, against their group."""

    advantage: AdvantageName | AdvantageFunction = "centred"
    """A name of `advantages`, or a function of one's own."""
    scale_rewards: ScaleRewards = "group"
    """What centred utilities are divided by: their standard deviation in the group, in the batch, or nothing.
    Not read by ``listwise`` and ``likelihood``, whose scale is the temperature of q."""
    pass_k: int = 4
    """k of ``pass_at_k``, at most the group size."""
    risk_sensitivity: float = 2.0
    """β of ``risk_sensitive``; positive seeks, negative avoids risk."""
    positive_only: bool = False
    """Drop negative advantages: a control that only imitates what went well."""
    unlikeliness_coef: float = 0.0
    """β_rank of `shaping.unlikeliness`; 0: off."""
    entropy_bonus_coef: float = 0.0
    """Coefficient of `shaping.entropy_bonus`; 0: off."""
    overlong_buffer: int = 0
    """Tokens before the length limit over which `shaping.soft_overlong` grows; 0: off."""
    overlong_penalty: float = 1.0
    """What a completion at the length limit loses."""
    kl_in_reward: bool = False
    """Subtract β·KL to the reference from a completion's utility, see `shaping.kl_penalised`."""
    seed_grpo_enabled: bool = False
    """Scale a group's advantages down where its answers disagree, see `semantic.seed_scale`."""
    seed_grpo_alpha: float = 0.0417
    seed_grpo_alpha_normalize_by_max_entropy: bool = True
    seed_grpo_length_normalize_logprobs: bool = True


@dataclass(frozen=True)
class SurrogateSpec:
    """How an advantage becomes a loss per token, and tokens a scalar."""

    policy_loss: PolicyLoss = "clip"
    """``clip``: a surrogate of the importance ratio, PPO's unless ``surrogate`` says otherwise.
    ``tilted``: the same, each completion re-weighted by G·w, w from `tilted_weights`.
    ``listwise``: cross-entropy from w, `closed_form_weights`, to the policy's softmax within the group.
    ``likelihood``: mean log-likelihood per token weighted by w − 1/G, w from `closed_form_weights`.
    ``flow``: squared trajectory balance, `flow.flow_balance`."""
    surrogate: SurrogateName | SurrogateFunction | None = None
    """A name of `surrogates`, or a function of one's own. None: the one that ``loss_type`` names, else ``clip``."""
    loss_type: LossType = "grpo"
    """Reduction of per-token terms, the KL terms included; see `reduce.REDUCTIONS`."""
    importance_sampling_level: RatioLevel = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    """Upper half of the clip range; for ``cispo`` the cap of the ratio itself, as in TRL. None: ``epsilon``."""
    delta: float | None = None
    """Upper cap of the unclipped ratio (dual clip). None: no cap."""
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    flow_reward_scale: float = 15.0
    """β of FlowRL: what the advantages of ``flow`` are multiplied by, in nats per token."""
    tis_cap: float | None = None
    """Cap of truncated importance sampling. None: no correction."""
    tis_level: CorrectionLevel = "token"
    """What its ratio is of: a token, or a whole completion."""
    off_policy_mask_threshold: float | None = None
    """Drop completions of negative advantage whose mean log(μ/π) is above this. None: none."""
    max_completion_length: int | None = None
    """Longest allowed completion in tokens; read by ``tilted_utility="dr_grpo"`` and by overlong shaping."""


@dataclass(frozen=True)
class WeightSpec:
    """The distribution over a group's candidates: ``listwise``, ``likelihood`` and ``tilted``."""

    q_temperature: float = 1.0
    q_epsilon: float = 1e-6
    weight_denominator: WeightDenominator = "tau_plus_beta"
    length_normalize_ref: bool = False
    """Reference score per token instead of per completion."""
    length_normalize_policy: bool = False
    """Policy score of ``listwise`` per token instead of per completion. Should agree with
    ``length_normalize_ref``: a reference per token against a policy per completion pulls all completions
    towards nearly equal probability, whatever their length, and so towards a uniform babbler."""
    tilted_utility: TiltedUtility = "length_free"
    """Ū of ``tilted``: the advantage A, or its share A·T_i/max_completion_length of Dr. GRPO's objective."""
    mode_adaptive_tau: bool = False
    """``tilted``: τ_x = τ / ln(1 + κ_x), κ_x the number of right answers of the prompt (`Batch.mode_counts`)."""
    skip_zero_spread_groups: bool = True
    """``listwise``, ``likelihood`` and ``flow``: leave a group with equal utilities without policy loss, as GRPO
    does. Its target is uniform and says nothing about the task: the loss would only pull the policy's distribution
    over the group towards the uniform one (β = 0) or towards a flattened reference (β > 0). The denominators
    count the group all the same, as do the statistics of the weights."""


@dataclass(frozen=True)
class RegularizerSpec:
    """What is added to the loss, or kept out of it."""

    kl_estimator: KLEstimator = "k3"
    """Estimates KL(policy ‖ reference), both as measured and in the loss."""
    kl_in_loss: bool = True
    """Whether β·KL(policy ‖ reference) is part of the loss. Weights read β in any case."""
    log_reference_kl: bool = False
    """Have the reference scored, and the KL measured, even where neither loss nor weights need it."""
    behaviour_kl_coef: float = 0.0
    behaviour_kl_estimator: KLEstimator = "k2"
    """Estimates KL(policy ‖ behaviour). k2 by default: its gradient (log π − log μ)·∇log π is exactly zero
    on-policy and grows only linearly with the gap; k1 has no pull at all in expectation, and k3's explodes
    for tokens made unlikely."""
    entropy_coef: float = 0.0
    """Weight of the mean token entropy, subtracted from the loss; a controller may replace it step by step."""
    adaptive_entropy: bool = False
    """Whether a controller does, so that the entropy must carry a gradient whatever ``entropy_coef`` is."""
    top_entropy_quantile: float = 1.0
    """Share of a group's tokens, those of highest entropy, that keep their policy gradient."""
    clip_cov_fraction: float = 0.0
    """Clip-Cov: share of a group's tokens that lose their gradient for a high covariance; 0: off."""
    clip_cov_low: float = 1.0
    clip_cov_high: float = 5.0
    kl_cov_fraction: float = 0.0
    """KL-Cov: share of a group's tokens, those of highest covariance, that are held by a KL; 0: off."""
    kl_cov_coef: float = 1.0
    info_seed: InfoSeedSpec | None = None
    """What InfoSeed adds, on batches with seeded completions. None: nothing."""


@dataclass(frozen=True)
class ObjectiveSpec(AdvantageSpec, SurrogateSpec, WeightSpec, RegularizerSpec):
    """Everything that defines an objective, save τ and β, which the controllers set at each step.

    Raises:
        UsageError: settings that contradict each other.
    """

    def __post_init__(self) -> None:
        problems = list(contradictions(self))
        if problems:
            raise UsageError("; ".join(problems))

    @property
    def surrogate_kind(self) -> SurrogateName | SurrogateFunction:
        """The surrogate of ``clip`` and ``tilted``, defaults resolved."""
        return self.surrogate or SURROGATE_OF.get(self.loss_type, "clip")

    @property
    def needs_entropy(self) -> bool:
        """Whether `Forward.entropy` must be computed, with its gradient."""
        return self.entropy_coef != 0.0 or self.adaptive_entropy

    @property
    def needs_answers(self) -> bool:
        """Whether `Batch.answer_clusters` and `Batch.mode_counts` must be there."""
        return self.seed_grpo_enabled or self.mode_adaptive_tau

    @property
    def clip_range(self) -> tuple[float, float]:
        """ε below and ε above 1."""
        return self.epsilon, self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def has_weights(self) -> bool:
        """Whether the objective has candidate weights w(τ, β)."""
        return self.policy_loss in ("listwise", "likelihood", "tilted")

    @property
    def shapes_utilities(self) -> bool:
        return (
            self.overlong_buffer > 0
            or self.unlikeliness_coef != 0.0
            or self.entropy_bonus_coef != 0.0
            or self.kl_in_reward
        )

    def needs_reference(self, beta: float) -> bool:
        """Whether `Batch.reference_logps` must be computed for a step with this β."""
        if self.log_reference_kl or self.policy_loss == "flow":
            return True
        return beta > 0 and (self.kl_in_loss or self.kl_in_reward or self.has_weights)


def contradictions(spec: ObjectiveSpec) -> Iterator[str]:
    """What makes no sense together, each ``setting: why, and what to do``."""
    yield from _advantage_contradictions(spec)
    loss, kind = spec.policy_loss, spec.surrogate_kind
    if loss in GROUP_LOSSES:
        on_ratio = {
            "tis_cap": spec.tis_cap is not None,
            "surrogate": spec.surrogate is not None or spec.loss_type in SURROGATE_OF,
            "off_policy_mask_threshold": spec.off_policy_mask_threshold is not None,
            "top_entropy_quantile": spec.top_entropy_quantile < 1.0,
            "clip_cov_fraction": spec.clip_cov_fraction > 0,
            "kl_cov_fraction": spec.kl_cov_fraction > 0,
        }
        for name, is_set in on_ratio.items():
            if is_set:
                yield f"{name}: acts on the surrogate of single tokens, and policy_loss={loss} has none; unset it"
    named = SURROGATE_OF.get(spec.loss_type)
    if named is not None and spec.surrogate not in (None, named):
        yield f"surrogate: loss_type={spec.loss_type} names its own; unset it, or use loss_type=dapo"
    if spec.delta is not None and kind != "clip":
        yield "delta: caps the ratio of the clipped surrogate only; unset it"
    if kind == "cispo" and spec.clip_range[1] <= 1.0:
        yield f"epsilon_high: under cispo it caps the ratio itself, and {spec.clip_range[1]} is not above 1; use 4 to 5"
    if kind == "vespo" and spec.importance_sampling_level != "token":
        yield "importance_sampling_level: vespo weighs whole completions by itself; use token"
    if kind == "vespo" and spec.tis_cap is not None and spec.tis_level != "token":
        yield "tis_level: vespo weighs whole completions by itself; use token"
    if spec.tilted_utility == "dr_grpo" and spec.max_completion_length is None:
        yield "tilted_utility: dr_grpo divides by max_completion_length; set it"
    if spec.mode_adaptive_tau and loss != "tilted":
        yield f"mode_adaptive_tau: is a temperature of tilted weights, and policy_loss={loss}; unset it"
    if not 0.0 < spec.top_entropy_quantile <= 1.0:
        yield f"top_entropy_quantile: {spec.top_entropy_quantile} is a share of tokens; it must be in (0, 1]"
    for name in ("clip_cov_fraction", "kl_cov_fraction"):
        if not 0.0 <= getattr(spec, name) < 1.0:
            yield f"{name}: {getattr(spec, name)} is a share of tokens; it must be in [0, 1)"
    if spec.clip_cov_low >= spec.clip_cov_high:
        yield f"clip_cov_low: {spec.clip_cov_low} must be below clip_cov_high={spec.clip_cov_high}"


def _advantage_contradictions(spec: ObjectiveSpec) -> Iterator[str]:
    loss = spec.policy_loss
    if spec.seed_grpo_enabled and loss != "clip":
        yield (
            "seed_grpo_enabled: scales the advantages of a GRPO-type objective, and "
            f"policy_loss={loss} is none; unset it, or use policy_loss=clip"
        )
    if spec.kl_in_reward and loss != "clip":
        yield (
            f"kl_in_reward: policy_loss={loss} reads the reference in its own way; unset it, or use policy_loss=clip"
        )
    if spec.kl_in_reward and spec.kl_in_loss:
        yield "kl_in_reward: kl_in_loss is on, and the KL would count twice; turn one of them off"
    if loss in ("listwise", "likelihood"):
        if spec.advantage != "centred":
            yield f"advantage: policy_loss={loss} learns from weights and has no advantages to choose; unset it"
        if spec.positive_only:
            yield f"positive_only: policy_loss={loss} has no advantages to drop; unset it"
    if loss == "flow" and spec.positive_only:
        yield "positive_only: flow matches a distribution, which low utilities define too; unset it"
    if spec.advantage in OWN_SCALE and spec.scale_rewards != "none":
        yield f"scale_rewards: advantage={spec.advantage} has its own scale; use none"
    if spec.pass_k < 1:
        yield f"pass_k: {spec.pass_k} must be at least 1"
    if spec.advantage == "risk_sensitive" and spec.risk_sensitivity == 0:
        yield "risk_sensitivity: 0 is the limit of plain advantages; use advantage=centred"
    if not 0.0 <= spec.unlikeliness_coef <= 1.0:
        yield f"unlikeliness_coef: {spec.unlikeliness_coef} must be in [0, 1]"
    if spec.overlong_buffer:
        if spec.max_completion_length is None:
            yield "overlong_buffer: counts back from max_completion_length; set it"
        elif not 0 < spec.overlong_buffer <= spec.max_completion_length:
            yield (
                f"overlong_buffer: {spec.overlong_buffer} tokens do not fit into "
                f"max_completion_length={spec.max_completion_length}"
            )
