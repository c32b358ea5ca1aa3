"""Checkpoints that resume exactly: written aside, flushed to disk, and renamed into place.

A ``checkpoint-<step>`` folder is complete by construction: a run killed while writing leaves a ``.partial`` folder
that nothing reads and the next save removes. Inside: the policy and tokenizer as ``save_pretrained`` writes them (of a
LoRA run, the adapter); the strategy's training state (``optimizer.safetensors`` with ``optimizer.json`` where ranks
hold the policy whole, and InfoSeed's ``seed_head.safetensors`` where one is trained; see `train.strategies` for the
rest); ``controller_state.json``; ``trainer_state.json`` (position of run and prompt stream); between two updates of one
rollout the groups of all ranks; and with a Ray driver ``buffer.json``: the prompts that were drawn and not trained on,
with their groups; and ``replay_bank.jsonl`` where right answers are kept. Nothing else is pickled. Randomness is keyed,
never saved. Ranks must share the output directory.

Shallow checkpoints hold the small files of the policy without its weights, which the sharded state holds.
"""

import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.config.environment import SKIP, SOURCE, CheckpointSettings
from maxent_grpo.controllers.state import SETTING_KEYS, read_state, write_state
from maxent_grpo.errors import UsageError
from maxent_grpo.files import replace_file
from maxent_grpo.models.loading import BESIDE_THE_WEIGHTS, is_adapted
from maxent_grpo.observe.names import BANK_FILE
from maxent_grpo.train.integrity import (
    MANIFEST,
    NAME,
    POSITION,
    SUMS,
    checkpoints,
    flush,
    flushed_sums,
    manifest_of,
    naming_damage,
    naming_failed_writes,
    read_json,
    refuse_damage,
    write_sums,
)
from maxent_grpo.train.ranks import gathered, own_part, share
from maxent_grpo.train.state import Run
from maxent_grpo.train.strategies.replicated import write_json
from maxent_grpo.train.strategies.strategy import NO_STATE
from maxent_grpo.types import Group, Prompt, Rollout
from maxent_grpo.waiting import waiting

BUFFER = "buffer.json"
NAMES = {"replicated": "ddp, or of one process", "accelerate": "zero2 or zero3"}
"""Kinds of training state whose name is not the setting's."""
RESHARDABLE = frozenset({"replicated", "fsdp2", "accelerate"})
"""Kinds that resume on another number of ranks."""
SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
"""Settings in which two configurations must agree for one's weights to fit the other."""
logger = logging.getLogger(__name__)


def save_checkpoint(run: Run) -> Path:
    """Write ``<output_dir>/checkpoint-<step>`` and drop the oldest ones beyond ``save_total_limit``.

    Raises:
        RunError: the disk is full, or gone.
    """
    with naming_failed_writes(run.output_dir), waiting(f"checkpoint-{run.step} to be written"):
        return _save_checkpoint(run)


def _save_checkpoint(run: Run) -> Path:
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
    if accelerator.is_main_process:
        write_state(partial / "controller_state.json", run.controllers.state_dict())
        write_json(partial / POSITION, _trainer_state(run, kind))
        if rollout:
            write_json(partial / "rollout.json", [asdict(group) for group in rollout])
        if run.buffer is not None:
            write_json(partial / BUFFER, run.buffer())
        if run.bank is not None:
            write_bank(run, partial)
    accelerator.wait_for_everyone()
    names = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
    own = names[share(len(names), accelerator)]
    sums = gathered(flushed_sums([partial / name for name in own]), accelerator)
    if accelerator.is_main_process:
        write_json(partial / MANIFEST, manifest_of(partial, names, sums))
        flush(partial / MANIFEST)
        for path in (partial, *partial.rglob("*")):
            if path.is_dir():
                flush(path)
        remove(final)
        os.replace(partial, final)
        flush(run.output_dir)
        if run.bank is not None:
            replace_file(run.output_dir / BANK_FILE, (final / BANK_FILE).read_bytes())
        kept = run.cadence.save_total_limit
        for old in checkpoints(run.output_dir)[:-kept] if kept else []:
            shutil.rmtree(old)
        if kind == NO_STATE:
            logger.warning("%s holds no training state (%s is true): it cannot be resumed", final, SKIP)
    accelerator.wait_for_everyone()
    return final


