"""The guide to TorchRL's names says what the code does."""

import re
from pathlib import Path

import pytest

from maxent_grpo.config import torchrl_names
from maxent_grpo.rollout.environment import load_environment
from maxent_grpo.types import Prompt

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "dialect.md").read_text(encoding="utf-8")


def test_the_table_is_the_alias_table() -> None:
    assert torchrl_names.table() in GUIDE


def test_every_environment_is_described() -> None:
    section = GUIDE.partition("\n# Environments\n")[2]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(torchrl_names.ENVIRONMENTS)


def test_the_counts_of_the_example() -> None:
    rows = torchrl_names.completions_per_device(32, accumulation=2, learners=1)
    passes = torchrl_names.micro_batches_per_rollout(64, rows, accumulation=2, learners=1)
    assert f"`per_device_train_batch_size={rows}`, `steps_per_generation={passes}`" in GUIDE
    steps = torchrl_names.optimiser_steps(6400, rows, 2, 1, passes, 1)
    assert f"(`max_steps={steps}`)" in GUIDE


def test_the_environment_of_the_guide_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "my_hints.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    environment = load_environment("my_hints:OneHint")
    prompt = Prompt(0, "", (), {"answer": "42"})
    assert environment.reply(prompt, ["7"]) == {"role": "user", "content": "It starts with 4"}
    assert environment.reply(prompt, ["42"]) is None
    assert environment.reply(prompt, ["7", "8"]) is None
