"""Everything that travels between the driver of a run and its workers."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from maxent_grpo.config.parts import NativeSettings, WorkerSettings
from maxent_grpo.errors import RunError
from maxent_grpo.stats import Metrics
from maxent_grpo.train.build import Given
from maxent_grpo.train.ray.buffer import Held
from maxent_grpo.types import Group, Prompt

Weights = Mapping[str, Tensor]
"""Trained parameters by name, on the CPU."""


@dataclass(frozen=True)
class WorkerConfig:
    """The settings of a run, which are plain values, what it was given, and the place where it was started."""

    settings: NativeSettings  # as the driver has them; the output directory is absolute
    given: Given
    total_steps: int
    directory: Path = field(default_factory=Path.cwd)  # paths in the settings start there
    module_path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))  # of reward functions, say

    @classmethod
    def of(cls, settings: NativeSettings, given: Given, total_steps: int) -> Self:
        output = replace(settings.output, directory=settings.output.directory.resolve())
        return cls(replace(settings, output=output), given, total_steps)

    @property
    def workers(self) -> WorkerSettings:
        assert self.settings.workers is not None, "the driver is a Ray driver"
        return self.settings.workers

    def load_config(self) -> NativeSettings:
        """The settings, in a worker that now stands where the run was started.

        Raises `RunError` where that directory is not there.
        """
        try:
            os.chdir(self.directory)
        except OSError as error:
            raise RunError(
                f"the run's directory {self.directory} is not on {os.uname().nodename} ({error.strerror}); start it "
                "from a directory that all nodes share"
            ) from error
        sys.path += [entry for entry in self.module_path if entry not in sys.path]
        return self.settings


@dataclass(frozen=True)
class SampleTask:
    """A prompt to sample, and the step that its draws are keyed by."""

    prompt: Prompt
    step: int


@dataclass(frozen=True)
class SampledGroup:
    """A scored group. All its tokens were drawn by the version that its rollout names."""

    group: Group
    metrics: Metrics  # of reward functions and of new weights; with the first group of a call alone


@dataclass(frozen=True)
class LearnerStart:
    """The learner's position after it has started."""

    step: int
    updates_left: int  # of a rollout that the checkpoint lies within
    stream: Mapping[str, Any]  # the prompt stream's state
    buffer: Mapping[str, Any]  # the arguments of `GroupBuffer.restore`, but ``next_version``


@dataclass(frozen=True)
class RolloutBatch:
    """The groups of one rollout for the learner's updates, and what it records beside them."""

    held: Sequence[Held[SampledGroup]]  # of all ranks, in stream order; empty: the rollout of a checkpoint
    drawn: int  # prompts that have left the stream
    buffer: Mapping[str, Any]  # `GroupBuffer.state_dict` after these were taken
    metrics: Mapping[str, float]
    timing: Mapping[str, float]


@dataclass(frozen=True)
class UpdateResult:
    """The learner's position after the updates on a rollout."""

    step: int
    shown: Sequence[tuple[str, tuple[Any, ...]]]  # calls for the driver's `Progress`
