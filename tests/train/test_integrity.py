"""Damage of any file that a run reads back ends as one line, and two runs never share a directory."""

import hashlib
import json
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors import SafetensorError

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.train import integrity
from maxent_grpo.train.checkpoint import find_checkpoint
from maxent_grpo.train.integrity import MANIFEST, SUMS, naming_failed_writes
from maxent_grpo.train.strategies import replicated
from runs import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory, policy_dir) -> Path:
    """A run with checkpoint-2 and checkpoint-4."""
    from maxent_grpo.config.loading import resolve

    directory = tmp_path_factory.mktemp("integrity")
    rows = "\n".join(f'{{"problem": "Say {w}.", "answer": "a"}}' for w in "abcdefghijkl")
    (directory / "prompts.jsonl").write_text(rows)
    settings = {
        "model_name_or_path": str(policy_dir),
        "dataset_name": str(directory / "prompts.jsonl"),
        "reward_funcs": ["checksum_reward:checksum"],
        "output_dir": str(directory / "run"),
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 4,
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "maxent_tau": 0.05,
        "beta": 0.1,
        "learning_rate": 3e-3,
        "force_custom_loop": True,
    }
    train(resolve("train-maxent", None, {"flat": settings}, environ={}))
    return directory / "run"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


DEEP = pytest.param("[" * 99999, id="deep")
FILES = (
    *("model.safetensors", "optimizer.safetensors", "optimizer.json", "controller_state.json"),
    *("trainer_state.json", "config.json", "tokenizer.json"),
)


def flip(path: Path, position: int, bit: int = 1) -> None:
    contents = bytearray(path.read_bytes())
    contents[position] ^= bit
    path.write_bytes(contents)


def test_the_manifest_names_every_file(finished):
    checkpoint = finished / "checkpoint-2"
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    assert {*manifest, MANIFEST} == {p.name for p in checkpoint.iterdir()} >= set(FILES)
    for name, entry in manifest.items():
        contents = (checkpoint / name).read_bytes()
        assert entry == {"size": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_one_flipped_bit_is_refused_with_the_way_back(run, name, where):
    path = run / "checkpoint-4" / name
    flip(path, int(where * path.stat().st_size))
    with pytest.raises(UsageError) as refused:
        find_checkpoint(run, True)
    line = str(refused.value)
    assert f"{run}/checkpoint-4 is damaged ({name} " in line
    assert f"checkpoint-2 is whole: resume_from_checkpoint={run}/checkpoint-2 goes on" in line
    assert "\n" not in line
    assert find_checkpoint(run, str(run / "checkpoint-2")) == run / "checkpoint-2"


def test_a_changed_digit_is_refused_and_without_a_whole_one_the_line_says_how_to_start_over(run):
    for step in (2, 4):
        path = run / f"checkpoint-{step}" / "controller_state.json"
        path.write_text(path.read_text().replace("0.05", "0.06"))
    with pytest.raises(UsageError, match=r"no earlier checkpoint is whole.*overwrite_output_dir=true"):
        find_checkpoint(run, True)


@pytest.mark.parametrize("contents", ["", "{", "[]", "3", '{"trainer_state.json": "x"}', "{}", "\0\0", DEEP])
def test_a_damaged_manifest_is_refused(run, contents):
    (run / "checkpoint-4" / MANIFEST).write_text(contents)
    with pytest.raises(UsageError, match=rf"checkpoint-4 is damaged \({MANIFEST} .*checkpoint-2 is whole"):
        find_checkpoint(run, True)


def sizes_alone(checkpoint: Path) -> None:
    """The manifest as earlier versions wrote it."""
    names = [p.name for p in checkpoint.iterdir() if p.name != MANIFEST]
    sizes = {name: (checkpoint / name).stat().st_size for name in names}
    (checkpoint / MANIFEST).write_text(json.dumps(sizes))


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.json", "optimizer.json"])
def test_a_checkpoint_without_checksums_loads_with_a_word_and_its_headers_are_checked(run, name, caplog):
    checkpoint = run / "checkpoint-4"
    sizes_alone(checkpoint)
    assert find_checkpoint(run, True) == checkpoint
    assert "has no checksums" in caplog.text
    flip(checkpoint / name, 0, 0xFF)
    with pytest.raises(
        UsageError, match=rf"checkpoint-4 is damaged \({name} cannot be read.*checkpoint-2 is whole"
    ):
        find_checkpoint(run, True)


@pytest.mark.parametrize("state", ["[]", "{}", '{"training_state": "replicated", "seeds": null, "ranks": 1}'])
def test_a_position_that_means_nothing_ends_as_one_line(configure, run, state):
    (run / "checkpoint-4" / "trainer_state.json").write_text(state)
    sizes_alone(run / "checkpoint-4")
    with pytest.raises(
        UsageError, match=r"checkpoint-4 does not fit this run, or is damaged.*checkpoint-2 is whole"
    ):
        train(configure(resume_from_checkpoint=True))


def test_another_model_is_told_that_it_does_not_fit(configure, run):
    sizes_alone(run / "checkpoint-4")
    config = run / "checkpoint-4" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 32}))
    sizes_alone(run / "checkpoint-4")
    with pytest.raises(UsageError, match="checkpoint-4 holds another model than"):
        train(configure(resume_from_checkpoint=True))


