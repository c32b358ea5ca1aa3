"""What the controllers meet in the plots of *Controllers explained*: a stream of groups, and a policy that drifts.

Nothing is trained. The weights and the controllers are the package's own; only what surrounds them is made up, and is
written down here: utilities are 0 or 1, and the KL relaxes towards a level that β pulls down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from maxent_grpo.controllers.controller import Controllers, Measurement
from maxent_grpo.controllers.settings import ControllerSettings
from maxent_grpo.objectives.weights import closed_form_weights, target_log_q, weight_entropy

GROUP = 16
PROMPTS = 16


@dataclass
class Trace:
    """One value per optimiser step."""

    tau: list[float] = field(default_factory=list)
    beta: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)  # nats
    target: list[float] = field(default_factory=list)  # nats; empty where there is none
    kl: list[float] = field(default_factory=list)  # nats per token


def utilities_at(rng: np.random.Generator, right: float) -> Tensor:
    """[PROMPTS, GROUP] utilities 0 or 1, prompts of varying difficulty around a share ``right`` of right answers."""
    easiness = np.clip(rng.beta(4 * right, 4 * (1 - right), size=(PROMPTS, 1)), 0.02, 0.98)
    return torch.tensor(rng.random((PROMPTS, GROUP)) < easiness, dtype=torch.float64)


def run_weights(settings: ControllerSettings, steps: int, seed: int = 0, drift: float = 0.2) -> Trace:
    """τ and the weight entropy under ``settings``, while the share of right answers moves from 0.3 to 0.3 + drift."""
    rng = np.random.default_rng(seed)
    controllers, trace = Controllers.start(settings), Trace()
    for step in range(1, steps + 1):
        log_q = target_log_q(utilities_at(rng, 0.3 + drift * step / steps), temperature=0.25, epsilon=1e-6)
        reference = torch.tensor(rng.normal(-4.0, 0.7, size=tuple(log_q.shape)))

        def weights(
            tau: Tensor, beta: Tensor, log_q: Tensor = log_q, reference: Tensor = reference
        ) -> Tensor:
            return closed_form_weights(log_q, reference, tau, beta)

        knobs = controllers.knobs()
        now = weights(
            torch.tensor(knobs.tau, dtype=torch.float64), torch.tensor(knobs.beta, dtype=torch.float64)
        )
        entropy = float(weight_entropy(now).mean())
        controllers, metrics = controllers.update(
            Measurement(step, kl=None, weight_entropy=entropy, lr_scale=1.0, weights=weights)
        )
        trace.tau.append(knobs.tau)
        trace.beta.append(knobs.beta)
        trace.entropy.append(entropy)
        trace.target.append(metrics["tau_target_entropy"])
    return trace


def run_kl(settings: ControllerSettings, steps: int, seed: int = 0) -> Trace:
    """β and the KL under ``settings``: the KL moves a fiftieth of the way to 0.3 / (1 + 10·β) per step, with noise."""
    rng = np.random.default_rng(seed)
    controllers, trace, kl = Controllers.start(settings), Trace(), 0.0
    for step in range(1, steps + 1):
        beta = controllers.knobs().beta
        kl += (0.3 / (1.0 + 10.0 * beta) - kl) / 50.0
        measured = kl * float(np.exp(0.1 * rng.normal()))
        controllers, _ = controllers.update(Measurement(step, kl=measured, weight_entropy=None, lr_scale=1.0))
        trace.beta.append(beta)
        trace.kl.append(measured)
    return trace


def entropy_curve(taus: Sequence[float], right: int) -> list[float]:
    """H(w) in nats of a group of 8 with ``right`` right answers and no reference, at each τ."""
    log_q = target_log_q(example_utilities(right), temperature=0.25, epsilon=1e-6)
    return [float(weight_entropy(closed_form_weights(log_q, None, tau, 0.0))) for tau in taus]


def example_weights(tau: float, right: int = 3) -> list[float]:
    """The weights of a group of 8 with ``right`` right answers and no reference."""
    log_q = target_log_q(example_utilities(right), temperature=0.25, epsilon=1e-6)
    return closed_form_weights(log_q, None, tau, 0.0)[0].tolist()


def example_utilities(right: int) -> Tensor:
    return torch.tensor([[1.0] * right + [0.0] * (8 - right)], dtype=torch.float64)
