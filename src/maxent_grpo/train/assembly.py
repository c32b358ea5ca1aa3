"""Builds a `Run` from a resolved configuration: the only place where settings become parts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.trainer.utils import disable_dropout_in_model

from maxent_grpo.config.launch import forget_launched_plugins
from maxent_grpo.config.loading import RunConfig, resolved
from maxent_grpo.config.plan import BatchPlan, batch_plan, controller_settings, objective_spec, warmup_steps
from maxent_grpo.controllers.controller import Controllers
from maxent_grpo.controllers.state_file import read_state
from maxent_grpo.data.mixture import load_mixture
from maxent_grpo.data.prompts import PromptSettings, build_prompts
from maxent_grpo.data.seeds import SeedPrompts
from maxent_grpo.data.sources import load_rows
from maxent_grpo.data.stream import PromptStream
from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.evaluation import Evaluation
from maxent_grpo.models.adapters import with_adapter
from maxent_grpo.models.loading import ModelSource, frozen_copy, load_policy, load_tokenizer, with_pad_token
from maxent_grpo.models.policy import AdapterOff, PolicyForward
from maxent_grpo.objectives.catalog import Objective
from maxent_grpo.observe.metrics_log import git_sha
from maxent_grpo.randomness import integer_seed
from maxent_grpo.rewards.isolation import Isolation, IsolationSettings
from maxent_grpo.rewards.registry import RewardFunction, RewardOptions, load_rewards
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.train.learner import Learner, Reference, make_optimizer
from maxent_grpo.train.metadata import find_source
from maxent_grpo.train.meter import Meter
from maxent_grpo.train.ranks import parameter_checksum, refuse_disagreement, together
from maxent_grpo.train.samplers import SamplerParts, configured, make_sampler
from maxent_grpo.train.schedule import LearningRate
from maxent_grpo.train.state import Cadence, Run
from maxent_grpo.train.strategy import Replicated, Strategy
from maxent_grpo.types import Prompt

if TYPE_CHECKING:
    from maxent_grpo.train.run import Given


def start_accelerator(config: RunConfig) -> Accelerator:
    """The Accelerate object that knows devices and ranks. It wraps nothing: the strategies of this package do."""
    training = config.training
    forget_launched_plugins(os.environ)
    return Accelerator(cpu=training.use_cpu, mixed_precision="bf16" if training.bf16 else "no")


@dataclass(frozen=True)
class Loaded:
    """What a rank loads before it needs the others."""

    tokenizer: PreTrainedTokenizerBase
    scorer: Scorer
    evaluation: Evaluation | None
    stream: PromptStream
    cadence: Cadence
    model: PreTrainedModel  # whole, on the device, with its adapter if there is one
    reference: PolicyForward | None  # None: nothing needs it, or it is the policy without its adapter
    controllers: Controllers
    seeds: SeedPrompts | None  # InfoSeed's variants of a prompt


def assemble(config: RunConfig, given: "Given", accelerator: Accelerator, output_dir: Path) -> Run:
    """All parts of a run at its first step.

    Raises `RunError` where ranks start with different parameters, data or settings.
    """
    training = config.training
    plan = batch_plan(training, accelerator.num_processes)
    loaded = together(lambda: load(config, given, plan, accelerator.device))
    if plan.ranks > 1:
        refuse_disagreement(
            accelerator,
            {
                "settings": resolved(config),
                "training prompts": loaded.stream.state_dict(),
                "policy parameters": parameter_checksum(loaded.model),
            },
        )
    shallow = config.checkpoints.metadata == "shallow"
    metadata_source = find_source(config.checkpoints, output_dir, loaded.model.config) if shallow else None
    learner = make_learner(config, prepared(config, loaded.model), accelerator, loaded.cadence.total_steps)
    reference: Reference | None = None
    if needs_reference(config):
        reference = (
            AdapterOff(learner.strategy.module, learner.policy.model)
            if loaded.reference is None
            else loaded.reference
        )
    sampling = sampling_settings(config, training.num_generations)
    sampler, publishing = make_sampler(
        SamplerParts(
            config,
            learner,
            loaded.tokenizer,
            sampling,
            loaded.stream.prompts,
            model_source(config),
            output_dir,
        )
    )
    return Run(
        seed=training.seed,
        output_dir=output_dir,
        plan=plan,
        cadence=loaded.cadence,
        objective=Objective(objective_spec(training)),
        sampling=sampling,
        tokenizer=loaded.tokenizer,
        learner=learner,
        reference=reference,
        sampler=configured(sampler, config, loaded.tokenizer),
        scorer=loaded.scorer,
        stream=loaded.stream,
        meter=Meter(accelerator),
        evaluation=loaded.evaluation,
        controllers=loaded.controllers,
        seeds=loaded.seeds,
        checkpoints=config.checkpoints,
        metadata_source=metadata_source,
        publishing=publishing,
        sampled_by_engine=training.use_vllm or publishing is not None,
    )


def load(config: RunConfig, given: "Given", plan: BatchPlan, device: torch.device) -> Loaded:
    """Data, rewards and models. Cheap checks (data, rewards) come before the model is loaded."""
    training = config.training
    source = model_source(config)
    tokenizer = with_pad_token(given.tokenizer) if given.tokenizer is not None else load_tokenizer(source)
    functions = load_rewards(
        given.reward_funcs or config.script.reward_funcs, training.reward_weights, reward_options(config)
    )
    prompts = training_prompts(config, given, tokenizer)
    cadence = make_cadence(config, plan, len(prompts))
    held_out = evaluation_prompts(config, given, tokenizer)
    isolation = Isolation(
        IsolationSettings(training.reward_timeout, training.reward_memory_mb, training.reward_workers)
    )
    zero_truncated = training.zero_truncated_completion_rewards
    scorer = Scorer(functions, zero_truncated, isolation, cadence.total_steps)
    eval_scorer = Scorer(
        evaluation_rewards(config, functions), zero_truncated, isolation, cadence.total_steps
    )
    evaluation = make_evaluation(config, held_out, eval_scorer, tokenizer)
    seeds = make_seeds(config, tokenizer, prompts, config.script.dataset_prompt_column)

    torch.manual_seed(integer_seed(training.seed, "model"))
    model = (given.model if given.model is not None else load_policy(source)).to(device)  # type: ignore[arg-type]
    named_reference = training.reference_model_name_or_path is not None
    reference = None
    elsewhere = training.reference_workers > 0  # `train.ray` puts what asks them in its place
    if needs_reference(config) and not elsewhere and (named_reference or not config.model.use_peft):
        reference = make_reference(config, model)
    if config.model.use_peft:
        model = with_adapter(model, config.model)
    controllers = Controllers.start(controller_settings(training, cadence.total_steps))
    if training.controller_resume_from and not training.controller_overwrite_from_config:
        controllers = restored_controllers(controllers, Path(training.controller_resume_from))
    return Loaded(
        tokenizer=tokenizer,
        scorer=scorer,
        evaluation=evaluation,
        stream=PromptStream(prompts, seed=training.seed, shuffle=training.shuffle_dataset is not False),
        cadence=cadence,
        model=model,
        reference=reference,
        controllers=controllers,
        seeds=seeds,
    )


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


def training_prompts(config: RunConfig, given: "Given", tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    script = config.script
    if given.train_rows is not None:
        rows: Any = given.train_rows
    elif script.dataset_mixture is not None:
        rows = load_mixture(script.dataset_mixture, config.dataset_retry)[0]
    else:
        assert script.dataset_name is not None, "config.schema refuses this"
        rows = load_rows(
            script.dataset_name,
            config=script.dataset_config,
            split=script.dataset_train_split,
            retry=config.dataset_retry,
        )
    columns = (script.dataset_prompt_column, script.dataset_solution_column)
    return build_prompts(rows, tokenizer, prompt_settings(config, *columns))


def evaluation_prompts(
    config: RunConfig, given: "Given", tokenizer: PreTrainedTokenizerBase
) -> list[Prompt] | None:
    """The prompts to evaluate on while training; None where no evaluation is asked for."""
    script, training = config.script, config.training
    if training.eval_strategy == "no" and not training.eval_on_start:
        return None
    rows: Any = given.eval_rows
    if rows is None and script.eval_dataset_name is not None:
        rows = load_rows(
            script.eval_dataset_name,
            config=script.eval_dataset_config,
            split=script.eval_dataset_split,
            retry=config.dataset_retry,
        )
    elif rows is None and script.dataset_mixture is not None:
        rows = load_mixture(script.dataset_mixture, config.dataset_retry)[1]
    elif rows is None and given.train_rows is None and script.dataset_name is not None:
        rows = load_rows(
            script.dataset_name,
            config=script.dataset_config,
            split=script.dataset_test_split,
            retry=config.dataset_retry,
        )
    if rows is None:
        raise UsageError(
            "eval_strategy: there is nothing to evaluate on; name an evaluation dataset, or set it to no"
        )
    columns = (
        script.eval_dataset_prompt_column or script.dataset_prompt_column,
        script.eval_dataset_solution_column or script.dataset_solution_column,
    )
    return build_prompts(rows, tokenizer, prompt_settings(config, *columns))


def make_evaluation(
    config: RunConfig, prompts: list[Prompt] | None, scorer: Scorer, tokenizer: PreTrainedTokenizerBase
) -> Evaluation | None:
    if prompts is None:
        return None
    k = config.training.num_generations_eval or config.training.num_generations
    return Evaluation(
        prompts=prompts,
        sampling=evaluation_sampling(config, k),
        scorer=scorer,
        prompts_per_batch=max(1, config.training.per_device_eval_batch_size // k),
        greedy=config.training.greedy_eval_enabled,
        seeds=make_seeds(
            config,
            tokenizer,
            prompts,
            config.script.eval_dataset_prompt_column or config.script.dataset_prompt_column,
        ),
    )


def reward_options(config: RunConfig) -> RewardOptions:
    """What the configuration says about reward functions besides their names."""
    return RewardOptions(vars(config.script), config.training.reward_isolation)


def evaluation_rewards(config: RunConfig, training_rewards: list[RewardFunction]) -> list[RewardFunction]:
    """The evaluation's own reward functions, or those of training, with the weights that the evaluation names."""
    script = config.script
    weights = script.eval_reward_weights or None
    if script.eval_reward_funcs:
        return load_rewards(script.eval_reward_funcs, weights, reward_options(config))
    if weights is None:
        return training_rewards
    return [replace(reward, weight=w) for reward, w in zip(training_rewards, weights, strict=True)]


