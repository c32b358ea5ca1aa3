"""The replay bank: for each prompt, how often each right answer was given, and one completion that gives it.

Admission follows github.com/liv-daliberti/remax (docs/method.md, 2026): all groups of a step are read first and
entered afterwards, so that neither the order of rows nor the number of ranks matters. A mode that is new to a prompt
gets an exemplar while there is room, in the order of keys; it is the lexicographically smallest of the step's sampled
token sequences with that key, and stays for ever. Counts go on for all keys. What is replayed never counts.

Memory: 4 bytes a token, for at most prompts × capacity completions, and a number for every key. Prompts are those
that were trained on, at most ``max_prompts`` of them.
"""

import hashlib
import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maxent_grpo.errors import UsageError
from maxent_grpo.types import Group

Tokens = tuple[int, ...]
Mask = tuple[bool, ...]


@dataclass(frozen=True)
class Exemplar:
    """A right completion, as it was sampled."""

    token_ids: Sequence[int]
    policy_mask: Mask
    """True where the policy wrote; empty: it wrote everything. The other tokens are read and not learned from."""
    step: int
    """The optimiser step that admitted it, counted from 1."""


@dataclass(frozen=True)
class Found:
    """What a group adds: its right completions by the mode that they gave."""

    prompt_ids: Tokens
    modes: Mapping[str, tuple[int, Tokens, Mask]]
    """Key → right completions, and the tokens and the mask of the smallest."""


@dataclass
class PromptBank:
    """What is known of one prompt."""

    prompt_ids: Sequence[int]
    counts: Counter[str] = field(default_factory=Counter)
    exemplars: dict[str, Exemplar] = field(default_factory=dict)

    @property
    def in_order(self) -> list[tuple[str, Exemplar]]:
        """The exemplars by key, whatever the order in which they came."""
        return sorted(self.exemplars.items(), key=lambda item: item[0])


def found_in(group: Group) -> Found:
    """The right completions of a group that have a utility and a mode, without InfoSeed's seeded ones: those continue
    other prompts, which are not trained on without their seed."""
    originals = group.originals()
    rollout, modes = originals.rollout, originals.modes or ()
    masks = rollout.policy_masks or ((),) * len(modes)
    rows: dict[str, list[tuple[Tokens, Mask]]] = {}
    for i, key in enumerate(modes):
        if key is not None and rollout.lengths[i] and not math.isnan(originals.utilities[i]):
            rows.setdefault(key, []).append((rollout.token_ids[i], masks[i]))
    return Found(rollout.prompt.token_ids, {key: (len(same), *min(same)) for key, same in rows.items()})


