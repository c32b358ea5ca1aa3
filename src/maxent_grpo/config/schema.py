"""The three typed parts of a configuration: TRL's own, with this package's settings mixed in.

A setting left unset takes the value of the named objective, of the device, or of TRL; after construction
every setting holds what the run will use, except those that do not apply to its objective.
"""

import json
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from trl.scripts.utils import ScriptArguments
from trl.trainer.grpo_config import GRPOConfig as TRLConfig
from trl.trainer.model_config import ModelConfig

from maxent_grpo.config import validation
from maxent_grpo.config.conversion import convert, describe, field_types
from maxent_grpo.config.fields.script import ScriptFields
from maxent_grpo.config.fields.training import TrainingFields
from maxent_grpo.config.launch import launch_problems, launched_processes, launched_strategy
from maxent_grpo.config.workers import fill_staleness, worker_problems
from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.catalog import ObjectiveSpec, find_objective
from maxent_grpo.objectives.components import ADVANTAGES, OWN_SCALE, SYNONYMS

OBJECTIVE_SETTINGS = (
    "loss_type",
    "scale_rewards",
    "epsilon",
    "epsilon_high",
    "delta",
    "importance_sampling_level",
    "kl_estimator",
    "advantage",
    "pass_k",
    "risk_sensitivity",
    "positive_only",
    "unlikeliness_coef",
    "entropy_bonus_coef",
    "overlong_buffer",
    "overlong_penalty",
    "seed_grpo_enabled",
    "seed_grpo_alpha",
    "seed_grpo_alpha_normalize_by_max_entropy",
    "seed_grpo_length_normalize_logprobs",
    "surrogate",
    "top_entropy_quantile",
    "clip_cov_fraction",
    "clip_cov_low",
    "clip_cov_high",
    "kl_cov_fraction",
    "kl_cov_coef",
    "flow_reward_scale",
)
"""Settings whose unset value is the objective's, under the same name in `ObjectiveSpec`.

Where an objective of one's own has a function there, the setting stays unset."""

MAXENT_SETTINGS = {
    "maxent_loss": "policy_loss",
    "maxent_weight_denominator": "maxent_weight_denominator",
    "maxent_tilted_utility": "maxent_tilted_utility",
    "maxent_length_normalize_ref": "maxent_length_normalize_ref",
    "maxent_tau_mode_adaptive": "maxent_tau_mode_adaptive",
}
"""The same for objectives of the MaxEnt family; they stay unset for the rest."""

