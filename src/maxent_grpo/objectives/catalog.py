"""The named objectives, and how a recipe finds them or one of its own.

`CATALOG` maps a name to an `ObjectiveSpec`; docs/paper_index.md maps papers to recipes. `find_objective` also takes
``module:NAME``, an `ObjectiveSpec` of somebody else's module: docs/guides/new_objective.md shows how to write one.
"""

import importlib

from maxent_grpo.errors import UsageError, did_you_mean
from maxent_grpo.objectives.objective import Objective
from maxent_grpo.objectives.spec import ObjectiveSpec

__all__ = ["CATALOG", "Objective", "ObjectiveSpec", "find_objective"]

DR_GRPO = ObjectiveSpec(scale_rewards="none", loss_type="dr_grpo")

CATALOG: dict[str, ObjectiveSpec] = {
    # GRPO: Shao et al. 2024 (DeepSeekMath). Token ratio, deviation of the group, mean per completion.
    "grpo": ObjectiveSpec(),
    # The same with every token of the batch weighing the same, under TRL's name.
    "bnpo": ObjectiveSpec(loss_type="bnpo"),
    # Dr. GRPO: Liu et al. 2025 (Understanding R1-Zero-like training). No standard deviation, constant length.
    "dr_grpo": DR_GRPO,
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
    # RLOO: Ahmadian et al. 2024. The other completions are the baseline; no clip, whole completions.
    "rloo": ObjectiveSpec(advantage="rloo", scale_rewards="none", loss_type="dr_grpo"),
    # MaxRL: Tajwar et al. 2026. Advantages over the success rate.
    "maxrl": ObjectiveSpec(advantage="maxrl", scale_rewards="none", loss_type="dapo"),
    # Pass@k training: Chen et al. 2025. The group as all its subsets of k.
    "pass_at_k": ObjectiveSpec(advantage="pass_at_k", scale_rewards="none", loss_type="dapo"),
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
    # Tilted Dr. GRPO: completions with a larger advantage weigh more in the policy gradient.
    "tilted": ObjectiveSpec(
        policy_loss="tilted",
        scale_rewards="none",
        loss_type="dr_grpo",
        kl_in_loss=False,
        length_normalize_ref=True,
    ),
}
"""Name → objective. A new objective is a function in its room and an entry here."""


def find_objective(name: str) -> ObjectiveSpec:
    """The objective called ``name`` in the catalog, or the `ObjectiveSpec` that ``module:NAME`` is.

    Raises:
        UsageError: there is none; the message says what is wrong and what would do.
    """
    if name in CATALOG:
        return CATALOG[name]
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        hint = did_you_mean(name, CATALOG)
        raise UsageError(
            f"objective: there is no {name!r}{hint}; known: {', '.join(CATALOG)}; your own: module:NAME"
        )
    try:
        loaded = importlib.import_module(module)
    # Importing runs somebody's module, which can raise anything: whatever it is, this name cannot be used.
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"objective: module {module!r} of {name!r} cannot be imported ({text}); is its directory on PYTHONPATH?"
        ) from error
    found = getattr(loaded, attribute, None)
    if not isinstance(found, ObjectiveSpec):
        what = f"has no {attribute!r}" if found is None else f"has a {type(found).__name__} there"
        raise UsageError(f"objective: {name!r} must name an ObjectiveSpec, and module {module!r} {what}")
    return found
