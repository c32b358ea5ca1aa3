"""The settings of maximum-entropy objectives."""

from dataclasses import dataclass
from typing import Literal

from maxent_grpo.config.fields import setting


@dataclass
class MaxEntFields:
    """MaxEnt over the group."""

    maxent_tau: float = setting(
        0.0, "Weight τ of the entropy of the distribution over a group's completions, ≥ 0."
    )
    maxent_q_temperature: float = setting(
        1.0, "Temperature of the target q = softmax(utility / temperature) within a group, > 0."
    )
    maxent_q_epsilon: float = setting(
        1e-6,
        "Least probability of a completion under q, so that log q stays finite; below 1 / num_generations.",
    )
    maxent_length_normalize_ref: bool | None = setting(
        None,
        "Divide the reference's sequence log-prob by its length before it enters the weights; unset: false,"
        " which kept most diversity where it was measured.",
    )
    maxent_length_normalize_policy: bool | None = setting(
        None,
        "Divide the policy's sequence scores by length in the listwise loss; unset: as the reference, since"
        " a mismatch drives the policy towards the uniform distribution.",
    )
    maxent_weight_denominator: Literal["tau_plus_beta", "tau"] | None = setting(
        None,
        "Denominator of the closed-form weights: tau_plus_beta penalises KL to the reference, tau rewards "
        "the reference's log-prob; unset: tau_plus_beta.",
    )
    maxent_loss: Literal["listwise", "likelihood", "tilted"] | None = setting(
        None,
        "How the weights train the policy: cross-entropy to its within-group softmax, weighted likelihood, "
        "or a tilted Dr. GRPO surrogate; unset: as the objective says.",
    )
    maxent_tilted_utility: Literal["length_free", "dr_grpo"] | None = setting(
        None,
        "Utility behind tilted weights: the advantage alone, or times its length over "
        "max_completion_length; unset: as the objective says.",
    )
    maxent_tau_mode_adaptive: bool | None = setting(
        None, "Tilted weights: divide τ by ln(1 + right answers of the prompt); unset: false."
    )
    maxent_kl_in_loss: bool = setting(
        False,
        "Add beta times the KL to the reference to a MaxEnt loss, whose weights hold the reference already.",
    )
    maxent_allow_no_reference: bool = setting(
        False,
        "Permit the listwise loss with beta 0, whose optimum over all strings is close to uniform noise.",
    )
    maxent_reference_logprobs_source: Literal["auto", "model"] = setting(
        "auto",
        "Who scores the reference: both values use the frozen reference model, never the sampler's log-"
        "probs.",
    )
    reference_model_name_or_path: str | None = setting(
        None, "Frozen reference policy, hub id or directory; unset: the policy as it was at the start."
    )
    reference_model_revision: str | None = setting(None, "Revision of reference_model_name_or_path.")
