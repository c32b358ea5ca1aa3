"""Builds a `Run` from a resolved configuration."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.config.launch import forget_launched_plugins
from maxent_grpo.config.loading import RunConfig, resolved
from maxent_grpo.config.plan import BatchPlan, batch_plan, controller_settings, objective_spec
from maxent_grpo.controllers.controller import Controllers
from maxent_grpo.controllers.state_file import read_state
from maxent_grpo.data.prompts import SeedPrompts
from maxent_grpo.data.stream import PromptStream
from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.training import Evaluation
from maxent_grpo.models.adapters import with_adapter
from maxent_grpo.models.loading import load_policy, load_tokenizer, with_pad_token
from maxent_grpo.models.policy import AdapterOff, PolicyForward
from maxent_grpo.objectives.catalog import Objective
from maxent_grpo.randomness import integer_seed
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.train.assembly.inputs import (
    Given,
    evaluation_prompts,
    evaluation_rewards,
    make_evaluation,
    make_seeds,
    reward_isolation,
    sampling_settings,
    training_prompts,
    training_rewards,
)
from maxent_grpo.train.assembly.policies import (
    make_learner,
    make_reference,
    model_source,
    needs_reference,
    prepared,
)
from maxent_grpo.train.assembly.samplers import SamplerParts, configured, make_sampler
from maxent_grpo.train.checkpoint_metadata import find_source
from maxent_grpo.train.learner import Reference
from maxent_grpo.train.meter import Meter
from maxent_grpo.train.ranks import parameter_checksum, refuse_disagreement, together
from maxent_grpo.train.state import Cadence, Run


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


def assemble(config: RunConfig, given: Given, accelerator: Accelerator, output_dir: Path) -> Run:
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


def load(config: RunConfig, given: Given, plan: BatchPlan, device: torch.device) -> Loaded:
    """Data, rewards and models. Cheap checks (data, rewards) come before the model is loaded."""
    training = config.training
    source = model_source(config)
    tokenizer = with_pad_token(given.tokenizer) if given.tokenizer is not None else load_tokenizer(source)
    functions = training_rewards(config, given)
    prompts = training_prompts(config, given, tokenizer)
    cadence = make_cadence(config, plan, len(prompts))
    held_out = evaluation_prompts(config, given, tokenizer)
    isolation = reward_isolation(config)
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


def restored_controllers(controllers: Controllers, path: Path) -> Controllers:
    """The controllers with the state of another run, whose file or directory ``path`` is."""
    file = path / "controller_state.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            f"controller_resume_from: no file {file}; give a controller_state.json or its directory"
        )
    return controllers.load_state_dict(read_state(file), source=str(file))
