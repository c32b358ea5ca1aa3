"""The settings of the controllers of τ, β and the entropy coefficient."""

from dataclasses import dataclass
from typing import Literal

from maxent_grpo.config.fields import setting


@dataclass
class ControllerFields:
    """Controllers."""

    maxent_target_weight_entropy: float | None = setting(
        None, "Target of the mean weight entropy in nats, at most ln num_generations; set it to adapt τ."
    )
    maxent_target_weight_entropy_start: float | None = setting(
        None, "Weight-entropy target at step 0 where the target is annealed, in nats."
    )
    maxent_target_weight_entropy_final: float | None = setting(
        None, "Weight-entropy target at the end of the annealing, in nats."
    )
    maxent_target_weight_entropy_horizon: int = setting(
        0, "Optimiser steps over which the target moves linearly from start to final; 0: final at once."
    )
    maxent_tau_lr: float = setting(
        0.0, "Step size of the τ controller on log τ per nat of entropy error; 0: τ stays."
    )
    maxent_tau_min: float = setting(0.0, "Lower bound of τ.")
    maxent_tau_max: float = setting(0.0, "Upper bound of τ; 0: none.")
    maxent_tau_warmup_steps: int = setting(
        -1, "Optimiser steps before the τ controller acts; -1: as long as the learning rate warms up."
    )
    kl_target: float = setting(
        0.0, "KL to the reference in nats per token that the β controller holds; 0: no target."
    )
    kl_horizon: int = setting(0, "Time constant of the β controller in optimiser steps; 0: β stays.")
    kl_ctl_step_size: float = setting(0.0, "Largest relative KL error that one β update may use; 0: β stays.")
    entropy_kl_threshold: float | None = setting(
        None,
        "KL to the reference in nats per token at which entropy_coef counts once: more below, less above; unset: "
        "whatever the KL.",
    )
    entropy_kl_gain: float = setting(
        1.0, "How strongly the KL scales entropy_coef, within a factor of 2 either way; ≥ 0."
    )
    entropy_kl_trust_zone: bool = setting(
        False, "No entropy bonus at all above entropy_kl_threshold, instead of a smaller one."
    )
    controller_meta_enabled: bool = setting(
        False,
        "Move τ and β by gradient on ½(H − H*)² + ½(KL − KL*)² instead of by the two controllers above.",
    )
    controller_meta_method: str = setting(
        "analytic", "Gradient of that potential: analytic, first_order, or truncated_backprop."
    )
    controller_meta_lr: float = setting(0.0, "Step size of the meta-controller, for τ and β alike.")
    controller_meta_tau_lr: float = setting(0.0, "Its step size for τ; 0: controller_meta_lr.")
    controller_meta_beta_lr: float = setting(0.0, "Its step size for β; 0: controller_meta_lr.")
    controller_meta_beta_grad_clip: float = setting(0.0, "Bound on the β gradient of one update; 0: none.")
    controller_meta_update_interval: int = setting(1, "Optimiser steps between two meta updates, ≥ 1.")
    controller_meta_objective: Literal["potential"] = setting(
        "potential", "The only meta objective there is: the regularised potential."
    )
    controller_meta_analytic_steps: int = setting(
        1, "Steps that one update of the analytic method takes; ≥ 1."
    )
    controller_meta_optimizer: Literal["sgd", "adam", "adamw"] = setting("sgd", "Optimiser of τ and β.")
    controller_meta_truncation_steps: int = setting(1, "Inner updates that truncated_backprop unrolls; ≥ 1.")
    controller_meta_use_hessian: bool = setting(False, "Scale the meta step by the potential's curvature.")
    controller_resume_from: str | None = setting(
        None, "Directory or file whose controller_state.json starts τ and β of a fresh run."
    )
    controller_overwrite_from_config: bool = setting(
        False,
        "Start τ and β from the recipe although a controller state is loaded; ignored when a run resumes.",
    )
