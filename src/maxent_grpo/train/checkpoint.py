"""Checkpoints that resume exactly: written aside, flushed to disk, and renamed into place.

A ``checkpoint-<step>`` folder is complete by construction: a run killed while writing leaves a ``.partial`` folder
that nothing reads and the next save removes. Inside: the policy and tokenizer as ``save_pretrained`` writes them,
``optimizer.safetensors`` with ``optimizer.json``, ``controller_state.json``, ``trainer_state.json`` (position of run
and prompt stream), InfoSeed's ``seed_head.safetensors`` where one is trained and, between two updates of one rollout,
the rollout's groups. Nothing is pickled. Randomness is keyed, never saved.
"""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from maxent_grpo.controllers.state_file import read_state, write_state
from maxent_grpo.errors import UsageError
from maxent_grpo.train.state import Run
from maxent_grpo.types import Group, Prompt, Rollout

MANIFEST = "manifest.json"
SEED_HEAD = "seed_head.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)")


def save_checkpoint(run: Run) -> Path:
    """Write ``<output_dir>/checkpoint-<step>`` and drop the oldest ones beyond ``save_total_limit``."""
    final = run.output_dir / f"checkpoint-{run.step}"
    if run.learner.accelerator.is_main_process:
        partial = run.output_dir / f".checkpoint-{run.step}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_policy(run, partial)
        _save_optimizer(run, partial)
        if run.learner.seed_head is not None:
            save_file(run.learner.seed_head.state_dict(), partial / SEED_HEAD)
        write_state(partial / "controller_state.json", run.controllers.state_dict())
        _write_json(partial / "trainer_state.json", _trainer_state(run))
        if run.updates_left > 0:
            _write_json(partial / "rollout.json", [asdict(group) for group in run.rollout])
        sizes = {
            str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()
        }
        _write_json(partial / MANIFEST, sizes)
        for path in partial.rglob("*"):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _flush(run.output_dir)
        for old in (
            checkpoints(run.output_dir)[: -run.cadence.save_total_limit]
            if run.cadence.save_total_limit
            else []
        ):
            shutil.rmtree(old)
    run.learner.accelerator.wait_for_everyone()
    return final


def save_policy(run: Run, directory: Path) -> None:
    """The policy and its tokenizer, as ``AutoModelForCausalLM.from_pretrained`` loads them."""
    model = run.learner.accelerator.unwrap_model(run.learner.model)
    model.save_pretrained(directory, safe_serialization=True)
    run.tokenizer.save_pretrained(directory)


def save_final(run: Run) -> None:
    """The trained policy in the output directory itself; each file appears whole or not at all."""
    if not run.learner.accelerator.is_main_process:
        return
    partial = run.output_dir / ".final.partial"
    shutil.rmtree(partial, ignore_errors=True)
    save_policy(run, partial)
    for path in sorted(partial.iterdir()):
        _flush(path)
        os.replace(path, run.output_dir / path.name)
    partial.rmdir()


def checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [(int(m[1]), p) for p in output_dir.glob("checkpoint-*") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found) if (path / MANIFEST).is_file()]


def find_checkpoint(output_dir: Path, resume: bool | str) -> Path | None:
    """The checkpoint that ``resume_from_checkpoint`` asks for: the newest of ``output_dir`` for true, or a path.

    None: true was asked and there is no complete checkpoint yet. Raises `UsageError` for a path that is none, or
    one with missing or truncated files.
    """
    if str(resume).lower() == "true":
        newest = checkpoints(output_dir)[-1:]
        path = newest[0] if newest else None
    else:
        path = Path(str(resume))
        if not (path / MANIFEST).is_file():
            raise UsageError(
                f"resume_from_checkpoint: {path} is not a complete checkpoint (no {MANIFEST}); "
                "give a checkpoint-<step> folder, or true for the newest of output_dir"
            )
    if path is not None:
        _verify(path)
    return path


