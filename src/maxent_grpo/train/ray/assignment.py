"""What every worker of a run is told, in a form that travels between machines."""

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from maxent_grpo.config.run_settings import NativeSettings
from maxent_grpo.errors import RunError
from maxent_grpo.train.build import Given


@dataclass(frozen=True)
class Assignment:
    """The settings of the run, which are plain values, and what it was given and where it was started."""

    settings: NativeSettings
    """As the driver has them; the output directory is absolute."""
    given: Given
    total_steps: int
    directory: Path = field(default_factory=Path.cwd)
    """Where the run was started: paths in its settings start there."""
    module_path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))
    """Where the starting process finds modules: reward functions, say."""

    @classmethod
    def of(cls, settings: NativeSettings, given: Given, total_steps: int) -> Self:
        output = replace(settings.output, directory=settings.output.directory.resolve())
        return cls(replace(settings, output=output), given, total_steps)

    def take_up(self) -> NativeSettings:
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
