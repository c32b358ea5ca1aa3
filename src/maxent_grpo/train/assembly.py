"""Builds a `Run` from a resolved configuration: the only place where settings become parts."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.trainer.utils import disable_dropout_in_model

from maxent_grpo.config.loading import RunConfig
from maxent_grpo.config.plan import BatchPlan, batch_plan, controller_settings, objective_spec, warmup_steps
from maxent_grpo.controllers.controller import Controllers
from maxent_grpo.controllers.state_file import read_state
from maxent_grpo.data.mixture import load_mixture
from maxent_grpo.data.prompts import PromptSettings, build_prompts
from maxent_grpo.data.sources import load_rows
from maxent_grpo.data.stream import PromptStream
from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.evaluation import Evaluation
from maxent_grpo.models.loading import ModelSource, frozen_copy, load_policy, load_tokenizer, with_pad_token
from maxent_grpo.objectives.catalog import Objective
from maxent_grpo.observe.metrics_log import git_sha
from maxent_grpo.randomness import integer_seed
from maxent_grpo.rewards.registry import load_rewards
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.train.learner import Learner, make_optimizer
from maxent_grpo.train.meter import Meter
from maxent_grpo.train.schedule import LearningRate
from maxent_grpo.train.state import Cadence, Run
from maxent_grpo.types import Prompt

if TYPE_CHECKING:
    from maxent_grpo.train.run import Given


def start_accelerator(config: RunConfig) -> Accelerator:
    """The Accelerate object that knows devices and ranks. Raises `UsageError` for several processes."""
    training = config.training
    accelerator = Accelerator(cpu=training.use_cpu, mixed_precision="bf16" if training.bf16 else "no")
    if accelerator.num_processes > 1:
        raise UsageError(
            f"started with {accelerator.num_processes} processes: this version trains in one; start it without "
            "torchrun or accelerate launch"
        )
    return accelerator


def assemble(config: RunConfig, given: "Given", accelerator: Accelerator, output_dir: Path) -> Run:
    """All parts of a run at its first step. Cheap checks (data, rewards) come before the model is loaded."""
    training = config.training
    source = model_source(config)
    tokenizer = with_pad_token(given.tokenizer) if given.tokenizer is not None else load_tokenizer(source)
    functions = load_rewards(given.reward_funcs or config.script.reward_funcs, training.reward_weights)
    scorer = Scorer(functions, zero_truncated=training.zero_truncated_completion_rewards)
    prompts = training_prompts(config, given, tokenizer)
    plan = batch_plan(training, accelerator.num_processes)
    cadence = make_cadence(config, plan, len(prompts))
    sampling = sampling_settings(config, training.num_generations)
    evaluation = make_evaluation(config, evaluation_prompts(config, given, tokenizer), scorer)

    torch.manual_seed(integer_seed(training.seed, "model"))
    model = (given.model if given.model is not None else load_policy(source)).to(accelerator.device)
    spec = objective_spec(training)
    controllers = Controllers.start(controller_settings(training, cadence.total_steps))
    if training.controller_resume_from and not training.controller_overwrite_from_config:
        controllers = restored_controllers(controllers, Path(training.controller_resume_from))
    reference = make_reference(config, model) if needs_reference(config) else None
    return Run(
        seed=training.seed,
        output_dir=output_dir,
        plan=plan,
        cadence=cadence,
        objective=Objective(spec),
        sampling=sampling,
        tokenizer=tokenizer,
        learner=make_learner(config, prepared(config, model), accelerator, cadence.total_steps),
        reference=reference,
        sampler=LocalSampler(model, tokenizer, accelerator.autocast),
        scorer=scorer,
        stream=PromptStream(prompts, seed=training.seed, shuffle=training.shuffle_dataset is not False),
        meter=Meter(accelerator),
        evaluation=evaluation,
        controllers=controllers,
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


def make_evaluation(config: RunConfig, prompts: list[Prompt] | None, scorer: Scorer) -> Evaluation | None:
    if prompts is None:
        return None
    k = config.training.num_generations_eval or config.training.num_generations
    return Evaluation(
        prompts=prompts,
        sampling=sampling_settings(config, k),
        scorer=scorer,
        prompts_per_batch=max(1, config.training.per_device_eval_batch_size // k),
    )


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


def make_reference(config: RunConfig, policy: PreTrainedModel) -> PreTrainedModel:
    """The frozen anchor: the named model, or the policy as it is before the first step."""
    name = config.training.reference_model_name_or_path
    if name is None:
        return frozen_copy(policy)
    source = model_source(config)
    revision = config.training.reference_model_revision
    named = ModelSource(name, revision, source.dtype, source.attn_implementation, source.trust_remote_code)
    reference = load_policy(named)
    reference.to(policy.device)  # type: ignore[arg-type]  # Transformers wraps Module.to untyped
    return frozen_copy(reference)


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
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(training, model)
    return Learner(
        model=model,
        optimizer=make_optimizer(model, optimizer_class, options, training.weight_decay),
        learning_rate=LearningRate(
            base=training.learning_rate,
            name=str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type)),
            warmup_steps=warmup_steps(training, total_steps),
            total_steps=total_steps,
            options=training.lr_scheduler_kwargs or {},  # type: ignore[arg-type]  # parsed from text by TRL
        ),
        accelerator=accelerator,
        temperature=training.temperature,
        max_grad_norm=training.max_grad_norm,
        max_completion_length=training.max_completion_length,
        differentiate_entropy=objective_spec(training).needs_entropy,
        shared_prefix=not training.activation_checkpointing,
    )


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
