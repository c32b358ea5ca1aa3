"""Checkpoints under DeepSpeed as the environment asks for them: each mode resumes exactly or says that it cannot.

Runs are of two steps with a checkpoint after each. "Exactly": the resumed run ends with the bytes of the whole one.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_strategies import arguments
from transformers import AutoModelForCausalLM, AutoTokenizer

from maxent_grpo.config.environment import ALLOW, MODE, PREFER, SKIP, SOURCE, CheckpointSettings
from maxent_grpo.errors import UsageError
from maxent_grpo.train.checkpoint import find_source, paired_run, save_metadata
from ranks import Ended, run_ranks
from runs import train

pytestmark = pytest.mark.xdist_group("forked")  # one worker: ranks fork from one process, runs are shared

SHORT = {
    "max_steps": 2,
    "save_steps": 1,
    "eval_strategy": "no",
    "eval_on_start": False,
    "learning_rate": 1e-3,
}


def run(directory: Path, name: str, stage: str, environ: dict[str, str], **settings) -> Ended:
    pytest.importorskip("deepspeed")
    given = SHORT | {"distributed": stage} | settings
    return run_ranks(directory, arguments(directory / name, **given), environ=environ)


def finished(directory: Path, name: str, stage: str, environ: dict[str, str], **settings) -> Path:
    ended = run(directory, name, stage, environ, **settings)
    assert ended.codes == [0, 0], ended.errors
    return directory / name


def resumed(directory: Path, name: str, stage: str, environ: dict[str, str], checkpoint: Path) -> Path:
    return finished(directory, name, stage, environ, resume_from_checkpoint=str(checkpoint))


def state_kind(checkpoint: Path) -> str:
    return json.loads((checkpoint / "trainer_state.json").read_text())["training_state"]


def assert_same_policy(one: Path, other: Path) -> None:
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.fixture(scope="module", params=["zero2", pytest.param("zero3", marks=pytest.mark.nightly)])
def shallow(request, tmp_path_factory) -> tuple[str, Path]:
    """A stage, and its run with DeepSpeed's own state in shallow checkpoints."""
    directory = tmp_path_factory.mktemp(request.param)
    return request.param, finished(directory, "whole", request.param, {MODE: "shallow"})


@pytest.mark.slow
def test_a_shallow_checkpoint_resumes_and_is_recovered_by_zero_to_fp32(tmp_path, shallow):
    stage, whole = shallow
    first, last = whole / "checkpoint-1", whole / "checkpoint-2"
    assert not list(first.glob("*.safetensors"))
    assert {"config.json", "tokenizer.json", "zero_to_fp32.py", "latest"} <= {p.name for p in first.iterdir()}
    assert state_kind(first) == stage
    for folder in (last, whole):  # the last one is always full
        AutoTokenizer.from_pretrained(folder)
        assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0

    assert_same_policy(resumed(tmp_path, "again", stage, {MODE: "shallow"}, first), whole)

    script = [sys.executable, str(last / "zero_to_fp32.py"), str(last), str(tmp_path / "recovered")]
    subprocess.run([*script, "--safe_serialization"], check=True, capture_output=True)
    shutil.copyfile(last / "config.json", tmp_path / "recovered" / "config.json")
    recovered = AutoModelForCausalLM.from_pretrained(tmp_path / "recovered", dtype=torch.float32)
    expected = AutoModelForCausalLM.from_pretrained(last, dtype=torch.float32).state_dict()
    for name, tensor in recovered.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert expected.keys() == recovered.state_dict().keys()


@pytest.mark.slow
def test_a_state_saved_by_accelerate_resumes_exactly(tmp_path, shallow):
    stage, native = shallow
    whole = finished(tmp_path, "whole", stage, {PREFER: "true"})
    first = whole / "checkpoint-1"
    assert state_kind(first) == "accelerate"
    assert not (first / "zero").exists()
    weights, state = load_file(first / "model.safetensors"), load_file(first / "accelerate/state.safetensors")
    for name, tensor in weights.items():
        assert torch.equal(state[f"parameter.{name}"], tensor), name
        assert state[f"exp_avg.{name}"].shape == tensor.shape
    assert_same_policy(resumed(tmp_path, "again", stage, {}, first), whole)
    # DeepSpeed's own state leads to the same policy.
    assert_same_policy(native, whole)


