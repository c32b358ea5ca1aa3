"""The site builds offline without a warning, and holds what is generated."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from documented_commands import ROOT

from maxent_grpo.config.settings import ScriptFields, TrainingFields
from maxent_grpo.objectives.catalog import CATALOG
from maxent_grpo.observe.definitions import definitions

pytest.importorskip("sphinx", reason="the docs extra is not installed")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "docs",
        str(tmp_path),
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    recipes, metrics, objectives = (
        text_of(tmp_path / f"{p}.html") for p in ("recipes", "metrics", "objectives")
    )
    settings = {*ScriptFields.__dataclass_fields__, *TrainingFields.__dataclass_fields__, "learning_rate"}
    assert [name for name in settings if f">{name}<" not in recipes] == []
    assert [
        m.name for m in definitions() if m.name not in metrics.replace("&lt;", "<").replace("&gt;", ">")
    ] == []
    assert [name for name in CATALOG if f">{name}<" not in objectives] == []


def text_of(page: Path) -> str:
    """The page with the spans that syntax and line breaking put around words taken out."""
    return re.sub(r"</?span[^>]*>", "", page.read_text(encoding="utf-8"))
