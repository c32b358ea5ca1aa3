"""A run that is asked to end saves, ends with its own exit code, and goes on to the bytes of one left alone."""

import pytest

from maxent_grpo.observe.names import STOP_FILE
from maxent_grpo.train import drivers
from maxent_grpo.train.stopping import Stopped
from runs import train

FILES = ("metrics.jsonl", "completions.jsonl", "controller_state.json", "model.safetensors")


def test_a_stop_file_ends_the_run_at_a_checkpoint_that_resumes_to_the_same_bytes(
    configure, tmp_path, monkeypatch
):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train(configure(output_dir=str(whole), max_steps=4, save_steps=100))
    real = drivers.step

    def asking(run, groups):
        if run.step + 1 == 2:
            (parted / STOP_FILE).touch()
        return real(run, groups)

    with monkeypatch.context() as patch:
        patch.setattr(drivers, "step", asking)
        with pytest.raises(Stopped, match=r"stopped after step 2.*resume_from_checkpoint=true goes on"):
            train(configure(output_dir=str(parted), max_steps=4, save_steps=100))
    assert (parted / "checkpoint-2" / "manifest.json").is_file()
    assert not (parted / STOP_FILE).exists()
    assert not (parted / "model.safetensors").exists()
    train(configure(output_dir=str(parted), max_steps=4, save_steps=100, resume_from_checkpoint=True))
    assert {name: (parted / name).read_bytes() for name in FILES} == {
        name: (whole / name).read_bytes() for name in FILES
    }


def test_being_stopped_has_an_exit_code_of_its_own():
    assert Stopped.exit_code == 75  # EX_TEMPFAIL of sysexits.h: try again later


def test_a_request_that_comes_with_the_last_step_is_forgotten(configure, tmp_path, monkeypatch):
    real = drivers.step

    def asking(run, groups):
        (tmp_path / "run" / STOP_FILE).touch()
        return real(run, groups)

    monkeypatch.setattr(drivers, "step", asking)
    assert train(configure(max_steps=1)).global_step == 1
    assert not (tmp_path / "run" / STOP_FILE).exists()


def test_trls_trainer_stops_and_resumes(configure, tmp_path):
    settings = {"force_custom_loop": False, "logging_steps": 1, "save_steps": 100, "max_steps": 3}
    output = tmp_path / "run"
    output.mkdir()
    (output / STOP_FILE).touch()
    with pytest.raises(Stopped, match="stopped after step 1"):
        train(configure("train-baseline", **settings))
    assert (output / "checkpoint-1").is_dir()
    result = train(configure("train-baseline", **settings, resume_from_checkpoint=True))
    assert result.global_step == 3
    assert (output / "model.safetensors").is_file()
