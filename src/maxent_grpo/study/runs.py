"""The runs of a plan: one per seed, task and arm, with its configuration, its identity, and how far it has come.

A run's directory is an ordinary run directory with four more files: ``cell.json`` (its identity, written before the run
starts), ``recipe.yaml`` (its resolved configuration), ``study.log``, and at the end ``evaluation.parquet``, which
appears whole and carries its own identity. A run is done when that file is there: nothing else is a sign of it, so a
kill at any moment leaves either a finished run or one to go on with.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxent_grpo import __version__
from maxent_grpo.config.loading import RunConfig, resolve, resolved, write_resolved
from maxent_grpo.config.records import ALL, SAME_RESULTS
from maxent_grpo.config.run_settings import data_settings, model_source
from maxent_grpo.config.shipped import shipped
from maxent_grpo.errors import UsageError, did_you_mean
from maxent_grpo.files import replace_file
from maxent_grpo.models.loading import load_tokenizer
from maxent_grpo.objectives.components import NUMBERS
from maxent_grpo.observe import names
from maxent_grpo.observe.run_files import RunFiles
from maxent_grpo.study.plan import UNTRAINED, Arm, EvaluationPlan, StudyPlan, StudyTask
from maxent_grpo.train.build import Given, evaluation_prompts, training_prompts
from maxent_grpo.types import Prompt

if TYPE_CHECKING:
    import pandas as pd

Identity = Mapping[str, Any]
"""Plain values by name that make a run the run that it is: equal identities, equal runs."""

IDENTITY, RECIPE, LOG, LOCK = "cell.json", "recipe.yaml", "study.log", ".study.lock"
EVALUATION, DURATIONS = "evaluation.parquet", "durations.json"
IDENTITY_KEY = b"maxent_grpo.evaluation"


WHICH = ("task", "arm", "seed")
"""Columns that say whose a row of a table is."""


class State(Enum):
    """Progress of a run."""

    MISSING = "missing"
    STARTED = "started"
    TRAINED = "trained"
    DONE = "done"


@dataclass(frozen=True, eq=False)
class Finished:
    """A run that is done, wherever it was made."""

    name: str
    identity: Identity
    evaluation: Identity
    commit: str
    """Of the package, at the start of the training; empty: the untrained policy."""
    seconds: Mapping[str, float]
    """Stage → seconds, for the stages that ran through in one go."""
    rows: "pd.DataFrame"
    """Of its evaluation."""
    curves: "pd.DataFrame"
    """A row per optimiser step (column ``step``), a column per metric, NaN where it was not logged."""
    source: Path
    """The run's directory, or the part."""

    @property
    def version(self) -> str:
        """Of the package."""
        return str(self.identity["maxent_grpo version"])

    @property
    def records(self) -> RunFiles:
        """The curves as the records of a run."""
        steps = [
            {name: value for name, value in row.items() if name not in WHICH and value == value}
            for row in self.curves.to_dict("records")
        ]
        return RunFiles(self.source, {}, steps, [], [], None)


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    index: int
    """Position in the plan, for job arrays."""
    task: StudyTask
    arm: Arm
    seed: int
    """Of the pair: what runs of different arms share."""
    directory: Path
    taken: Finished | None = field(default=None, compare=False, repr=False)
    """What a part has of it: it is not made again."""

    @property
    def run_seed(self) -> int:
        """The seed of the training; differs from ``seed`` in the A/A arm."""
        return self.seed + self.arm.seed_offset

    @property
    def trains(self) -> bool:
        """False for the untrained policy, which is only evaluated."""
        return self.arm.name != UNTRAINED

    @property
    def name(self) -> str:
        return f"{self.task.name}/{self.arm.name}" + f"/seed-{self.seed}" * self.trains

    @property
    def state(self) -> State:
        """Progress, from its files, or a part's."""
        if self.taken is not None or self.is_here:
            return State.DONE
        # The final policy is moved into place file by file, its folder going last.
        if any(self.directory.glob("*.safetensors")) and not (self.directory / ".final.partial").exists():
            return State.TRAINED
        return State.STARTED if (self.directory / IDENTITY).is_file() else State.MISSING

    @property
    def is_here(self) -> bool:
        """Whether it was finished in its own directory."""
        return (self.directory / EVALUATION).is_file()

    @property
    def durations(self) -> dict[str, float]:
        """Stage → seconds, for the stages that ran through in one go."""
        path = self.directory / DURATIONS
        if path.is_file():
            return dict(json.loads(path.read_text()))
        return {} if self.taken is None else dict(self.taken.seconds)

    def record_duration(self, stage: str, seconds: float) -> None:
        kept = json.dumps({**self.durations, stage: round(seconds, 2)})
        replace_file(self.directory / DURATIONS, kept, shared=True)


