"""The smallest recipe of each command, and the line that a wrong request ends in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maxent_grpo.config.loading import RunConfig, resolve
from maxent_grpo.errors import UsageError

BASE = {
    "model_name_or_path": "bundled:tiny-policy",
    "dataset_name": "task:graph_coloring",
    "output_dir": "out",
}
GRPO = BASE | {"beta": 0.0, "force_custom_loop": True, "use_cpu": True}
MAXENT = BASE | {"train_grpo_objective": False, "maxent_tau": 0.01, "beta": 0.09, "use_cpu": True}
INFOSEED = GRPO | {
    "info_seed_enabled": True,
    "info_seed_num_seeds": 4,
    "info_seed_lambda": 0.01,
    "gradient_accumulation_steps": 2,  # the contrast needs two prompts
}
COMMANDS = {"train-baseline": GRPO, "train-maxent": MAXENT, "train-infoseed": INFOSEED}

Recipe = Callable[..., Path]
Resolve = Callable[..., RunConfig]


def failure(command: str, path: Path | None, overrides: Any = None, environ: Any = None) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(command, path, overrides, {} if environ is None else environ)
    message = str(caught.value)
    assert "\n" not in message
    return message
