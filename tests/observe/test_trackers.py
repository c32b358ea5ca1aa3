import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.observe.trackers import flat_config, tracker_names

SECRET = "hf_thisisnotforanyone"
# A tracker starts threads and a global run, so that each gets a process of its own, as in life.
RUN = f"""
import sys
from pathlib import Path
from accelerate import Accelerator
from maxent_grpo.observe.trackers import Trackers
row = {{"prompt": "p", "completion": "c", "advantage": 0.5, "weight": 0.5, "rewards": {{"right": 1.0}}}}
config = {{"run/git_sha": "abc", "hub_token": "{SECRET}", "model": {{"names": ["a", "b"], "none": None}}}}
trackers = Trackers(Accelerator(cpu=True), [sys.argv[1]], "tiny", Path("out"), config)
for step in (1, 2):
    trackers.log({{"train/reward": 0.25 * step, "train/kl": None}}, step)
trackers.log_completions([row] * 6, 2)
trackers.finish()
print("finished")
"""


def track(name: str, directory: Path, **environ: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "TRACKIO_", "HF_"))}
    environ = {**kept, "HOME": str(directory), "HF_HUB_OFFLINE": "1", **environ}
    answer = subprocess.run(
        [sys.executable, "-c", RUN, name],
        cwd=directory,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    assert "finished" in answer.stdout
    return answer.stdout


def holds_secret(directory: Path) -> bool:
    return any(SECRET.encode() in path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_tensorboard_writes_scalars_under_the_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard" / "maxent-grpo"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/reward")] == [(1, 0.25), (2, 0.5)]
    assert not holds_secret(tmp_path)


def test_wandb_works_offline(tmp_path):
    pytest.importorskip("wandb")
    track("wandb", tmp_path, WANDB_MODE="offline", WANDB_DIR=str(tmp_path / "w"))
    assert len(list((tmp_path / "w" / "wandb").glob("offline-run-*/run-*.wandb"))) == 1
    assert list((tmp_path / "w").rglob("completions_*.table.json"))
    assert not holds_secret(tmp_path)


def test_wandb_disabled_writes_nothing(tmp_path):
    track("wandb", tmp_path, WANDB_MODE="disabled")
    assert not list(tmp_path.rglob("*wandb*"))


def test_trackio_logs_to_a_local_file(tmp_path):
    pytest.importorskip("trackio")
    track("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "t"))
    assert list((tmp_path / "t").glob("*.db"))
    assert not holds_secret(tmp_path)


def test_no_tracker_is_a_choice():
    assert tracker_names(["none"], {}) == ()
    assert tracker_names(["wandb"], {"WANDB_MODE": "disabled"}) == ()


def test_an_unknown_tracker_is_refused():
    with pytest.raises(
        UsageError, match="unknown tracker 'wandbb'; choose from tensorboard, wandb, trackio or none"
    ):
        tracker_names(["wandbb"], {})


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        tracker_names(["wandb"], {})
    assert str(caught.value) == "report_to: wandb needs the package wandb: pip install 'maxent-grpo[wandb]'"


def test_configuration_becomes_flat_scalars():
    assert flat_config({"a": 1, "b": {"c": None, "d": [1, "x"]}}) == {"a": 1, "b.c": None, "b.d": '[1, "x"]'}