def make_seeds(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt] | None, prompt_column: str
) -> SeedPrompts | None:
    """What makes InfoSeed's variants of ``prompts`` (None: others have checked them); None without InfoSeed."""
    training = config.training
    if not training.info_seed_enabled:
        return None
    settings = prompt_settings(config, prompt_column, config.script.dataset_solution_column)
    seeds = SeedPrompts(training.info_seed_prompt_template, training.info_seed_num_seeds, tokenizer, settings)
    if prompts is not None:
        seeds.check(prompts)
    return seeds


def prompt_settings(config: RunConfig, prompt_column: str, solution_column: str) -> PromptSettings:
    return PromptSettings(
        prompt_column=prompt_column,
        solution_column=solution_column,
        system_prompt=config.training.system_prompt,
        chat_template=config.training.chat_template,
        max_prompt_chars=config.max_prompt_chars,
        max_prompt_length=config.training.max_prompt_length,
    )


def sampling_settings(config: RunConfig, num_generations: int) -> SamplingSettings:
    training = config.training
    return SamplingSettings(
        num_generations=num_generations,
        max_completion_length=training.max_completion_length,
        temperature=training.temperature,
        top_p=training.top_p,
        top_k=training.top_k,
        min_p=training.min_p,
        stop=tuple(training.stop_sequences or ()),
    )


