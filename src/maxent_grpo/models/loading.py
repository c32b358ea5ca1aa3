"""Policies from a hub id, a folder or this package, LoRA adapters on them (by PEFT, saved alone), and their limits."""

import copy
import importlib.util
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

from maxent_grpo.errors import UsageError, first_line
from maxent_grpo.models.location import model_location
from maxent_grpo.types import Prompt

if TYPE_CHECKING:
    from peft import PeftConfig
    from trl import ModelConfig

ADAPTER_FILE = "adapter_model.safetensors"
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
        """The hub id or directory behind the name; see `model_location`."""
        return model_location(self.name_or_path)


def load_policy(source: ModelSource) -> PreTrainedModel:
    """The causal language model of ``source``, in ``source.dtype``.

    A LoRA adapter, as ``use_peft`` saves it, comes on its base model, and is what is trained.

    Raises:
        UsageError: neither a directory nor the hub has it, or it cannot be loaded here.
    """
    transformers_logging.disable_progress_bar()
    adapter = _adapter_settings(source)
    if adapter is not None:
        return _load_adapted(source, adapter)
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
    except Exception as error:
        raise UsageError(_not_loaded(source, error)) from error


def _adapter_settings(source: ModelSource) -> dict[str, Any] | None:
    """What ``adapter_config.json`` says, where ``source`` is an adapter."""
    try:
        path = find_adapter_config_file(
            source.location, revision=source.revision or "main", cache_dir=source.cache_dir
        )
    except OSError:  # the model's own loading says what is wrong
        return None
    if path is None:
        return None
    found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return found


def _load_adapted(source: ModelSource, adapter: Mapping[str, Any]) -> PreTrainedModel:
    name = source.name_or_path
    if importlib.util.find_spec("peft") is None:
        raise UsageError(
            f"model_name_or_path: {name} is an adapter and needs the package peft: pip install 'maxent-grpo[peft]'"
        )
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise UsageError(f"model_name_or_path: {name} names no base model (base_model_name_or_path)")
    try:
        model = load_policy(replace(source, name_or_path=str(base), revision=adapter.get("revision")))
    except UsageError as error:
        raise UsageError(f"{error} (it is the base of the adapter {name})") from error
    from peft import PeftModel

    try:
        adapted: Any = PeftModel.from_pretrained(
            model, source.location, is_trainable=True, revision=source.revision, cache_dir=source.cache_dir
        )
    except Exception as error:
        raise UsageError(
            f"model_name_or_path: cannot put the adapter {name} on {base}: {first_line(error)}"
        ) from error
    loaded: PreTrainedModel = adapted
    return loaded


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of ``source``, with a padding token. Raises `UsageError` where there is none."""
    folder = Path(source.location)
    patterns = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")
    # Transformers would make an empty tokenizer from the model's configuration.
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in patterns):
        raise UsageError(
            f"model_name_or_path: cannot load the tokenizer of {source.name_or_path!r} (the folder has no tokenizer "
            "files); save the tokenizer beside the model"
        )
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
    except Exception as error:
        raise UsageError(_not_loaded(source, error, "the tokenizer of ")) from error
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


def padding_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands at padding, which is masked: the tokenizer's, or 0 where the embedding has no such row."""
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    pad_id = int(tokenizer.pad_token_id)
    return pad_id if rows is None or pad_id < rows else 0


def check_fit(model: PreTrainedModel, prompts: Sequence[Prompt], completion: int, key: str) -> None:
    """Compare prompts and the longest completion with the tokens and positions that ``model`` was made for.

    Warns where it goes on beyond its positions (rotary ones). ``key`` is the setting of the completion's length.

    Raises:
        UsageError: a prompt has tokens that are not in its embedding, or there are no more (learned) positions.
    """
    words = model.get_input_embeddings()
    rows = getattr(words, "num_embeddings", None)
    for prompt in prompts:
        if rows is not None and prompt.token_ids and max(prompt.token_ids) >= rows:
            raise UsageError(
                f"model_name_or_path: the prompt of row {prompt.index} has the token {max(prompt.token_ids)}, and the "
                f"model's embedding {rows} rows: the tokenizer is of another model, or the embedding was not resized"
            )
    longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None)
    if limit and isinstance(rope, dict) and isinstance(rope.get("factor"), int | float):
        limit = max(limit, int(rope["factor"] * (rope.get("original_max_position_embeddings") or limit)))
    if not isinstance(limit, int) or longest + completion <= limit:
        return
    said = (
        f"the longest prompt ({longest} tokens) and {key}={completion} make {longest + completion} tokens, and the "
        f"model has {limit} positions"
    )
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    if any(limit <= table.num_embeddings <= limit + 2 for table in tables):  # OPT keeps two for padding
        raise UsageError(f"{key}: {said}; set it to at most {limit - longest}, or leave long prompts out")
    warnings.warn(f"{said}: beyond them it was never trained", stacklevel=2)


def refuse_foreign_adapter(model: Any) -> None:
    """Raise `UsageError` for a model whose adapter Transformers itself loaded: it is frozen, and not PEFT's wrapper."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UsageError(
            "model: its adapter was loaded by Transformers, which does not train it; give the adapter's folder by "
            "name, or peft.AutoPeftModelForCausalLM.from_pretrained(folder, is_trainable=True)"
        )


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
    if is_adapted(model):
        raise UsageError(
            "use_peft: the model is an adapter on its base already, which is trained as it is; set use_peft=false"
        )
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
    try:
        set_peft_model_state_dict(model, load_file(path))
    except (RuntimeError, ValueError, KeyError) as error:
        raise UsageError(
            f"resume_from_checkpoint: the adapter in {directory} does not fit the model ({first_line(error)}); "
            "resume with the model and the lora settings that it was made with"
        ) from error


def _not_loaded(source: ModelSource, error: Exception, what: str = "") -> str:
    """A load that failed for another reason than a missing file, in one line with the remedy."""
    said, name = str(error), source.name_or_path
    reason, remedy = (
        first_line(error),
        "check that it is the complete folder or hub id of a causal language model",
    )
    if "trust_remote_code" in said:
        reason, remedy = "it brings code of its own", "read that code, then set trust_remote_code=true"
    elif "Unrecognized configuration class" in said:
        found = re.search(r"configuration class <class '(?:\w+\.)*(\w+)'>", said)
        reason = f"{found[1] if found else 'it'} is no text model"
        remedy = "give a causal language model: images and encoders are not trained here"
    elif "flash" in said.lower() or "attn_implementation" in said:
        remedy = f"set attn_implementation to one that is installed (sdpa always is), not {source.attn_implementation}"
    return f"model_name_or_path: cannot load {what}{name!r} ({reason}); {remedy}"


def _not_found(source: ModelSource, error: OSError) -> str:
    reason = str(error).strip().splitlines()[0]
    return (
        f"model_name_or_path: cannot load {source.name_or_path!r} ({reason}); "
        "check the name, log in with HF_TOKEN for a gated model, or give a local directory"
    )
