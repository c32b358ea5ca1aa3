"""The settings of the KLs to other policies, and of corrections for them."""

from dataclasses import dataclass
from typing import Literal

from maxent_grpo.config.fields import setting


@dataclass
class DivergenceFields:
    """Divergences and corrections."""

    use_bias_correction_kl: bool = setting(
        False,
        "TRL's trainer only: multiply the KL term by the probability ratio; false (TRL: true), so that both"
        " trainers optimise the same published GRPO loss.",
    )
    kl_estimator: Literal["k1", "k2", "k3"] | None = setting(
        None, "Per-token KL estimator (Schulman, 2020); unset: the objective's own, k3 for GRPO."
    )
    kl_in_reward: bool = setting(
        False,
        "Subtract beta times the KL to the reference, summed over a completion's tokens, from its utility instead of "
        "adding it to a GRPO loss.",
    )
    behaviour_kl_coef: float = setting(
        0.0, "Coefficient of the KL to the policy that sampled, which limits a step's drift; ≥ 0."
    )
    tis_cap: float | None = setting(
        None,
        "Cap of the truncated importance weights learner / sampler; 0: no correction; unset: 2 where vLLM samples "
        "and the loss is one of single tokens, else none.",
    )
    tis_level: Literal["token", "sequence"] = setting(
        "token", "What these importance weights are of: each token, or each completion."
    )
    log_reference_kl: bool = setting(
        False,
        "Measure the KL to the frozen reference even where the loss does not need it: one more forward a "
        "step.",
    )
