"""A study's plan from its YAML file, checked before anything runs.

A plan names arms (a recipe with overrides), tasks (overrides that every arm gets there), seeds, a budget, how final
policies are evaluated, and how the outcomes are judged. Whether an arm's settings exist in this version is judged
later, per arm (`cells`), so that a plan may hold arms that wait for their method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from maxent_grpo.config.loading import Command
from maxent_grpo.errors import UsageError, did_you_mean
from maxent_grpo.study.plan import OUTCOMES, Arm, Budget, EvaluationPlan, Judgement, Plan, StudyTask

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


def read_plan(path: Path) -> Plan:
    """The plan in the file ``path``. Raises `UsageError` that names the file, the key and the remedy."""
    if not path.is_file():
        raise UsageError(f"study.plan={path}: there is no such file")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}: not YAML{line} ({error.problem})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    try:
        return plan_of(tree)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def plan_of(tree: Any) -> Plan:
    """The plan that ``tree`` (as YAML reads it) describes. Raises `UsageError`."""
    values = _keys(tree, Plan, "", required=("question", "baseline", "arms", "tasks", "seeds", "budget"))
    arms = _arms(_named(values["arms"], "arms"))
    plan = Plan(
        question=" ".join(_text(values["question"], "question").split()),
        baseline=_text(values["baseline"], "baseline"),
        arms=arms,
        tasks=tuple(_task(name, settings) for name, settings in _named(values["tasks"], "tasks").items()),
        seeds=_integers(values["seeds"], "seeds"),
        budget=_budget(values["budget"]),
        output_dir=Path(_text(values.get("output_dir", "var/study"), "output_dir")),
        evaluation=_evaluation(values.get("evaluation", {})),
        judgement=_judgement(values.get("judgement", {})),
        processes=_integer(values.get("processes", 2), "processes", least=1),
    )
    return _checked(plan)


def _checked(plan: Plan) -> Plan:
    """The plan with its baseline first and its A/A arm second. Raises `UsageError` where parts contradict."""
    named = [arm.name for arm in plan.arms]
    if plan.baseline not in named:
        raise UsageError(f"baseline: no arm is called {plan.baseline!r}{did_you_mean(plan.baseline, named)}")
    if len(plan.arms) < 2:
        raise UsageError("arms: a comparison needs at least two")
    base = plan.arm(plan.baseline)
    if base.is_aa:
        raise UsageError(f"baseline: {base.name} has a seed_offset; the baseline keeps the plan's seeds")
    again = [arm for arm in plan.arms if arm.is_aa]
    for arm in again:
        if (arm.command, arm.recipe, arm.overrides) != (base.command, base.recipe, base.overrides):
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
    for arm in plan.arms:
        same = (arm.command, arm.recipe, arm.overrides) == (base.command, base.recipe, base.overrides)
        if same and arm is not base and not arm.is_aa:
            raise UsageError(
                f"arms.{arm.name}: the same settings and seeds as {base.name}, so the same runs to the byte; an A/A "
                "arm needs seed_offset: 10000"
            )
    if plan.judgement.primary not in plan.judgement.outcomes:
        raise UsageError(f"judgement.primary: {plan.judgement.primary} is not among judgement.outcomes")
    order = [base, *again, *(arm for arm in plan.arms if arm is not base and arm not in again)]
    return replace(plan, arms=tuple(order))


def _arms(trees: Mapping[str, Any]) -> tuple[Arm, ...]:
    """The arms; ``same_as: OTHER`` takes over what an arm does not say itself."""
    arms: dict[str, Arm] = {}
    allowed = ("label", "command", "recipe", "overrides", "seed_offset", "same_as")
    for name, tree in trees.items():
        where = f"arms.{name}"
        values = _known(tree, allowed, where)
        source: Arm | None = None
        if "same_as" in values:
            other = _text(values["same_as"], f"{where}.same_as")
            if other not in arms:
                raise UsageError(f"{where}.same_as: no arm {other!r} above it{did_you_mean(other, arms)}")
            source = arms[other]
        command = values.get("command", source.command if source else None)
        if command not in get_args(Command):
            raise UsageError(f"{where}.command: {command!r} is not one of {', '.join(get_args(Command))}")
        recipe = values.get("recipe", source.recipe if source else None)
        own = _overrides(values.get("overrides"), f"{where}.overrides")
        arms[name] = Arm(
            name=name,
            label=_text(values.get("label", name), f"{where}.label"),
            command=str(command),
            recipe=_text(recipe, f"{where}.recipe"),
            overrides={**(source.overrides if source else {}), **own},
            seed_offset=_integer(values.get("seed_offset", 0), f"{where}.seed_offset", least=0),
        )
    return tuple(arms.values())


def _task(name: str, tree: Any) -> StudyTask:
    where = f"tasks.{name}"
    values = _known(tree or {}, ("label", "overrides"), where)
    label = _text(values.get("label", name.replace("_", " ")), f"{where}.label")
    return StudyTask(name, label, _overrides(values.get("overrides"), f"{where}.overrides"))


def _budget(tree: Any) -> Budget:
    values = _keys(tree, Budget, "budget", required=("steps",))
    return Budget(
        steps=_integer(values["steps"], "budget.steps", least=1),
        save_steps=_integer(values.get("save_steps", Budget.save_steps), "budget.save_steps", least=1),
        overrides=_overrides(values.get("overrides"), "budget.overrides"),
    )


def _evaluation(tree: Any) -> EvaluationPlan:
    values = _keys(tree, EvaluationPlan, "evaluation")
    default = EvaluationPlan()
    temperatures = values.get("temperatures", list(default.temperatures))
    return EvaluationPlan(
        k=_integer(values.get("k", default.k), "evaluation.k", least=1),
        temperatures=tuple(
            _number(value, "evaluation.temperatures", above=0.0)
            for value in _list(temperatures, "evaluation.temperatures")
        ),
        seeds=_integers(values.get("seeds", list(default.seeds)), "evaluation.seeds"),
    )


def _judgement(tree: Any) -> Judgement:
    values = _keys(tree, Judgement, "judgement")
    default = Judgement()
    outcomes = tuple(
        _text(o, "judgement.outcomes")
        for o in _list(values.get("outcomes", list(default.outcomes)), "judgement.outcomes")
    )
    primary = _text(values.get("primary", default.primary), "judgement.primary")
    for name in (*outcomes, primary):
        if name not in OUTCOMES:
            raise UsageError(
                f"judgement.outcomes: unknown outcome {name!r}{did_you_mean(name, OUTCOMES)}; outcomes: "
                f"{', '.join(OUTCOMES)}"
            )
    margin = values.get("margin", {})
    if not isinstance(margin, Mapping):
        raise UsageError(f"judgement.margin: {margin!r} is not a mapping of outcomes (coverage: 0.03)")
    margins = _known(margin, tuple(OUTCOMES), "judgement.margin")
    return Judgement(
        primary=primary,
        outcomes=outcomes,
        margin={
            **default.margin,
            **{k: _number(v, f"judgement.margin.{k}", above=0.0) for k, v in margins.items()},
        },
        alpha=_number(values.get("alpha", default.alpha), "judgement.alpha", above=0.0, below=1.0),
        power=_number(values.get("power", default.power), "judgement.power", above=0.0, below=1.0),
        resamples=_integer(values.get("resamples", default.resamples), "judgement.resamples", least=99),
    )


def _overrides(tree: Any, where: str) -> dict[str, Any]:
    """Settings by name, as in a recipe; those that the study decides are refused."""
    values = {} if tree is None else tree
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"{where}: a mapping of settings is needed (learning_rate: 1.0e-4)")
    for key in values:
        if key in CONTROLLED:
            raise UsageError(f"{where}.{key}: not for a plan to override: {CONTROLLED[key]}")
    return dict(values)


def _keys(tree: Any, cls: type[Any], where: str, required: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping ``tree`` with keys that are fields of the dataclass ``cls``."""
    values = _known(tree, tuple(f.name for f in fields(cls)), where)
    for name in required:
        if name not in values:
            raise UsageError(f"{where + '.' if where else ''}{name}: a plan must say it")
    return values