@pytest.mark.slow
def test_without_state_the_checkpoint_says_that_it_cannot_be_resumed(tmp_path):
    ended = run(tmp_path, "run", "zero2", {SKIP: "true"})
    assert ended.codes == [0, 0], ended.errors
    first = tmp_path / "run" / "checkpoint-1"
    assert f"{first} holds no training state ({SKIP} is true): it cannot be resumed" in ended.errors[0]
    assert state_kind(first) == "none"
    assert not (first / "zero").exists()
    AutoModelForCausalLM.from_pretrained(first)
    again = run(tmp_path, "run", "zero2", {}, resume_from_checkpoint=str(first))
    assert again.codes[0] in (1, 2)
    assert "was saved without training state" in again.errors[0]


@pytest.mark.slow
def test_where_deepspeed_cannot_save_accelerate_does_if_that_is_allowed(tmp_path):
    broken = {"reward_funcs": "rank_rewards:breaks_deepspeeds_own_save", "reward_isolation": False}
    ended = run(tmp_path, "refused", "zero2", {}, **broken)
    assert ended.codes == [1, 1]
    assert f"No space left on device); {ALLOW}=true lets Accelerate save the state instead" in ended.errors[0]
    allowed = run(tmp_path, "allowed", "zero2", {ALLOW: "true"}, **broken)
    assert allowed.codes == [0, 0], allowed.errors
    assert "Accelerate saves the state instead" in allowed.errors[0]
    first = tmp_path / "allowed" / "checkpoint-1"
    assert state_kind(first) == "accelerate"
    again = finished(tmp_path, "again", "zero2", {ALLOW: "true"}, resume_from_checkpoint=str(first), **broken)
    assert_same_policy(again, tmp_path / "allowed")


def test_where_weights_are_the_state_shallow_checkpoints_hold_them(configure, tmp_path):
    from dataclasses import replace

    shallow = CheckpointSettings(
        metadata="shallow", deepspeed_state="skip"
    )  # the latter concerns DeepSpeed alone
    train(replace(configure(max_steps=4, output_dir=str(tmp_path / "a")), checkpoints=shallow))
    train(configure(max_steps=4, output_dir=str(tmp_path / "b")))
    for file in ("model.safetensors", "optimizer.safetensors", "trainer_state.json"):
        mine, plain = (tmp_path / name / "checkpoint-2" / file for name in "ab")
        assert mine.read_bytes() == plain.read_bytes()


def test_small_files_come_from_the_named_folder_or_the_paired_run_or_the_model(policy, tokenizer, tmp_path):
    grpo, maxent = tmp_path / "Qwen-GRPO-math", tmp_path / "Qwen-MaxEnt-GRPO-math"
    assert paired_run(maxent) is None
    assert find_source(CheckpointSettings(), maxent, policy.config) is None
    policy.save_pretrained(grpo)
    tokenizer.save_pretrained(grpo)
    (grpo / "merges.txt").write_text("#version")
    assert find_source(CheckpointSettings(), maxent, policy.config) == grpo
    save_metadata(policy, tokenizer, grpo, _made(tmp_path / "copied"))
    save_metadata(policy, tokenizer, None, _made(tmp_path / "written"))
    for folder in ("copied", "written"):
        names = {path.name for path in (tmp_path / folder).iterdir()}
        assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= names
        assert not any(name.endswith(".safetensors") for name in names)
    assert (tmp_path / "copied" / "merges.txt").read_text() == "#version"


def test_a_source_of_another_shape_is_refused_at_the_start(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"hidden_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=rf"hidden_size 32, here 64.*{SOURCE}"):
        find_source(CheckpointSettings(metadata_source=tmp_path), Path("out"), policy.config)


def _made(path: Path) -> Path:
    path.mkdir()
    return path
