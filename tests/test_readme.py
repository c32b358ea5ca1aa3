"""The README's Python runs as printed. Its command blocks are checked with those of the docs (tests/docs)."""

import json
import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_the_python_example_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    rewards = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert len(rewards) == 5
    assert all(0.0 <= reward <= 1.0 for reward in rewards)
    assert len(set(rewards)) > 1
    assert (tmp_path / "var/notebook/model.safetensors").is_file()
