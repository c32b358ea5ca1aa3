"""Sampling around any sampler: a few groups at a time, and with InfoSeed's completions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from maxent_grpo.randomness import KeyPart
from maxent_grpo.rollout.sampler import Finished, Sampler, SamplingSettings
from maxent_grpo.types import Prompt, Rollout, consecutive


@dataclass(frozen=True)
class SamplerInParts(Sampler):
    """Draws what ``sampler`` draws, at most ``completions`` at once, in whole groups and at least one.

    For where a whole rollout at once would not fit into memory.
    """

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


def with_seeded(
    rollouts: Sequence[Rollout],
    variants: Sequence[Sequence[Prompt]],
    sampler: Sampler,
    settings: SamplingSettings,
    key: tuple[KeyPart, ...],
) -> list[Rollout]:
    """Each rollout followed by InfoSeed's completions: one of each of its prompt's ``variants``, of the same policy."""
    flat = [variant for group in variants for variant in group]
    one_each = replace(settings, num_generations=1)
    sampled = iter(sampler.sample(flat, one_each, key, rollouts[0].policy_version))
    return [
        _joined(rollout, [next(sampled) for _ in group])
        for rollout, group in zip(rollouts, variants, strict=True)
    ]


def _joined(rollout: Rollout, seeded: Sequence[Rollout]) -> Rollout:
    return replace(
        rollout,
        token_ids=rollout.token_ids + tuple(s.token_ids[0] for s in seeded),
        logps=rollout.logps + tuple(s.logps[0] for s in seeded),
        texts=rollout.texts + tuple(s.texts[0] for s in seeded),
        finish_reasons=rollout.finish_reasons + tuple(s.finish_reasons[0] for s in seeded),
        seed_prompts=tuple(s.prompt for s in seeded),
    )
