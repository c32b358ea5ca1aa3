"""A run that stops anywhere and resumes leaves the files of a run that never stopped, to the byte."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from forked import finish, start
from maxent_grpo.cli.main import main
from maxent_grpo.config.loading import resolve, write_resolved
from maxent_grpo.errors import UsageError
from maxent_grpo.train import drivers
from runs import train

SAME = ("metrics.jsonl", "completions.jsonl", "controller_state.json", "model.safetensors")
LAST = (
    "optimizer.safetensors",
    "optimizer.json",
    "trainer_state.json",
    "controller_state.json",
    "model.safetensors",
)

SEVERAL = "several updates per rollout, saved between two of them"
VARIANTS = {
    "maxent with both controllers": {
        "maxent_target_weight_entropy": 1.0,
        "maxent_tau_lr": 0.1,
        "kl_target": 0.01,
        "kl_horizon": 5,
        "kl_ctl_step_size": 0.5,
    },
    "maxent with the meta-controller under adam": {
        "controller_meta_enabled": True,
        "controller_meta_lr": 0.01,
        "controller_meta_optimizer": "adam",
        "controller_meta_method": "first_order",
        "maxent_target_weight_entropy": 1.0,
        "kl_target": 0.01,
    },
    SEVERAL: {
        "steps_per_generation": 4,
        "num_iterations": 2,
        "save_steps": 1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
    },
}


class Stopped(BaseException):
    """Stands for a kill inside the process: nothing may catch it."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Stop the run in the middle of optimiser step ``step``, after it has sampled."""
    real = drivers.step

    def stopping(run, groups):
        if run.step + 1 == step:
            raise Stopped
        return real(run, groups)

    monkeypatch.setattr(drivers, "step", stopping)


def contents(directory: Path, last_step: int) -> dict[str, bytes]:
    files = [*SAME, *(f"checkpoint-{last_step}/{name}" for name in LAST)]
    return {name: (directory / name).read_bytes() for name in files}


@pytest.mark.parametrize(
    ("variant", "stopped_at"), [*((variant, 4) for variant in VARIANTS), (SEVERAL, 1), (SEVERAL, 6)]
)
def test_a_stopped_run_resumes_to_the_same_bytes(configure, tmp_path, monkeypatch, variant, stopped_at):
    settings = VARIANTS[variant]
    train(configure(output_dir=str(tmp_path / "whole"), **settings))
    with monkeypatch.context() as patch:
        stop_at(patch, stopped_at)
        with pytest.raises(Stopped):
            train(configure(output_dir=str(tmp_path / "cut"), **settings))
    train(configure(output_dir=str(tmp_path / "cut"), resume_from_checkpoint=True, **settings))
    assert contents(tmp_path / "cut", 6) == contents(tmp_path / "whole", 6)


def test_the_run_goes_past_its_first_epoch_and_learns(configure, tmp_path):
    result = train(configure(max_steps=6))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result.metrics["train/epoch"] == 2.0
    assert [r["step"] for r in records] == [0, 1, 2, 3, 4, 5, 6]
    assert min(r["train/grad_norm"] for r in records[1:]) > 0


