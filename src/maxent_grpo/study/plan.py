"""A study's plan: arms, tasks, seeds, a budget, and how final policies are evaluated and judged, from its YAML file.

Everything is checked before anything runs, but whether an arm's settings exist in this version: that is judged per arm
(`runs.refused_arms`), so that a plan may hold arms that wait for their method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from maxent_grpo.config.loading import Command
from maxent_grpo.errors import UsageError, did_you_mean

OUTCOMES: Mapping[str, str] = {
    "mean": "mean@k: share of right answers among the k samples of a prompt",
    "pass": "pass@k: share of prompts with at least one right answer among k",
    "distinct": "distinct@k: different right answers among the k samples of a prompt",
    "coverage": "coverage@k: different right answers among k, over all right answers that the prompt has",
    "breadth": "B@k: different right answers among k beyond the first, distinct@k − pass@k",
    "pcmd": "PCMD: the chance that two different right samples of a prompt, under all sampling seeds, are different "
    "answers; mean over the prompts with at least two right samples, the support",
    "cover_20": "Cover@.2: share of prompts of whose samples, under all sampling seeds, at least 20 % are right",
    "cover_50": "Cover@.5: the same with 50 %",
    "cover_80": "Cover@.8: the same with 80 %",
}
"""Outcome → definition; each is an average over prompts and evaluation seeds, one number per run."""

JUDGED: Sequence[str] = ("mean", "pass", "distinct", "coverage", "pcmd")
"""The outcomes that a plan judges which names none; means are shown of all."""

UNTRAINED = "untrained"
"""Name of the policy that the runs start from, in tables: evaluated as the final ones are, once per task."""

MARGINS: Mapping[str, float] = {
    "mean": 0.03,
    "pass": 0.03,
    "distinct": 0.15,
    "coverage": 0.03,
    "breadth": 0.15,
    "pcmd": 0.05,
    "cover_20": 0.03,
    "cover_50": 0.03,
    "cover_80": 0.03,
}
"""Outcome → half-width of the region of equivalence, in the outcome's own unit."""

CONTROLLED: Mapping[str, str] = {
    "output_dir": "the study gives every run its own directory",
    "run_name": "the study names every run",
    "seed": "the plan's seeds say it",
    "max_steps": "the plan's budget.steps says it",
    "num_train_epochs": "the plan's budget.steps says it",
    "resume_from_checkpoint": "runs of a study always resume",
    "overwrite_output_dir": "runs of a study always resume",
    "save_strategy": "runs of a study save by steps, so that they resume",
    "save_steps": "the plan's budget.save_steps says it",
    "save_total_limit": "a run of a study keeps its newest checkpoint",
    "eval_on_start": "learning curves start where training starts",
    "disable_tqdm": "the study shows the progress",
    "report_to": "a run of a study reports to its files alone",
}
"""Settings that overrides may not hold, and who decides them."""


def _without_repetition(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"{list(values)} names a value twice")
    return values


def _outcome(name: str) -> str:
    if name not in OUTCOMES:
        raise ValueError(f"{name!r} is not one of {', '.join(OUTCOMES)}{did_you_mean(name, OUTCOMES)}")
    return name


def _not_controlled(name: str) -> str:
    if name in CONTROLLED:
        raise ValueError(f"not for a plan to override: {CONTROLLED[name]}")
    return name


def _named(tree: Any, part: str) -> Mapping[str, Any]:
    """The mapping under ``part``, whose names can be directory names. Raises `UsageError`."""
    if not isinstance(tree, Mapping) or not tree:
        raise UsageError(f"{part}: a mapping from names to their settings is needed")
    for name in tree:
        if not isinstance(name, str) or not name or not all(c.isalnum() or c in "_-" for c in name):
            raise UsageError(f"{part}: {name!r} is no name: letters, digits, _ and - (it names directories)")
        if part == "arms" and name == UNTRAINED:
            raise UsageError(f"arms.{name}: every study has it by itself; take another name")
        if isinstance(tree[name], Mapping) and "name" in tree[name]:
            raise UsageError(f"{part}.{name}.name: unknown key; {name} is the name")
    return tree


def _arms(trees: Any) -> list[Any]:
    """An arm's own keys above those of ``same_as: OTHER``."""
    arms: dict[str, Any] = {}
    for name, tree in _named(trees, "arms").items():
        own = {"label": name, **tree, "name": name} if isinstance(tree, Mapping) else tree
        if isinstance(own, dict) and "same_as" in own:
            other = str(own.pop("same_as"))
            if other not in arms:
                raise UsageError(f"arms.{name}.same_as: no arm {other!r} above it{did_you_mean(other, arms)}")
            source = arms[other] if isinstance(arms[other], dict) else {}
            above, mine = source.get("overrides") or {}, own.get("overrides") or {}
            if isinstance(above, Mapping) and isinstance(mine, Mapping):
                own["overrides"] = {**above, **mine}
            own = {key: source[key] for key in ("command", "recipe") if key in source} | own
        arms[name] = own
    return list(arms.values())


