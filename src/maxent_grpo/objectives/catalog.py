"""The named objectives, and how a recipe finds them or one of its own. Imports no torch until `build_objective`.

`CATALOG` maps a name to an `ObjectiveSpec`; docs/paper_index.md maps papers to recipes. `find_objective` also takes
``module:NAME``, an `ObjectiveSpec` of somebody else's module: docs/guides/new_objective.md shows how to write one.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from maxent_grpo.errors import UsageError, did_you_mean
from maxent_grpo.named import find_named
from maxent_grpo.objectives.components import (
    ADVANTAGE,
    NUMBERS,
    OBJECTIVE,
    POLICY_LOSS,
    SURROGATE,
    SYNONYMS,
    surrogate_of_loss_type,
)
from maxent_grpo.objectives.composition import Choice, Component

if TYPE_CHECKING:
    from maxent_grpo.objectives.objective import Objective


class ObjectiveSpec:
    """An objective as flat settings: those that it sets; the others are its components' own. τ and β are not here.

    Settings have their names of recipes (`components.NUMBERS` lists them), ``policy_loss`` where recipes say
    ``maxent_loss``. ``advantage``, ``surrogate`` and ``policy_loss`` also take a value in place of a name: somebody's
    function or component.

    Raises:
        UsageError: settings that are unknown, out of range, or contradict each other.
    """

    def __init__(self, **settings: Any) -> None:
        unknown = [f"{name}: is no setting of an objective{did_you_mean(name, NUMBERS)}"
                   for name in settings if name not in NUMBERS]  # fmt: skip
        if unknown:
            raise UsageError("; ".join(unknown))
        self.settings: Mapping[str, Any] = {
            name: SYNONYMS.get(value, value) if isinstance(value, str) else value
            for name, value in settings.items()
        }
        problems = [*out_of_range(self.settings)] or [*contradictions(self)]
        if problems:
            raise UsageError("; ".join(problems))

    def __getitem__(self, name: str) -> Any:
        """The value of a setting, the component's own where the objective says none."""
        return self.settings[name] if name in self.settings else NUMBERS[name].default

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectiveSpec) and all(self[name] == other[name] for name in NUMBERS)

    def __hash__(self) -> int:
        return hash(tuple(self[name] for name in NUMBERS))

    def __repr__(self) -> str:
        return f"ObjectiveSpec({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"

    def with_settings(self, **changes: Any) -> "ObjectiveSpec":
        """This objective with other values of some settings."""
        return ObjectiveSpec(**{**self.settings, **changes})

    def has(self, trait: str, choice: Choice = POLICY_LOSS) -> bool:
        """Whether the chosen component, the policy loss unless another choice is named, has a trait."""
        chosen = choice.chosen(self.__getitem__)
        return isinstance(chosen, Component) and trait in chosen.traits

    @property
    def has_weights(self) -> bool:
        """Whether the objective has candidate weights w(τ, β)."""
        return self.has("weights") or getattr(self["policy_loss"], "has_weights", False)

    @property
    def is_maxent(self) -> bool:
        """Whether τ has something to temper: candidate weights, or the entropy of verified answers."""
        return self.has_weights or self["mode_entropy"] != "none"

    @property
    def has_tokens(self) -> bool:
        """Whether its policy loss is a surrogate of single tokens."""
        return self.has("tokens")

    def takes_tokens(self, policy_loss: str | None) -> bool:
        """The same with another policy loss, where one is given."""
        return "tokens" in POLICY_LOSS.options[policy_loss].traits if policy_loss else self.has_tokens


def build_objective(spec: ObjectiveSpec, **changes: Any) -> "Objective":
    """The objective at work, of a composition and changes of its flat settings.

    Raises:
        UsageError: see `ObjectiveSpec`.
    """
    objective: Objective = OBJECTIVE.built((spec.with_settings(**changes) if changes else spec).__getitem__)
    return objective