@pytest.mark.xdist_group("forked")
def test_a_killed_process_resumes_to_the_same_bytes(configure, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    settings = {"save_steps": 1, "max_steps": 20, "steps_per_generation": 4, "resume_from_checkpoint": True}
    write_resolved(configure(output_dir=str(tmp_path / "cut"), **settings), recipe)
    train(resolve("train-maxent", recipe, {"flat": {"output_dir": str(tmp_path / "whole")}}, environ={}))
    command = ["command=train-maxent", f"maxent.recipe={recipe}"]
    killed = start(main, command, tmp_path / "killed")
    while not (tmp_path / "cut" / "checkpoint-5").is_dir():
        assert killed.is_alive(), (tmp_path / "killed").read_text()
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    finish(main, command, tmp_path / "resumed")
    assert contents(tmp_path / "cut", 20) == contents(tmp_path / "whole", 20)


def test_a_half_written_checkpoint_is_never_picked_up(configure, tmp_path):
    train(configure())
    run = tmp_path / "run"
    os.replace(run / "checkpoint-6", run / ".checkpoint-6.partial")
    (run / "checkpoint-8").mkdir()  # no manifest: not complete
    result = train(configure(resume_from_checkpoint=True))
    assert result.global_step == 6
    assert not (run / ".checkpoint-6.partial").exists()


def test_a_truncated_checkpoint_is_refused_by_name(configure, tmp_path):
    train(configure())
    weights = tmp_path / "run" / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(
        UsageError, match=r"checkpoint-6 is damaged \(model.safetensors is missing or truncated\)"
    ):
        train(configure(resume_from_checkpoint=True))


def test_resuming_from_a_path_that_is_no_checkpoint_is_refused(configure, tmp_path):
    with pytest.raises(UsageError, match="is not a complete checkpoint"):
        train(configure(resume_from_checkpoint=str(tmp_path)))


def test_resuming_before_the_first_checkpoint_starts_at_step_0_and_says_so(configure, caplog):
    assert train(configure(resume_from_checkpoint=True)).global_step == 6
    assert "holds no complete checkpoint, so the run starts at step 0" in caplog.text


def test_only_the_newest_checkpoints_stay(configure, tmp_path):
    train(configure(save_steps=1, save_total_limit=2))
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]


def test_a_run_is_not_overwritten_unless_asked(configure):
    train(configure())
    with pytest.raises(UsageError, match=r"holds a run already .* overwrite_output_dir=true"):
        train(configure())
    assert train(configure(overwrite_output_dir=True, max_steps=1)).global_step == 1


def test_the_final_policy_loads_as_any_other(configure, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    train(configure(max_steps=1))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert model.config.vocab_size == len(tokenizer)


def test_a_folder_that_is_not_there_does_not_exist(configure, tmp_path):
    nowhere = tmp_path / "checkpoint-3"
    for settings in ({}, {"command": "train-baseline", "force_custom_loop": False}):
        with pytest.raises(UsageError, match="checkpoint-3 does not exist; give a checkpoint-<step> folder"):
            train(configure(resume_from_checkpoint=str(nowhere), **settings))
    nowhere.write_text("")
    with pytest.raises(UsageError, match="checkpoint-3 is a file"):
        train(configure(resume_from_checkpoint=str(nowhere)))


def test_resuming_says_what_comes_from_the_checkpoint(configure, tmp_path, caplog):
    train(configure(max_steps=2))
    changed = {"maxent_tau": 0.1, "weight_decay": 0.5, "learning_rate": 1e-3}
    train(configure(max_steps=4, resume_from_checkpoint=True, **changed))
    told = {r.getMessage() for r in caplog.records if "changed setting" in r.getMessage()}
    front = "resuming with a changed setting that has no effect: "
    assert f"{front}maxent_tau: 0.05 → 0.1; it comes from the checkpoint and goes on at 0.05" in told
    assert f"{front}weight_decay: 0.0 → 0.5; it comes from the checkpoint and goes on at 0.0" in told
    assert "resuming with a changed setting: learning_rate: 0.003 → 0.001" in told
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {r["train/tau"] for r in records[1:]} == {0.05}


def test_an_interrupt_says_how_to_go_on(configure, tmp_path, monkeypatch, capsys):
    real, recipe = drivers.step, tmp_path / "recipe.yaml"
    write_resolved(configure(overwrite_output_dir=True), recipe)

    def interrupted(at):
        def step(run, groups):
            if run.step + 1 == at:
                raise KeyboardInterrupt
            return real(run, groups)

        with monkeypatch.context() as patch:
            patch.setattr(drivers, "step", step)
            assert main(["command=train-maxent", f"maxent.recipe={recipe}"]) == 130
        return capsys.readouterr().err

    assert "interrupted; start it again: there is no checkpoint yet" in interrupted(1)
    assert "interrupted; resume_from_checkpoint=true goes on from checkpoint-2" in interrupted(4)
