"""The settings of the Ray drivers."""

from dataclasses import dataclass
from typing import Literal

from maxent_grpo.config.fields import setting


@dataclass
class WorkerFields:
    """Sampling and learning in processes of their own, on Ray (docs/guides/ray.md)."""

    driver: Literal["inline", "sync", "async"] = setting(
        "inline",
        "Who calls the step: this process in turn with sampling (inline), or Ray workers, in turn (sync) or at the "
        "same time (async).",
    )
    rollout_workers: int = setting(
        1,
        "Ray workers that sample and score, each with a copy of the policy; completions do not depend on it.",
    )
    learner_workers: int = setting(
        1,
        "Ray workers that hold the learner, one rank each, as distributed says; they make up a step's batch.",
    )
    reference_workers: int = setting(
        0, "Ray workers that score the frozen reference policy; 0: the learner scores it."
    )
    max_staleness: int | None = setting(
        None,
        "Most optimiser steps between the weights that sampled a group and those it first trains; unset: 0 (sync), or "
        "what async needs to sample one rollout ahead.",
    )
    buffer_groups: int | None = setting(
        None,
        "Most groups sampled or being sampled and not yet trained on; unset: as many as max_staleness admits.",
    )
    weight_update_frequency: int = setting(
        1,
        "Optimiser steps after which the rollout workers get new weights, at the end of a rollout's updates.",
    )
    overlap_sampling: bool = setting(
        False,
        "driver=sync: sample the next rollout during the updates on this one, with weights one rollout old.",
    )
    worker_timeout: float = setting(
        600.0,
        "Seconds that a Ray worker has for one piece of work, such as a batch of groups or a rollout's updates; after "
        "that it is replaced.",
    )
    ray_address: str | None = setting(
        None,
        "Ray cluster to join, as ray.init takes it; unset: that of RAY_ADDRESS, else one here, for this run.",
    )
