"""Lattice paths: walk over a grid from the first cell to the last by steps right and down, around walls.

Every shortest walk that meets no wall is a right answer, and each is one of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from maxent_grpo.randomness import generator
from maxent_grpo.tasks.answers import extract_answer
from maxent_grpo.tasks.task import CONTROL, WARM_START, WRONG, Facts, Problem, Verdict, region

MODES = range(2, 13)  # how many modes a problem of the train and eval splits has
MOST_PROBLEMS = 5_000  # per split and seed; at level 1 there are more than twice as many in each
_COLUMNS = "ABCDEFG"

Cell = tuple[int, int]
"""Column and row, from 0."""


@dataclass(frozen=True)
class Level:
    sides: range  # of the grid, in cells
    walls: range


LEVELS = {
    1: Level(range(4, 6), range(2, 6)),
    2: Level(range(5, 7), range(4, 8)),
    3: Level(range(6, 8), range(6, 11)),
}


class LatticePaths:
    name = "lattice_paths"
    default_sizes: Mapping[str, int] = {"train": 192, "eval": 96, "control": 96}
    choices: Mapping[str, tuple[Any, ...]] = {"level": tuple(LEVELS)}

    def problems(self, split: str, size: int, seed: int, level: int = 1) -> list[Problem]:
        """A higher ``level`` has a larger grid and more walls."""
        rng = generator(seed, "task", self.name, split, level)
        found: dict[str, Problem] = {}
        while len(found) < min(size, MOST_PROBLEMS):
            last, walls = _draw(rng, LEVELS[level])
            question = f"Walk A1 to {_name(last)} not {' '.join(map(_name, walls))}: RD?"
            if question not in found and region(self.name, question) == split:
                modes = tuple(paths(last, walls))
                if _fits(split, len(modes)):
                    facts = {"last": list(last), "walls": [list(cell) for cell in walls]}
                    found[question] = Problem(question, modes[0], modes, facts)
        return list(found.values())

    def grade(self, response: str, facts: Facts) -> Verdict:
        """Right if the steps, with or without spaces and commas between them, lead to the last cell past no wall."""
        steps = "".join((extract_answer(response) or "").replace(",", " ").split()).upper()
        if len(steps) != sum(facts["last"]) or set(steps) - set("RD"):
            return WRONG
        column = row = 0
        for step in steps:
            column, row = (column + 1, row) if step == "R" else (column, row + 1)
            if [column, row] in facts["walls"]:
                return WRONG
        return Verdict(correct=True, mode=steps) if [column, row] == facts["last"] else WRONG

    def spell(self, mode: str, facts: Facts) -> str:
        return mode


def paths(last: Cell, walls: list[Cell]) -> list[str]:
    """Every walk from (0, 0) to ``last`` by steps R and D that meets no cell of ``walls``, sorted."""
    reached: dict[Cell, list[str]] = {(0, 0): [""]}
    for row in range(last[1] + 1):
        for column in range(last[0] + 1):
            if (column, row) != (0, 0):
                from_left, from_above = reached.get((column - 1, row), []), reached.get((column, row - 1), [])
                walks = [walk + "R" for walk in from_left] + [walk + "D" for walk in from_above]
                reached[column, row] = [] if (column, row) in walls else walks
    return sorted(reached[last])


def _draw(rng: np.random.Generator, level: Level) -> tuple[Cell, list[Cell]]:
    """The last cell and the walls, which are neither the first nor the last."""
    columns, rows = (int(rng.integers(level.sides.start, level.sides.stop)) for _ in "xy")
    count = int(rng.integers(level.walls.start, level.walls.stop))
    chosen = sorted(rng.permutation(columns * rows - 2)[:count] + 1)
    return (columns - 1, rows - 1), [(int(index) % columns, int(index) // columns) for index in chosen]


def _name(cell: Cell) -> str:
    return f"{_COLUMNS[cell[0]]}{cell[1] + 1}"


def _fits(split: str, modes: int) -> bool:
    if split == WARM_START:
        return modes in range(1, MODES.stop)
    return modes == 1 if split == CONTROL else modes in MODES
