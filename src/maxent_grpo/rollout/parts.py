"""Sampling a few groups at a time, where a whole rollout at once would not fit into memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from maxent_grpo.randomness import KeyPart
from maxent_grpo.rollout.sampler import Finished, Sampler, SamplingSettings
from maxent_grpo.types import Prompt, Rollout, consecutive


@dataclass(frozen=True)
class SamplerInParts:
    """Draws what ``sampler`` draws, at most ``completions`` at once, in whole groups and at least one."""

    sampler: Sampler
    completions: int

    def sample(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        key: tuple[KeyPart, ...],
        policy_version: int,
        finished: Finished | None = None,
    ) -> list[Rollout]:
        """See `Sampler.sample`: a completion does not depend on who shares its batch."""
        groups = max(1, self.completions // settings.num_generations)
        rollouts: list[Rollout] = []
        for part in consecutive(len(prompts), groups):
            sampled = self.sampler.sample([prompts[i] for i in part], settings, key, policy_version, finished)
            if finished is not None:
                for rollout in sampled:
                    finished(rollout)
            rollouts += sampled
        return rollouts
