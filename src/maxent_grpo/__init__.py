"""maxent_grpo: exploration in reinforcement learning of reasoning language models.

From a notebook: ``GRPOTrainer(model, reward_funcs, args=GRPOConfig(...), train_dataset=[...]).train()``.
From a shell: ``maxent-grpo --help``. The step that both run is `maxent_grpo.train.step.step`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maxent_grpo.config.schema import GRPOConfig, GRPOScriptArguments
    from maxent_grpo.train.trainer import GRPOTrainer

__version__ = "0.1.0"
__all__ = ["GRPOConfig", "GRPOScriptArguments", "GRPOTrainer", "__version__"]

_HOMES = {
    "GRPOConfig": "maxent_grpo.config.schema",
    "GRPOScriptArguments": "maxent_grpo.config.schema",
    "GRPOTrainer": "maxent_grpo.train.trainer",
}


def __getattr__(name: str) -> Any:
    """Public names on first use, so that ``import maxent_grpo`` and ``--help`` don't wait for torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
