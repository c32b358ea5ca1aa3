"""A small plan, its runs as if they had finished, and no training."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from maxent_grpo.study.plan import StudyPlan, plan_of
from maxent_grpo.study.runs import IDENTITY_KEY, runs_of, untrained_of

PLAN: dict[str, Any] = {
    "question": "Does it?",
    "baseline": "dr_grpo",
    "seeds": [0, 1, 2, 3, 4, 5, 6, 7],
    "tasks": {"graph_coloring": {"label": "graph colouring"}},
    "arms": {
        "other": {"command": "train-baseline", "recipe": "other.yaml", "label": "Other"},
        "dr_grpo": {"command": "train-baseline", "recipe": "dr.yaml", "label": "Dr. GRPO"},
        "aa": {"same_as": "dr_grpo", "seed_offset": 1000, "label": "A/A"},
    },
    "budget": {"steps": 4},
    "judgement": {"resamples": 399},
}


@pytest.fixture
def tree() -> dict[str, Any]:
    """A plan as YAML reads it, to be changed at will."""
    return json.loads(json.dumps(PLAN))


@pytest.fixture(scope="session")
def plan_in() -> Callable[[Path], StudyPlan]:
    """The plan, with its runs below a directory."""
    return lambda directory: replace(plan_of(json.loads(json.dumps(PLAN))), output_dir=directory / "study")


@pytest.fixture
def plan(plan_in: Callable[[Path], StudyPlan], tmp_path: Path) -> StudyPlan:
    return plan_in(tmp_path)


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., pd.DataFrame]:
    """Evaluation rows of 20 prompts: ``effects`` (arm → shift of coverage), ``run_sd`` between runs."""

    def build(plan: StudyPlan, effects: dict[str, float], run_sd: float = 0.01) -> pd.DataFrame:
        rng = np.random.default_rng(11)
        modes = rng.integers(4, 12, 20)
        rows = []
        for task in plan.tasks:
            for arm in plan.arms:
                for seed in plan.seeds:
                    run = run_sd * rng.standard_normal()
                    for eval_seed in plan.evaluation.seeds:
                        coverage = np.clip(0.5 + effects.get(arm.name, 0.0) + run, 0, 1)
                        rows.append(
                            pd.DataFrame(
                                {
                                    "task": task.name,
                                    "arm": arm.name,
                                    "seed": seed,
                                    "run_seed": seed + arm.seed_offset,
                                    "temperature": 1.0,
                                    "eval_seed": eval_seed,
                                    "k": plan.evaluation.k,
                                    "prompt": np.arange(20),
                                    "modes": modes,
                                    "mean": 0.4 + 0.05 * rng.standard_normal(20),
                                    "pass": (rng.random(20) < 0.9 + run).astype(float),
                                    "distinct": coverage * modes,
                                    "coverage": coverage + 0.02 * rng.standard_normal(20),
                                }
                            )
                        )
        return pd.concat(rows, ignore_index=True)

    return build


@pytest.fixture(scope="session")
def finish() -> Callable[[StudyPlan, pd.DataFrame], None]:
    """Leaves the files of finished runs that hold ``rows``, with records of four steps each."""

    def write(plan: StudyPlan, rows: pd.DataFrame) -> None:
        for cell in (*untrained_of(plan), *runs_of(plan)):
            mine = rows[(rows["task"] == cell.task.name) & (rows["arm"] == cell.arm.name)]
            mine = mine[mine["seed"] == cell.seed]
            if mine.empty:
                continue
            cell.directory.mkdir(parents=True)
            identity = {"seed": cell.run_seed, "initial policy": "one", "maxent_grpo version": "1.0"}
            cell_facts = {"run_seed": cell.run_seed, "identity": identity}
            (cell.directory / "cell.json").write_text(json.dumps(cell_facts))
            evaluation = {IDENTITY_KEY: json.dumps({"evaluation.k": 8, "maxent_grpo version": "1.0"})}
            table = pa.Table.from_pandas(mine, preserve_index=False).replace_schema_metadata(evaluation)
            parquet.write_table(table, cell.directory / "evaluation.parquet")
            records: list[dict[str, Any]] = [{"step": 0, "run/git_sha": "0123abc", "run/seed": cell.run_seed}]
            for step in range(5):
                trained = {"train/reward": 0.3, "train/coverage": 0.4, "train/grad_norm": 1.0} if step else {}
                held_out = {"eval/mean_at_8": 0.3 + 0.01 * step, "eval/coverage_at_8": 0.4 - 0.01 * step}
                records.append({"step": step} | trained | held_out)
            (cell.directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))

    return write
