"""Checkpoints that resume exactly: written aside, flushed to disk, and renamed into place.

A ``checkpoint-<step>`` folder is complete by construction: a run killed while writing leaves a ``.partial`` folder
that nothing reads and the next save removes. Inside: the policy and tokenizer as ``save_pretrained`` writes them (of a
LoRA run, the adapter); the strategy's training state (``optimizer.safetensors`` with ``optimizer.json`` where ranks
hold the policy whole, and InfoSeed's ``seed_head.safetensors`` where one is trained; see `train.strategies` for the
rest); ``controller_state.json``; ``trainer_state.json`` (position of run and prompt stream); between two updates of one
rollout the groups of all ranks; and with a Ray driver ``buffer.json``: the prompts that were drawn and not trained on,
with their groups. Nothing else is pickled. Randomness is keyed, never saved. Ranks must share the output directory.

Shallow checkpoints hold the small files of the policy without its weights, which the sharded state holds.
"""

import json
import logging
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.config.environment import SKIP, SOURCE, CheckpointSettings
from maxent_grpo.controllers.state import read_state, write_state
from maxent_grpo.errors import UsageError
from maxent_grpo.models.loading import BESIDE_THE_WEIGHTS, is_adapted
from maxent_grpo.train.ranks import gathered, own_part
from maxent_grpo.train.state import Run
from maxent_grpo.train.strategies.replicated import write_json
from maxent_grpo.train.strategies.strategy import NO_STATE
from maxent_grpo.types import Group, Prompt, Rollout

MANIFEST = "manifest.json"
BUFFER = "buffer.json"
NAMES = {"replicated": "ddp, or of one process", "accelerate": "zero2 or zero3"}
"""Kinds of training state whose name is not the setting's."""
RESHARDABLE = frozenset({"replicated", "fsdp2", "accelerate"})
"""Kinds that resume on another number of ranks."""
SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
"""Settings in which two configurations must agree for one's weights to fit the other."""
logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")


def save_checkpoint(run: Run) -> Path:
    """Write ``<output_dir>/checkpoint-<step>`` and drop the oldest ones beyond ``save_total_limit``."""
    final = run.output_dir / f"checkpoint-{run.step}"
    partial = run.output_dir / f".checkpoint-{run.step}.partial"
    accelerator = run.learner.accelerator
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    if has_full_policy(run):
        save_policy(run, partial)
    elif accelerator.is_main_process:
        save_metadata(run.learner.strategy.sampling_model, run.tokenizer, run.metadata_source, partial)
    kind = run.learner.strategy.save(partial, main=accelerator.is_main_process)
    rollout = in_stream_order(run) if run.updates_left > 0 else []
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_state(partial / "controller_state.json", run.controllers.state_dict())
        write_json(partial / "trainer_state.json", _trainer_state(run, kind))
        if rollout:
            write_json(partial / "rollout.json", [asdict(group) for group in rollout])
        if run.buffer is not None:
            write_json(partial / BUFFER, run.buffer())
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        write_json(partial / MANIFEST, {str(p.relative_to(partial)): p.stat().st_size for p in files})
        for path in partial.rglob("*"):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _flush(run.output_dir)
        kept = run.cadence.save_total_limit
        for old in checkpoints(run.output_dir)[:-kept] if kept else []:
            shutil.rmtree(old)
        if kind == NO_STATE:
            logger.warning("%s holds no training state (%s is true): it cannot be resumed", final, SKIP)
    accelerator.wait_for_everyone()
    return final


def has_full_policy(run: Run) -> bool:
    """True where the checkpoint that is due holds the policy as ``save_pretrained`` writes it.

    Shallow ones leave it out where the training state holds the parameters anyway; the last one never does, and an
    adapter is small.
    """
    strategy = run.learner.strategy
    shallow = run.checkpoints.metadata == "shallow" and strategy.state_holds_parameters
    return not shallow or run.step >= run.cadence.total_steps or is_adapted(strategy.sampling_model)


def save_policy(run: Run, directory: Path) -> None:
    """The policy and its tokenizer, as ``AutoModelForCausalLM.from_pretrained`` loads them; called by all ranks.

    Of a LoRA run the adapter, as ``AutoPeftModelForCausalLM.from_pretrained`` loads it.
    """
    with run.learner.strategy.full_weights() as model:
        if run.learner.accelerator.is_main_process:
            model.save_pretrained(directory, safe_serialization=True)
            run.tokenizer.save_pretrained(directory)


def find_source(settings: CheckpointSettings, output_dir: Path, config: PretrainedConfig) -> Path | None:
    """The folder to copy from: the named one, or that of the paired GRPO run; None: there is none.

    The paired run is the sibling whose path says GRPO where ``output_dir`` says MaxEnt-GRPO. Raises `UsageError`
    where the folder's model has another shape.
    """
    source = settings.metadata_source or paired_run(output_dir)
    if source is None:
        return None
    theirs = json.loads((source / "config.json").read_text(encoding="utf-8"))
    mine = config.to_dict()
    for key in SHAPE:
        if key in theirs and theirs[key] != mine.get(key):
            raise UsageError(
                f"shallow checkpoints: {source} is of another model ({key} {theirs[key]}, here {mine.get(key)}); "
                f"name the right folder with {SOURCE}"
            )
    return source


