"""The models of a run, from its settings: the policy and its learner, and the reference."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer
from trl.trainer.utils import disable_dropout_in_model

from maxent_grpo.config.loading import RunConfig
from maxent_grpo.config.plan import objective_spec, warmup_steps
from maxent_grpo.errors import UsageError
from maxent_grpo.models.loading import ModelSource, frozen_copy, load_policy
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.randomness import integer_seed
from maxent_grpo.train.learner import Learner, make_optimizer
from maxent_grpo.train.schedule import LearningRate
from maxent_grpo.train.strategies.fsdp2 import FullyShardedStrategy
from maxent_grpo.train.strategies.replicated import Replicated
from maxent_grpo.train.strategies.strategy import Strategy
from maxent_grpo.train.strategies.zero import ZeroStrategy


def model_source(config: RunConfig) -> ModelSource:
    model = config.model
    dtype = torch.float32 if model.dtype in (None, "auto") else getattr(torch, model.dtype)
    assert model.model_name_or_path is not None, "config.loading refuses this"
    return ModelSource(
        model.model_name_or_path,
        model.model_revision,
        dtype,
        model.attn_implementation,
        config.training.trust_remote_code,
    )


def needs_reference(config: RunConfig) -> bool:
    """Whether anything reads the reference policy, now or after a controller has moved β."""
    training = config.training
    return objective_spec(training).needs_reference(training.beta) or training.kl_target > 0


def make_reference(config: RunConfig, policy: PreTrainedModel) -> PolicyForward:
    """The frozen anchor: the named model, or the policy as it is before the first step."""
    name = config.training.reference_model_name_or_path
    temperature = config.training.temperature
    if name is None:
        return PolicyForward(frozen_copy(policy), temperature=temperature)
    source = model_source(config)
    revision = config.training.reference_model_revision
    named = ModelSource(name, revision, source.dtype, source.attn_implementation, source.trust_remote_code)
    reference = load_policy(named)
    reference.to(policy.device)  # type: ignore[arg-type]  # Transformers wraps Module.to untyped
    return PolicyForward(frozen_copy(reference), temperature=temperature)


def prepared(config: RunConfig, model: PreTrainedModel) -> PreTrainedModel:
    """The policy in training mode, with dropout and checkpointing as configured."""
    training = config.training
    if training.disable_dropout:
        disable_dropout_in_model(model)
    if training.activation_checkpointing:
        model.activation_checkpointing_enable(training.activation_checkpointing_kwargs)
    return model.train()


def make_learner(
    config: RunConfig, model: PreTrainedModel, accelerator: Accelerator, total_steps: int
) -> Learner:
    training = config.training
    return Learner(
        strategy=make_strategy(config, model, accelerator),
        learning_rate=LearningRate(
            base=training.learning_rate,
            name=str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type)),
            warmup_steps=warmup_steps(training, total_steps),
            total_steps=total_steps,
            options=training.lr_scheduler_kwargs or {},  # type: ignore[arg-type]  # parsed from text by TRL
        ),
        accelerator=accelerator,
        max_grad_norm=training.max_grad_norm,
        max_completion_length=training.max_completion_length,
        differentiate_entropy=objective_spec(training).needs_entropy,
    )


def make_strategy(config: RunConfig, model: PreTrainedModel, accelerator: Accelerator) -> Strategy:
    """How the policy's parameters lie on the ranks, as ``distributed`` says. Raises `UsageError` for its optimiser."""
    training = config.training
    try:
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(training, model)
    except (
        ImportError,
        ValueError,
    ) as error:  # a package that is not installed, or settings that contradict it
        raise UsageError(f"optim: {training.optim}: {' '.join(str(error).split())}") from error

    seeded = training.info_seed_enabled
    policy = PolicyForward(
        model,
        temperature=training.temperature,
        pool=training.info_seed_pooling if seeded else "none",
        seed_head=make_seed_head(config, model),
    )

    def optimizer_of(parameters: Sequence[nn.Parameter]) -> Optimizer:
        return make_optimizer(parameters, optimizer_class, options, training.weight_decay)

    match training.distributed:
        case "fsdp2":
            return FullyShardedStrategy(policy, optimizer_of, accelerator)
        case "zero2" | "zero3":
            stage = int(training.distributed.removeprefix("zero"))
            return ZeroStrategy(
                policy,
                optimizer_of,
                accelerator,
                stage=stage,
                max_grad_norm=training.max_grad_norm,
                checkpoints=config.checkpoints,
            )
        case _:
            return Replicated(policy, optimizer_of, accelerator)


def make_seed_head(config: RunConfig, model: PreTrainedModel) -> nn.Linear | None:
    """The classifier of pooled states that ``info_seed_loss_type=ce`` trains; None where nothing reads it."""
    training = config.training
    if not (training.info_seed_enabled and training.info_seed_loss_type == "ce"):
        return None
    torch.manual_seed(integer_seed(training.seed, "seed head"))
    width = model.get_output_embeddings().in_features
    return nn.Linear(width, training.info_seed_num_seeds, device=model.device)
