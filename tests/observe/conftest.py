"""A synthetic run directory: the shapes of real curves, in milliseconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maxent_grpo.files import JsonlFile

HOSTILE = "x = 3 <script>alert('owned')</script> & <img src=x onerror=alert(1)>"
SECRET = "hf_thisisnotforanyone"
MakeRun = Callable[..., Path]


def write_run(directory: Path, steps: int = 60, collapse: bool = False, seed: int = 0) -> Path:
    """A run of ``steps`` steps; ``collapse`` makes coverage and entropy fall as under plain GRPO."""
    directory.mkdir(parents=True)
    noise = np.random.default_rng(seed)
    metrics, timings = JsonlFile(directory / "metrics.jsonl"), JsonlFile(directory / "timings.jsonl")
    metrics.append(
        {
            "step": 0,
            "run/git_sha": "0123456789abcdef0123456789abcdef01234567",
            "run/recipe_path": "configs/recipes/tiny.yaml",
            "run/command": "train-maxent",
            "run/objective": "dr_grpo" if collapse else "maxent",
            "run/seed": seed,
        }
    )
    for step in range(1, steps + 1):
        metrics.append(_train_record(step, step / steps, collapse, noise))
        timings.append(
            {"step": step, "time/sample": 1.1 + noise.normal() * 0.05, "time/learn": 0.6, "tokens/s": 812.5}
        )
        if step % 15 == 0:
            metrics.append(_eval_record(step, step / steps, collapse))
    _write_completions(directory, steps)
    config = f"learning_rate: 0.0001\nhub_token: {SECRET}\nmodel:\n  wandb_api_key: {SECRET}\n  name: tiny\n"
    (directory / "resolved_config.yaml").write_text(config)
    return directory


def _train_record(step: int, t: float, collapse: bool, noise: np.random.Generator) -> dict[str, Any]:
    wobble = noise.normal(size=8) * 0.04
    return {
        "step": step,
        "train/loss": 0.1 * wobble[0],
        "train/grad_norm": 0.6 + wobble[1],
        "train/reward": 0.30 + 0.13 * t + wobble[2],
        "train/pass": (0.88 - 0.12 * t if collapse else 0.88 + 0.05 * t) + min(wobble[3], 0.05),
        "train/coverage": (0.32 - 0.10 * t if collapse else 0.32 + 0.06 * t) + wobble[4],
        "train/tau": 0.05,
        "train/beta": 0.0 if collapse else 0.09,
        "train/kl": 0.05 * t * (2 if collapse else 1) + abs(wobble[5]) * 0.1,
        "train/entropy": 0.9 - (0.6 if collapse else 0.15) * t + wobble[6],
        "train/weight_entropy": 1.9 + wobble[7],
        "train/completions/mean_length_sampled": 31.0 + 30 * wobble[0],
        "train/completions/clipped_frac": 0.0,
    }


def _eval_record(step: int, t: float, collapse: bool) -> dict[str, Any]:
    coverage = 0.32 - 0.09 * t if collapse else 0.32 + 0.05 * t
    return {
        "step": step,
        "eval/mean_reward": 0.29 + 0.12 * t,
        "eval/mean_reward_se": 0.012,
        "eval/pass_at_1": 0.3,
        "eval/pass_at_8": 0.86 - (0.1 * t if collapse else -0.05 * t),
        "eval/pass_at_8_se": 0.02,
        "eval/coverage_at_8": coverage,
        "eval/coverage_at_8_se": 0.011,
    }


def _write_completions(directory: Path, steps: int) -> None:
    log = JsonlFile(directory / "completions.jsonl")
    for step in (1, steps):
        for i in range(4):
            log.append(
                {
                    "step": step,
                    "prompt_index": 7,
                    "prompt": "Colour the graph 0-1, 1-2, 2-3 with r, g, b.\n0=r 1=?",
                    "completion": HOSTILE if i == 0 else "1=g 2=r 3=b" if i < 3 else "1=r 2=r 3=r",
                    "rewards": {"valid": float(i < 3), "format": 1.0},
                    "utility": float(i < 3) + 0.1,
                    "advantage": 0.25 if i < 3 else -0.75,
                    "weight": (0.2, 0.3, 0.45, 0.05)[i],
                    "finish_reason": "stop",
                }
            )


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``make_run(name, steps=…, collapse=…, seed=…)`` → the directory of a finished run."""

    def make(name: str = "run", **shape: Any) -> Path:
        return write_run(tmp_path / name, **shape)

    return make


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report made, shared by the tests that only read it: drawing is what takes the time."""
    from maxent_grpo.observe.report import report_run

    directory = write_run(tmp_path_factory.mktemp("finished") / "run")
    report_run(directory)
    return directory
