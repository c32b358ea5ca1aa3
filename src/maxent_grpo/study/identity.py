"""What makes a run the run that it is: settings, data, model and package version. Equal identities, equal runs."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from maxent_grpo import __version__
from maxent_grpo.config.loading import RunConfig, resolved
from maxent_grpo.config.run_settings import data_settings, model_source
from maxent_grpo.models.loading import load_tokenizer
from maxent_grpo.study.plan import EvaluationPlan
from maxent_grpo.train.build import Given, evaluation_prompts, training_prompts
from maxent_grpo.types import Prompt

Identity = Mapping[str, Any]

NOT_IDENTITY = frozenset(
    {
        "output_dir",
        "run_name",
        "resume_from_checkpoint",
        "overwrite_output_dir",
        "disable_tqdm",
        "log_level",
        "report_to",
        "project",
        "wandb_project",
        "wandb_entity",
        "wandb_run_group",
        "logging_dir",
        "save_steps",
        "save_total_limit",
    }
)
"""Settings that leave the trained policy and its records as they are."""


def identity_of(config: RunConfig) -> Identity:
    """The identity of a training run, as plain values by name."""
    tree = resolved(config)
    settings = {
        name: value
        for section in ("script", "training", "model")
        for name, value in tree[section].items()
        if name not in NOT_IDENTITY
    }
    train, held_out = _data(config)
    return {
        **settings,
        "command": config.command,
        "training prompts": train,
        "held-out prompts": held_out,
        "initial policy": _model(model_source(config).location),
        "maxent_grpo version": __version__,
    }


def evaluation_identity(config: RunConfig, evaluation: EvaluationPlan) -> Identity:
    """The identity of an evaluation, apart from the policy that it is of."""
    return {
        "evaluation.k": evaluation.k,
        "evaluation.temperatures": list(evaluation.temperatures),
        "evaluation.seeds": list(evaluation.seeds),
        "max_completion_length": config.training.max_completion_length,
        "held-out prompts": _data(config)[1],
        "maxent_grpo version": __version__,
    }


def changes(before: Identity, after: Identity) -> list[str]:
    """``name: old → new`` for every part that differs."""
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: {before.get(name, 'unset')} → {after.get(name, 'unset')}"
        for name in names
        if before.get(name, "unset") != after.get(name, "unset")
    ]


_digests: dict[str, tuple[str, str]] = {}


def _data(config: RunConfig) -> tuple[str, str]:
    """Digests of the training and the held-out prompts as the policy reads them, and of their columns."""
    training, model = config.training, config.model
    key = json.dumps(
        [
            resolved(config)["script"],
            model.model_name_or_path,
            model.model_revision,
            config.max_prompt_chars,
            training.system_prompt,
            training.chat_template,
            training.max_prompt_length,
        ],
        default=str,
    )
    if key not in _digests:
        tokenizer, data = load_tokenizer(model_source(config)), data_settings(config)
        held_out = evaluation_prompts(data, Given(), tokenizer)
        assert held_out is not None, "runs of a study evaluate at their start"
        _digests[key] = (
            _prompts_digest(training_prompts(data, Given(), tokenizer)),
            _prompts_digest(held_out),
        )
    return _digests[key]


def _prompts_digest(prompts: Iterable[Prompt]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for prompt in prompts:
        digest.update(json.dumps([prompt.text, dict(prompt.columns)], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def held_out_size(config: RunConfig) -> int:
    """How many prompts a policy is evaluated on."""
    prompts = evaluation_prompts(data_settings(config), Given(), load_tokenizer(model_source(config)))
    assert prompts is not None, "runs of a study evaluate at their start"
    return len(prompts)


@cache
def _model(location: str) -> str:
    """The digest of a local model's files; a hub model's name."""
    directory = Path(location)
    if not directory.is_dir():
        return location
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(p for p in directory.iterdir() if p.suffix in (".safetensors", ".json", ".jinja")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