def evaluation_sampling(config: RunConfig, num_generations: int) -> SamplingSettings:
    """As in training, but with the evaluation's own temperature and truncation."""
    training = config.training
    return replace(
        sampling_settings(config, num_generations),
        temperature=training.eval_temperature,
        top_p=training.eval_top_p,
        top_k=training.eval_top_k,
        min_p=training.eval_min_p,
        for_learning=False,
    )


def restored_controllers(controllers: Controllers, path: Path) -> Controllers:
    """The controllers with the state of another run, whose file or directory ``path`` is."""
    file = path / "controller_state.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            f"controller_resume_from: no file {file}; give a controller_state.json or its directory"
        )
    return controllers.load_state_dict(read_state(file), source=str(file))


def make_cadence(config: RunConfig, plan: BatchPlan, prompt_count: int) -> Cadence:
    """Total steps (``max_steps``, else from ``num_train_epochs``) and intervals; a fraction is of the total."""
    training = config.training
    steps_per_rollout = plan.updates_per_rollout * plan.num_iterations
    rollouts = max(1, int(training.num_train_epochs * prompt_count / plan.prompts_per_rollout))
    total = training.max_steps if training.max_steps > 0 else rollouts * steps_per_rollout

    def every(interval: float | None) -> int:
        return 0 if not interval else int(interval) if interval >= 1 else max(1, round(interval * total))

    return Cadence(
        total_steps=total,
        logging_steps=every(training.logging_steps) or total,
        save_steps=every(training.save_steps) if training.save_strategy == "steps" else 0,
        save_total_limit=training.save_total_limit,
        eval_steps=every(training.eval_steps) if training.eval_strategy == "steps" else 0,
        eval_on_start=training.eval_on_start,
        max_nonfinite_steps=training.max_nonfinite_steps,
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


def make_seed_head(config: RunConfig, model: PreTrainedModel) -> nn.Linear | None:
    """The classifier of pooled states that ``info_seed_loss_type=ce`` trains; None where nothing reads it."""
    training = config.training
    if not (training.info_seed_enabled and training.info_seed_loss_type == "ce"):
        return None
    torch.manual_seed(integer_seed(training.seed, "seed head"))
    width = model.get_output_embeddings().in_features
    return nn.Linear(width, training.info_seed_num_seeds, device=model.device)


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

    if policy.seed_head is not None and training.distributed not in (None, "ddp"):
        raise UsageError(
            f"info_seed_loss_type: the seed head of ce is kept whole, and distributed={training.distributed} shards "
            "what it trains; use ddp, or infonce"
        )

    def optimizer_of(parameters: Sequence[nn.Parameter]) -> Optimizer:
        return make_optimizer(parameters, optimizer_class, options, training.weight_decay)

    match training.distributed:
        case "fsdp2":
            from maxent_grpo.train.fsdp2 import FullyShardedStrategy

            return FullyShardedStrategy(policy, optimizer_of, accelerator)
        case "zero2" | "zero3":
            from maxent_grpo.train.zero import ZeroStrategy

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


def run_header(config: RunConfig) -> dict[str, Any]:
    """What identifies the run: the first line of metrics.jsonl, and part of every tracker's configuration."""
    return {
        "run/git_sha": git_sha(os.environ),
        "run/recipe_path": None if config.recipe_path is None else str(config.recipe_path),
        "run/command": config.command,
        "run/objective": config.training.objective,
        "run/model": config.model.model_name_or_path,
        "run/seed": config.training.seed,
    }
