"""InfoSeed's completions: one of every seeded variant of every prompt, appended to the prompt's own group."""

from collections.abc import Sequence
from dataclasses import replace

from maxent_grpo.randomness import KeyPart
from maxent_grpo.rollout.sampler import Sampler, SamplingSettings
from maxent_grpo.types import Prompt, Rollout


def with_seeded(
    rollouts: Sequence[Rollout],
    variants: Sequence[Sequence[Prompt]],
    sampler: Sampler,
    settings: SamplingSettings,
    key: tuple[KeyPart, ...],
) -> list[Rollout]:
    """Each rollout followed by one completion of each of its prompt's ``variants``, sampled by the same weights."""
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
