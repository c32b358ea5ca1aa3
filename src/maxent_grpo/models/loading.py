"""Policies from a hub id, a local directory or this package, and LoRA adapters on them (by PEFT, saved alone)."""

import copy
import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from maxent_grpo.errors import UsageError
from maxent_grpo.tasks.tiny_policy import bundled_policy_path

if TYPE_CHECKING:
    from peft import PeftConfig
    from trl import ModelConfig

ADAPTER_FILE = "adapter_model.safetensors"
BUNDLED = {"bundled:tiny-policy": bundled_policy_path}
BESIDE_THE_WEIGHTS = (
    "config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template*",
)  # fmt: skip
"""Patterns of what `save_pretrained` writes beside the weights, and what answers depend on besides them."""


@dataclass(frozen=True)
class ModelSource:
    """The place of a policy, and how it is loaded."""

    name_or_path: str
    revision: str | None = None
    dtype: torch.dtype = torch.float32
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    cache_dir: str | None = None
    """Of downloads; None: where HF_HOME says."""
    tokenizer_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """The hub id or directory behind the name. Raises `UsageError` for a path that is not there."""
        name = self.name_or_path
        if name.startswith("bundled:"):
            if name not in BUNDLED:
                raise UsageError(
                    f"model_name_or_path: there is no {name!r}; bundled policies: {', '.join(BUNDLED)}"
                )
            return str(BUNDLED[name]())
        looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
        if looks_local and not Path(name).expanduser().is_dir():
            raise UsageError(
                f"model_name_or_path: no directory {name!r}; give a saved model's folder or a hub id"
            )
        return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name


def load_policy(source: ModelSource) -> PreTrainedModel:
    """The causal language model of ``source``, in ``source.dtype``.

    Raises:
        UsageError: neither a directory nor the hub has it.
    """
    transformers_logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            source.location,
            revision=source.revision or "main",
            dtype=source.dtype,
            attn_implementation=source.attn_implementation,
            trust_remote_code=source.trust_remote_code,
            cache_dir=source.cache_dir,
        )
    except OSError as error:
        raise UsageError(_not_found(source, error)) from error


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of ``source``, with a padding token. Raises `UsageError` where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.location,
            revision=source.revision or "main",
            trust_remote_code=source.trust_remote_code,
            cache_dir=source.cache_dir,
            **source.tokenizer_kwargs,
        )
    except OSError as error:
        raise UsageError(_not_found(source, error)) from error
    return with_pad_token(tokenizer)


def with_pad_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, padding with its end-of-sequence token where it names no padding token (padding is masked)."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UsageError(
                "the tokenizer has neither a padding nor an end-of-sequence token: set one of them"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that nothing trains: the reference policy."""
    reference = copy.deepcopy(model).eval()
    return reference.requires_grad_(False)


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token that ends a completion: the tokenizer's and those of the model's generation config."""
    listed = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])} - {None}
    if not ids:
        warnings.warn(
            "the model names no end-of-sequence token: every completion runs to its full length", stacklevel=2
        )
    return tuple(sorted(ids))


def is_adapted(model: Any) -> bool:
    """True if the model carries a PEFT adapter. Does not import PEFT, which is optional."""
    return hasattr(model, "peft_config")


def with_adapter(model: PreTrainedModel, settings: "ModelConfig | PeftConfig") -> PreTrainedModel:
    """``model`` with a fresh adapter by TRL's settings (``use_peft``, ``lora_…``) or PEFT's; only that is trained.

    Raises:
        UsageError: PEFT is not installed, or the settings do not fit the model.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError("use_peft: needs the package peft: pip install 'maxent-grpo[peft]'")
    from peft import PeftConfig, get_peft_model
    from trl import get_peft_config

    try:
        # An adapter around the model, which Transformers' types do not know; with use_peft there are settings.
        adapter = settings if isinstance(settings, PeftConfig) else get_peft_config(settings)
        return get_peft_model(model, adapter)  # type: ignore[arg-type, return-value]
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


def _not_found(source: ModelSource, error: OSError) -> str:
    reason = str(error).strip().splitlines()[0]
    return (
        f"model_name_or_path: cannot load {source.name_or_path!r} ({reason}); "
        "check the name, log in with HF_TOKEN for a gated model, or give a local directory"
    )