class ReplayBank:
    """The banks of all prompts, by the digest of their exact tokens. Every rank holds the same.

    Args:
        capacity: exemplars of a prompt; 0: counts alone.
        max_prompts: prompts that get a bank; None: all.
        settings: what a resumed run must have alike, by name.
    """

    def __init__(
        self, capacity: int, max_prompts: int | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.capacity = capacity
        self.max_prompts = math.inf if max_prompts is None else max_prompts
        self.settings = dict(settings or {})
        self.prompts: dict[str, PromptBank] = {}
        self.cursor = 0
        """Where the next turn begins, among the prompts that have an exemplar."""

    def admit(self, found: Iterable[Found], step: int) -> int:
        """Enter what the groups of a step, those of all ranks, have found. Returns how many modes were admitted."""
        together: dict[str, list[Found]] = {}
        for one in found:
            if one.modes:
                together.setdefault(digest_of(one.prompt_ids), []).append(one)
        admitted = 0
        for digest, groups in sorted(together.items()):
            if digest not in self.prompts and len(self.prompts) >= self.max_prompts:
                continue
            bank = self.prompts.setdefault(digest, PromptBank(array("i", groups[0].prompt_ids)))
            for key in sorted({key for group in groups for key in group.modes}):
                same = [group.modes[key] for group in groups if key in group.modes]
                bank.counts[key] += sum(count for count, _, _ in same)
                if key not in bank.exemplars and len(bank.exemplars) < self.capacity:
                    tokens, mask = min((tokens, mask) for _, tokens, mask in same)
                    bank.exemplars[key] = Exemplar(array("i", tokens), mask, step)
                    admitted += 1
        return admitted

    def history(self, group: Group, *, counted: bool) -> Mapping[str, int]:
        """How often right completions of earlier steps gave each mode of the group's prompt.

        ``counted``: the group itself was entered by an earlier update on the same rollout, and is left out.
        """
        bank = self.prompts.get(digest_of(group.rollout.prompt.token_ids))
        if bank is None:
            return {}
        own = {key: count for key, (count, _, _) in found_in(group).modes.items()} if counted else {}
        return bank.counts - Counter(own)

    @property
    def replayable(self) -> list[str]:
        """The digests of the prompts that have an exemplar, sorted."""
        return sorted(digest for digest, bank in self.prompts.items() if bank.exemplars)

    def next_banks(self, count: int) -> list[PromptBank]:
        """The next ``count`` banks in turn, each once at most; the turn goes on behind them."""
        replayable = self.replayable
        if not replayable:
            return []
        start, taken = self.cursor % len(replayable), min(count, len(replayable))
        self.cursor = start + taken
        return [self.prompts[replayable[(start + i) % len(replayable)]] for i in range(taken)]

    def banks_of(self, prompts: Iterable[Tokens]) -> list[PromptBank]:
        """The banks of these prompts that have an exemplar, each once, by digest."""
        banks = [self.prompts.get(digest) for digest in sorted(set(map(digest_of, prompts)))]
        return [bank for bank in banks if bank is not None and bank.exemplars]

    def lines(self, decode: Callable[[list[int]], str]) -> Iterator[str]:
        """The bank as JSON lines: its settings and turn, then a line for each prompt by digest, keys in order.

        ``decode`` gives the texts, which are for people: `load` reads token ids.
        """
        yield json.dumps({"settings": self.settings, "cursor": self.cursor})
        for digest, bank in sorted(self.prompts.items()):
            yield json.dumps(
                {
                    "prompt": decode(list(bank.prompt_ids)),
                    "digest": digest,
                    "prompt_ids": list(bank.prompt_ids),
                    "counts": dict(sorted(bank.counts.items())),
                    "exemplars": [
                        {
                            "mode": key,
                            "text": decode(list(e.token_ids)),
                            "step": e.step,
                            "token_ids": list(e.token_ids),
                        }
                        | ({"policy_mask": list(map(int, e.policy_mask))} if e.policy_mask else {})
                        for key, e in bank.in_order
                    ],
                },
                ensure_ascii=False,
            )

    def load(self, lines: Iterable[str]) -> None:
        """Become the bank that wrote ``lines``.

        Raises:
            UsageError: that one had other settings.
        """
        head, *rest = map(json.loads, lines)
        changed = [
            f"{name} was {head['settings'].get(name)} and is {self.settings.get(name)}"
            for name in sorted(self.settings.keys() | head["settings"].keys())
            if head["settings"].get(name) != self.settings.get(name)
        ]
        if changed:
            raise UsageError(f"{'; '.join(changed)}: what a bank holds depends on it")
        self.cursor = head["cursor"]
        self.prompts = {line["digest"]: _prompt_bank(line) for line in rest}


def digest_of(prompt_ids: Sequence[int]) -> str:
    """What tells a prompt's exact tokens from all others': SHA-256 of their JSON."""
    return hashlib.sha256(json.dumps(list(prompt_ids)).encode()).hexdigest()


def _prompt_bank(line: Mapping[str, Any]) -> PromptBank:
    exemplars = {
        e["mode"]: Exemplar(array("i", e["token_ids"]), tuple(map(bool, e.get("policy_mask", ()))), e["step"])
        for e in line["exemplars"]
    }
    return PromptBank(array("i", line["prompt_ids"]), Counter(line["counts"]), exemplars)
