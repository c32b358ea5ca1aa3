"""Evaluates the final policy of one run, in a process of its own: a row per prompt, temperature and evaluation seed.

The untrained policy, from which the runs start, is evaluated in the same way.

Sampler, scoring and definitions are those of the evaluation during training. Draws are keyed by (evaluation seed,
prompt, sample) and not by the run: all runs of a study answer the same prompts with the same random numbers.
"""

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from maxent_grpo.config.loading import RunConfig, resolve
from maxent_grpo.config.run_settings import data_settings, model_source, reward_settings
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.evaluate.passk import ScoredSamples, exploration_scores, of_all, samples_of
from maxent_grpo.models.loading import load_policy, load_tokenizer
from maxent_grpo.rewards.modes import load_mode_key
from maxent_grpo.rewards.registry import load_rewards
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.study.plan import UNTRAINED, EvaluationPlan
from maxent_grpo.study.runs import EVALUATION, IDENTITY, IDENTITY_KEY, RECIPE, evaluation_identity
from maxent_grpo.train.build import Given, evaluation_prompts
from maxent_grpo.types import Group

Row = dict[str, Any]

PER_SEED = ("mean", "pass", "distinct", "coverage", "breadth")
"""What each evaluation seed says by itself."""


def evaluate_run(directory: Path, evaluation: EvaluationPlan) -> None:
    """Sample from the final policy in ``directory`` and write its ``evaluation.parquet``, whole or not at all."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    saved = json.loads((directory / IDENTITY).read_text())
    command, environ = saved["identity"]["command"], dict(os.environ)
    trained = resolve(command, directory / RECIPE, None, environ).built()
    final = None if saved["arm"] == UNTRAINED else {"flat": {"model_name_or_path": str(directory)}}
    facts = {name: saved[name] for name in ("task", "arm", "seed", "run_seed")}
    config = resolve(command, directory / RECIPE, final, environ).built()
    rows = [{**facts, **row} for row in evaluation_rows(config, evaluation)]
    identity = json.dumps(evaluation_identity(trained, evaluation)).encode()
    table = arrow.Table.from_pylist(rows).replace_schema_metadata({IDENTITY_KEY: identity})
    partial = directory / f".{EVALUATION}.partial"
    parquet.write_table(table, partial)
    os.replace(partial, directory / EVALUATION)


def evaluation_rows(config: RunConfig, evaluation: EvaluationPlan) -> Iterator[Row]:
    """``temperature``, ``eval_seed``, ``prompt`` (row in its data set), ``modes``, ``k``, and scores of k samples.

    ``pcmd`` and ``cover_<t>`` are those of a prompt's samples under all evaluation seeds together, in each of its rows.
    """
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
        rows: list[Row] = []
        samples: list[ScoredSamples] = []
        for seed in evaluation.seeds:
            groups: list[Group] = []
            for start in range(0, len(prompts), at_once):
                batch = prompts[start : start + at_once]
                rollouts = sampler.sample(batch, settings, (seed, "evaluation"), policy_version=0)
                groups += scorer.score(rollouts, 0)[0]
            facts = {"temperature": temperature, "eval_seed": seed, "k": evaluation.k}
            rows += [{**facts, **row} for row in _scored(groups)]
            scored = samples_of(groups)
            samples += [] if scored is None else [scored]
        pooled = _without_k(of_all(reduce(ScoredSamples.beside, samples))) if samples else {}
        for position, row in enumerate(rows):
            yield row | {name: values[position % len(prompts)] for name, values in pooled.items()}
    scorer.close()


def _scored(groups: list[Group]) -> Iterator[Row]:
    """What the k samples of one evaluation seed say."""
    scores = {
        name: values for name, values in _without_k(exploration_scores(groups)).items() if name in PER_SEED
    }
    for position, group in enumerate(groups):
        prompt = group.rollout.prompt
        yield {
            "prompt": prompt.index,
            "modes": len(prompt.columns["modes"]) if "modes" in prompt.columns else None,
            **{name: values[position] for name, values in scores.items()},
            "mean_length": sum(map(len, group.rollout.token_ids)) / len(group.rollout.token_ids),
        }


def _without_k(scores: Mapping[str, Iterable[float]]) -> dict[str, list[float | None]]:
    """The columns without the number of samples in their names, None for what is undefined."""
    return {
        name.partition("_at_")[0]: [None if math.isnan(value) else float(value) for value in values]
        for name, values in scores.items()
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