def _known(tree: Any, allowed: Sequence[str], where: str) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        raise UsageError(f"{where or 'plan'}: a mapping is needed ({', '.join(allowed)})")
    for key in tree:
        if key not in allowed:
            front = f"{where}." if where else ""
            raise UsageError(
                f"{front}{key}: unknown key{did_you_mean(str(key), allowed)}; keys here: {', '.join(allowed)}"
            )
    return dict(tree)


def _named(tree: Any, where: str) -> dict[str, Any]:
    """A mapping of names that can be directory names."""
    if not isinstance(tree, Mapping) or not tree:
        raise UsageError(f"{where}: a mapping from names to their settings is needed")
    for name in tree:
        if not isinstance(name, str) or not name or not all(c.isalnum() or c in "_-" for c in name):
            raise UsageError(f"{where}: {name!r} is no name: letters, digits, _ and - (it names directories)")
    return dict(tree)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where}: {value!r} is not a text")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: {value!r} is not a list")
    if len(set(map(str, value))) < len(value):
        raise UsageError(f"{where}: {value} names a value twice")
    return value


def _integer(value: Any, where: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{where}: {value!r} is not an integer of at least {least}")
    return value


def _integers(value: Any, where: str) -> tuple[int, ...]:
    return tuple(_integer(item, where, least=0) for item in _list(value, where))


def _number(value: Any, where: str, above: float, below: float = float("inf")) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < below:
        bound = f"above {above:g}" + (f" and below {below:g}" if below < float("inf") else "")
        raise UsageError(f"{where}: {value!r} is not a number {bound}")
    return float(value)
