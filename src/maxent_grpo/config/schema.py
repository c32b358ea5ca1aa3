"""TRL's dataclasses with this package's settings mixed in: the public `GRPOConfig` and `GRPOScriptArguments`.

The same rules hold as for recipes (`config.rules`). After construction every setting holds what the run will use,
except those that do not apply to its objective. Imports torch: reading a recipe does without this module.
"""

import os
from dataclasses import dataclass

import torch
from trl.scripts.utils import ScriptArguments
from trl.trainer.grpo_config import GRPOConfig as TRLConfig
from trl.trainer.model_config import ModelConfig

from maxent_grpo.config import settle
from maxent_grpo.config.settings import ScriptFields, TrainingFields
from maxent_grpo.errors import UsageError

__all__ = ["GRPOConfig", "GRPOScriptArguments", "ModelConfig"]


@dataclass
class GRPOScriptArguments(ScriptFields, ScriptArguments):
    """Data and rewards. Raises `UsageError` on a value of the wrong type, or where no data is named."""

    def __post_init__(self) -> None:
        settle.settle_script(self)


@dataclass
class GRPOConfig(TrainingFields, TRLConfig):  # type: ignore[misc]  # settings that TRL may leave unset
    """Everything about training. Raises `UsageError` (``key: message; …``) on a value that cannot work."""

    def __repr__(self) -> str:
        return str(self)  # Transformers leaves tokens out of it

    def __post_init__(self) -> None:
        settle.settle(self, os.environ)
        has_bf16_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if self.bf16 and not (self.use_cpu or has_bf16_gpu):
            raise UsageError(
                "bf16: no GPU with bfloat16 here; leave it out to choose by device, or set use_cpu=true"
            )
        if self.bf16 is None:
            self.bf16 = has_bf16_gpu and not self.use_cpu
        try:
            super().__post_init__()
        # A rule, a named file, or a package of Transformers.
        except (ValueError, OSError, ImportError) as error:
            raise UsageError(" ".join(str(error).split())) from error
        settle.settle_staleness(self)
