"""The order in which prompts are drawn, as a position that a checkpoint can hold."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.randomness import generator, permutation
from maxent_grpo.types import Prompt


class PromptStream:
    """Prompts without end: each epoch runs through all of them once, in an order keyed by (seed, epoch).

    The stream is the same on every rank: all take the same prompts, and each works on its own slice of them.

    Args:
        prompts: at least one.
        seed: of the run.
        shuffle: ``False`` keeps the given order in every epoch.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, shuffle: bool = True) -> None:
        if not prompts:
            raise UsageError("there are no prompts to draw from: the dataset is empty")
        self._prompts = tuple(prompts)
        self._seed = seed
        self._shuffle = shuffle
        self._fingerprint = _fingerprint(prompts)
        self._epoch, self._position = 0, 0
        self._order = self._permutation(epoch=0)

    def __len__(self) -> int:
        """Prompts per epoch."""
        return len(self._prompts)

    @property
    def prompts(self) -> Sequence[Prompt]:
        """All prompts, in the order of their dataset."""
        return self._prompts

    @property
    def epoch(self) -> float:
        """Epochs drawn so far, with the fraction of the current one."""
        return self._epoch + self._position / len(self)

    @property
    def drawn(self) -> int:
        """Prompts drawn so far."""
        return self._epoch * len(self) + self._position

    def seek(self, drawn: int) -> None:
        """Stand where ``drawn`` prompts have been drawn."""
        epoch, position = divmod(drawn, len(self))
        if drawn and position == 0:  # as `take` leaves it: at an epoch's end, not at the next one's start
            epoch, position = epoch - 1, len(self)
        if epoch != self._epoch:
            self._order = self._permutation(epoch)
        self._epoch, self._position = epoch, position

    def take(self, n: int) -> list[Prompt]:
        """The next ``n`` prompts, each marked with the epoch that it is drawn in; runs on over the end of an
        epoch."""
        taken: list[Prompt] = []
        while len(taken) < n:
            if self._position == len(self):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._permutation(self._epoch)
            stop = min(len(self), self._position + n - len(taken))
            taken += [
                replace(self._prompts[i], epoch=self._epoch) for i in self._order[self._position : stop]
            ]
            self._position = stop
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what it runs over; plain JSON values."""
        return {"epoch": self._epoch, "position": self._position, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from where ``state`` was taken.

        Raises:
            UsageError: the state belongs to other prompts or to another order of them.
        """
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise UsageError(
                    f"cannot resume the prompt stream: its {key} is {value} and was {state.get(key)} at the "
                    "checkpoint, so the dataset, the tokenizer, a prompt setting or the seed has changed: "
                    "restore it, or start a new run"
                )
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._permutation(self._epoch)

    def _identity(self) -> dict[str, Any]:
        return {
            "size": len(self),
            "fingerprint": self._fingerprint,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "difficulty_pools": None,
        }

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        n = len(self)
        return permutation(n, self._seed, "epoch", epoch) if self._shuffle else np.arange(n)


POOLS = ("hard", "normal", "easy", "unseen")


@dataclass(frozen=True)
class DifficultyPools:
    """Which prompts are hard, and how often those of each pool are drawn; the numbers are those of prime-rl.

    https://github.com/PrimeIntellect-ai/prime-rl, ``curriculum/samplers/pool.py`` (August 2026).
    """

    hard_threshold: float = 0.25
    """A prompt is hard up to this share of right completions in its latest group."""
    easy_threshold: float = 0.75
    """A prompt is easy above it, and normal in between."""
    hard_weight: float = 0.2
    normal_weight: float = 1.0
    easy_weight: float = 0.2
    unseen_weight: float = 1.0

    def pool_of(self, share: float | None) -> str:
        """One of `POOLS`, of a prompt whose latest group had this share of right completions; None: it had no group."""
        if share is None:
            return "unseen"
        return (
            "hard" if share <= self.hard_threshold else "normal" if share <= self.easy_threshold else "easy"
        )

    def weight_of(self, share: float | None) -> float:
        """What a prompt is drawn in proportion to."""
        return float(getattr(self, f"{self.pool_of(share)}_weight"))


class PooledStream(PromptStream):
    """Prompts drawn with replacement, each in proportion to the weight of its difficulty pool.

    Draw number n inverts the cumulative weights, in the order of the data set, at the uniform of the key (seed, n).
    What it depends on besides is in the state: the latest shares of right completions, told to `judged` between draws.
    An *epoch* is as many draws as there are prompts. A prompt's own ``epoch`` counts its earlier draws, so that no two
    draws of a prompt have one key.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, pools: DifficultyPools) -> None:
        super().__init__(prompts, seed, shuffle=False)
        self.pools = pools
        self._row = {prompt.index: row for row, prompt in enumerate(self._prompts)}
        self._latest: dict[int, float] = {}  # prompt → share of right completions in its latest group
        self._times: Counter[int] = Counter()  # prompt → draws so far
        self._weights = np.full(len(self), pools.unseen_weight)

    def take(self, n: int) -> list[Prompt]:
        """The next ``n`` prompts, drawn by the weights as they are.

        Raises:
            RunError: every prompt is in a pool of weight 0.
        """
        reached = np.cumsum(self._weights)
        if reached[-1] == 0:
            raise RunError(
                f"difficulty_pools: all {len(self)} prompts are in pools of weight 0 ("
                + ", ".join(f"{count} {pool}" for pool, count in self.sizes().items())
                + "); resume the last checkpoint with a new output_dir and other weights, or end the training there"
            )
        last = int(np.searchsorted(reached, reached[-1]))  # the last prompt of a weight above 0
        taken = []
        for number in range(self.drawn, self.drawn + n):
            at = reached[-1] * generator(self._seed, "difficulty pools", number).random()
            prompt = self._prompts[min(int(np.searchsorted(reached, at, side="right")), last)]
            taken.append(replace(prompt, epoch=self._times[prompt.index]))
            self._times[prompt.index] += 1
        self.seek(self.drawn + n)
        return taken

    def judged(self, shares: Sequence[tuple[int, int, float]]) -> None:
        """Take note of groups of prompts that `take` gave, in any order: index, epoch, share of right completions."""
        for index, _, share in sorted(shares):
            self._note(index, share)

    def sizes(self) -> dict[str, int]:
        """Prompts in each of `POOLS`."""
        counts = Counter(self.pools.pool_of(self._latest.get(prompt.index)) for prompt in self._prompts)
        return {pool: counts[pool] for pool in POOLS}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "latest": sorted(self._latest.items()),
            "times": sorted(self._times.items()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._times = Counter(dict(state["times"]))
        self._latest = {}
        self._weights = np.full(len(self), self.pools.unseen_weight)
        for index, share in state["latest"]:
            self._note(index, share)

    def _note(self, index: int, share: float) -> None:
        self._latest[index] = share
        self._weights[self._row[index]] = self.pools.weight_of(share)

    def _identity(self) -> dict[str, Any]:
        return super()._identity() | {"difficulty_pools": asdict(self.pools)}


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    """16 hex digits over every prompt's row number and token ids, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for prompt in prompts:
        digest.update(
            np.array([prompt.index, len(prompt.token_ids), *prompt.token_ids], dtype="<i8").tobytes()
        )
    return digest.hexdigest()
