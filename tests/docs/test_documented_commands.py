"""Every command of README and docs is executed as far as it can run offline, or listed with the reason why not."""

import importlib
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from documented_commands import ROOT, SHELL, Check, Checked, NotRun, RunBy, blocks, documented, rule_of, words

from composed import jobs_of
from maxent_grpo.cli.request import read_request
from maxent_grpo.evaluate.settings import EvaluationRequest
from maxent_grpo.evaluate.settings import read_request as read_evaluation

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
"""Console script → ``module:function``."""

EXECUTED = sorted(command for command in documented() if isinstance(rule_of(command), Checked))


def test_every_block_names_its_language() -> None:
    unnamed = [block.place for block in blocks() if not block.language]
    assert not unnamed, f"give the fences at {', '.join(unnamed)} a language: text where nothing else fits"


def test_every_command_has_a_rule() -> None:
    unknown = {place: command for command, place in documented().items() if rule_of(command) is None}
    assert not unknown, f"say in documented_commands.RULES how to check, or why not: {unknown}"


def test_tests_that_are_named_exist() -> None:
    named = {rule.test for rule in map(rule_of, documented()) if isinstance(rule, RunBy)}
    assert named
    assert [test for test in named if not (ROOT / test).is_file()] == []


def test_no_word_of_a_command_is_a_pattern_of_files() -> None:
    """zsh, the shell of macOS, refuses an unquoted ``key=[value]`` that matches no file."""
    bare = {place: re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", command) for place, command in documented().items()}
    globbing = [place for place, command in bare.items() if re.search(r"\S*=\S*[\[*?]", command)]
    assert not globbing, f"quote what has brackets: {globbing}"


def test_commands_of_one_page_do_not_write_into_each_others_directory() -> None:
    """Whoever types a page from top to bottom meets no directory that holds a run already, unless the run goes on."""
    trains = re.compile(r"maxent-grpo-(baseline|maxent|infoseed)|torchrun|accelerate launch")
    for page in {block.page for block in blocks()}:
        written: list[str] = []
        for place, command in documented().items():
            if not place.startswith(f"{page}:") or not trains.search(command) or "resume_from" in command:
                continue
            if "--dry" in command or "dry_run=true" in command or "--help" in command:
                continue
            named = re.findall(r"output_dir[= ](\S+)", command)
            recipe = re.findall(r"(?:recipe=|--config )(\S+)", command)
            written += named[-1:] or recipe[-1:]
        assert len(written) == len(set(written)), f"{page}: two commands write into one directory: {written}"


def test_shell_blocks_were_found() -> None:
    assert {block.page for block in blocks() if block.language in SHELL} >= {"README.md", "docs/train.md"}


@pytest.mark.parametrize("command", EXECUTED)
def test_commands_do_what_they_say(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    rule = rule_of(command)
    assert isinstance(rule, Checked)
    CHECKS[rule.how](command, tmp_path)


def run_script(script: str, arguments: list[str]) -> int:
    """Call a console script in this process."""
    module, _, function = SCRIPTS[script].partition(":")
    code: int = getattr(importlib.import_module(module), function)(arguments)
    return code


def helped(command: str, directory: Path) -> None:
    script, *arguments = words(command)
    assert run_script(script, arguments) == 0


def planned(command: str, directory: Path) -> None:
    """A training command resolves and plans; nothing is loaded."""
    script, *arguments = words(command)
    assert run_script(script, [a for a in arguments if a != "dry_run=true"] + ["dry_run=true"]) == 0


def flagged(command: str, directory: Path) -> None:
    """TRL's flags resolve and plan. What launches the processes is left out; a file that it names must exist."""
    arguments = words(command)
    start = arguments.index("-m")
    for flag, value in itertools.pairwise(arguments[:start]):
        assert flag != "--config_file" or (ROOT / value).is_file(), value
    rest = [argument for argument in arguments[start + 2 :] if argument != "--dry_run"]
    assert importlib.import_module(arguments[start + 1]).main([*rest, "--dry_run"]) == 0


def evaluated(command: str, directory: Path) -> None:
    """The request is read and checked; where it needs the bundled policy alone, two prompts are asked."""
    script, *arguments = words(command)
    request = evaluation_of(arguments)
    if {model.model_name_or_path for model in request.models} != {"bundled:tiny-policy"}:
        return
    kept = [argument for argument in arguments if not argument.startswith("inference.limit=")]
    root = f"inference.artifacts.root_dir={directory}"
    assert run_script(script, [*kept, "inference.limit=2", root]) == 0
    lines = [line for file in directory.rglob("seed_*.jsonl") for line in file.read_text().splitlines()]
    assert len(lines) == 2 * len(request.seeds) * len(request.temperatures)


def evaluation_of(arguments: list[str]) -> EvaluationRequest:
    return read_evaluation(read_request(jobs_of(arguments)[0], "math-eval").section)


def studied(command: str, directory: Path) -> None:
    """The matrix of runs is printed; nothing is timed."""
    script, *arguments = words(command)
    options = ["study.dry_run=true", "study.probe=false", f"study.output_dir={directory}"]
    kept = [a for a in arguments if a.partition("=")[0] not in {o.partition("=")[0] for o in options}]
    assert run_script(script, [*kept, *options]) == 0


def made(command: str, directory: Path) -> None:
    """The target exists; making it is minutes of installing or training, or the tests themselves."""
    target = next(word for word in words(command)[1:] if "=" not in word)
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target


def is_file(command: str, directory: Path) -> None:
    named = next(word for word in words(command) if "/" in word)
    assert (ROOT / named).is_file(), named


def is_module(command: str, directory: Path) -> None:
    assert (ROOT / f"{words(command)[2].replace('.', '/')}.py").is_file()


def console_help(command: str, directory: Path) -> None:
    """The script answers ``--help``, which names every option that the command uses."""
    script, *arguments = words(command)
    if script == "python":
        program = ["-m", arguments[1]]
    else:
        module, _, function = SCRIPTS[script].partition(":")
        program = ["-c", f"import sys, {module}; sys.exit({module}.{function}())"]
    answer = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True, check=True)
    used = re.findall(r"(?<!\S)--([\w-]+)", command)
    assert [option for option in used if f"--{option}" not in answer.stdout] == []


CHECKS: dict[str, Check] = {
    "help": helped,
    "plan": planned,
    "flags": flagged,
    "evaluation": evaluated,
    "study": studied,
    "make": made,
    "file": is_file,
    "module": is_module,
    "help of console": console_help,
}


def test_a_command_without_a_rule_is_noticed() -> None:
    assert rule_of("frobnicate --all") is None
    assert isinstance(rule_of("maxent-grpo command=report run=DIR"), NotRun)
    assert rule_of("maxent-grpo-maxent maxent.recipe=x.yaml") == Checked("plan")
    assert rule_of("maxent-grpo-math-eval inference.dataset=amc") == Checked("evaluation")
