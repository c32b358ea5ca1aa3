"""Shipped recipes and command lines, made wrong at random: each must be refused in one line, or mean what it says.

    python -m benchmarks.fuzz_recipes --number 1000 [--seed 0]

A mutation changes one to three settings of a shipped recipe (wrong types, extreme numbers, misspelt and doubled keys,
nulls, Unicode, nested structures, contradictions) and reaches the resolution and the dry run as a recipe, as overrides,
as TRL's flags or as words of Hydra. Everything runs in this process and without torch. Counted: refused (exit 2) and
accepted. A fault, and exit code 1: any exception but `UsageError`, an "internal error", more than one line of message,
or an accepted value outside its setting's range or choices. The case's number and the seed repeat it.
"""

import argparse
import contextlib
import io
import json
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maxent_grpo.cli.dry_run import dry_run_text
from maxent_grpo.cli.main import main as hydra_main
from maxent_grpo.cli.main import run_flags
from maxent_grpo.config.loading import ANY_OBJECTIVE, RunConfig, resolve
from maxent_grpo.config.records import ALL, RECORDS
from maxent_grpo.config.rules import plain
from maxent_grpo.errors import UsageError

RECIPES = Path(__file__).resolve().parents[1] / "configs" / "recipes"
COMMANDS = {"grpo": "train-baseline", "maxent-grpo": "train-maxent", "infoseed": "train-infoseed"}
"""Folder of a recipe → the command that it is for."""
WAYS = ("recipe", "recipe", "overrides", "overrides", "flags", "words")
NUMBERS = (
    0, -1, 1, 2, 3, 7, 1e-30, 1e30, -1e30, 1e308, float("inf"), float("nan"), 10**30, -(10**18), 0.5, 1.5, 2**63,
    "1e-6", "8.0", "1e400", "0x10", "１２",
)  # fmt: skip
TEXTS = (
    "", " ", "null", "none", "true", "no", "nope", "grüße 😀", "a b", "../../etc/passwd", "{seed}", "{", "[", "a:b",
    "a:b:c", "${oc.env:HOME}", "${missing}", "'", '"', "\\", "\x00", "\u202e", "%s", "-", "--x", "=", "é" * 300, "\n",
    "http://[", "builtins:print", "\ud800",
)  # fmt: skip
NESTED = (
    [],
    {},
    [[]],
    [None],
    [{}],
    {"a": {"b": [1, {"c": None}]}},
    [1, "a", None],
    {"": 0},
    [[0] * 3] * 3,
    {1: 2},
)
CONTRADICTIONS: tuple[Mapping[str, Any], ...] = (
    {"beta": 0.1, "init_kl_coeff": 0.2},
    {"epsilon": 0.3, "epsilon_high": 0.1},
    {"warmup_ratio": 5},
    {"generation_batch_size": 8, "steps_per_generation": 2},
    {"info_seed_enabled": True, "train_grpo_objective": False},
    {"use_vllm": True, "vllm_mode": "both"},
    {"driver": "async", "distributed": "zero3"},
    {"num_generations": 3, "per_device_train_batch_size": 4},
    {"maxent_tau_min": 2.0, "maxent_tau_max": 1.0},
    {"load_in_4bit": True, "load_in_8bit": True},
    {"objective": "flowrl", "beta": 0.5},
    {"reward_weights": [0]},
    {"max_steps": 0, "num_train_epochs": 0},
    {"dataset_name": None, "dataset_mixture": {"datasets": []}},
    {"fp16": True, "bf16": True},
)


@dataclass(frozen=True)
class Case:
    """One mutated recipe and the way that it takes."""

    number: int
    way: str
    recipe: Path
    changes: Mapping[str, Any]

    @property
    def command(self) -> str:
        return COMMANDS[self.recipe.parent.name]

    def __str__(self) -> str:
        shown = ", ".join(f"{key}={ascii(value)[:80]}" for key, value in self.changes.items())
        return f"case {self.number} ({self.way}, {self.recipe.relative_to(RECIPES)}): {shown}"


def case_of(number: int, seed: int) -> Case:
    """Case ``number`` of ``seed``: the same everywhere and by itself."""
    draw = random.Random(f"{seed}/{number}")
    recipes = sorted(path for path in RECIPES.glob("*/*/*.yaml") if path.parent.name in COMMANDS)
    changes: dict[str, Any] = {}
    for _ in range(draw.randint(1, 3)):
        changes |= _change(draw)
    return Case(number, draw.choice(WAYS), draw.choice(recipes), changes)


