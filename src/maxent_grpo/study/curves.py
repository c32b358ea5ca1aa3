"""Learning curves of arms: one metric of every run over its steps, averaged over seeds with a band."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from maxent_grpo.observe.run_files import RunFiles, Series, load_run
from maxent_grpo.study.cells import Cell

Floats = npt.NDArray[np.float64]

BAND_RUNS = 3  # with two runs the interval is 13 standard errors to either side: a band that says nothing


@dataclass(frozen=True)
class Curve:
    """The mean over seeds at every step that all runs logged, with its 95% t interval (NaN below `BAND_RUNS`)."""

    steps: npt.NDArray[np.int64]  # [S]
    mean: Floats  # [S]
    low: Floats  # [S]
    high: Floats  # [S]


class Records:
    """The records of a study's finished runs, each read once."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._runs: dict[tuple[str, str], list[RunFiles]] = {}
        for cell in cells:
            self._runs.setdefault((cell.task.name, cell.arm.name), []).append(load_run(cell.directory))

    def curve(self, task: str, arm: str, metric: str) -> Curve | None:
        """The curve of a metric whose whole name matches ``metric``; None where no run logged it."""
        found = [next(iter(run.matching(metric)), None) for run in self._runs.get((task, arm), [])]
        logged = [series for series in found if series is not None and len(series.steps)]
        return average(logged) if logged else None


def average(runs: Sequence[Series]) -> Curve:
    """Mean and 95% t interval over runs, at the steps that all of them have."""
    common = sorted(set.intersection(*(set(series.steps.tolist()) for series in runs)))
    values = np.array([
        [value for step, value in zip(series.steps, series.values, strict=True) if step in set(common)]
        for series in runs
    ])  # fmt: skip
    mean = values.mean(axis=0)
    n = len(runs)
    half = (
        stats.t.ppf(0.975, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
        if n >= BAND_RUNS
        else np.full_like(mean, np.nan)
    )
    return Curve(np.array(common), mean, mean - half, mean + half)