def find_objective(name: str) -> ObjectiveSpec:
    """The objective called ``name`` in the catalog, or the `ObjectiveSpec` that ``module:NAME`` is.

    Raises:
        UsageError: there is none; the message says what is wrong and what would do.
    """
    found: ObjectiveSpec = find_named(
        "objective", name, CATALOG, "an ObjectiveSpec", lambda it: isinstance(it, ObjectiveSpec)
    )
    return found


def out_of_range(settings: Mapping[str, Any]) -> Iterator[str]:
    """Values outside the range or the choices of their setting, each ``setting: what it must be``."""
    for name, value in settings.items():
        record = NUMBERS[name].setting
        if record is None or value is None:
            continue
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not record.holds(value):
            yield f"{name}: {value} must be {record.range}"
        options = POLICY_LOSS.options if name == "policy_loss" else record.choices
        if isinstance(value, str) and options and value not in options:
            yield f"{name}: {value!r} is not one of {', '.join(options)}"


def contradictions(spec: ObjectiveSpec) -> Iterator[str]:
    """What makes no sense together, each ``setting: why, and what to do``."""
    yield from OBJECTIVE.problems(spec.__getitem__)
    loss, surrogate = spec["policy_loss"], SURROGATE.chosen(spec.__getitem__)
    named = spec["surrogate"] or surrogate_of_loss_type(spec.__getitem__)
    yield from _advantage_contradictions(spec)
    if not spec.has_tokens and loss in POLICY_LOSS.options:
        for name in ("tis_cap", "tis_low", "surrogate", "off_policy_mask_threshold", "top_entropy_quantile",
                     "clip_cov_fraction", "kl_cov_fraction"):  # fmt: skip
            if NUMBERS[name].is_on(spec.__getitem__) or (name == "surrogate" and named != "clip"):
                yield f"{name}: acts on the surrogate of single tokens, and policy_loss={loss} has none; unset it"
    implied = surrogate_of_loss_type(spec.__getitem__)
    if implied != "clip" and named != implied:
        yield (f"surrogate: loss_type={spec['loss_type']} names its own; unset it, or use loss_type=dapo")
    if spec["delta"] is not None and not (
        isinstance(surrogate, Component) and "delta" in surrogate.arguments
    ):
        yield "delta: caps the ratio of the clipped surrogate only; unset it"
    if spec["maxent_tau_mode_adaptive"] and loss != "tilted":
        yield f"maxent_tau_mode_adaptive: is a temperature of tilted weights, and policy_loss={loss}; unset it"


def _advantage_contradictions(spec: ObjectiveSpec) -> Iterator[str]:
    loss, advantage = spec["policy_loss"], spec["advantage"]
    if spec["seed_grpo_enabled"] and loss != "clip":
        yield (
            "seed_grpo_enabled: scales the advantages of a GRPO-type objective, and "
            f"policy_loss={loss} is none; unset it, or use policy_loss=clip"
        )
    if spec["kl_in_reward"] and loss != "clip":
        yield (
            f"kl_in_reward: policy_loss={loss} reads the reference in its own way; unset it, or use policy_loss=clip"
        )
    if spec["kl_in_reward"] and spec["kl_in_loss"]:
        yield "kl_in_reward: kl_in_loss is on, and the KL would count twice; turn one of them off"
    if spec["mode_entropy"] != "none" and spec.has_weights:
        yield (
            f"mode_entropy: its weight is τ, and so is the temperature of policy_loss={loss}; unset one of the two"
        )
    worth = [
        name for name in ("mode_entropy", "gapo", "poly_epo_size") if NUMBERS[name].is_on(spec.__getitem__)
    ]
    for name in worth:
        if advantage in ("maxrl", "pass_at_k"):
            yield f"{name}: changes utilities, and advantage={advantage} reads what is right; use centered or rloo"
    if len(worth) > 1:
        yield f"{worth[0]}: says what a right answer is worth, and so does {worth[1]}; turn one of them off"
    for name in ("ucpo_coef", "semantic_maxent_coef", "pcmd_coef", "setpo_coef"):
        if spec[name] and not spec.has_tokens:
            yield f"{name}: changes advantages, and policy_loss={loss} has none of single tokens; unset it"
        if spec[name] and spec["positive_only"]:
            yield f"{name}: changes advantages after positive_only has dropped the negative ones; turn one of them off"
    if spec.has_weights and not spec.has_tokens:
        if advantage != "centered":
            yield f"advantage: policy_loss={loss} learns from weights and has no advantages to choose; unset it"
        if spec["positive_only"]:
            yield f"positive_only: policy_loss={loss} has no advantages to drop; unset it"
    elif not spec.has_tokens and spec["positive_only"]:
        yield f"positive_only: {loss} matches a distribution, which low utilities define too; unset it"
    if spec.has("own scale", ADVANTAGE) and spec["scale_rewards"] != "none":
        yield f"scale_rewards: advantage={advantage} has its own scale; use none"


