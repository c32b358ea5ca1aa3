"""LoRA by PEFT: an adapter on the policy, saved alone; the policy without it is the reference."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from transformers import PreTrainedModel

from maxent_grpo.errors import UsageError

if TYPE_CHECKING:
    from trl import ModelConfig

ADAPTER_FILE = "adapter_model.safetensors"


def is_adapted(model: Any) -> bool:
    """Whether the model carries a PEFT adapter. Does not import PEFT, which is optional."""
    return hasattr(model, "peft_config")


def with_adapter(model: PreTrainedModel, settings: "ModelConfig") -> PreTrainedModel:
    """``model`` with the fresh LoRA adapter of TRL's settings (``use_peft``, ``lora_…``); only that is trained.

    Raises `UsageError` where PEFT is not installed or the settings do not fit the model.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError("use_peft: needs the package peft: pip install 'maxent-grpo[peft]'")
    from peft import get_peft_model
    from trl import get_peft_config

    try:
        # An adapter around the model, which Transformers' types do not know; with use_peft there are settings.
        return get_peft_model(model, get_peft_config(settings))  # type: ignore[arg-type, return-value]
    except ValueError as error:
        raise UsageError(f"use_peft: {' '.join(str(error).split())}; check lora_target_modules") from error


def load_adapter(model: PreTrainedModel, directory: Path) -> None:
    """Put the adapter saved in ``directory`` into ``model``. Raises `UsageError` where none is there."""
    from peft import set_peft_model_state_dict

    path = directory / ADAPTER_FILE
    if not path.is_file():
        raise UsageError(
            f"use_peft: {directory} holds no adapter (no {ADAPTER_FILE}); resume without use_peft"
        )
    set_peft_model_state_dict(model, load_file(path))
