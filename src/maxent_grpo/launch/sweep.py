"""``launch sweep``: a grid of training runs as a Slurm array, one point per array task."""

import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from maxent_grpo.errors import UsageError
from maxent_grpo.launch.arguments import Flag, read_flags, words_of
from maxent_grpo.launch.recipe import read_facts
from maxent_grpo.launch.table import table
from maxent_grpo.launch.train import FLAGS as TRAIN_FLAGS
from maxent_grpo.launch.train import chosen_recipe, train

LAUNCHER_KEYS = ("model", "task", "config", "recipe", "accelerator", "dp", "tp")
"""Keys of a grid that are flags of the launcher; every other one is a setting of the trainer."""

PORTS = {"master-port": 1, "vllm-port": 20, "vllm-group-port": 20}
"""Port flags that nobody set, and how far apart the points of a grid have them: points may share a node."""

FLAGS = (*TRAIN_FLAGS, Flag("grid", None, ("SWEEP_GRID",)))
Point = Mapping[str, str]


def grid_points(grid: str) -> list[Point]:
    """The points of ``"seed=0,1 learning_rate=1e-6,5e-7"``, the last key varying fastest. Raises `UsageError`."""
    axes: dict[str, list[str]] = {}
    for word in words_of(grid):
        key, equals, values = word.partition("=")
        if not equals or not key or not values or key in axes:
            raise UsageError(f"--grid {grid!r}: {word!r} must be KEY=VALUE,VALUE,… with each key once")
        axes[key] = values.split(",")
    if not axes:
        raise UsageError("--grid is empty: give KEY=VALUE,VALUE,…")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def point_name(point: Point) -> str:
    """``seed=0,task=maxent``, which is also the folder of the run."""
    return ",".join(f"{key}={value.replace('/', '-')}" for key, value in sorted(point.items()))


def point_words(
    point: Point, index: int, words: Sequence[str], environ: Mapping[str, str], root: Path
) -> list[str]:
    """The flags of ``launch train`` for one point: those of the sweep, with the point's values and its own folder."""
    flags = {key: value for key, value in point.items() if key in LAUNCHER_KEYS}
    settings = {key: value for key, value in point.items() if key not in LAUNCHER_KEYS}
    merged = [*words, *(word for key, value in flags.items() for word in (f"--{key}", value))]
    values = read_flags(FLAGS, merged, environ)
    given = list(words_of(values.text("args")))
    given += [word for key, value in settings.items() for word in (f"--{key}", value)]
    facts = read_facts(chosen_recipe(values, root), given, values["vllm-mode"])
    if "output_dir" not in settings:
        given += ["--output_dir", str(facts.output_dir / point_name(point))]
    ports = [
        word
        for name, distance in PORTS.items()
        if values.sources[name] == "default"
        for word in (f"--{name}", str(values.number(name) + distance * index))
    ]
    kept = _without(merged, "grid")
    return [*_without(kept, "args"), *ports, "--args", shlex.join(given)]


def sweep(words: Sequence[str], environ: Mapping[str, str], root: Path) -> int:
    """Carry out ``launch sweep``. Raises `UsageError` and `RunError`."""
    values = read_flags(FLAGS, words, environ)
    points = grid_points(values.text("grid"))
    index = environ.get("SLURM_ARRAY_TASK_ID")
    if index is None:
        if not values.on("dry-run"):
            raise UsageError(
                f"a sweep is a Slurm array: sbatch --array=0-{len(points) - 1} ops/slurm/sweep.slurm …"
            )
        rows = [(str(i), point_name(point)) for i, point in enumerate(points)]
        print(table(f"{len(points)} runs: sbatch --array=0-{len(points) - 1}", rows), flush=True)
        index = "0"
    if not int(index) < len(points):
        raise UsageError(
            f"array task {index}: the grid has {len(points)} points; use --array=0-{len(points) - 1}"
        )
    point = points[int(index)]
    print(f"\nPoint {index}: {point_name(point)}", file=sys.stdout, flush=True)
    return train(point_words(point, int(index), words, environ, root), environ, root)


def _without(words: Sequence[str], name: str) -> list[str]:
    """``words`` without a flag and its value."""
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word == f"--{name}":
            rest = rest[1:]
        elif not word.startswith(f"--{name}="):
            kept.append(word)
    return kept