CATALOG: dict[str, ObjectiveSpec] = {
    # GRPO: Shao et al. 2024 (DeepSeekMath). Token ratio, deviation of the group, mean per completion.
    "grpo": ObjectiveSpec(),
    # The same with every token of the batch weighing the same, under TRL's name.
    "bnpo": ObjectiveSpec(loss_type="bnpo"),
    # Dr. GRPO: Liu et al. 2025 (Understanding R1-Zero-like training). No standard deviation, constant length.
    "dr_grpo": ObjectiveSpec(scale_rewards="none", loss_type="dr_grpo"),
    # DAPO: Yu et al. 2025. Token mean over the batch and clip-higher; its overlong shaping and dynamic sampling are
    # settings of the recipe (overlong_buffer, dynamic_sampling).
    "dapo": ObjectiveSpec(loss_type="dapo", epsilon=0.2, epsilon_high=0.28),
    # GSPO: Zheng et al. 2025. Ratio per completion, with the paper's clip range, which suits that ratio.
    "gspo": ObjectiveSpec(importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4),
    "gspo_token": ObjectiveSpec(importance_sampling_level="sequence_token", epsilon=3e-4, epsilon_high=4e-4),
    # LUSPO 2026: GSPO with every completion weighed by its length.
    "luspo": ObjectiveSpec(
        loss_type="luspo", importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4
    ),
    # CISPO: MiniMax 2025. The weight is clipped (at ScaleRL's 5), the gradient never.
    "cispo": ObjectiveSpec(loss_type="cispo", epsilon_high=5.0),
    # SAPO: Gao et al. 2025. A sigmoid gate in place of the clip.
    "sapo": ObjectiveSpec(loss_type="sapo"),
    # VESPO 2026: whole-completion weights in closed form.
    "vespo": ObjectiveSpec(loss_type="vespo"),
    # GMPO: Zhao et al. 2025. The geometric mean of a completion's token ratios, each clipped in log space.
    "gmpo": ObjectiveSpec(surrogate="gmpo", epsilon=0.4),
    # RLOO: Ahmadian et al. 2024. The other completions are the baseline; no clip, whole completions.
    "rloo": ObjectiveSpec(advantage="rloo", scale_rewards="none", loss_type="dr_grpo"),
    # MaxRL: Tajwar et al. 2026. Advantages over the success rate.
    "maxrl": ObjectiveSpec(advantage="maxrl", scale_rewards="none", loss_type="dapo"),
    # Verified replay, 2026 (github.com/liv-daliberti/remax): Dr. GRPO, and MaxRL with Dr. GRPO's constant length, each
    # with a rehearsal of every right answer found so far.
    "re_dr": ObjectiveSpec(scale_rewards="none", loss_type="dr_grpo", replay_coef=0.1),
    "re_max": ObjectiveSpec(advantage="maxrl", scale_rewards="none", loss_type="dr_grpo", replay_coef=0.1),
    # Pass@k training: Chen et al. 2025. The group as all its subsets of k.
    "pass_at_k": ObjectiveSpec(advantage="pass_at_k", scale_rewards="none", loss_type="dapo"),
    # The best of k, for any utilities: OrderGrad and MaxPO 2026; PKPO: Walder and Karkhanis 2025, its loo-1.
    "max_at_k": ObjectiveSpec(advantage="max_at_k", scale_rewards="none", loss_type="dr_grpo"),
    "pkpo": ObjectiveSpec(
        advantage="max_at_k", max_k_baseline="within", scale_rewards="none", loss_type="dr_grpo"
    ),
    # RS-GRPO: Jiang et al. 2025. The log of the mean exponential utility.
    "risk_sensitive": ObjectiveSpec(advantage="risk_sensitive", scale_rewards="none"),
    # Unlikeliness reward: He et al. 2025. Of two right answers the rarer earns more.
    "unlikeliness": ObjectiveSpec(unlikeliness_coef=0.25),
    # Control: Dr. GRPO that only imitates what went well.
    "positive_only": ObjectiveSpec(scale_rewards="none", loss_type="dr_grpo", positive_only=True),
    # SEED-GRPO: Chen et al. 2025. Dr. GRPO, smaller steps where a group's answers disagree.
    "seed_grpo": ObjectiveSpec(scale_rewards="none", loss_type="dr_grpo", seed_grpo_enabled=True),
    # GRPO with a utility bonus for completions sampled from uncertain distributions.
    "grpo_entropy_bonus": ObjectiveSpec(entropy_bonus_coef=0.1),
    # Beyond the 80/20 rule: Wang et al. 2025. DAPO on the fifth of the tokens with most entropy.
    "top_entropy": ObjectiveSpec(loss_type="dapo", epsilon_high=0.28, top_entropy_quantile=0.2),
    # The entropy mechanism: Cui et al. 2025. High-covariance tokens lose their gradient, or are held by a KL.
    "clip_cov": ObjectiveSpec(loss_type="dapo", clip_cov_fraction=2e-4),
    "kl_cov": ObjectiveSpec(loss_type="dapo", surrogate="unclipped", kl_cov_fraction=2e-4),
    # FlowRL: Zhu et al. 2025, its partition function estimated within the group.
    "flowrl": ObjectiveSpec(policy_loss="flow", kl_in_loss=False),
    # MaxEnt-GRPO, listwise: the policy's softmax within the group is moved to the closed-form weights.
    "maxent": ObjectiveSpec(policy_loss="listwise", loss_type="dr_grpo", kl_in_loss=False),
    # MaxEnt-GRPO, likelihood: completions are made likelier in proportion to w − 1/G.
    "maxent_likelihood": ObjectiveSpec(policy_loss="likelihood", kl_in_loss=False),
    # MaxEnt-GRPO over verified answers: Dr. GRPO, and τ times the entropy of a group's right answers.
    "mode_entropy": ObjectiveSpec(scale_rewards="none", loss_type="dr_grpo", mode_entropy="group"),
    # Credit for which right answer it is, on Dr. GRPO as in ModeBench 2026 (github.com/liv-daliberti/modeBench). GAPO
    # and UCPO 2026: docs/paper_index.md has the settings of the papers.
    "gapo": ObjectiveSpec(scale_rewards="none", loss_type="dr_grpo", gapo="unit"),
    "ucpo": ObjectiveSpec(scale_rewards="none", loss_type="dr_grpo", ucpo_coef=0.2),
    "semantic_maxent": ObjectiveSpec(scale_rewards="none", loss_type="dr_grpo", semantic_maxent_coef=0.1),
    "setpo": ObjectiveSpec(scale_rewards="none", loss_type="dr_grpo", setpo_coef=1.0),
    # Poly-EPO 2026, its clusters the verified answers.
    "poly_epo": ObjectiveSpec(
        scale_rewards="none", loss_type="dr_grpo", poly_epo_size=4, epsilon=0.2, epsilon_high=0.28
    ),
    # Diversity alone: the chance that two right answers differ. Its coefficient is ours.
    "pcmd": ObjectiveSpec(scale_rewards="none", loss_type="dr_grpo", pcmd_coef=0.5),
    # Tilted Dr. GRPO: completions with a larger advantage weigh more in the policy gradient.
    "tilted": ObjectiveSpec(
        policy_loss="tilted",
        scale_rewards="none",
        loss_type="dr_grpo",
        kl_in_loss=False,
        maxent_length_normalize_ref=True,
    ),
}
"""Name → objective."""
