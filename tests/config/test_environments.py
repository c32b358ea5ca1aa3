"""The environments that `env.dataset` names, on the real rows: prompts are made, right answers are rewarded."""

import json
from pathlib import Path

import pytest

from maxent_grpo.config.torchrl_names import ENVIRONMENTS
from maxent_grpo.data.prompts import PromptSettings, build_prompts
from maxent_grpo.data.sources import load_rows
from maxent_grpo.errors import UsageError
from maxent_grpo.rewards.registry import RewardOptions, load_rewards
from maxent_grpo.rewards.scoring import Scorer
from maxent_grpo.types import Prompt, Rollout

FILES = {
    "gsm8k": "benchmarks/gsm8k_train.jsonl",
    "math": "benchmarks/math500.jsonl",
    "ifeval": "ifeval/input_data.jsonl",
}


def _prompts(name: str, dataset_name: str, tokenizer, count: int = 12) -> list[Prompt]:
    environment = ENVIRONMENTS[name]
    rows = load_rows(dataset_name, config=environment.get("dataset_config"), split="train")
    settings = PromptSettings(
        prompt_column=environment["dataset_prompt_column"],
        solution_column=environment.get("dataset_solution_column", "answer"),
        system_prompt=environment.get("system_prompt"),
    )
    return build_prompts(rows.select(range(count)), tokenizer, settings)


def _utilities(name: str, prompts: list[Prompt], texts: list[str]) -> list[float]:
    """What the environment's rewards give each prompt's one completion."""
    functions = load_rewards(ENVIRONMENTS[name]["reward_funcs"], None, RewardOptions(isolation=False))
    rollouts = [
        Rollout(prompt, ((1,),), ((0.0,),), (text,), ("stop",), 0)
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    scorer = Scorer(functions)
    groups, metrics = scorer.score(rollouts, 1)
    scorer.close()
    assert float(metrics["reward/errors"].value) == 0.0
    return [group.utilities[0] for group in groups]


def test_gsm8k(shared_data: Path, tokenizer) -> None:
    prompts = _prompts("gsm8k", str(shared_data / FILES["gsm8k"]), tokenizer)
    golds = [prompt.columns["answer"].rpartition("#### ")[2] for prompt in prompts]
    right = [f"<think>so</think><answer>{gold}</answer>" for gold in golds]
    assert _utilities("gsm8k", prompts, right) == [1.0] * 12
    assert (
        _utilities("gsm8k", prompts, [text.replace("<answer>", "<answer>1") for text in right]) == [0.1] * 12
    )
    assert _utilities("gsm8k", prompts, golds) == [0.0] * 12  # without the form
    assert all(ENVIRONMENTS["gsm8k"]["system_prompt"] in prompt.text for prompt in prompts)


def test_math_reads_its_gold_from_the_solutions(shared_data: Path, tokenizer) -> None:
    prompts = _prompts("math", str(shared_data / FILES["math"]), tokenizer)
    rows = [json.loads(line) for line in (shared_data / FILES["math"]).read_text().splitlines()[:12]]
    right = [f"It is \\boxed{{{row['answer']}}}." for row in rows]
    assert _utilities("math", prompts, right) == [1.0] * 12
    assert _utilities("math", prompts, ["It is \\boxed{-1234567}."] * 12) == [0.0] * 12


def test_ifeval(shared_data: Path, tokenizer) -> None:
    try:
        load_rewards(["ifeval"])
    except UsageError as error:
        pytest.skip(str(error))
    prompts = _prompts("ifeval", str(shared_data / FILES["ifeval"]), tokenizer)
    answers = {}
    path = shared_data / "ifeval" / "input_response_data_gpt4_20231107_145030.jsonl"
    for line in path.read_text().splitlines():
        row = json.loads(line)
        answers[row["prompt"]] = row["response"]
    texts = [answers[prompt.columns["prompt"]] for prompt in prompts]
    answered = _utilities("ifeval", prompts, [f"<answer>{text}</answer>" for text in texts])
    assert max(answered) == pytest.approx(1.1)  # everything followed, in an answer, without a thought
    assert sum(answered) / 12 > 0.5  # GPT-4 follows most
    assert max(_utilities("ifeval", prompts, texts)) == 0.0  # no answer


@pytest.mark.parametrize("name", ["countdown", "countdown_feedback"])
def test_countdown_needs_no_download(name: str, tokenizer) -> None:
    prompts = _prompts(name, ENVIRONMENTS[name]["dataset_name"], tokenizer)
    assert all(len(json.loads(prompt.columns["facts"])["numbers"]) == 4 for prompt in prompts)
    assert _utilities(name, prompts, [prompt.columns["answer"] for prompt in prompts]) == [1.0] * 12
    assert _utilities(name, prompts, ["1+1"] * 12) == [0.0] * 12
