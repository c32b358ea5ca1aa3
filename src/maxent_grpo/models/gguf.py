"""A GGUF file's model and tokenizer as the folder that `from_pretrained` loads, by Transformers' reader.

The weights are written in float32: a quantised value is ``scale · q + offset`` of two half-precision numbers, which
bfloat16 would round, and the folder is to be the file's model to the bit.
"""

import copy
import io
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from maxent_grpo.errors import UsageError, first_line

DIGIT_BY_DIGIT = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Values of ``tokenizer.ggml.pre`` whose tokenizers take digits one by one before anything else (llama.cpp,
``llama_vocab``, the pattern ``\\p{N}``). Transformers does not read that field."""


def convert(gguf: Path, folder: Path) -> None:
    """Write ``folder``: configuration, weights, generation settings, tokenizer with its chat template.

    Raises:
        UsageError: Transformers does not know the architecture, or the file is damaged.
    """
    try:
        with _bars_on_terminals_only():
            loaded = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
            )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        pieces = _field(gguf, "tokenizer.ggml.pre")
    except Exception as error:
        raise UsageError(
            f"model_name_or_path: cannot read {gguf} ({first_line(error)}); give a complete GGUF file of a text model "
            "that Transformers reads, or the model's folder or hub id"
        ) from error
    if pieces in DIGIT_BY_DIGIT:
        _split_digits(tokenizer)
    config = copy.deepcopy(loaded.config)
    del config.quantization_config  # with this mark, save_pretrained refuses weights that are plain numbers
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.generation_config = loaded.generation_config
    with _bars_on_terminals_only():
        plain.save_pretrained(folder, state_dict=loaded.state_dict())
    tokenizer.save_pretrained(folder)


def _bars_on_terminals_only() -> AbstractContextManager[Any]:
    """Transformers draws progress bars on stderr, and one of them has no switch."""
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    backend: Any = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _field(gguf: Path, name: str) -> str | None:
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field(name)
    return None if field is None else str(field.contents())
