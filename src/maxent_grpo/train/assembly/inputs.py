"""What a run reads, from its settings: prompts, rewards, how to sample, and on what to evaluate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.config.loading import RunConfig
from maxent_grpo.data.mixture import load_mixture
from maxent_grpo.data.prompts import PromptSettings, SeedPrompts, build_prompts
from maxent_grpo.data.sources import load_rows
from maxent_grpo.errors import UsageError
from maxent_grpo.evaluate.training import Evaluation
from maxent_grpo.rewards.isolation import Isolation, IsolationSettings
from maxent_grpo.rewards.registry import RewardFunction, RewardOptions, load_rewards
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.types import Prompt


@dataclass(frozen=True)
class Given:
    """Objects that a caller from Python brings instead of names in the configuration; None: as configured."""

    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    reward_funcs: Sequence[Callable[..., Any] | str] | None = None
    train_rows: Sequence[Mapping[str, Any]] | None = None
    eval_rows: Sequence[Mapping[str, Any]] | None = None


def training_prompts(config: RunConfig, given: Given, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
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
    config: RunConfig, given: Given, tokenizer: PreTrainedTokenizerBase
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


def prompt_settings(config: RunConfig, prompt_column: str, solution_column: str) -> PromptSettings:
    return PromptSettings(
        prompt_column=prompt_column,
        solution_column=solution_column,
        system_prompt=config.training.system_prompt,
        chat_template=config.training.chat_template,
        max_prompt_chars=config.max_prompt_chars,
        max_prompt_length=config.training.max_prompt_length,
    )


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


def reward_options(config: RunConfig) -> RewardOptions:
    """What the configuration says about reward functions besides their names."""
    return RewardOptions(vars(config.script), config.training.reward_isolation)


def reward_isolation(config: RunConfig) -> Isolation:
    """What runs reward functions in worker processes. Scorers may share it."""
    training = config.training
    return Isolation(
        IsolationSettings(training.reward_timeout, training.reward_memory_mb, training.reward_workers)
    )


def training_rewards(config: RunConfig, given: Given) -> list[RewardFunction]:
    functions = given.reward_funcs or config.script.reward_funcs
    return load_rewards(functions, config.training.reward_weights, reward_options(config))


def evaluation_rewards(config: RunConfig, trained_on: list[RewardFunction]) -> list[RewardFunction]:
    """The evaluation's own reward functions, or those of training, with the weights that the evaluation names."""
    script = config.script
    weights = script.eval_reward_weights or None
    if script.eval_reward_funcs:
        return load_rewards(script.eval_reward_funcs, weights, reward_options(config))
    if weights is None:
        return trained_on
    return [replace(reward, weight=w) for reward, w in zip(trained_on, weights, strict=True)]


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
