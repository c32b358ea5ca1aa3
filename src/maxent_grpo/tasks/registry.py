"""The tasks by name: rows for a data loader, grading for an evaluation, a reward function for a trainer."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from maxent_grpo.errors import UsageError, did_you_mean
from maxent_grpo.named import find_named, is_path
from maxent_grpo.tasks.answers import READ_CHARACTERS, extract_answer, last_boxed
from maxent_grpo.tasks.arithmetic import Arithmetic
from maxent_grpo.tasks.countdown import Countdown
from maxent_grpo.tasks.divisors import Divisors
from maxent_grpo.tasks.equations import Equations
from maxent_grpo.tasks.graph_coloring import GraphColoring
from maxent_grpo.tasks.lattice_paths import LatticePaths
from maxent_grpo.tasks.name_one import NameOne
from maxent_grpo.tasks.task import CONTROL, EVAL, TRAIN, Problem, Task, Verdict

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Countdown(),
        GraphColoring(),
        Arithmetic(),
        Divisors(),
        Equations(),
        LatticePaths(),
        NameOne(),
    )
}

SPLITS = {TRAIN: TRAIN, EVAL: EVAL, "test": EVAL, "validation": EVAL, CONTROL: CONTROL}
"""Names of splits that a request may use → the split."""

Completion = str | Sequence[Mapping[str, Any]]
"""A completion as text, or as the chat messages that TRL hands to rewards for conversational prompts."""


def load_rows(name: str, split: str, config: str | None = None) -> list[dict[str, Any]]:
    """The rows of a task's split: ``problem``, ``answer``, ``modes`` (list), ``task`` and ``facts`` (a JSON string).

    ``problem`` is a text, or a chat (a list of messages) of a task that puts turns before its question.

    Args:
        name: a key of `TASKS`, or ``module:NAME`` of your own.
        split: ``train``, ``eval`` (also ``test``, ``validation``) or ``control``.
        config: comma-separated ``key=value``: ``seed`` (default 0), ``train_size``, ``eval_size``, ``control_size``
            and the task's own options, such as ``numbers=4,train_size=192,eval_size=96,seed=0``. A size that is not
            given is the task's default, or all that there are where the task has fewer.

    Raises:
        UsageError: an unknown task, split or key, a value that the key cannot take, or more problems than exist.
    """
    task = find_task(name)
    if split not in SPLITS:
        raise UsageError(f"task {name!r} has no split {split!r}: use one of {', '.join(SPLITS)}")
    split = SPLITS[split]
    settings = _settings(task, config or "")
    seed = settings.pop("seed", 0)
    sizes = {part: settings.pop(f"{part}_size", None) for part in task.default_sizes}
    size = sizes[split]
    problems = task.problems(split, task.default_sizes[split] if size is None else size, seed, **settings)
    if size is not None and len(problems) < size:
        others = [f"{key}={value}" for key, values in task.choices.items() for value in values]
        raise UsageError(
            f"{split}_size={size}: task {name!r} has only {len(problems)} {split} problems with these options; "
            f"ask for at most {len(problems)}"
            + (f" or change an option ({', '.join(others)})" if others else "")
        )
    return [
        {
            "problem": _asked(problem),
            "answer": problem.answer,
            "modes": list(problem.modes),
            "task": name,
            "facts": json.dumps(problem.facts),
        }
        for problem in problems
    ]


def _asked(problem: Problem) -> str | list[dict[str, str]]:
    if not problem.turns:
        return problem.question
    return [*map(dict, problem.turns), {"role": "user", "content": problem.question}]


def grade_response(task_name: str, response: str, facts_json: str) -> Verdict:
    """Verify one completion against the ``facts`` column of its row. Raises `UsageError` for an unknown task."""
    return find_task(task_name).grade(response, json.loads(facts_json))


def task_reward(
    completions: Sequence[Completion], task: Sequence[str], facts: Sequence[str], **columns: Any
) -> list[float]:
    """1 for a right answer, else 0: a reward function in TRL's signature, over the rows of `load_rows`."""
    return [
        float(grade_response(name, _text(completion), fact).correct)
        for completion, name, fact in zip(completions, task, facts, strict=True)
    ]