def _tasks(trees: Any) -> list[Any]:
    return [
        {"label": name.replace("_", " "), **(tree or {}), "name": name}
        if isinstance(tree, Mapping | None)
        else tree
        for name, tree in _named(trees, "tasks").items()
    ]


T = TypeVar("T")
Text = Annotated[str, Field(pattern=r"\S")]
Integer = Annotated[int, Strict()]
Outcome = Annotated[str, AfterValidator(_outcome)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Several = Annotated[tuple[T, ...], Field(min_length=1), AfterValidator(_without_repetition)]
Overrides = Annotated[
    dict[Annotated[str, AfterValidator(_not_controlled)], Any],
    BeforeValidator(lambda tree: {} if tree is None else tree),
]


class _Part:
    """A part of a plan: a key of the file that no field has the name of is refused."""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Arm(_Part):
    """One method of the comparison."""

    name: str
    label: Text
    command: Command
    recipe: Text
    """Path; ``{task}`` stands for the task's name."""
    overrides: Overrides = field(default_factory=dict)
    family: str = ""
    """What it has in common with others: arms of a family have one colour."""
    seed_offset: Annotated[Integer, Field(ge=0)] = 0
    """Added to the seed of every run; not 0 for the A/A arm alone."""

    @property
    def is_aa(self) -> bool:
        return self.seed_offset != 0

    @property
    def method(self) -> tuple[object, ...]:
        """Equal for arms whose runs of one seed are the same to the byte."""
        return self.command, self.recipe, self.overrides


@dataclass(frozen=True)
class StudyTask(_Part):
    """A data set that every arm is trained and evaluated on."""

    name: str
    label: Text
    overrides: Overrides = field(default_factory=dict)


@dataclass(frozen=True)
class Budget(_Part):
    """The expense of every run, whatever its arm."""

    steps: Annotated[Integer, Field(ge=1)]
    """Optimizer steps."""
    save_steps: Annotated[Integer, Field(ge=1)] = 25
    """Optimizer steps between checkpoints: what a kill can cost."""
    overrides: Overrides = field(default_factory=dict)
    """For every run; an arm's own win."""


@dataclass(frozen=True)
class EvaluationPlan(_Part):
    """Evaluation of final policies: ``k`` samples per held-out prompt, for every temperature and evaluation seed."""

    k: Annotated[Integer, Field(ge=1)] = 8
    temperatures: Several[Positive] = (1.0,)
    """The first is what is judged; the others are reported beside it."""
    seeds: Several[Annotated[Integer, Field(ge=0)]] = (1001, 1002, 1003)
    """The same draws for every run."""


@dataclass(frozen=True)
class AnalysisPlan(_Part):
    """The judged outcomes, and the differences that do not matter (``judgement`` in the file)."""

    primary: Outcome = "coverage"
    outcomes: Several[Outcome] = tuple(JUDGED)
    margin: Annotated[dict[Outcome, Positive], AfterValidator(lambda given: {**MARGINS, **given})] = field(
        default_factory=lambda: dict(MARGINS)
    )
    test: Literal["sign_flip", "t"] = "sign_flip"
    """Whose p Holm adjusts: 2^N sign patterns of N seeds allow no p below 2/2^N, over m arms none below 2m/2^N."""
    alpha: Annotated[Positive, Field(lt=1)] = 0.05
    """Two-sided level of tests; intervals have level 1 − alpha."""
    power: Annotated[Positive, Field(lt=1)] = 0.8
    """Probability with which the detectable effect would be found."""
    resamples: Annotated[Integer, Field(ge=99)] = 9999
    """Of bootstraps, and of permutations where enumerating all is too much."""


@dataclass(frozen=True)
class StudyPlan(_Part):
    """A whole study."""

    question: Text
    baseline: Text
    """Name of an arm."""
    arms: Annotated[tuple[Arm, ...], BeforeValidator(_arms)]
    """The baseline first, then the A/A arm where there is one."""
    tasks: Annotated[tuple[StudyTask, ...], BeforeValidator(_tasks)]
    seeds: Several[Annotated[Integer, Field(ge=0)]]
    budget: Budget
    output_dir: Path = Path("var/study")
    parts: tuple[Text, ...] = ()
    """Directories, or patterns of them, with the tables of finished runs, which are not made again."""
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    judgement: AnalysisPlan = field(default_factory=AnalysisPlan)
    processes: Annotated[Integer, Field(ge=1)] = 2

    def arm(self, name: str) -> Arm:
        """The arm called ``name``; ``untrained`` is one that the plan does not list."""
        return next(arm for arm in (*self.arms, self.untrained) if arm.name == name)

    @property
    def untrained(self) -> Arm:
        """The baseline before its first step."""
        base = next(arm for arm in self.arms if arm.name == self.baseline)
        return Arm(UNTRAINED, "untrained", base.command, base.recipe, base.overrides)

    @property
    def aa(self) -> Arm | None:
        """The arm that repeats the baseline with other seeds; None where the plan has none."""
        return next((arm for arm in self.arms if arm.is_aa), None)


PARTS = {
    "arms": Arm,
    "tasks": StudyTask,
    "budget": Budget,
    "evaluation": EvaluationPlan,
    "judgement": AnalysisPlan,
}

FAULTS = {
    "missing": "a plan must say it",
    "int_type": "{input!r} is not an integer",
    "float_type": "{input!r} is not a number",
    "greater_than_equal": "{input!r} is not an integer of at least {ge}",
    "finite_number": "{input!r} is not a finite number",
    "greater_than": "{input!r} is not a number above {gt:g}",
    "less_than": "{input!r} is not a number below {lt:g}",
    "string_type": "{input!r} is not a text",
    "string_pattern_mismatch": "{input!r} is not a text",
    "path_type": "{input!r} is not a text",
    "tuple_type": "{input!r} is not a list",
    "too_short": "{input!r} is not a list",
    "dict_type": "a mapping of settings is needed (learning_rate: 1.0e-4)",
    "value_error": "{error}",
}
"""pydantic's name for a fault → the line about it."""


def read_plan(path: Path) -> StudyPlan:
    """The plan in the file ``path``. Raises `UsageError` that names the file, the key and the remedy."""
    if not path.is_file():
        raise UsageError(f"study.plan={path}: there is no such file")
    try:
        return plan_of(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}: not YAML{line} ({error.problem})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def plan_of(tree: Any) -> StudyPlan:
    """The plan that ``tree`` (as YAML reads it) describes, baseline first, A/A arm second. Raises `UsageError`."""
    try:
        plan = TypeAdapter(StudyPlan).validate_python(tree)
    except ValidationError as error:
        raise UsageError(_fault(error.errors()[0], tree)) from error
    return _in_order(replace(plan, question=" ".join(plan.question.split())))


def _fault(fault: Any, tree: Any) -> str:
    """The line of a fault: its key, arms and tasks by their names, and what is wrong."""
    words = []
    for above, step in zip(("", *fault["loc"]), fault["loc"], strict=False):
        if above in ("arms", "tasks"):
            words.append(list(tree[above])[step])
        elif not isinstance(step, int) and step != "[key]":
            words.append(step)
    where = ".".join(words)
    within = words[:-1] if fault["type"] == "unexpected_keyword_argument" else words
    part = PARTS.get(within[0], StudyPlan) if within else StudyPlan
    keys = [item.name for item in fields(part) if item.name != "name"] + ["same_as"] * (part is Arm)
    match fault["type"]:
        case "unexpected_keyword_argument":
            return f"{where}: unknown key{did_you_mean(words[-1], keys)}; keys here: {', '.join(keys)}"
        case "dataclass_type":
            return f"{where or 'plan'}: a mapping is needed ({', '.join(keys)})"
        case "dict_type" if words[-1] == "margin":
            return f"{where}: {fault['input']!r} is not a mapping of outcomes (coverage: 0.03)"
        case "literal_error":
            choices = ("sign_flip", "t") if words[-1] == "test" else get_args(Command)
            near = did_you_mean(str(fault["input"]), choices)
            return f"{where}: {fault['input']!r} is not one of {', '.join(choices)}{near}"
    text = FAULTS.get(fault["type"], fault["msg"])
    return f"{where}: {text.format(input=fault['input'], **fault.get('ctx', {}))}"


def _in_order(plan: StudyPlan) -> StudyPlan:
    """The plan with its baseline first and its A/A arm second. Raises `UsageError` where parts contradict."""
    named = [arm.name for arm in plan.arms]
    if plan.baseline not in named:
        raise UsageError(f"baseline: no arm is called {plan.baseline!r}{did_you_mean(plan.baseline, named)}")
    if len(plan.arms) < 2:
        raise UsageError("arms: a comparison needs at least two")
    base = plan.arm(plan.baseline)
    if base.is_aa:
        raise UsageError(f"baseline: {base.name} has a seed_offset; the baseline keeps the plan's seeds")
    others = [arm for arm in plan.arms if arm is not base]
    again = [arm for arm in others if arm.is_aa]
    for arm in again:
        if arm.method != base.method:
            raise UsageError(
                f"arms.{arm.name}: an arm with a seed_offset repeats the baseline (A/A); write same_as: {base.name}"
            )
        clash = sorted({seed + arm.seed_offset for seed in plan.seeds} & set(plan.seeds))
        if clash:
            raise UsageError(
                f"arms.{arm.name}.seed_offset: seed {clash[0]} would be a run of the baseline as well; "
                "take an offset larger than every seed"
            )
    if len(again) > 1:
        raise UsageError(
            f"arms: {again[0].name} and {again[1].name} both have a seed_offset; keep one A/A arm"
        )
    for arm in others:
        if arm.method == base.method and not arm.is_aa:
            raise UsageError(
                f"arms.{arm.name}: the same settings and seeds as {base.name}, so the same runs to the byte; an A/A "
                "arm needs seed_offset: 10000"
            )
    if plan.judgement.primary not in plan.judgement.outcomes:
        raise UsageError(f"judgement.primary: {plan.judgement.primary} is not among judgement.outcomes")
    return replace(plan, arms=(base, *again, *(arm for arm in others if not arm.is_aa)))
