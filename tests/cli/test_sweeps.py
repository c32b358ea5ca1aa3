"""Sweeps that train: a directory for each job, with what it ran with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from maxent_grpo.cli import main as scripts

TINY = [
    "command=train",
    "--config-name",
    "grpo_tiny",
    "train.total_dialog_turns=16",
    "train.dialog_turns_per_batch=16",
    "train.optim_batch_size=16",
    "training.max_completion_length=8",
    "training.disable_tqdm=true",
]
"""One step on one group."""


def test_a_sweep_of_two_learning_rates_trains_two_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert scripts.main([*TINY, "--multirun", "optimizer.lr=1e-3,1e-5", "train.kl_coef_in_loss=false"]) == 0
    (sweep,) = (tmp_path / "multirun").glob("*/*")
    assert sorted(path.name for path in sweep.iterdir()) == ["lr=0.001", "lr=1e-05", "multirun.yaml"]
    for name, rate in (("lr=0.001", 1e-3), ("lr=1e-05", 1e-5)):
        settings = yaml.safe_load((sweep / name / "resolved_config.yaml").read_text())
        assert settings["training"]["learning_rate"] == rate
        assert settings["training"]["kl_in_reward"] is True
        records = [json.loads(line) for line in (sweep / name / "metrics.jsonl").read_text().splitlines()]
        assert records[-1]["step"] == 1
        assert records[-1]["train/learning_rate"] == rate
    policies = [(sweep / name / "model.safetensors").read_bytes() for name in ("lr=0.001", "lr=1e-05")]
    assert policies[0] != policies[1]


@pytest.mark.nightly
def test_the_joblib_launcher_runs_the_jobs_in_processes_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = [
        *TINY,
        "--multirun",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "optimizer.lr=1e-3,1e-5",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "maxent_grpo.cli.main", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = sorted(path.parent.name for path in tmp_path.glob("multirun/*/*/*/model.safetensors"))
    assert found == ["lr=0.001", "lr=1e-05"]
