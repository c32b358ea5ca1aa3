"""Shallow checkpoints: the small files of a saved policy, without its weights, which the sharded state holds."""

import json
import shutil
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.config.checkpointing import SOURCE, CheckpointSettings
from maxent_grpo.errors import UsageError
from maxent_grpo.models.saved_files import BESIDE_THE_WEIGHTS

SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
"""What two configurations must agree in for one's weights to fit the other."""


def find_source(settings: CheckpointSettings, output_dir: Path, config: PretrainedConfig) -> Path | None:
    """The folder to copy from: the named one, or that of the paired GRPO run; None: there is none.

    The paired run is the sibling whose path says GRPO where ``output_dir`` says MaxEnt-GRPO. Raises `UsageError`
    where the folder's model has another shape.
    """
    source = settings.metadata_source or paired_run(output_dir)
    if source is None:
        return None
    theirs = json.loads((source / "config.json").read_text(encoding="utf-8"))
    mine = config.to_dict()
    for key in SHAPE:
        if key in theirs and theirs[key] != mine.get(key):
            raise UsageError(
                f"shallow checkpoints: {source} is of another model ({key} {theirs[key]}, here {mine.get(key)}); "
                f"name the right folder with {SOURCE}"
            )
    return source


def paired_run(output_dir: Path) -> Path | None:
    """The folder of the GRPO run that a MaxEnt run is paired with, if it holds a saved policy."""
    sibling = Path(str(output_dir).replace("MaxEnt-GRPO", "GRPO"))
    return sibling if sibling != output_dir and (sibling / "config.json").is_file() else None


def save_metadata(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Path | None, directory: Path
) -> None:
    """Configuration and tokenizer into ``directory``: copied from ``source``, or written where there is none."""
    if source is None:
        model.config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return
    for pattern in BESIDE_THE_WEIGHTS:
        for path in source.glob(pattern):
            shutil.copyfile(path, directory / path.name)
