"""What every worker of a run is told, in a form that travels between machines."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from maxent_grpo.config.loading import Command, RunConfig, resolved
from maxent_grpo.config.schema import GRPOConfig, GRPOScriptArguments, ModelConfig
from maxent_grpo.data.sources import RetryPolicy
from maxent_grpo.errors import RunError
from maxent_grpo.train.assembly.inputs import Given


@dataclass(frozen=True)
class Assignment:
    """The configuration as plain values: built again in each worker, it reads that worker's devices and ranks."""

    command: Command
    settings: dict[str, Any]  # as `resolved` gives them
    recipe_path: Path | None
    max_prompt_chars: int
    dataset_retry: RetryPolicy
    given: Given
    output_dir: Path  # absolute
    directory: Path  # where the run was started: paths in its settings start there
    module_path: tuple[str, ...]  # where the starting process finds modules: reward functions, say
    total_steps: int

    @classmethod
    def of(cls, config: RunConfig, given: Given, output_dir: Path, total_steps: int) -> Self:
        return cls(
            command=config.command,
            settings=resolved(config),
            recipe_path=config.recipe_path,
            max_prompt_chars=config.max_prompt_chars,
            dataset_retry=config.dataset_retry,
            given=given,
            output_dir=output_dir.resolve(),
            directory=Path.cwd(),
            module_path=tuple(sys.path),
            total_steps=total_steps,
        )

    def take_up(self) -> RunConfig:
        """The configuration, in a worker that now stands where the run was started.

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
        return RunConfig(
            command=self.command,
            route="native",
            script=GRPOScriptArguments(**self.settings["script"]),
            training=GRPOConfig(**self.settings["training"]),
            model=ModelConfig(**self.settings["model"]),
            recipe_path=self.recipe_path,
            max_prompt_chars=self.max_prompt_chars,
            dataset_retry=self.dataset_retry,
        )
