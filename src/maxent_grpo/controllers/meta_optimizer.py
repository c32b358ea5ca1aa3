"""The meta-controller's optimiser, one knob at a time on plain floats: its state is exact in JSON."""

import math
from dataclasses import dataclass

BETAS = (0.9, 0.999)
EPSILON = 1e-8
WEIGHT_DECAY = 0.01  # of adamw, as torch.optim.AdamW has it


@dataclass(frozen=True)
class Moments:
    """Adam's running moments of one knob's gradient."""

    first: float = 0.0
    second: float = 0.0
    count: int = 0  # updates behind them


def descend(
    value: float, gradient: float, rate: float, optimizer: str, moments: Moments
) -> tuple[float, Moments]:
    """``value`` after one step against ``gradient``; sgd leaves the moments alone.

    Adam: Kingma & Ba 2015 (arXiv:1412.6980, algorithm 1). AdamW: Loshchilov & Hutter 2019 (arXiv:1711.05101).
    """
    if optimizer == "sgd":
        return value - rate * gradient, moments
    count = moments.count + 1
    first = BETAS[0] * moments.first + (1 - BETAS[0]) * gradient
    second = BETAS[1] * moments.second + (1 - BETAS[1]) * gradient**2
    if optimizer == "adamw":
        value -= rate * WEIGHT_DECAY * value
    first_unbiased = first / (1 - BETAS[0] ** count)
    second_unbiased = second / (1 - BETAS[1] ** count)
    step = rate * first_unbiased / (math.sqrt(second_unbiased) + EPSILON)
    return value - step, Moments(first, second, count)
