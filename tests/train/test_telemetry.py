"""What other libraries would report about a run."""

from pathlib import Path

import pytest
import trl.trainer.base_trainer
from datasets import Dataset

from maxent_grpo.config.schema import GRPOConfig
from maxent_grpo.tasks.tiny_policy import bundled_policy_path
from maxent_grpo.train.trl import MaxEntGRPOTrainer


def test_trls_trainer_reports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", lambda topic, **_: sent.append(topic))
    settings = {
        "model": str(bundled_policy_path()),
        "reward_funcs": lambda completions, **_: [0.0] * len(completions),
        "train_dataset": Dataset.from_dict({"prompt": ["3+4="] * 8}),
    }
    sizes = {
        "per_device_train_batch_size": 2,
        "num_generations": 2,
        "use_cpu": True,
        "report_to": [],
        "bf16": False,
    }
    trl.GRPOTrainer(args=trl.GRPOConfig(str(tmp_path / "trl"), **sizes), **settings)
    assert sent == ["trl/GRPOTrainer"]  # TRL's own does
    MaxEntGRPOTrainer(args=GRPOConfig(str(tmp_path / "ours"), **sizes), **settings)
    assert sent == ["trl/GRPOTrainer"]
