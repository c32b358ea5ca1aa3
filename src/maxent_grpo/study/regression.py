"""The linear probability model of candidate-level studies, beside the paired analysis: rows instead of runs.

    y = α + γ·1{arm} + training-seed fixed effects + evaluation-seed fixed effects + error

over the rows of one arm and the baseline on one task. Clustering by prompt treats the prompts as the sample and the
runs as given: it says how sure we are about *these* trained policies, not about the method. The wild cluster bootstrap
over run pairs says the latter with few clusters.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from statsmodels.regression.linear_model import OLS

Floats = npt.NDArray[np.float64]

FEW_CLUSTERS = 10  # below this many, Webb's weights
ARM_COLUMN = 1  # of the design matrix
RADEMACHER = (-1.0, 1.0)
WEBB = tuple(sign * np.sqrt(size) for sign in (-1, 1) for size in (0.5, 1.0, 1.5))


@dataclass(frozen=True)
class RowResult:
    """γ with its prompt-clustered interval and p, and the wild bootstrap's p over run pairs."""

    gamma: float
    se: float
    low: float
    high: float
    p: float
    p_wild: float


def regress(rows: pd.DataFrame, outcome: str, arm: str, *, resamples: int, seed: int = 0) -> RowResult:
    """Fit the model to ``rows`` (columns ``arm``, ``seed``, ``eval_seed``, ``prompt`` and the outcome).

    Standard errors are cluster-robust by prompt with the CR1 factor g/(g−1)·(n−1)/(n−p); p and the 95% interval
    (±1.96 standard errors) are normal.
    """
    y, x = rows[outcome].to_numpy(float), design_matrix(rows, arm)
    if np.ptp(y) == 0:  # every row the same, such as pass@k where all is solved: no variance to judge with
        return RowResult(gamma=0.0, se=0.0, low=0.0, high=0.0, p=1.0, p_wild=1.0)
    fit = OLS(y, x).fit(
        cov_type="cluster", cov_kwds={"groups": pd.factorize(rows["prompt"])[0], "use_correction": True}
    )
    test = fit.t_test(np.eye(1, x.shape[1], ARM_COLUMN))
    low, high = np.ravel(test.conf_int(alpha=0.05))
    return RowResult(
        gamma=float(np.squeeze(test.effect)),
        se=float(np.squeeze(test.sd)),
        low=float(low),
        high=float(high),
        p=float(np.squeeze(test.pvalue)),
        p_wild=wild_cluster_p(y, x, ARM_COLUMN, pd.factorize(rows["seed"])[0], resamples, seed),
    )


def design_matrix(rows: pd.DataFrame, arm: str) -> Floats:
    """Constant, 1{arm}, and indicators of all training and evaluation seeds but the first of each."""
    effects = pd.get_dummies(rows[["seed", "eval_seed"]].astype("category"), drop_first=True)
    return np.column_stack([np.ones(len(rows)), rows["arm"] == arm, effects]).astype(float)


def wild_cluster_p(
    y: Floats, x: Floats, column: int, clusters: npt.NDArray[np.int64], resamples: int, seed: int
) -> float:
    """Two-sided p of "coefficient ``column`` is 0" by the wild cluster bootstrap-t with the null imposed.

    Cameron, Gelbach and Miller (2008), "Bootstrap-based improvements for inference with clustered errors", Review of
    Economics and Statistics 90(3): residuals of the restricted fit are multiplied by one random weight per cluster,
    and the model is fitted again. Weights are Rademacher's ±1, or with fewer than 10 clusters the six points of Webb
    (2023, Canadian Journal of Economics 56(3)), since G clusters have only 2^(G−1) different Rademacher samples.
    Every sample's t follows from sums per cluster (Roodman et al. 2019, Stata Journal 19(1)), so nothing is refitted.

    Args:
        y: outcomes [n]. x: design [n, p]. clusters: cluster of each row, 0 … G−1 [n].
    """
    count = int(clusters.max()) + 1
    others = np.delete(x, column, axis=1)
    restricted = y - others @ np.linalg.lstsq(others, y, rcond=None)[0]
    partial = x[:, column] - others @ np.linalg.lstsq(others, x[:, column], rcond=None)[0]  # Frisch and Waugh

    def by_cluster(values: Floats) -> Floats:
        sums = np.zeros((count, *values.shape[1:]))
        np.add.at(sums, clusters, values)
        return sums

    scores = by_cluster(partial * restricted)  # [G]: what each cluster's residuals add to the coefficient
    spread = (
        by_cluster(partial[:, None] * x) @ np.linalg.pinv(x.T @ x) @ by_cluster(restricted[:, None] * x).T
    )
    fitted = np.diag(scores) - spread  # [G, G]: cluster scores of the refitted residuals = fitted @ weights
    points = WEBB if count < FEW_CLUSTERS else RADEMACHER
    weights = np.random.default_rng(seed).choice(points, size=(resamples, count))
    drawn = np.abs(_t_ratio(weights, scores, fitted))
    observed = abs(float(_t_ratio(np.ones((1, count)), scores, fitted)[0]))
    return float((1 + np.sum(drawn >= observed * (1 - 1e-12))) / (1 + resamples))


def _t_ratio(weights: Floats, scores: Floats, fitted: Floats) -> Floats:
    """Coefficient over its cluster-robust standard error, up to a constant, for each row of ``weights`` [R, G]."""
    coefficient = weights @ scores
    error = np.sqrt(np.sum((weights @ fitted.T) ** 2, axis=1))
    without_error = np.where(coefficient == 0, 0.0, np.inf)
    return np.divide(coefficient, error, out=without_error, where=error > 0)
