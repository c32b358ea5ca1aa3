"""Builds the parts of a run from the settings of each. Cheap checks (data, rewards) come before a model is loaded."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import disable_dropout_in_model

from maxent_grpo.config.environment import forget_launched_plugins
from maxent_grpo.config.parts import (
    CadenceSettings,
    DataSettings,
    DataSource,
    DeviceSettings,
    ModelSettings,
    NativeSettings,
    RewardSettings,
    SeedSettings,
)
from maxent_grpo.config.plan import BatchPlan
from maxent_grpo.controllers.controller import Controllers
from maxent_grpo.controllers.state import read_state
from maxent_grpo.data.mixture import load_mixture
from maxent_grpo.data.prompts import PromptSettings, SeedPrompts, build_prompts
from maxent_grpo.data.sources import load_rows
from maxent_grpo.data.stream import PooledStream, PromptStream
from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.training import Evaluation
from maxent_grpo.models.loading import (
    ModelSource,
    check_fit,
    frozen_copy,
    load_policy,
    load_tokenizer,
    refuse_foreign_adapter,
    with_adapter,
    with_pad_token,
)
from maxent_grpo.models.policy import AdapterOff, PolicyForward
from maxent_grpo.objectives.catalog import ObjectiveSpec, build_objective
from maxent_grpo.objectives.components import VERIFIED_REPLAY
from maxent_grpo.objectives.objective import Objective
from maxent_grpo.randomness import integer_seed
from maxent_grpo.rewards.isolation import Isolation
from maxent_grpo.rewards.math import check_golds
from maxent_grpo.rewards.modes import load_mode_key
from maxent_grpo.rewards.registry import RewardFunction, load_rewards
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.stats import Meter
from maxent_grpo.train.bank import ReplayBank
from maxent_grpo.train.checkpoint import find_source
from maxent_grpo.train.learner import Learner, LearningRate, Reference, make_optimizer
from maxent_grpo.train.ranks import parameter_checksum, refuse_disagreement, together
from maxent_grpo.train.state import Cadence, Run
from maxent_grpo.train.strategies.fsdp2 import FullyShardedStrategy
from maxent_grpo.train.strategies.replicated import Replicated
from maxent_grpo.train.strategies.strategy import Strategy
from maxent_grpo.train.strategies.zero import ZeroStrategy
from maxent_grpo.train.weight_sync import configured, make_sampler
from maxent_grpo.types import Prompt

PATIENCE = timedelta(seconds=1800)
"""Longest wait of one rank for the others, as in Transformers."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Given:
    """Objects that a caller from Python brings instead of names in the settings; None: as the settings say."""

    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    reward_funcs: Sequence[Callable[..., Any] | str] | None = None
    train_rows: Sequence[Mapping[str, Any]] | None = None
    eval_rows: Sequence[Mapping[str, Any]] | None = None


def build(settings: NativeSettings, given: Given) -> Run:
    """All parts of a run at its first step.

    Raises:
        UsageError: a part that cannot be made as its settings say.
        RunError: ranks that start with different parameters, data or settings.
    """
    accelerator, plan = start_accelerator(settings.device), settings.plan
    with together():
        tokenizer = make_tokenizer(settings.model.source, given)
        functions = training_rewards(settings.rewards, given)
        prompts = training_prompts(settings.data, given, tokenizer)
        check_answers(functions, prompts, settings.data.prompts)
        cadence = make_cadence(settings.cadence, plan, len(prompts))
        held_out = evaluation_prompts(settings.data, given, tokenizer)
        isolation, zero_truncated = Isolation(settings.rewards.isolation), settings.rewards.zero_truncated
        mode_key = load_mode_key(settings.rewards.mode_key)
        scorer = Scorer(functions, zero_truncated, isolation, cadence.total_steps, mode_key)
        judges = evaluation_rewards(settings.rewards, functions)
        check_answers(judges, held_out or (), settings.data.evaluation_prompts)
        check_correctness(build_objective(settings.objective), functions, prompts)
        if settings.pools is not None:
            check_pools(functions)
        judge = Scorer(judges, zero_truncated, isolation, cadence.total_steps, mode_key)
        evaluation = make_evaluation(settings, held_out, judge, tokenizer)
        seeds = make_seeds(settings.seeds, settings.data.prompts, tokenizer, prompts)
        stream = make_stream(settings, prompts)
        torch.manual_seed(integer_seed(settings.seed, "model"))
        model, reference = load_models(settings, given, accelerator.device)
        for asked, sampling in ((prompts, settings.sampling), (held_out, settings.evaluation.sampling)):
            check_fit(model, asked or (), sampling.max_completion_length, "max_completion_length")
        controllers = make_controllers(settings, cadence.total_steps)
    if plan.ranks > 1:
        refuse_disagreement(
            accelerator,
            {
                "settings": settings.records.resolved,
                "training prompts": stream.state_dict(),
                "policy parameters": parameter_checksum(model),
            },
        )
    output_dir, checkpoints = settings.output.directory, settings.checkpoints
    shallow = checkpoints.metadata == "shallow"
    metadata_source = find_source(checkpoints, output_dir, model.config) if shallow else None
    learner = make_learner(settings, prepared(settings.model, model), accelerator, cadence.total_steps)
    if settings.needs_reference and reference is None:
        reference = AdapterOff(learner.strategy.module, learner.policy.model)
    sampler, sampler_sync = make_sampler(settings, learner, tokenizer, prompts)
    return Run(
        seed=settings.seed,
        output_dir=output_dir,
        plan=plan,
        cadence=cadence,
        objective=build_objective(settings.objective),
        sampling=settings.sampling,
        tokenizer=tokenizer,
        learner=learner,
        reference=reference,
        sampler=configured(sampler, settings, tokenizer),
        scorer=scorer,
        stream=stream,
        meter=Meter(accelerator),
        evaluation=evaluation,
        controllers=controllers,
        seeds=seeds,
        bank=make_bank(settings.objective),
        checkpoints=checkpoints,
        metadata_source=metadata_source,
        sampler_sync=sampler_sync,
        sampled_by_engine=settings.sampler.name != "local" or sampler_sync is not None,
    )


