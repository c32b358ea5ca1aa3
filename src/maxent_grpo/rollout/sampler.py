"""The interface of samplers: prompts in, token ids with log-probs out. Imports no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from maxent_grpo.randomness import KeyPart

if TYPE_CHECKING:
    from maxent_grpo.stats import Metrics
    from maxent_grpo.types import Prompt, Rollout


@dataclass(frozen=True)
class SamplingSettings:
    """The distribution that completions are drawn from, and their number and length.

    Truncation order: top-k, then top-p, then min-p, as Transformers and vLLM do.
    """

    num_generations: int
    """G, completions of a prompt."""
    max_completion_length: int
    """Tokens."""
    temperature: float = 1.0
    """> 0; 0 takes the likeliest token, the first one of equals."""
    top_p: float = 1.0
    """In (0, 1]; 1 keeps every token."""
    top_k: int = 0
    """0 keeps every token."""
    min_p: float | None = None
    """Keep tokens with at least this fraction of the likeliest token's probability."""
    stop: tuple[str, ...] = ()
    """A completion ends with the first of these that it contains, which it keeps."""
    for_learning: bool = True
    """False: nothing reads the log-probs, which then are whatever the sampler gives."""


Finished = Callable[["Rollout"], None]
"""Told of completions that are whole while others are still sampled, in rollouts of one or more."""


class Sampler(Protocol):
    """Draws a group of completions for each prompt. A class that inherits from this has to write `sample` only."""

    def sample(
        self,
        prompts: "Sequence[Prompt]",
        settings: SamplingSettings,
        key: tuple[KeyPart, ...],
        policy_version: int,
        finished: Finished | None = None,
    ) -> "list[Rollout]":
        """One rollout of ``settings.num_generations`` completions per prompt, in order.

        A completion depends on (``key``, the prompt's own key, its number in the group) and on the policy,
        and on nothing else: not on the other prompts, their order, or the machine that it runs on. A sampler may tell
        ``finished`` of completions that end before the others, so that their rewards are computed meanwhile.
        """
        ...

    def drain_stats(self) -> "Metrics":
        """Metrics of what it had to do since the last call. Every rank has the same names."""
        return {}

    def use_restore(self, restore: Callable[[], None]) -> None:
        """Take ``restore``, which syncs the learner's weights again: for a sampler whose server can be lost."""
        return
