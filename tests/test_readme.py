"""The README's promises: its Python runs, and its command lines parse, resolve and plan."""

import re
import shlex
from pathlib import Path

import pytest

from maxent_grpo.cli import main as console

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SCRIPTS = {
    "maxent-grpo": console.main,
    "maxent-grpo-maxent": console.maxent,
    "maxent-grpo-baseline": console.baseline,
    "maxent-grpo-infoseed": console.infoseed,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def command_lines() -> list[str]:
    joined = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [
        line.partition("  #")[0].strip() for line in joined.splitlines() if line.startswith("maxent-grpo")
    ]


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_plan_what_they_say(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    script, *arguments = shlex.split(line)
    if script == "maxent-grpo-math-eval":  # has no plan to show: two prompts for real
        assert (
            console.math_eval([*arguments, "inference.limit=2", f"inference.artifacts.root_dir={tmp_path}"])
            == 0
        )
        assert len(list(tmp_path.rglob("seed_*.jsonl"))) == 2
        return
    if "--help" not in arguments:
        arguments.append("dry_run=true")
    assert SCRIPTS[script](arguments) == 0
    assert capsys.readouterr().out


def test_the_python_example_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert 0.0 <= float(capsys.readouterr().out.strip().splitlines()[-1]) <= 1.0
    assert (tmp_path / "var/notebook/model.safetensors").is_file()