def test_a_checkpoint_that_is_a_file_or_unfinished_is_passed_over_and_replaced(configure, run, caplog):
    (run / "checkpoint-6").write_text("")
    (run / "checkpoint-5").mkdir()
    assert find_checkpoint(run, True) == run / "checkpoint-4"
    assert (
        "checkpoint-6 is not a complete checkpoint (no manifest.json): resuming checkpoint-4" in caplog.text
    )
    train(configure(resume_from_checkpoint=True, max_steps=6))
    assert (run / "checkpoint-6" / MANIFEST).is_file()


@pytest.mark.parametrize("contents", ["{", "- a", "\xff\0", "script: 3"])
def test_a_damaged_configuration_is_named_and_written_anew(configure, run, caplog, contents):
    (run / "resolved_config.yaml").write_text(contents)
    train(configure(resume_from_checkpoint=True, max_steps=5))
    assert "resolved_config.yaml is damaged" in caplog.text
    assert "output_dir" in (run / "resolved_config.yaml").read_text()


@pytest.mark.parametrize("line", ["{torn", "3", '{"step": "x"}', "\0\0\0", DEEP])
def test_a_corrupt_middle_line_is_named_and_starting_over_does_not_read_it(configure, run, line):
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    with pytest.raises(RunError, match=r"metrics.jsonl: line 2 .*restore the file or delete the line"):
        train(configure(resume_from_checkpoint=True, max_steps=6))
    assert train(configure(overwrite_output_dir=True, max_steps=1)).global_step == 1


def test_the_final_policy_can_be_checked_with_sha256sum(finished):
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=finished, check=True)
    assert "model.safetensors" in (finished / SUMS).read_text()


def test_a_write_that_the_system_refuses_ends_as_one_line_and_resumes(configure, tmp_path):
    """A limit on the size of files stands for a full disk: the same calls fail in the same way."""
    train(configure(max_steps=2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(
            RunError, match=r"cannot write .*; resume_from_checkpoint=true goes on from|then"
        ) as failed:
            train(configure(max_steps=6, resume_from_checkpoint=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "resume_from_checkpoint=true goes on from checkpoint-2" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert train(configure(max_steps=6, resume_from_checkpoint=True)).global_step == 6


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(30, "Read-only file system"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        FileNotFoundError(2, "No such file or directory", "/runs/a/metrics.jsonl"),
    ],
)
def test_every_way_of_saying_that_the_disk_is_full_or_gone(error):
    with (
        pytest.raises(RunError, match=r"output_dir: cannot write /runs/a.*start it again"),
        naming_failed_writes(Path("/runs/a")),
    ):
        raise error


def test_a_fault_of_ours_is_not_taken_for_a_full_disk():
    for error in (FileNotFoundError(2, "No such file", "/data/x"), ValueError("x")):
        with pytest.raises(type(error)), naming_failed_writes(Path("/runs/a")):
            raise error


def test_a_full_disk_at_a_checkpoint_leaves_the_earlier_one(configure, tmp_path, monkeypatch):
    real = replicated.save_file

    def full(tensors, path):
        if "checkpoint-4" in str(path):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(replicated, "save_file", full)
        with pytest.raises(RunError, match=r"No space left on device.*goes on from checkpoint-2"):
            train(configure())
    assert train(configure(resume_from_checkpoint=True)).global_step == 6


def test_a_large_file_is_summed_by_pieces_and_a_bit_of_any_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity, "PIECE", 1000)
    contents = [b"", b"x" * 1000, bytes(range(256)) * 10, b"trainer"]
    names = ["empty", "one", "three", integrity.POSITION]
    for name, text in zip(names, contents, strict=True):
        (tmp_path / name).write_bytes(text)
    sums = integrity.flushed_sums([tmp_path / name for name in names])
    pieces = [hashlib.sha256(contents[2][i : i + 1000]).digest() for i in (0, 1000, 2000)]
    plain = [hashlib.sha256(text).hexdigest() for text in contents]
    assert sums == [*plain[:2], hashlib.sha256(b"".join(pieces)).hexdigest(), plain[3]]
    manifest = integrity.manifest_of(tmp_path, names, sums)
    assert [list(entry)[1] for entry in manifest.values()] == [
        *("sha256", "sha256", "sha256_of_64MiB_pieces", "sha256"),
    ]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert integrity.damage_of(tmp_path) is None
    for position in (0, 999, 1000, 2559):
        flip(tmp_path / "three", position)
        assert "three has other bytes" in str(integrity.damage_of(tmp_path))
        flip(tmp_path / "three", position)


def test_trls_checkpoints_have_their_headers_checked(tmp_path, caplog):
    from maxent_grpo.train.trl_route import find_trl_checkpoint

    assert find_trl_checkpoint(tmp_path, "true") is None
    assert "holds no checkpoint, so the run starts at step 0" in caplog.text
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{torn")
    with pytest.raises(UsageError, match=r"checkpoint-2 is damaged \(trainer_state.json cannot be read"):
        find_trl_checkpoint(tmp_path, "true")