def load_checkpoint(run: Run, path: Path) -> None:
    """Put ``run`` where ``path`` left it: parameters, optimiser, controllers, prompt stream, rollout, position."""
    state = json.loads((path / "trainer_state.json").read_text())
    model = run.learner.accelerator.unwrap_model(run.learner.model)
    restored = type(model).from_pretrained(path, dtype=model.dtype)
    model.load_state_dict(restored.state_dict())
    _load_optimizer(run, path)
    if run.learner.seed_head is not None:
        _load_seed_head(run.learner.seed_head, path / SEED_HEAD)
    controller_file = path / "controller_state.json"
    run.controllers = run.controllers.load_state_dict(
        read_state(controller_file), source=str(controller_file)
    )
    run.stream.load_state_dict(state["stream"])
    run.step = state["global_step"]
    run.skipped_in_a_row = state["skipped_in_a_row"]
    run.tokens_seen = state["num_input_tokens_seen"]
    run.rollout, run.updates_done = (), 0
    if (path / "rollout.json").is_file():
        run.rollout = [_group_from_json(g) for g in json.loads((path / "rollout.json").read_text())]
        run.updates_done = state["updates_done"]


def _trainer_state(run: Run) -> dict[str, Any]:
    return {
        "global_step": run.step,
        "max_steps": run.cadence.total_steps,
        "save_steps": run.cadence.save_steps,
        "logging_steps": run.cadence.logging_steps,
        "num_input_tokens_seen": run.tokens_seen,
        "updates_done": run.updates_done,
        "skipped_in_a_row": run.skipped_in_a_row,
        "stream": run.stream.state_dict(),
    }


def _save_optimizer(run: Run, directory: Path) -> None:
    """Tensors of the optimiser's state to safetensors, its groups and plain numbers to JSON."""
    state = run.learner.optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            (tensors if torch.is_tensor(value) else plain)[f"{index}.{name}"] = value
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
        directory / "optimizer.safetensors",
    )
    _write_json(directory / "optimizer.json", {"param_groups": state["param_groups"], "plain": plain})


def _load_optimizer(run: Run, directory: Path) -> None:
    stored = json.loads((directory / "optimizer.json").read_text())
    entries: dict[int, dict[str, Any]] = {}
    for name, value in (load_file(directory / "optimizer.safetensors") | stored["plain"]).items():
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = value
    run.learner.optimizer.load_state_dict({"state": entries, "param_groups": stored["param_groups"]})


def _load_seed_head(head: torch.nn.Linear, path: Path) -> None:
    stored = load_file(path) if path.is_file() else {}
    if {name: tensor.shape for name, tensor in stored.items()} != {
        name: tensor.shape for name, tensor in head.state_dict().items()
    }:
        raise UsageError(
            f"resume_from_checkpoint: {path.parent} has no seed head for {head.out_features} seeds; resume with the "
            "info_seed_loss_type and info_seed_num_seeds of that run"
        )
    head.load_state_dict(stored)


def _group_from_json(stored: dict[str, Any]) -> Group:
    """Floats are written by their shortest exact decimal, so the round trip is exact."""
    rollout = stored["rollout"]
    return Group(
        rollout=Rollout(
            prompt=_prompt_from_json(rollout["prompt"]),
            token_ids=tuple(map(tuple, rollout["token_ids"])),
            logps=tuple(map(tuple, rollout["logps"])),
            texts=tuple(rollout["texts"]),
            finish_reasons=tuple(rollout["finish_reasons"]),
            policy_version=rollout["policy_version"],
            seed_prompts=tuple(map(_prompt_from_json, rollout["seed_prompts"])),
        ),
        rewards={name: tuple(scores) for name, scores in stored["rewards"].items()},
        utilities=tuple(stored["utilities"]),
    )


def _prompt_from_json(stored: dict[str, Any]) -> Prompt:
    return Prompt(**(stored | {"token_ids": tuple(stored["token_ids"])}))


def _verify(path: Path) -> None:
    for name, size in json.loads((path / MANIFEST).read_text()).items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            raise UsageError(
                f"resume_from_checkpoint: {path} is damaged ({name} is missing or truncated); "
                "delete it and resume from an earlier checkpoint"
            )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    """JSON for what optimiser groups and dataset columns hold beside JSON's own types."""
    if isinstance(value, torch.Tensor):
        return value.item()
    return str(value)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
