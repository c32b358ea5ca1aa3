"""Evaluates the final policy of one run, in a process of its own: a row per prompt, temperature and evaluation seed.

Sampler, scoring and definitions are those of the evaluation during training. Draws are keyed by (evaluation seed,
prompt, sample) and not by the run: all runs of a study answer the same prompts with the same random numbers.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maxent_grpo.config.loading import RunConfig, resolve
from maxent_grpo.config.run_settings import data_settings, model_source, reward_settings
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.evaluate.passk import exploration_scores
from maxent_grpo.models.loading import load_policy, load_tokenizer
from maxent_grpo.rewards.modes import load_mode_key
from maxent_grpo.rewards.registry import load_rewards
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.study.plan import EvaluationPlan
from maxent_grpo.study.runs import EVALUATION, IDENTITY, IDENTITY_KEY, RECIPE, evaluation_identity
from maxent_grpo.train.build import Given, evaluation_prompts
from maxent_grpo.types import Group

Row = dict[str, Any]


def evaluate_run(directory: Path, evaluation: EvaluationPlan) -> None:
    """Sample from the final policy in ``directory`` and write its ``evaluation.parquet``, whole or not at all."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    saved = json.loads((directory / IDENTITY).read_text())
    command, environ = saved["identity"]["command"], dict(os.environ)
    trained = resolve(command, directory / RECIPE, None, environ).built()
    final = {"flat": {"model_name_or_path": str(directory)}}
    facts = {name: saved[name] for name in ("task", "arm", "seed", "run_seed")}
    config = resolve(command, directory / RECIPE, final, environ).built()
    rows = [{**facts, **row} for row in evaluation_rows(config, evaluation)]
    identity = json.dumps(evaluation_identity(trained, evaluation)).encode()
    table = arrow.Table.from_pylist(rows).replace_schema_metadata({IDENTITY_KEY: identity})
    partial = directory / f".{EVALUATION}.partial"
    parquet.write_table(table, partial)
    os.replace(partial, directory / EVALUATION)


def evaluation_rows(config: RunConfig, evaluation: EvaluationPlan) -> Iterator[Row]:
    """``temperature``, ``eval_seed``, ``prompt`` (row in its data set), ``modes``, ``k``, and scores of k samples."""
    source = model_source(config)
    tokenizer = load_tokenizer(source)
    prompts = evaluation_prompts(data_settings(config), Given(), tokenizer)
    assert prompts is not None, "runs of a study evaluate at their start"
    sampler = LocalSampler(load_policy(source).eval(), tokenizer)
    training = config.training
    scorer = Scorer(
        load_rewards(config.script.reward_funcs, training.reward_weights, reward_settings(config).options),
        zero_truncated=training.zero_truncated_completion_rewards,
        mode_key=load_mode_key(training.mode_key),
    )
    at_once = max(1, training.per_device_eval_batch_size // evaluation.k)
    for temperature in evaluation.temperatures:
        settings = SamplingSettings(evaluation.k, training.max_completion_length, temperature)
        for seed in evaluation.seeds:
            for start in range(0, len(prompts), at_once):
                batch = prompts[start : start + at_once]
                rollouts = sampler.sample(batch, settings, (seed, "evaluation"), policy_version=0)
                for row in _scored(scorer.score(rollouts, 0)[0]):
                    yield {"temperature": temperature, "eval_seed": seed, "k": evaluation.k, **row}
    scorer.close()


def _scored(groups: list[Group]) -> Iterator[Row]:
    scores = {name.partition("_at_")[0]: values for name, values in exploration_scores(groups).items()}
    for position, group in enumerate(groups):
        prompt = group.rollout.prompt
        yield {
            "prompt": prompt.index,
            "modes": len(prompt.columns["modes"]) if "modes" in prompt.columns else None,
            **{name: values[position] for name, values in scores.items()},
            "mean_length": sum(map(len, group.rollout.token_ids)) / len(group.rollout.token_ids),
        }


def main(arguments: list[str]) -> int:
    """``python -m maxent_grpo.study.final_policy RUN_DIRECTORY '{"k": 8, …}'``."""
    directory, text = arguments
    given = json.loads(text)
    try:
        evaluate_run(
            Path(directory), EvaluationPlan(given["k"], tuple(given["temperatures"]), tuple(given["seeds"]))
        )
    except (UsageError, RunError) as error:
        print(f"maxent-grpo: study: {directory}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
