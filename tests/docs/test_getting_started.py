"""The page *Getting started*, followed to the letter behind its demo: trained, drawn, resumed, evaluated."""

import json
from pathlib import Path

import pytest
from documented_commands import ROOT, blocks, command_lines, words

from maxent_grpo.cli import main as console

SCRIPTS = {
    "maxent-grpo": console.main,
    "maxent-grpo-maxent": console.maxent,
    "maxent-grpo-math-eval": console.math_eval,
}


@pytest.mark.slow
def test_the_page_works_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    page = [
        block for block in blocks() if block.page == "docs/getting_started.md" and block.language == "bash"
    ]
    commands = [line for block in page for line in command_lines(block) if line.startswith("maxent-grpo")]
    assert [line.split()[0] for line in commands] == [
        "maxent-grpo-maxent",  # dry run
        "maxent-grpo-maxent",
        "maxent-grpo",
        "maxent-grpo-maxent",  # resumed
        "maxent-grpo-math-eval",
    ]
    for line in commands:
        script, *arguments = words(line)
        assert SCRIPTS[script](arguments) == 0, line
    run = tmp_path / "var/data/first"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 15
    assert (run / "checkpoint-15").is_dir()
    assert (run / "report.html").is_file()
    assert (run / "model.safetensors").is_file()
    answered = list((tmp_path / "var/artifacts/inference").rglob("seed_*.jsonl"))
    assert [len(file.read_text().splitlines()) for file in answered] == [24] * 4