def _text(completion: Completion) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


@cache
def find_task(name: str) -> Task:
    """The task called ``name``: a key of `TASKS`, or ``module:NAME`` of a `Task` (an object, or a class to call).

    Raises `UsageError` where there is none.
    """
    found = find_named(
        "task", name, TASKS, "a task (name, default_sizes, choices, problems, grade)", _is_task
    )
    return found() if isinstance(found, type) else found


def _is_task(found: object) -> bool:
    return all(hasattr(found, name) for name in ("name", "default_sizes", "choices", "problems", "grade"))


def _settings(task: Task, config: str) -> dict[str, Any]:
    """The keys and values of ``config``, checked against what ``task`` takes."""
    keys = ["seed", *(f"{part}_size" for part in task.default_sizes), *task.choices]
    settings: dict[str, Any] = {}
    for entry in filter(None, (part.strip() for part in config.split(","))):
        key, equals, value = (part.strip() for part in entry.partition("="))
        where = f"config of task {task.name!r}: {entry!r}"
        if not equals:
            raise UsageError(f"{where} is not key=value: the keys are {', '.join(keys)}")
        if key not in keys:
            raise UsageError(f"{where}: unknown key{did_you_mean(key, keys)}: the keys are {', '.join(keys)}")
        if key in settings:
            raise UsageError(f"{where}: {key} is given twice: keep one")
        settings[key] = (
            _choice(task, key, value, where) if key in task.choices else _integer(key, value, where)
        )
    return settings


def _choice(task: Task, key: str, value: str, where: str) -> Any:
    values = {str(choice): choice for choice in task.choices[key]}
    if value not in values:
        raise UsageError(f"{where}: {key} is one of {', '.join(values)}")
    return values[value]


def _integer(key: str, value: str, where: str) -> int:
    smallest = 0 if key == "seed" else 1
    if not (value.isascii() and value.isdigit() and len(value) <= 18 and int(value) >= smallest):
        raise UsageError(f"{where}: {key} is a whole number of at least {smallest}")
    return int(value)


_OWN_TASK = re.compile(r"[\w.]+:\w+")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def answer_string(text: str) -> str | None:
    """The content of the last balanced ``\\boxed{…}``, else of the last ``<answer>…</answer>``, blanks collapsed.

    None where there is neither, or nothing in it.
    """
    tail = text[-READ_CHARACTERS:]
    found = last_boxed(tail)
    if found is None:
        tagged = _TAGGED.findall(tail)
        found = tagged[-1] if tagged else ""
    return " ".join(found.split()) or None


def answer_clusters(texts: Sequence[str], columns: Mapping[str, Any]) -> list[int]:
    """A number per completion of a group, equal where the answers are the same string.

    A completion without an answer is a cluster of its own. Rows of a procedural task are read the way that the task
    reads them: a short plain line is an answer, too.
    """
    task = columns.get("task")
    read = extract_answer if isinstance(task, str) and (task in TASKS or is_path(task)) else answer_string
    numbers: dict[str, int] = {}
    clusters = []
    for text in texts:
        answer = read(text)
        clusters.append(len(numbers) if answer is None else numbers.setdefault(answer, len(numbers)))
        if answer is None:
            numbers[f"\0{len(numbers)}"] = len(numbers)  # no extracted answer starts with NUL
    return clusters


def mode_count(clusters: Sequence[int], right: Sequence[bool], columns: Mapping[str, Any]) -> int:
    """Distinct right answers of a prompt, at least 1: those of its ``modes`` column, else those found in the group."""
    if "modes" in columns:
        return max(1, len(columns["modes"]))
    return max(1, len({cluster for cluster, ok in zip(clusters, right, strict=True) if ok}))
