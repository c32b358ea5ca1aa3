"""Graph colouring: complete a partial 3-colouring so that neighbours differ.

A graph has 4 to 6 vertices and n−2 to 8 edges. Three colours are hidden such that 4 to 24 completions exist; the
single-mode control hides two such that there is exactly one.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from maxent_grpo.randomness import generator
from maxent_grpo.tasks.answers import extract_answer
from maxent_grpo.tasks.task import CONTROL, WARM_START, WRONG, Facts, Problem, Verdict, region

COLOURS = "123"
HIDDEN = "?"
VERTICES = (4, 5, 6)
MAX_EDGES = 8
MOST_PROBLEMS = 20_000  # per split and seed: what can be drawn in minutes, far fewer than there are
_NAMES = "ABCDEF"

Edges = tuple[tuple[int, int], ...]


class GraphColoring:
    name = "graph_coloring"
    default_sizes: Mapping[str, int] = {"train": 192, "eval": 96, "control": 96}
    choices: Mapping[str, tuple[Any, ...]] = {}

    def problems(self, split: str, size: int, seed: int) -> list[Problem]:
        rng = generator(seed, "task", self.name, split)
        found: dict[str, Problem] = {}
        while len(found) < min(size, MOST_PROBLEMS):
            problem = _draw(rng, split)
            if problem is not None:
                found[problem.question] = problem
        return list(found.values())

    def grade(self, response: str, facts: Facts) -> Verdict:
        """Right if the hidden colours in order, or the colours of all vertices in order, complete the colouring."""
        answer = extract_answer(response)
        if answer is None:
            return WRONG
        partial = facts["partial"]
        colours = "".join(answer.replace(",", " ").split())
        if len(colours) == partial.count(HIDDEN):
            given = iter(colours)
            colours = "".join(next(given) if colour == HIDDEN else colour for colour in partial)
        right = (
            len(colours) == len(partial)
            and all(colour in COLOURS for colour in colours)
            and _extends(colours, partial)
            and all(colours[u] != colours[v] for u, v in facts["edges"])
        )
        return Verdict(correct=True, mode=colours) if right else WRONG

    def spell(self, mode: str, facts: Facts) -> str:
        """The hidden colours in order."""
        return _hidden(mode, facts["partial"])


def colourings(vertices: int, edges: Edges) -> list[str]:
    """All proper 3-colourings: one character of `COLOURS` per vertex."""
    found = [""]
    for vertex in range(vertices):
        earlier = [u for u, v in edges if v == vertex]
        found = [c + colour for c in found for colour in COLOURS if colour not in [c[u] for u in earlier]]
    return found


def _draw(rng: np.random.Generator, split: str) -> Problem | None:
    """One random problem; None where the drawn graph has no colouring, or hides no colours as the split wants it."""
    n = int(rng.choice(VERTICES))
    pairs = list(itertools.combinations(range(n), 2))
    count = int(rng.integers(max(1, n - 2), min(MAX_EDGES, len(pairs)) + 1))
    edges = tuple(pairs[index] for index in sorted(rng.permutation(len(pairs))[:count]))
    proper = colourings(n, edges)
    if not proper:
        return None
    target = proper[int(rng.integers(len(proper)))]
    hidden, completions = (2, range(1, 2)) if split == CONTROL else (3, range(4, 25))
    if split == WARM_START:
        hidden, completions = int(rng.integers(1, 4)), range(1, 25)
    ways = list(itertools.combinations(range(n), hidden))
    for index in rng.permutation(len(ways)):
        partial = "".join(HIDDEN if v in ways[index] else colour for v, colour in enumerate(target))
        question = _question(edges, partial)
        if region(GraphColoring.name, question) == split:
            modes = tuple(c for c in proper if _extends(c, partial))
            if len(modes) in completions:
                facts = {"edges": [list(edge) for edge in edges], "partial": partial}
                return Problem(question, _hidden(modes[0], partial), modes, facts)
    return None


def _question(edges: Edges, partial: str) -> str:
    """``3-color A1 D2, AB BC BD: BC?``: the given colours, the edges, and the vertices to colour."""
    given = " ".join(name + colour for name, colour in zip(_NAMES, partial, strict=False) if colour != HIDDEN)
    drawn = " ".join(_NAMES[u] + _NAMES[v] for u, v in edges)
    asked = "".join(name for name, colour in zip(_NAMES, partial, strict=False) if colour == HIDDEN)
    return f"3-color {given}, {drawn}: {asked}?"


def _hidden(colours: str, partial: str) -> str:
    return "".join(colour for colour, shown in zip(colours, partial, strict=True) if shown == HIDDEN)


def _extends(colours: str, partial: str) -> bool:
    return all(shown in (HIDDEN, colour) for colour, shown in zip(colours, partial, strict=True))
