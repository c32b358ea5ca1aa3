"""What a built wheel carries, and that shipped files are found from anywhere."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from maxent_grpo.config import shipped as shipped_module
from maxent_grpo.config.shipped import shipped

ROOT = Path(__file__).resolve().parents[2]
BUILT_FROM = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "configs", "src")
TINY = "configs/recipes/tiny/grpo/config_graph_coloring.yaml"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as ``python -m build`` does: a source distribution of a clean copy, and from that the wheel."""
    work = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    (work / "copy").mkdir()
    for name in BUILT_FROM:
        source, target = ROOT / name, work / "copy" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copyfile(source, target)
    _backend("build_sdist", work / "copy", work)
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        sdist.extractall(work, filter="data")
    _backend("build_wheel", work / archive.name.removesuffix(".tar.gz"), work)
    (built,) = work.glob("*.whl")
    return built


def _backend(call: str, directory: Path, target: Path) -> None:
    code = f"from setuptools import build_meta; build_meta.{call}({str(target)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_wheel_carries_code_data_and_every_shipped_configuration(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for source in (ROOT / "configs").rglob("*.yaml"):
            relative = source.relative_to(ROOT / "configs")
            if relative.parts[0] in ("recipes", "study", "accelerate"):
                inside = f"maxent_grpo/shipped/{relative.as_posix()}"
                assert archive.read(inside) == source.read_bytes(), inside
        assert "maxent_grpo/shipped/prompts/math_system_prompt.txt" in names
        modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
        assert modules <= names
        for name in (
            "py.typed",
            "tasks/tiny_policy_files/model.safetensors",
            "observe/metrics.yaml",
            "evaluate/completions.html",
        ):
            assert f"maxent_grpo/{name}" in names
        assert "math_answers/py.typed" in names
        scripts = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert "maxent-grpo = maxent_grpo.cli.main:main" in scripts
    assert "maxent-grpo-generate = maxent_grpo.cli.main:generate" in scripts
    roots = {name.partition("/")[0] for name in names}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"math_answers", "maxent_grpo"}
    assert wheel.stat().st_size < 10 * 2**20


def test_a_recipe_is_found_from_outside_the_repository(tmp_path, monkeypatch):
    from maxent_grpo.config.loading import resolve

    monkeypatch.chdir(tmp_path)
    flat = {"output_dir": str(tmp_path / "run"), "use_cpu": True}
    config = resolve("train-baseline", TINY, {"flat": flat}, environ={})
    assert config.recipe_path == ROOT / TINY
    assert shipped("configs/recipes/none.yaml") == Path("configs/recipes/none.yaml")


def test_an_own_file_comes_first_and_the_wheels_copy_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    homes = (tmp_path / "checkout", tmp_path / "wheel")
    monkeypatch.setattr(shipped_module, "HOMES", homes)
    for place in (homes[1], homes[0], tmp_path / "configs"):
        (place / "study").mkdir(parents=True)
        (place / "study" / "a.yaml").touch()
        found = shipped("configs/study/a.yaml")
        assert found == (place / "study" / "a.yaml" if place in homes else Path("configs/study/a.yaml"))