def _change(draw: random.Random) -> Mapping[str, Any]:
    record = draw.choice(ALL)
    name = draw.choice((record.name, *record.aliases))
    kind = draw.choice(
        (
            "number",
            "text",
            "nested",
            "null",
            "misspelt",
            "bound",
            "bound",
            "plausible",
            "plausible",
            "contradiction",
        )
    )
    if kind == "contradiction":
        return draw.choice(CONTRADICTIONS)
    if kind == "misspelt":
        at = draw.randrange(len(name))
        wrong = draw.choice(
            (name[:at] + name[at + 1 :], name[:at] + "é" + name[at:], name.upper(), f"{name}.{name}")
        )
        return {wrong or "x": record.default}
    if kind == "bound":  # at the ends of the range, and just outside
        ends = [end for end in (record.ge, record.gt, record.le, record.lt) if end is not None] or [0]
        return {name: draw.choice(ends) + draw.choice((-1, 0, 1, -1e-9, 1e-9))}
    if kind == "plausible":
        return {name: draw.choice(record.options or (record.default, record.default, "module:NAME"))}
    return {name: draw.choice({"number": NUMBERS, "text": TEXTS, "nested": NESTED, "null": (None,)}[kind])}


def outcome(case: Case, folder: Path) -> tuple[str, list[str]]:
    """``refused`` or ``accepted``, and what is wrong about it."""
    if case.way in ("flags", "words"):
        return _by_command_line(case)
    overrides: dict[str, dict[str, Any]] = {}
    recipe, command = case.recipe, case.command
    if case.way == "recipe":
        recipe = folder / case.recipe.parent.name / case.recipe.name
        recipe.parent.mkdir(exist_ok=True)
        tree = yaml.safe_load(case.recipe.read_text(encoding="utf-8")) | dict(case.changes)
        # A lone surrogate has no bytes: such a file is what an editor in another encoding leaves.
        recipe.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    else:
        overrides = {"flat": dict(case.changes)}
    try:
        config = resolve(command if case.number % 5 else ANY_OBJECTIVE, recipe, overrides, {})
        dry_run_text(config)
    except UsageError as error:
        return "refused", ["the message has several lines"] if "\n" in str(error).strip() else []
    except Exception as error:  # noqa: BLE001  whatever it is, it is the finding
        place = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return "refused", [f"{words} ({Path(place.filename).name}:{place.lineno})"]
    return "accepted", list(out_of_range(config))


def out_of_range(config: RunConfig) -> Iterator[str]:
    """Values of an accepted configuration that their records do not allow."""
    for section, records in RECORDS.items():
        for record in records.values():
            value = plain(getattr(getattr(config, section), record.name))
            if type(value) in (int, float) and not record.holds(value):
                yield f"{record.name}={value} is accepted, and must be {record.range}"
            if record.options and value is not None and value not in record.options:
                yield f"{record.name}={value!r} is accepted, and is none of {record.options}"


def _by_command_line(case: Case) -> tuple[str, list[str]]:
    out, err = io.StringIO(), io.StringIO()
    before = dict(os.environ)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = _command_line(case)
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever it is, it is the finding
        return "refused", [f"{type(error).__name__} left the command: {error}"[:200]]
    finally:
        os.environ.clear()
        os.environ.update(before)
    said = err.getvalue()
    faults = [] if code in (0, 2) else [f"exit code {code}: {said.strip()[:300]}"]
    faults += [
        f"{mark} in {said.strip()[:300]!r}" for mark in ("Traceback", "internal error") if mark in said
    ]
    if code == 2 and said.strip().count("\n"):
        faults.append(f"the message has several lines: {said.strip()[:300]!r}")
    return "accepted" if code == 0 else "refused", faults


def _command_line(case: Case) -> int:
    words = [(key, _word(value)) for key, value in case.changes.items()]
    if case.way == "flags":
        typed = [part for key, value in words for part in (f"--{key}", value)]
        return run_flags(case.command, ["--config", str(case.recipe), "--dry_run", *typed])
    section = {"train-baseline": "baseline", "train-maxent": "maxent", "train-infoseed": "infoseed"}[
        case.command
    ]
    front = [f"command={case.command}", f"{section}.recipe={case.recipe}", "dry_run=true"]
    return hydra_main([*front, *(f"{key}={value}" for key, value in words)])


def _word(value: Any) -> str:
    if value is None:
        return "null"
    return (
        value
        if isinstance(value, str)
        else json.dumps(value)
        if isinstance(value, (list, dict))
        else str(value)
    )


def fuzz(number: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """How many of ``number`` cases were refused and accepted, and a line for every fault."""
    counts: Counter[str] = Counter()
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for case in (case_of(i, seed) for i in range(number)):
            result, wrong = outcome(case, Path(folder))
            counts[result] += 1
            faults += [f"{case}: {what}" for what in wrong]
    return counts, faults


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where there is a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=1000, help="cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case by its number")
    options = parser.parse_args(arguments)
    if options.only is not None:
        case = case_of(options.only, options.seed)
        with tempfile.TemporaryDirectory() as folder:
            print(case, *outcome(case, Path(folder)), sep="\n  ")
        return 0
    counts, faults = fuzz(options.number, options.seed)
    print(*faults, sep="\n")
    print(f"{counts['refused']} refused, {counts['accepted']} accepted, {len(faults)} faults")
    if "torch" in sys.modules:
        print("torch was imported")
        return 1
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