def runs_of(
    plan: StudyPlan, arms: Sequence[str] = (), tasks: Sequence[str] = (), seeds: Sequence[int] = ()
) -> list[StudyRun]:
    """Every run, or those of the baseline and the named ``arms``, on the named ``tasks``, with the named ``seeds``.

    Seeds outermost, then tasks: a study that stops has whole pairs of all arms.
    Raises `UsageError` for an arm, a task or a seed that the plan has not.
    """
    known = [arm.name for arm in plan.arms]
    for name in arms:
        if name not in known:
            raise UsageError(f"study.arms: no arm is called {name!r}{did_you_mean(name, known)}")
    for name in tasks:
        if name not in (on := [task.name for task in plan.tasks]):
            raise UsageError(f"study.tasks: no task is called {name!r}{did_you_mean(name, on)}")
    for seed in seeds:
        if seed not in plan.seeds:
            raise UsageError(
                f"study.seeds: {seed} is not among the plan's ({', '.join(map(str, plan.seeds))})"
            )
    all_runs = [(seed, task, arm) for seed in plan.seeds for task in plan.tasks for arm in plan.arms]
    return [
        StudyRun(index, task, arm, seed, plan.output_dir / "runs" / task.name / arm.name / f"seed-{seed}")
        for index, (seed, task, arm) in enumerate(all_runs)
        if (not arms or arm.name in {plan.baseline, *arms})
        and (not tasks or task.name in tasks)
        and (not seeds or seed in seeds)
    ]


def untrained_of(plan: StudyPlan, tasks: Sequence[str] = ()) -> list[StudyRun]:
    """The untrained policy on every task, or on the named ``tasks``: runs that are evaluated alone."""
    return [
        StudyRun(-1 - number, task, plan.untrained, 0, plan.output_dir / "runs" / task.name / UNTRAINED)
        for number, task in enumerate(plan.tasks)
        if not tasks or task.name in tasks
    ]


def config_of(plan: StudyPlan, run: StudyRun) -> RunConfig:
    """The run's checked configuration: recipe < budget < task < arm < what the study decides.

    Raises `UsageError`, its line opening with the arm, where this version cannot do what the arm asks for.
    """
    decided: dict[str, Any] = {
        "output_dir": str(run.directory),
        "run_name": run.name,
        "seed": run.run_seed,
        "max_steps": plan.budget.steps,
        "resume_from_checkpoint": True,
        "save_strategy": "steps",
        "save_steps": plan.budget.save_steps,
        "save_total_limit": 1,
        "disable_tqdm": True,
        "report_to": [],
        "eval_on_start": True,  # the curves start where training starts
    }
    given = {**plan.budget.overrides, **run.task.overrides, **run.arm.overrides, **decided}
    environ = {name: value for name, value in os.environ.items() if name != "GRPO_RECIPE"}
    recipe = shipped(run.arm.recipe.replace("{task}", run.task.name))
    try:
        config = resolve(run.arm.command, recipe, {"flat": given}, environ).built()
    except UsageError as error:
        raise UsageError(f"arms.{run.arm.name} on {run.task.name}: {error}") from error
    if config.route != "native":
        raise UsageError(
            f"arms.{run.arm.name} on {run.task.name}: would train with TRL's trainer, whose records differ from the "
            "other arms'; add force_custom_loop: true to its overrides"
        )
    return config


