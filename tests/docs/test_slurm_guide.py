"""The guide to Slurm: each command of its bash blocks prints its plan."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guides" / "slurm.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", GUIDE, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 5


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_its_plan(command: str, tmp_path: Path) -> None:
    assert "--dry-run" in command
    activate = tmp_path / "activate"
    activate.write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "ENV_MODE": "venv",
        "ENV_ACTIVATE": str(activate),
    }
    answer = subprocess.run(
        command, shell=True, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert re.search(r"^(Job|Evaluations|LightEval|Ray at|6 runs)", answer.stdout)
