"""The β controller: proportional feedback on the measured KL to the reference policy."""

SMALLEST_FACTOR = 1e-6
NEGLIGIBLE_ERROR = 1e-8


def next_beta(beta: float, kl: float, target: float, horizon: float, step_size: float) -> float:
    """β after an optimiser step whose KL was ``kl``: β·(1 + e/horizon), e = clip(kl/target − 1, ±step_size).

    The multiplicative controller of Ziegler et al. 2019 (arXiv:1909.08593), with the clip as a parameter.
    More KL than ``target`` raises β. ``target`` and ``horizon`` must be positive; β = 0 is a fixed point.
    """
    error = min(max(kl / target - 1.0, -step_size), step_size)
    if abs(error) < NEGLIGIBLE_ERROR:
        return beta
    return beta * max(1.0 + error / horizon, SMALLEST_FACTOR)
