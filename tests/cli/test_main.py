"""The scripts from the outside: exit codes, error lines, help, and how jobs are started."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from maxent_grpo.cli import main as scripts
from maxent_grpo.cli.boundary import ErrorContext, configure_logging
from maxent_grpo.config.parts import RunSettings
from maxent_grpo.errors import RunError, UsageError


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[RunSettings]:
    """Replaces training by a note of what would be trained; seed 13 fails."""
    import maxent_grpo.train.run

    runs: list[RunSettings] = []

    def train(settings: RunSettings) -> maxent_grpo.train.run.TrainResult:
        runs.append(settings)
        if settings.records.header["run/seed"] == 13:
            raise RunError("no luck")
        return maxent_grpo.train.run.TrainResult(Path("run"), 0, {})

    monkeypatch.setattr(maxent_grpo.train.run, "train", train)
    monkeypatch.setattr("maxent_grpo.cli.main.configure_logging", lambda level: None)
    return runs


def _process(
    *arguments: str, cwd: Path, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "maxent_grpo.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(environ or {})},
        timeout=60,
        check=False,
    )


def test_help_teaches_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from maxent_grpo.cli.main import main; code = main(['--help']); "
        "heavy = {'torch', 'transformers', 'trl', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules); "
        "print('heavy:', sorted(heavy)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "heavy: []" in done.stdout
    for word in (
        "train-baseline",
        "train-maxent",
        "train-infoseed",
        "report",
        "demo",
        "dry_run=true",
        "--multirun",
    ):
        assert word in done.stdout
    for word in (
        "GRPO_RECIPE",
        "MAXENT_LOG_LEVEL",
        "exit codes",
        "huggingface.co/docs/trl",
        "maxent_tau (0.0)",
    ):
        assert word in done.stdout


def test_help_into_a_pipe_that_closes_early(tmp_path: Path) -> None:
    command = f"{sys.executable} -m maxent_grpo.cli.main --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith("maxent-grpo: train language models")
    assert done.stderr == ""


def test_help_lists_every_setting_under_a_topic() -> None:
    from dataclasses import fields

    from maxent_grpo.cli.helptext import help_text, topics
    from maxent_grpo.config.settings import ScriptFields, TrainingFields

    text = help_text(width=80)
    names = [field.name for field in (*fields(ScriptFields), *fields(TrainingFields))]
    listed = [record for records in topics().values() for record in records]
    assert sorted(r.name for r in listed if r.section != "environment") == sorted(names)
    assert [name for record in listed for name in record.env if name not in text] == []
    assert [name for name in names if f"\n  {name} (" not in text] == []
    assert (
        max(
            len(line)
            for line in text[text.index("settings of this") : text.index("More settings")].splitlines()
        )
        <= 80
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert scripts.main(["--version"]) == 0
    assert re.fullmatch(r"maxent-grpo \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_dry_run_prints_settings_route_and_plan_and_writes_nothing(
    recipe: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe("maxent")
    arguments = ["command=train-maxent", "maxent.recipe=maxent.yaml", "training.max_steps=7", "dry_run=true"]
    assert scripts.main([*arguments, "training.vllm_url=http://me:hunter2@host:1/generate"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    printed: dict[str, Any] = yaml.safe_load(out)
    assert printed["route"] == "native"
    assert printed["route_reason"] == "maxent is a MaxEnt objective"
    assert printed["plan"] == {
        "processes": 1,
        "completions_per_prompt": 4,
        "prompts_per_step": 4,
        "completions_per_step": 16,
        "prompts_per_rollout": 4,
        "groups_per_micro_batch": 2,
        "updates_per_rollout": 1,
        "on_policy": True,
        "evaluation": "none",
        "total_steps": 7,
    }
    assert "var/data/out/metrics.jsonl" in printed["writes"]
    assert printed["settings"]["training"]["learning_rate"] == 1e-6
    assert "hunter2" not in out
    assert [path.name for path in tmp_path.iterdir()] == ["maxent.yaml"]


def test_dry_run_of_trls_route(recipe: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    recipe("baseline")
    arguments = ["baseline.recipe=baseline.yaml", "dry_run=true", "training.hub_token=hf_secret"]
    assert scripts.baseline(arguments) == 0
    text = capsys.readouterr().out
    printed = yaml.safe_load(text)
    assert printed["route"] == "trl"
    assert "force_custom_loop" in printed["route_reason"]
    assert printed["plan"]["completions_per_step"] == 16
    assert "hf_secret" not in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "maxent-grpo: no command: add command="),
        (["command=nope"], "maxent-grpo: Unsupported command: nope"),
        (
            ["command=train-maxent", "maxent.recipe=absent.yaml"],
            "maxent-grpo: train-maxent | absent.yaml: there is no",
        ),
        (["command=train-maxent", "training.x={"], "maxent-grpo: training.x={: "),
        (["--learning_rate", "1e-6"], "maxent-grpo: unknown flag --learning_rate"),
        (["command=report", "run=absent"], "maxent-grpo: report: run=absent: no such directory"),
        (
            ["command=train-maxent", "maxent.recipe=maxent.yaml", "training.lerning_rate=1"],
            "maxent-grpo: train-maxent | maxent.yaml: override: unknown key training.lerning_rate "
            "(did you mean learning_rate?)",
        ),
        (
            ["command=train-maxent", "maxent.recipe=maxent.yaml", "training.info_seed_enabled=true"],
            "maxent-grpo: train-maxent | maxent.yaml: InfoSeed is not supported for this command",
        ),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    arguments: list[str], line: str, recipe: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    recipe("maxent")
    assert scripts.main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_real_process_ends_with_the_code_and_the_line(tmp_path: Path) -> None:
    done = _process("command=train-maxent", "training.x=${nowhere}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "maxent-grpo: Interpolation key 'nowhere' not found\n"


def test_tracebacks_only_on_demand(tmp_path: Path) -> None:
    for variable in ("MAXENT_LOG_LEVEL", "MAXENT_GRPO_LOGLEVEL"):
        done = _process("command=nope", cwd=tmp_path, environ={variable: "debug"})
        assert done.returncode == 2
        assert "Traceback (most recent call last)" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("maxent-grpo: Unsupported command")


def test_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAXENT_LOG_LEVEL", raising=False)
    monkeypatch.delenv("MAXENT_GRPO_LOGLEVEL", raising=False)

    def code_of(error: Exception | None) -> int:
        with ErrorContext("train-maxent", "r.yaml") as context:
            if error is not None:
                raise error
        return context.exit_code

    errors = (None, UsageError("bad key"), RunError("it broke"), ZeroDivisionError("by\nzero"))
    assert [code_of(error) for error in errors] == [0, 2, 1, 1]
    assert capsys.readouterr().err.splitlines() == [
        "maxent-grpo: train-maxent | r.yaml: bad key",
        "maxent-grpo: train-maxent | r.yaml: it broke",
        "maxent-grpo: train-maxent | r.yaml: internal error: ZeroDivisionError: by zero "
        "(set MAXENT_LOG_LEVEL=DEBUG for the traceback)",
    ]


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scripts, "_compose", interrupted)
    assert scripts.maxent([]) == 130
    assert capsys.readouterr().err == "maxent-grpo: train-maxent: interrupted\n"


@pytest.mark.parametrize(
    ("script", "arguments", "command"),
    [
        (scripts.maxent, ["maxent.recipe=maxent.yaml"], "train-maxent"),
        (scripts.baseline, ["baseline.recipe=baseline.yaml"], "train-baseline"),
        (scripts.baseline, ["command=train-maxent", "maxent.recipe=maxent.yaml"], "train-maxent"),
        (scripts.main, ["command=train-baseline", "baseline.recipe=baseline.yaml"], "train-baseline"),
    ],
)
def test_a_script_trains_its_command_unless_one_is_named(
    script: Callable[[list[str]], int],
    arguments: list[str],
    command: str,
    recipe: Callable[[str], Path],
    trained: list[RunSettings],
    tmp_path: Path,
) -> None:
    recipe("maxent")
    recipe("baseline")
    assert script(arguments) == 0
    assert [settings.command for settings in trained] == [command]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baseline.yaml", "maxent.yaml"]


def test_a_failing_job_is_named_and_the_sweep_goes_on(
    recipe: Callable[[str], Path], trained: list[RunSettings], capfd: pytest.CaptureFixture[str]
) -> None:
    recipe("maxent")
    assert scripts.maxent(["maxent.recipe=maxent.yaml", "--multirun", "seed=13,14"]) == 1
    assert [str(settings.output.directory) for settings in trained] == [
        "var/data/out/seed=13",
        "var/data/out/seed=14",
    ]
    out, err = capfd.readouterr()
    jobs = [line for line in out.splitlines() if line.startswith("maxent-grpo: job")]
    assert jobs == ["maxent-grpo: job seed=13", "maxent-grpo: job seed=14"]
    assert "maxent-grpo: train-maxent | maxent.yaml: no luck\n" in err
    assert err.splitlines()[-1] == "maxent-grpo: train-maxent: 1 job(s) of the sweep failed: seed=13"


def test_demo_gets_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import maxent_grpo.cli.demo

    options: list[Mapping[str, Any]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(maxent_grpo.cli.demo, "run_demo", options.append)
    assert scripts.main(["command=demo", "demo.steps=100", "demo.output_dir=var/demo", "demo.seed=0"]) == 0
    assert options == [{"steps": 100, "output_dir": "var/demo", "seed": 0}]


def test_logging_is_plain_and_other_libraries_are_quiet() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    try:
        configure_logging("debug")
        assert root.level == logging.DEBUG
        assert logging.getLogger("transformers").level == logging.WARNING
        configure_logging("passive")
        assert root.level == logging.WARNING
    finally:
        root.setLevel(before[0])
        root.handlers = before[1]


RECIPES = Path(__file__).resolve().parents[2] / "configs" / "recipes"


@pytest.mark.parametrize(
    "arguments",
    [
        f"command=train-baseline baseline.recipe={RECIPES}/tiny/grpo/config_countdown.yaml",
        f"command=train-maxent maxent.recipe={RECIPES}/Qwen2.5-1.5B-Instruct/maxent-grpo/config_math.yaml",
        "command=train mode=async use_vllm=true env.dataset=ifeval",
    ],
)
def test_a_dry_run_waits_for_neither_torch_nor_trl(arguments: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom maxent_grpo.cli.main import main\n"
        f"code = main({[*arguments.split(), 'dry_run=true']!r})\n"
        "heavy = {'torch', 'trl', 'transformers', 'accelerate', 'datasets', 'numpy'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr.partition("starting from")[0][:9]) in ((0, ""), (0, "no recipe")), (
        done.stderr
    )
    assert "\nplan:\n" in done.stdout


def test_a_typed_null_unsets_what_a_recipe_says(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = RECIPES / "tiny" / "grpo" / "config_countdown.yaml"
    line = ["command=train-baseline", f"baseline.recipe={recipe}", "dry_run=true"]
    assert scripts.main([*line, "learning_rate=null", "training.seed=null"]) == 0
    printed = capsys.readouterr().out
    assert "\n    learning_rate: 1.0e-06\n" in printed
    assert "\n    seed: 42\n" in printed


@pytest.mark.parametrize(
    ("script", "command", "own"),
    [
        (scripts.math_eval, "maxent-grpo-math-eval inference.dataset=NAME", "artifacts.root_dir"),
        (scripts.study, "maxent-grpo-study study.plan=FILE", "study.analyse=true"),
    ],
)
def test_the_help_of_a_script_is_about_its_own_command(
    script: Any, command: str, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {command}")
    assert own in text
    assert "maxent_tau" not in text
    assert "maxent-grpo --help lists all commands and settings" in text