CHECKPOINTING_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""The names that everybody uses → those of Transformers 5, which warns about the former."""


@dataclass
class GRPOScriptArguments(ScriptFields, ScriptArguments):
    """Data and rewards. Raises `UsageError` on a value of the wrong type, or where no data is named."""

    def __post_init__(self) -> None:
        _convert_own(self, ScriptFields)
        problems = validation.script_problems(self)
        if problems:
            raise UsageError("; ".join(problems))


@dataclass
class GRPOConfig(TrainingFields, TRLConfig):
    """Everything about training. Raises `UsageError` (``key: message; …``) on a value that cannot work."""

    if TYPE_CHECKING:  # what construction leaves in settings that may be given as unset, or in another form
        objective: str = "grpo"
        train_grpo_objective: bool = True
        beta: float = 0.0
        epsilon: float = 0.2
        loss_type: Any = "grpo"
        scale_rewards: Any = "group"
        importance_sampling_level: Any = "token"
        top_entropy_quantile: float = 1.0
        pass_k: int = 4
        num_generations: int = 8
        max_completion_length: int = 512
        steps_per_generation: int = 1
        gradient_checkpointing: bool = False
        bf16: bool = False
        stop_sequences: list[str] | None = None
        resume_from_checkpoint: str | None = None
        max_staleness: int = 0

    def __repr__(self) -> str:
        return str(self)  # Transformers leaves tokens out of it

    def __post_init__(self) -> None:
        _convert_own(self, TrainingFields)
        self.stop_sequences = _stop_sequences(self.stop_sequences)
        self.distributed = self.distributed or launched_strategy(os.environ)  # type: ignore[assignment]
        if isinstance(self.resume_from_checkpoint, bool):
            self.resume_from_checkpoint = "true" if self.resume_from_checkpoint else None
        for old, new in CHECKPOINTING_NAMES.items():
            if getattr(self, old) is not None and getattr(self, new) is None:
                setattr(self, new, getattr(self, old))
                setattr(self, old, None)
        has_bf16_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if self.bf16 and not (self.use_cpu or has_bf16_gpu):
            raise UsageError(
                "bf16: no GPU with bfloat16 here; leave it out to choose by device, or set use_cpu=true"
            )
        if self.bf16 is None:
            self.bf16 = has_bf16_gpu and not self.use_cpu
        self.beta = 0.0 if self.beta is None else self.beta
        self._fill_from_objective()
        self._refuse(
            validation.training_problems(self, launched_processes(os.environ))
            + validation.batch_problems(self, launched_processes(os.environ))
            # The Ray drivers start the learner's ranks themselves.
            + (launch_problems(self.distributed, os.environ) if self.driver == "inline" else [])
        )
        try:
            super().__post_init__()
        except (
            ValueError,
            OSError,
            ImportError,
        ) as error:  # a rule, a named file, or a package of Transformers
            raise UsageError(" ".join(str(error).split())) from error
        fill_staleness(self)
        self._refuse(worker_problems(self))

    @property
    def objective_family(self) -> str:
        """``"grpo"``, or ``"maxent"`` where the objective trains on weights over the group."""
        return "grpo" if self.train_grpo_objective else "maxent"

    def _fill_from_objective(self) -> None:
        """Unset settings take the catalog entry's value; with no objective named, GRPO takes TRL's."""
        name = self.objective or ("maxent" if self.train_grpo_objective is False else "grpo")
        entry = find_objective(name)
        self._refuse(validation.objective_problems(name, self.train_grpo_objective, entry))
        if self.objective is None and name == "grpo":
            trl_default: dict[str, Any] = {f.name: f.default for f in fields(TRLConfig)}
            entry = ObjectiveSpec(
                loss_type=trl_default["loss_type"], scale_rewards=trl_default["scale_rewards"]
            )
        self.objective = name
        self.train_grpo_objective = validation.family(entry) == "grpo"
        if isinstance(self.scale_rewards, bool):
            self.scale_rewards = "group" if self.scale_rewards else "none"
        if self.advantage is not None:
            self.advantage = SYNONYMS.get(self.advantage, self.advantage)
        own_scale = self.advantage in ADVANTAGES and ADVANTAGES[self.advantage].traits & OWN_SCALE
        if self.scale_rewards is None and own_scale:
            self.scale_rewards = "none"
        for key in OBJECTIVE_SETTINGS:
            value = entry[key]
            if getattr(self, key) is None and not callable(value):
                setattr(self, key, value)
        if self.train_grpo_objective:
            return
        for key, attribute in MAXENT_SETTINGS.items():
            if getattr(self, key) is None:
                setattr(self, key, entry[attribute])
        if self.maxent_length_normalize_policy is None:
            self.maxent_length_normalize_policy = self.maxent_length_normalize_ref

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            raise UsageError("; ".join(problems))


SECTIONS: dict[str, type] = {"script": GRPOScriptArguments, "training": GRPOConfig, "model": ModelConfig}
"""Section → its dataclass, in the order in which a flat recipe's keys are routed."""

SECTION_FIELDS = {
    section: frozenset(f.name for f in fields(cls) if f.init) for section, cls in SECTIONS.items()
}
"""Section → the keys that it takes."""


def _convert_own(instance: Any, mixin: type) -> None:
    """Convert the fields that ``mixin`` declares, so that Python callers get the checks that recipes get."""
    problems = []
    for name, annotation in field_types(mixin).items():
        value = getattr(instance, name)
        try:
            setattr(instance, name, convert(value, annotation))
        except ValueError:
            problems.append(f"{name}: {value!r} is not {describe(annotation)}")
    if problems:
        raise UsageError("; ".join(problems))


def _stop_sequences(value: list[str] | str | None) -> list[str] | None:
    """A list, a JSON list or ``"a||b"`` as a list of non-empty texts; None where there is none."""
    texts: list[str] = []
    if isinstance(value, list):
        texts = value
    elif value is not None and value.startswith("["):
        try:
            texts = convert(json.loads(value), list[str])
        except ValueError:
            raise UsageError(f"stop_sequences: {value!r} is not a JSON list of texts") from None
    elif value is not None:
        texts = value.split("||")
    if not all(texts):
        raise UsageError("stop_sequences: an empty text would end every completion at once; remove it")
    return texts or None