def write_bank(run: Run, directory: Path) -> None:
    """The replay bank, for a resumed run and for people."""
    assert run.bank is not None, "the caller has looked"
    lines = run.bank.lines(lambda token_ids: str(run.tokenizer.decode(token_ids)))
    replace_file(directory / BANK_FILE, "".join(f"{line}\n" for line in lines))


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
    try:
        theirs = json.loads((source / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{SOURCE}: {source / 'config.json'} cannot be read ({error})") from error
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
    """The trained policy in the output directory itself; each file appears whole or not at all, its checksum last.

    Raises:
        RunError: the disk is full, or gone.
    """
    partial = run.output_dir / ".final.partial"
    with naming_failed_writes(run.output_dir):
        if run.learner.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            (run.output_dir / SUMS).unlink(missing_ok=True)
        save_policy(run, partial)
        if not run.learner.accelerator.is_main_process:
            return
        names = sorted(path.name for path in partial.iterdir())
        write_sums(partial, names)
        for name in [*names, SUMS]:
            os.replace(partial / name, run.output_dir / name)
        if run.bank is not None:
            write_bank(run, run.output_dir)
        partial.rmdir()


def find_checkpoint(output_dir: Path, resume: bool | str) -> Path | None:
    """The checkpoint that ``resume_from_checkpoint`` asks for: the newest of ``output_dir`` for true, or a path.

    None: true was asked and there is no complete checkpoint yet. Raises `UsageError` for a path that is none, and for
    one whose files are not as they were written.
    """
    if str(resume).lower() == "true":
        found = checkpoints(output_dir)
        path = found[-1] if found else None
        if path is None:
            logger.warning(
                "resume_from_checkpoint=true: %s holds no complete checkpoint, so the run starts at step 0",
                output_dir,
            )
        for other in output_dir.glob("checkpoint-*"):
            if path and other not in found and NAME.fullmatch(other.name) and _step(other) > _step(path):
                logger.warning(
                    "%s is not a complete checkpoint (no %s): resuming %s", other, MANIFEST, path.name
                )
    else:
        path = Path(str(resume))
        refuse_no_checkpoint(path, output_dir)
        if not (path / MANIFEST).is_file():
            raise UsageError(
                f"resume_from_checkpoint: {path} is not a complete checkpoint (no {MANIFEST}); {_offer(output_dir)}"
            )
    if path is not None:
        refuse_damage(path)
    return path


def refuse_no_checkpoint(path: Path, output_dir: Path) -> None:
    """Raise `UsageError` where ``path`` is no folder."""
    if not path.is_dir():
        fault = "is a file" if path.exists() else "does not exist"
        raise UsageError(f"resume_from_checkpoint: {path} {fault}; {_offer(output_dir)}")


def _offer(output_dir: Path) -> str:
    names = ", ".join(path.name for path in checkpoints(output_dir)[-3:])
    has = f" ({output_dir} has {names})" if names else f" ({output_dir} has none)"
    return f"give a checkpoint-<step> folder, or true for the newest of output_dir{has}"


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def settings_of_checkpoint(checkpoint: Path) -> dict[str, str]:
    """Settings that a resumed run takes from its checkpoint whatever the recipe says, each with what it goes on with.

    τ, β, the coefficient of an adaptive entropy and the meta-controller are in the state of the controllers, and the
    optimiser's numbers beside its moments.
    """
    state = read_state(checkpoint / "controller_state.json")
    kept = {"maxent_tau": f"{state.get('tau')}", "beta": f"{state.get('beta')}"}
    if "entropy" in state:
        kept["entropy_coef"] = f"{state['entropy']['coef']}"
    for name, value in state.get("meta", {}).get("controller", {}).items():
        if SETTING_KEYS.get(name, "enabled") != "enabled":
            kept[f"controller_meta_{SETTING_KEYS[name]}"] = str(value)
    if (checkpoint / "optimizer.json").is_file():
        group = read_json(checkpoint / "optimizer.json")["param_groups"][0]
        numbers = {"weight_decay": group.get("weight_decay"), "adam_epsilon": group.get("eps")}
        numbers |= dict(zip(("adam_beta1", "adam_beta2"), group.get("betas") or (), strict=False))
        kept |= {name: str(value) for name, value in numbers.items() if value is not None}
    return kept


def load_checkpoint(run: Run, path: Path) -> None:
    """Put ``run`` where ``path`` left it: parameters, optimiser, controllers, prompt stream, rollout, position.

    Raises:
        UsageError: it was saved by another kind of run, or does not fit this one.
    """
    with naming_damage(path):
        _load_checkpoint(run, path)


def _load_checkpoint(run: Run, path: Path) -> None:
    state = read_json(path / POSITION)
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
    load_bank(run, path)
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
        groups = [group_from_json(g) for g in read_json(path / "rollout.json")]
        if len(groups) != run.plan.prompts_per_rollout:
            raise UsageError(
                f"resume_from_checkpoint: {path} lies within a rollout of {len(groups)} prompts, and this run takes "
                f"{run.plan.prompts_per_rollout} over {run.plan.ranks} rank(s); set per_device_train_batch_size so "
                "that they agree"
            )
        run.rollout = own_part(groups, run.plan.prompts_per_step, run.learner.accelerator)
        run.updates_done = state["updates_done"]


def load_bank(run: Run, path: Path) -> None:
    """Give the run the replay bank of ``path``.

    Raises:
        UsageError: one of the two has none, or theirs have different settings.
    """
    file, front = path / BANK_FILE, f"resume_from_checkpoint: {path}"
    if run.bank is None:
        if file.is_file():
            raise UsageError(
                f"{front} holds a replay bank, and this objective keeps none; resume with the objective of that run"
            )
        return
    if not file.is_file():
        raise UsageError(
            f"{front} holds no replay bank, and this objective keeps one; resume with the objective of that run"
        )
    try:
        run.bank.load(file.read_text(encoding="utf-8").rstrip("\n").split("\n"))
    except UsageError as error:
        raise UsageError(f"{front}: {error}; resume with the replay settings of that run") from error


def refuse_buffered_groups(path: Path) -> None:
    """Raise `UsageError` where a Ray driver's checkpoint holds prompts that the inline driver would not train on."""
    state = read_json(path / BUFFER) if (path / BUFFER).is_file() else {}
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
    parts["turns"] = tuple(map(tuple, parts.get("turns", ())))
    parts["prompt"] = _prompt_from_json(parts["prompt"])
    parts["seed_prompts"] = tuple(map(_prompt_from_json, parts["seed_prompts"]))
    rewards = {name: tuple(scores) for name, scores in stored["rewards"].items()}
    verdicts = {
        name: tuple(stored[name])
        for name in ("right", "correctness", "modes")
        if stored.get(name) is not None
    }
    return Group(Rollout(**parts), rewards, tuple(stored["utilities"]), **verdicts)


def _prompt_from_json(stored: dict[str, Any]) -> Prompt:
    return Prompt(**(stored | {name: tuple(stored[name]) for name in ("token_ids", "branch")}))
