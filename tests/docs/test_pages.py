"""What the pages print besides commands: Python runs, sessions answer, recipes resolve, error lines exist."""

import ast
import doctest
import re
from pathlib import Path

import pytest
import yaml
from documented_commands import ROOT, Block, blocks, pages

from maxent_grpo.config.loading import resolve
from maxent_grpo.config.torchrl_names import split
from maxent_grpo.objectives.catalog import CATALOG
from maxent_grpo.study.plan import read_plan

ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "docs/guides/trl.md": "tests/train/test_trl_guide.py",
    "docs/guides/new_objective.md": "tests/docs/test_new_objective_guide.py",
}
"""Page → the test that runs its Python."""

NOT_RUN: dict[str, str] = {}
"""First line of a Python block → why no test runs it."""

PYTHON = [b for b in blocks() if b.language == "python" and b.page not in ELSEWHERE]
YAML = [b for b in blocks() if b.language in ("yaml", "yml") and not b.title]


def test_the_tests_that_are_named_exist() -> None:
    assert [test for test in ELSEWHERE.values() if not (ROOT / test).is_file()] == []


def test_the_proofs_of_the_failures_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/failures.md").read_text())
    assert len(named) > 15
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / file).is_file() or (test and f"def {test}(" not in (ROOT / file).read_text())
    ]
    assert missing == []


@pytest.mark.parametrize("block", PYTHON, ids=lambda b: b.place)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile(block.text, block.place, "exec")
    if block.text.splitlines()[0] in NOT_RUN:
        return
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "page"})


@pytest.mark.parametrize("page", [p for p in pages() if ">>>" in p.read_text()], ids=lambda p: p.name)
def test_sessions_answer_as_printed(page: Path) -> None:
    failed, tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert tried
    assert failed == 0


@pytest.mark.parametrize("block", YAML, ids=lambda b: b.place)
def test_yaml_is_what_it_says(block: Block, tmp_path: Path) -> None:
    """A whole recipe resolves, a plan of a study loads, a part of a recipe names settings that exist."""
    tree = yaml.safe_load(block.text)
    file = tmp_path / "page.yaml"
    file.write_text(block.text)
    if "arms" in tree:
        assert read_plan(file).arms
        return
    tree, theirs = split(tree)  # refuses a name that TorchRL's dialect has not
    if theirs:
        return  # tests/docs/test_dialect_guide.py computes with them
    kind = "train-maxent" if tree.get("objective") in ("maxent", "tilted") else "train-baseline"
    whole = {"model_name_or_path": "x", "dataset_name": "x", "reward_funcs": ["format"], "output_dir": "x"}
    resolve(kind, None, {"flat": whole | tree}, environ={})


@pytest.mark.slow
def test_the_smallest_recipe_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maxent_grpo.cli.main import maxent

    (recipe,) = [block for block in YAML if block.page == "docs/recipes.md"]
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(recipe.text)
    assert maxent(["maxent.recipe=recipe.yaml"]) == 0
    assert len(Path("var/data/smallest/metrics.jsonl").read_text().splitlines()) >= 3


def test_every_line_of_troubleshooting_is_one_that_the_package_writes() -> None:
    said = "\n".join(texts_of(file) for file in (ROOT / "src").rglob("*.py"))
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").split("## It runs, and")[0]
    quoted = [
        line
        for row in re.findall(r"^\| (`.+?`) \|", page, flags=re.M)
        for line in re.findall(r"`(.+?)`", row)
    ]
    assert len(quoted) > 20
    missing = [part for line in quoted for part in line.split(" … ") if part not in said]
    assert missing == []


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_catalog_is_as_large_as_the_pages_say(page: str) -> None:
    (count,) = re.findall(r"(\d+) objectives", (ROOT / page).read_text(encoding="utf-8"))
    assert int(count) == len(CATALOG)


def texts_of(file: Path) -> str:
    """The string literals of a module, those of one f-string joined."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values]
            found.append("".join(parts))
    return "\n".join(found)