def refused_arms(plan: StudyPlan) -> dict[str, str]:
    """Arm → why this version cannot run it, for the arms whose settings it refuses."""
    refused: dict[str, str] = {}
    for run in runs_of(plan)[: len(plan.tasks) * len(plan.arms)]:  # one seed is enough
        try:
            config_of(plan, run)
        except UsageError as error:
            refused.setdefault(run.arm.name, str(error))
    return refused


def refuse_changes(plan: StudyPlan, runs: Sequence[StudyRun]) -> dict[int, RunConfig]:
    """The configuration of every run by its index, once none that exists was made with another one.

    Raises `UsageError` that names what changed, and what to do.
    """
    configs: dict[int, RunConfig] = {}
    for run in runs:
        config = configs[run.index] = config_of(plan, run)
        path = run.directory / IDENTITY
        if run.taken is not None:
            _refuse_other(
                run.taken, identity_of(config, run.trains), evaluation_identity(config, plan.evaluation)
            )
            continue
        if not path.is_file():
            if (run.directory / names.METRICS_FILE).exists():
                raise UsageError(
                    f"{run.directory}: holds a run that is not of a study; choose another study.output_dir"
                )
            continue
        changed = changes(json.loads(path.read_text())["identity"], identity_of(config, run.trains))
        if changed:
            raise UsageError(
                f"{run.directory}: was run with other settings than the plan now says ({_first(changed)}); choose "
                "another study.output_dir, take the change back, or delete that run to repeat it"
            )
        evaluated = evaluation_identity_in(run.directory / EVALUATION)
        changed = changes(evaluated, evaluation_identity(config, plan.evaluation)) if evaluated else []
        if changed:
            raise UsageError(
                f"{run.directory / EVALUATION}: was evaluated otherwise than the plan now says ({_first(changed)}); "
                f"delete the study's {EVALUATION} files to evaluate its policies again, or take the change back"
            )
    return configs


def _refuse_other(taken: Finished, identity: Identity, evaluation: Identity) -> None:
    """Raises `UsageError` where a part's run is not the one that the plan describes.

    The package's version may be another one: it is reported, since runs that are to be pooled over months meet it.
    """
    changed = changes(taken.identity, identity, whatever_version=True)
    changed += changes(taken.evaluation, evaluation, whatever_version=True)
    if changed:
        raise UsageError(
            f"{taken.source}: its {taken.name} was made otherwise than the plan now says ({_first(changed)}); take the "
            "change back, or leave this part out of the plan's parts"
        )


def open_run(run: StudyRun, config: RunConfig) -> None:
    """Write the run's recipe and then its identity, unless that is there. The caller holds the run's lock."""
    run.directory.mkdir(parents=True, exist_ok=True)
    if not (run.directory / IDENTITY).is_file():
        write_resolved(config, run.directory / RECIPE)
        facts = {"task": run.task.name, "arm": run.arm.name, "seed": run.seed, "run_seed": run.run_seed}
        text = json.dumps({**facts, "identity": identity_of(config, run.trains)}, indent=1)
        replace_file(run.directory / IDENTITY, text, shared=True)


def drop_checkpoints(run: StudyRun) -> None:
    """Remove the checkpoints of a finished run; its final policy stays."""
    for path in run.directory.glob("checkpoint-*"):
        shutil.rmtree(path)