def start_accelerator(settings: DeviceSettings) -> Accelerator:
    """The Accelerate object that knows devices and ranks. It wraps nothing: the strategies of this package do."""
    forget_launched_plugins(os.environ)
    return Accelerator(
        cpu=settings.use_cpu,
        mixed_precision="bf16" if settings.bf16 else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def make_tokenizer(source: ModelSource, given: Given) -> PreTrainedTokenizerBase:
    """The tokenizer, with a padding token."""
    return load_tokenizer(source) if given.tokenizer is None else with_pad_token(given.tokenizer)


# Data and rewards


def load_source(source: DataSource) -> Any:
    """The rows of ``source``; None: a mixture without a held-out side."""
    if source.mixture is not None:
        return load_mixture(source.mixture, source.retry)[0 if source.split == "train" else 1]
    assert source.name is not None, "config.schema refuses this"
    return load_rows(source.name, config=source.config, split=source.split, retry=source.retry)


def training_prompts(data: DataSettings, given: Given, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    rows = load_source(data.train) if given.train_rows is None else given.train_rows
    return build_prompts(rows, tokenizer, data.prompts)


def make_stream(settings: NativeSettings, prompts: Sequence[Prompt]) -> PromptStream:
    """The order of the prompts: that of epochs, or of difficulty pools."""
    if settings.pools is None:
        return PromptStream(prompts, seed=settings.seed, shuffle=settings.shuffle)
    return PooledStream(prompts, settings.seed, settings.pools)


def evaluation_prompts(
    data: DataSettings, given: Given, tokenizer: PreTrainedTokenizerBase
) -> list[Prompt] | None:
    """The prompts to evaluate on while training; None where no evaluation is asked for."""
    if not data.evaluates:
        return None
    source = data.evaluation or (data.test_split if given.train_rows is None else None)
    rows: Any = given.eval_rows
    if rows is None and source is not None:
        rows = load_source(source)
    if rows is None:
        raise UsageError(
            "eval_strategy: there is nothing to evaluate on; name an evaluation dataset, or set it to no"
        )
    return build_prompts(rows, tokenizer, data.evaluation_prompts)


def training_rewards(settings: RewardSettings, given: Given) -> list[RewardFunction]:
    return load_rewards(given.reward_funcs or settings.functions, settings.weights, settings.options)


def evaluation_rewards(settings: RewardSettings, trained_on: list[RewardFunction]) -> list[RewardFunction]:
    """The evaluation's own reward functions, or those of training, with the weights that the evaluation names."""
    weights, options = settings.evaluation_weights, settings.options
    if settings.evaluation_functions is not None:
        names = [spec.rpartition(":")[2] for spec in settings.evaluation_functions]
        if options.correctness is not None and options.correctness.rpartition(":")[2] not in names:
            options = replace(options, correctness=None)  # it named one of training's
        return load_rewards(settings.evaluation_functions, weights, options)
    if weights is None:
        return trained_on
    return [replace(reward, weight=w) for reward, w in zip(trained_on, weights, strict=True)]


def check_answers(rewards: Sequence[RewardFunction], prompts: Sequence[Prompt], made: PromptSettings) -> None:
    """Raise `UsageError` for a gold answer that no completion can equal, where a reward reads them."""
    reading = [reward.name for reward in rewards if reward.golds]
    if reading and prompts:
        if "answer" not in prompts[0].columns:
            raise UsageError(
                f"reward_funcs: {reading[0]} compares with gold answers, and the dataset has no column "
                f"'{made.solution_column}' of them (it has {', '.join(prompts[0].columns)}): set "
                "dataset_solution_column (from Python: solution_column)"
            )
        check_golds(
            ((prompt.index, prompt.columns.get("answer")) for prompt in prompts), made.solution_column
        )


def check_pools(rewards: Sequence[RewardFunction]) -> None:
    """Raise `UsageError` for difficulty pools where no reward tells what is right."""
    if not any(reward.correctness for reward in rewards):
        raise UsageError(
            "difficulty_pools: go by the share of right completions, and none of "
            f"{', '.join(reward.name for reward in rewards)} is known to tell what is right; name the reward that "
            "does with correctness_reward"
        )


def check_correctness(
    objective: Objective, rewards: Sequence[RewardFunction], prompts: Sequence[Prompt]
) -> None:
    """Raise `UsageError` for an objective that is made of right answers where no reward tells them; warn elsewhere."""
    judge = next((reward for reward in rewards if reward.correctness), None)
    names = ", ".join(reward.name for reward in rewards)
    counted = objective.counts_modes and not all("modes" in prompt.columns for prompt in prompts)
    needs_modes = objective.keeps_modes or objective.reads_modes or counted
    if judge is None and (objective.needs_correctness or needs_modes):
        raise UsageError(
            f"correctness_reward: the objective needs to know which completions are right, and none of {names} is "
            "known to tell; name the one that does"
        )
    if judge is None:
        logger.warning(
            "none of the reward functions (%s) is known to tell what is right: train/pass, mean_at_k, pass_at_k and "
            "what counts different right answers are left out; set correctness_reward to the name of the one that does",
            names,
        )
    elif judge.weight <= 0 and objective.needs_correctness and objective.advantages.reads != "right":
        raise UsageError(
            f"reward_weights: the objective learns from '{judge.name}', and its weight is {judge.weight:g}; make it "
            "positive"
        )


def make_evaluation(
    settings: NativeSettings, prompts: list[Prompt] | None, scorer: Scorer, tokenizer: PreTrainedTokenizerBase
) -> Evaluation | None:
    if prompts is None:
        return None
    asked = settings.evaluation
    return Evaluation(
        prompts=prompts,
        sampling=asked.sampling,
        scorer=scorer,
        prompts_per_batch=asked.prompts_per_batch,
        greedy=asked.greedy,
        seeds=make_seeds(settings.seeds, settings.data.evaluation_prompts, tokenizer, prompts),
    )


def make_seeds(
    settings: SeedSettings | None,
    made: PromptSettings,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt] | None,
) -> SeedPrompts | None:
    """Makes InfoSeed's variants of ``prompts`` (None: others have checked them); None without InfoSeed."""
    if settings is None:
        return None
    seeds = SeedPrompts(settings.template, settings.count, tokenizer, made)
    if prompts is not None:
        seeds.check(prompts)
    return seeds


def make_bank(spec: ObjectiveSpec) -> ReplayBank | None:
    """The empty bank of an objective that replays right answers or reads their history; None for any other."""
    objective = build_objective(spec)
    if objective.replay is None:
        return ReplayBank(0) if objective.keeps_modes else None
    settings = {number.name: spec[number.name] for number in VERIFIED_REPLAY.numbers()}
    return ReplayBank(objective.replay.capacity, objective.replay.max_prompts, settings)


def make_cadence(settings: CadenceSettings, plan: BatchPlan, prompt_count: int) -> Cadence:
    """Total steps (``max_steps``, else from the epochs) and intervals; a fraction is of the total."""
    steps_per_rollout = plan.updates_per_rollout * plan.num_iterations
    rollouts = max(1, int(settings.num_train_epochs * prompt_count / plan.prompts_per_rollout))
    total = settings.max_steps if settings.max_steps > 0 else rollouts * steps_per_rollout

    def every(interval: float) -> int:
        return 0 if not interval else int(interval) if interval >= 1 else max(1, round(interval * total))

    return Cadence(
        total_steps=total,
        logging_steps=every(settings.logging_steps) or total,
        save_steps=every(settings.save_steps),
        save_total_limit=settings.save_total_limit,
        eval_steps=every(settings.eval_steps),
        eval_on_start=settings.eval_on_start,
        max_nonfinite_steps=settings.max_nonfinite_steps,
    )


# Models, learner, controllers


def load_models(
    settings: NativeSettings, given: Given, device: torch.device
) -> tuple[PreTrainedModel, Reference | None]:
    """The policy, whole, on ``device``, with its adapter, and the reference.

    There is no reference where nothing needs one, where it is the policy without its adapter, and where `train.ray`
    puts what asks reference workers in its place.
    """
    wanted = settings.model
    model = load_model(wanted, given, device)
    elsewhere = settings.workers is not None and settings.workers.reference > 0
    its_own = wanted.reference is not None or wanted.adapter is None
    reference = None
    if settings.needs_reference and its_own and not elsewhere:
        reference = make_reference(wanted, model, settings.sampling.temperature)
    return model if wanted.adapter is None else with_adapter(model, wanted.adapter), reference


def load_model(settings: ModelSettings, given: Given, device: torch.device) -> PreTrainedModel:
    """The policy's model; of an adapter's folder, with that adapter."""
    refuse_foreign_adapter(given.model)
    return (load_policy(settings.source) if given.model is None else given.model).to(device)  # type: ignore[arg-type]


def make_reference(settings: ModelSettings, policy: PreTrainedModel, temperature: float) -> PolicyForward:
    """The frozen anchor: the named model, or the policy as it is before the first step."""
    if settings.reference is None:
        return PolicyForward(frozen_copy(policy), temperature=temperature)
    reference = load_policy(settings.reference)
    reference.to(policy.device)  # type: ignore[arg-type]  # Transformers wraps Module.to untyped
    return PolicyForward(frozen_copy(reference), temperature=temperature)


def prepared(settings: ModelSettings, model: PreTrainedModel) -> PreTrainedModel:
    """The policy in training mode, with dropout and checkpointing as configured."""
    if settings.disable_dropout:
        disable_dropout_in_model(model)
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable(settings.checkpointing_options)
    return model.train()


def make_learner(
    settings: NativeSettings, model: PreTrainedModel, accelerator: Accelerator, total_steps: int
) -> Learner:
    optimizer = settings.optimizer
    return Learner(
        strategy=make_strategy(settings, model, accelerator),
        learning_rate=LearningRate(
            base=optimizer.learning_rate,
            name=optimizer.schedule,
            warmup_steps=optimizer.warmup(total_steps),
            total_steps=total_steps,
            options=dict(optimizer.schedule_options),
        ),
        accelerator=accelerator,
        max_grad_norm=optimizer.max_grad_norm,
        max_completion_length=settings.sampling.max_completion_length,
        differentiate_entropy=build_objective(settings.objective).needs_entropy,
    )


def make_strategy(settings: NativeSettings, model: PreTrainedModel, accelerator: Accelerator) -> Strategy:
    """The layout of the policy's parameters on the ranks, as ``distributed`` says."""
    asked, seeds = settings.optimizer, settings.seeds
    policy = PolicyForward(
        model,
        temperature=settings.sampling.temperature,
        pool="none" if seeds is None else seeds.pooling,
        seed_head=make_seed_head(settings, model),
    )

    def optimizer_of(parameters: Sequence[nn.Parameter]) -> Optimizer:
        return make_optimizer(parameters, asked.kind, dict(asked.options), asked.weight_decay)

    match asked.distributed:
        case "fsdp2":
            return FullyShardedStrategy(policy, optimizer_of, accelerator)
        case "zero2" | "zero3":
            return ZeroStrategy(
                policy,
                optimizer_of,
                accelerator,
                stage=int(asked.distributed.removeprefix("zero")),
                max_grad_norm=asked.max_grad_norm,
                checkpoints=settings.checkpoints,
            )
        case _:
            return Replicated(policy, optimizer_of, accelerator)


def make_seed_head(settings: NativeSettings, model: PreTrainedModel) -> nn.Linear | None:
    """InfoSeed's classifier of pooled states; None where nothing reads it."""
    seeds = settings.seeds
    if seeds is None or not seeds.classifier:
        return None
    torch.manual_seed(integer_seed(settings.seed, "seed head"))
    return nn.Linear(model.get_output_embeddings().in_features, seeds.count, device=model.device)


def make_controllers(settings: NativeSettings, total_steps: int) -> Controllers:
    """Controllers at the first step, or with the state of another run, if one is named."""
    warmup = settings.optimizer.warmup(total_steps)
    controllers = Controllers.start(replace(settings.controllers, lr_warmup_steps=warmup))
    path = settings.controller_state
    if path is None:
        return controllers
    file = path / "controller_state.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            f"controller_resume_from: no file {file}; give a controller_state.json or its directory"
        )
    return controllers.load_state_dict(read_state(file), source=str(file))