def paired_run(output_dir: Path) -> Path | None:
    """The folder of the GRPO run that a MaxEnt run is paired with, if it holds a saved policy."""
    sibling = Path(str(output_dir).replace("MaxEnt-GRPO", "GRPO"))
    return sibling if sibling != output_dir and (sibling / "config.json").is_file() else None


def save_metadata(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Path | None, directory: Path
) -> None:
    """Configuration and tokenizer into ``directory``: copied from ``source``, or written where there is none."""
    if source is None:
        model.config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return
    for pattern in BESIDE_THE_WEIGHTS:
        for path in source.glob(pattern):
            shutil.copyfile(path, directory / path.name)


def save_final(run: Run) -> None:
    """The trained policy in the output directory itself; each file appears whole or not at all."""
    partial = run.output_dir / ".final.partial"
    if run.learner.accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    save_policy(run, partial)
    if not run.learner.accelerator.is_main_process:
        return
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
    strategy, kind = run.learner.strategy, state["training_state"]
    if kind == NO_STATE:
        raise UsageError(
            f"resume_from_checkpoint: {path} was saved without training state ({SKIP} was true), so it cannot be "
            "resumed; resume an earlier one, or start a new run from it with model_name_or_path"
        )
    if kind not in strategy.reads:
        raise UsageError(
            f"resume_from_checkpoint: {path} holds the training state of distributed={NAMES.get(kind, kind)}; "
            "resume it with that setting"
        )
    if kind not in RESHARDABLE and state["ranks"] != run.plan.ranks:
        raise UsageError(
            f"resume_from_checkpoint: {path} was written by {state['ranks']} ranks, and {kind} resumes on as many "
            f"only, not {run.plan.ranks}; use distributed=fsdp2 to change the number"
        )
    if state["seeds"] != run.learner.seeds:
        raise UsageError(
            f"resume_from_checkpoint: {path} has {_seed_head(state['seeds'])}, and this run trains "
            f"{_seed_head(run.learner.seeds)}; resume with the info_seed_loss_type and info_seed_num_seeds of that run"
        )
    strategy.load(path)
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
        groups = [group_from_json(g) for g in json.loads((path / "rollout.json").read_text())]
        if len(groups) != run.plan.prompts_per_rollout:
            raise UsageError(
                f"resume_from_checkpoint: {path} lies within a rollout of {len(groups)} prompts, and this run takes "
                f"{run.plan.prompts_per_rollout} over {run.plan.ranks} rank(s); set per_device_train_batch_size so "
                "that they agree"
            )
        run.rollout = own_part(groups, run.plan.prompts_per_step, run.learner.accelerator)
        run.updates_done = state["updates_done"]


def refuse_buffered_groups(path: Path) -> None:
    """Raise `UsageError` where a Ray driver's checkpoint holds prompts that the inline driver would not train on."""
    state = json.loads((path / BUFFER).read_text()) if (path / BUFFER).is_file() else {}
    left = len(state.get("ready", ())) + len(state.get("waiting", ()))
    if left:
        raise UsageError(
            f"resume_from_checkpoint: {path} holds {left} prompts that were drawn and not trained on; resume it with "
            "driver=sync or driver=async"
        )


def in_stream_order(run: Run) -> list[Group]:
    """The groups of the current rollout of all ranks, in the order in which one rank would hold them."""
    ranks, size = run.plan.ranks, run.plan.prompts_per_rank
    everyone = gathered(run.rollout, run.learner.accelerator)
    own = len(everyone) // ranks
    return [
        group
        for start in range(0, own, size)
        for rank in range(ranks)
        for group in everyone[rank * own + start : rank * own + start + size]
    ]


def _trainer_state(run: Run, kind: str) -> dict[str, Any]:
    return {
        "global_step": run.step,
        "max_steps": run.cadence.total_steps,
        "save_steps": run.cadence.save_steps,
        "logging_steps": run.cadence.logging_steps,
        "num_input_tokens_seen": run.tokens_seen,
        "updates_done": run.updates_done,
        "skipped_in_a_row": run.skipped_in_a_row,
        "training_state": kind,
        "ranks": run.plan.ranks,
        "seeds": run.learner.seeds,
        "stream": run.stream.state_dict(),
    }


def _seed_head(seeds: int | None) -> str:
    return "no seed head" if seeds is None else f"a seed head for {seeds} seeds"


def group_from_json(stored: dict[str, Any]) -> Group:
    """Floats are written by their shortest exact decimal, so the round trip is exact."""
    parts = dict(stored["rollout"])
    parts |= {name: tuple(map(tuple, parts[name])) for name in ("token_ids", "logps", "policy_masks")}
    parts |= {name: tuple(parts[name]) for name in ("texts", "finish_reasons", "transcripts")}
    parts["prompt"] = _prompt_from_json(parts["prompt"])
    parts["seed_prompts"] = tuple(map(_prompt_from_json, parts["seed_prompts"]))
    rewards = {name: tuple(scores) for name, scores in stored["rewards"].items()}
    return Group(Rollout(**parts), rewards, tuple(stored["utilities"]))


def _prompt_from_json(stored: dict[str, Any]) -> Prompt:
    return Prompt(**(stored | {name: tuple(stored[name]) for name in ("token_ids", "branch")}))


def _verify(path: Path) -> None:
    for name, size in json.loads((path / MANIFEST).read_text()).items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            raise UsageError(
                f"resume_from_checkpoint: {path} is damaged ({name} is missing or truncated); "
                "delete it and resume from an earlier checkpoint"
            )


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