def try_lock(directory: Path) -> int | None:
    """A descriptor that holds the run's lock; None while another process trains it.

    The lock belongs to the open file, which the run's own processes inherit: it outlives a study that is killed while
    its runs go on, and ends with the last of them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


READ_UNTRAINED = (
    "reward_funcs",
    "reward_weights",
    "correctness_reward",
    "mode_key",
    "chat_template",
    "system_prompt",
    "zero_truncated_completion_rewards",
)
"""Settings of the evaluation of a policy that was not trained."""


def identity_of(config: RunConfig, trains: bool = True) -> Identity:
    """The identity of a training run: settings, data, model and package version.

    Of the untrained policy (``trains`` false), which no setting of the training concerns, what its evaluation reads.
    """
    tree = resolved(config)
    settings = {
        name: value
        for section in ("script", "training", "model")
        for name, value in tree[section].items()
        if name not in SAME_RESULTS
    }
    train, held_out, _ = prompt_digests(config)
    if not trains:
        return {
            **{name: settings.get(name) for name in READ_UNTRAINED},
            "command": config.command,
            "held-out prompts": held_out,
            "initial policy": _model_digest(model_source(config).location),
            "maxent_grpo version": __version__,
        }
    return {
        **settings,
        "command": config.command,
        "training prompts": train,
        "held-out prompts": held_out,
        "initial policy": _model_digest(model_source(config).location),
        "maxent_grpo version": __version__,
    }


def evaluation_identity(config: RunConfig, evaluation: EvaluationPlan) -> Identity:
    """The identity of an evaluation, apart from the policy that it is of."""
    return {
        "evaluation.k": evaluation.k,
        "evaluation.temperatures": list(evaluation.temperatures),
        "evaluation.seeds": list(evaluation.seeds),
        "max_completion_length": config.training.max_completion_length,
        "held-out prompts": prompt_digests(config)[1],
        "maxent_grpo version": __version__,
    }


def changes(before: Identity, after: Identity, *, whatever_version: bool = False) -> list[str]:
    """``name: old → new`` for every part that differs; ``after`` is compared as it would read back from its file.

    A setting that did not exist when one of them was written had its default then: that of its record, or of the
    component that it feeds. With ``whatever_version`` the package's version is no part.
    """
    own = {number.setting.name: number.default for number in NUMBERS.values() if number.setting}
    defaults = {
        record.name: json.loads(json.dumps([record.default, own.get(record.name)], default=str))
        for record in ALL
    }
    after = json.loads(json.dumps(after))

    def differs(name: str) -> bool:
        if name in before and name in after:
            return bool(before[name] != after[name])
        return {**before, **after}[name] not in defaults.get(name, [])

    def told(identity: Identity, name: str) -> Any:
        return identity.get(name, defaults.get(name, ["unset"])[0])

    return [
        f"{name}: {told(before, name)} → {told(after, name)}"
        for name in dict.fromkeys((*before, *after))
        if differs(name) and not (whatever_version and name == "maxent_grpo version")
    ]


def _first(changed: Sequence[str], shown: int = 4) -> str:
    more = f"; and {len(changed) - shown} more" if len(changed) > shown else ""
    return "; ".join(changed[:shown]) + more


def evaluation_identity_in(path: Path) -> Identity | None:
    """The identity of an evaluation, from its file; None where it is not there."""
    import pyarrow.parquet as parquet

    if not path.is_file():
        return None
    return dict(json.loads((parquet.read_schema(path).metadata or {})[IDENTITY_KEY]))


_digests: dict[str, tuple[str, str, int]] = {}


def prompt_digests(config: RunConfig) -> tuple[str, str, int]:
    """Digests of training and held-out prompts as the policy reads them, with their columns; how many are held out."""
    training, model = config.training, config.model
    reads = [
        resolved(config)["script"],
        model.model_name_or_path,
        model.model_revision,
        config.max_prompt_chars,
    ]
    reads += [training.system_prompt, training.chat_template, training.max_prompt_length]
    key = json.dumps(reads, default=str)
    if key not in _digests:
        tokenizer, data = load_tokenizer(model_source(config)), data_settings(config)
        held_out = evaluation_prompts(data, Given(), tokenizer)
        assert held_out is not None, "runs of a study evaluate at their start"
        train = training_prompts(data, Given(), tokenizer)
        _digests[key] = (_prompts_digest(train), _prompts_digest(held_out), len(held_out))
    return _digests[key]


def _prompts_digest(prompts: Iterable[Prompt]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for prompt in prompts:
        digest.update(json.dumps([prompt.text, dict(prompt.columns)], sort_keys=True, default=str).encode())
    return digest.hexdigest()


@cache
def _model_digest(location: str) -> str:
    """The digest of a local model's files; a hub model's name."""
    directory = Path(location)
    if not directory.is_dir():
        return location
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(p for p in directory.iterdir() if p.suffix in (".safetensors", ".json", ".jinja")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
