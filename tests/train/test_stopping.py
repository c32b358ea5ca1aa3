"""A run that is asked to end saves, ends with its own exit code, and goes on to the bytes of one left alone."""

import os
import pty
import signal
import sys

import pytest

from maxent_grpo.observe.names import STOP_FILE
from maxent_grpo.train import drivers
from maxent_grpo.train.stopping import LOCAL_SIGNALS, Stopped, stopping_on_signal
from maxent_grpo.train.trl import MaxEntGRPOTrainer
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


SIGNALS = {"SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 75}


@pytest.mark.parametrize("native", [True, False], ids=["native", "trl"])
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_saves_says_so_and_has_its_exit_code(configure, tmp_path, monkeypatch, capfd, name, native):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    command = "train-maxent" if native else "train-baseline"
    settings = {"max_steps": 4, "save_steps": 100, "force_custom_loop": native, "logging_steps": 1}
    asked = []
    place, attribute = (drivers, "step") if native else (MaxEntGRPOTrainer, "training_step")
    real = getattr(place, attribute)

    def signalled(*arguments, **keywords):
        if not asked:
            asked.append(name)
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # `timeout` and process groups send it twice
        return real(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(place, attribute, signalled)
        with pytest.raises(
            Stopped, match=rf"stopped after step 1, as {name} asked: checkpoint-1 is saved"
        ) as end:
            train(configure(command, **settings))
    assert end.value.exit_code == SIGNALS[name]
    assert f"{name}: saving a checkpoint after the step in hand" in capfd.readouterr().err
    assert (tmp_path / "run" / "checkpoint-1").is_dir()
    assert not (tmp_path / "run" / STOP_FILE).exists()
    assert signal.getsignal(number) is before
    assert train(configure(command, **settings, resume_from_checkpoint=True)).global_step == 4


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        with stopping_on_signal(tmp_path, *LOCAL_SIGNALS):
            os.kill(os.getpid(), signal.SIGHUP)
            assert not (tmp_path / STOP_FILE).exists()
            assert signal.getsignal(signal.SIGTERM) is not before
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_does_not_break_the_saving(tmp_path):
    """The child's terminal goes away, and it writes on as a progress bar does."""
    code = (
        "import os, pathlib, signal, sys, time\n"
        "from maxent_grpo.train.stopping import LOCAL_SIGNALS, stopping_on_signal\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "with stopping_on_signal(folder, *LOCAL_SIGNALS):\n"
        "    print('ready', flush=True)\n"
        "    while not (folder / 'stop').exists(): time.sleep(0.01)\n"
        "    for _ in range(3): print('progress', flush=True); print('note', file=sys.stderr, flush=True)\n"
        "    (folder / 'saved').touch()\n"
    )
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    seen = b""
    while b"ready" not in seen:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "saved").exists()
