"""One typed tree for a run: what a recipe may say, how it is read, and the plain numbers that others get."""

import logging
import os
from collections.abc import MutableMapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maxent_grpo.config.schema import GRPOConfig, GRPOScriptArguments, ModelConfig

__all__ = ["GRPOConfig", "GRPOScriptArguments", "ModelConfig", "load_grpo_recipe"]


def load_grpo_recipe(
    recipe_path: str | Path, environ: MutableMapping[str, str] = os.environ
) -> "tuple[GRPOScriptArguments, GRPOConfig, ModelConfig]":
    """The three configurations of a recipe, as its command would train with them.

    Aliases, the server address that ``vllm_url`` implies and the log level of the environment are applied;
    ``GRPO_RECIPE_USED`` is set in ``environ``.

    Raises:
        UsageError: one line that names the key, the value and the file.
    """
    from maxent_grpo.config.loading import ANY_OBJECTIVE, resolve

    config = resolve(ANY_OBJECTIVE, recipe_path, environ=environ).built()
    if config.notice:
        logging.getLogger(__name__).warning("%s", config.notice)
    return config.script, config.training, config.model


def __getattr__(name: str) -> Any:
    """TRL's dataclasses on first use, so that reading a recipe does not wait for torch."""
    if name in __all__:
        return getattr(import_module("maxent_grpo.config.schema"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
