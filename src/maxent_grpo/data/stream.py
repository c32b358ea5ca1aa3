"""The order in which prompts are drawn, as a position that a checkpoint can hold."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from maxent_grpo.errors import UsageError
from maxent_grpo.randomness import permutation
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
            if state[key] != value:
                raise UsageError(
                    f"cannot resume the prompt stream: its {key} is {value} and was {state[key]} at the "
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
        }

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        n = len(self)
        return permutation(n, self._seed, "epoch", epoch) if self._shuffle else np.arange(n)


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    """16 hex digits over every prompt's row number and token ids, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for prompt in prompts:
        digest.update(
            np.array([prompt.index, len(prompt.token_ids), *prompt.token_ids], dtype="<i8").tobytes()
        )
    return digest.hexdigest()
