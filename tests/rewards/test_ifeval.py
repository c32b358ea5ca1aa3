"""IFEval: the checkers, TorchRL's composition, and the published numbers."""

import json
import os
import shutil

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.rewards import ifeval as ifeval_module
from maxent_grpo.rewards.ifeval import _versions, followed, ifeval
from maxent_grpo.rewards.registry import load_rewards


@pytest.fixture
def checkers():
    pytest.importorskip("lm_eval")
    try:
        ifeval_module.ensure_ifeval()
    except UsageError as error:
        pytest.skip(str(error))


IDS = ["punctuation:no_comma", "change_case:english_lowercase"]


def reward(text, ids=IDS, kwargs=({}, {})):
    (value,) = ifeval([text], [list(ids)], [list(kwargs)], ["prompt"])
    return value


def test_the_reward_is_torchrls_weighted_sum(checkers):
    assert reward("<think>x</think><answer>all is well</answer>") == pytest.approx(1.15)
    assert reward("<answer>all is well</answer>") == pytest.approx(1.1)
    assert reward("<answer>all is, well</answer>") == pytest.approx(0.3 / 2 + 0.1 / 2 + 0.1)
    assert reward("all is well") == 0.0
    assert reward("<answer>all is well</answer><answer>no</answer>") == pytest.approx(1.0)
    # Loose: without its first line it is followed.
    assert reward("<answer>Sure, here\nall is well</answer>") == pytest.approx(0.2 + 0.1 + 0.1)


def test_the_reward_is_that_of_torchrls_scorer(checkers):
    torch = pytest.importorskip("torch")
    scorer = pytest.importorskip("torchrl.envs.llm.reward.ifeval._scorer")
    for text, kwargs in (
        ("all is well", [{}, {}]),
        ("All, is well", [{}, {}]),
        ("Sure,\nall is well", [{}, {}]),
    ):
        verdict = followed(text, IDS, kwargs, "prompt")
        score = scorer.IFEvalScoreData(
            prompt_level_strict_acc=torch.tensor([all(verdict.strict)]),
            inst_level_strict_acc=torch.tensor(verdict.strict),
            prompt_level_loose_acc=torch.tensor([all(verdict.loose)]),
            inst_level_loose_acc=torch.tensor(verdict.loose),
            batch_size=[],
        )
        theirs = scorer.IfEvalScorer().default_reward_aggregator(
            score, think_blocks=["x"], answer_blocks=[text]
        )
        assert reward(f"<think>x</think><answer>{text}</answer>") == pytest.approx(float(theirs))


def test_none_arguments_are_left_out_and_the_prompt_is_known_to_who_asks(checkers):
    ids = ["combination:repeat_prompt"]
    arguments = [{"prompt_to_repeat": "Say it.", "num_words": None}]
    assert followed("Say it. Done.", ids, arguments, "p").strict == (True,)
    assert followed("Done.", ids, arguments, "p").strict == (False,)


def test_a_loose_response_may_lose_its_ends_and_its_asterisks():
    assert _versions("a*\nb\nc") == ["a*\nb\nc", "a\nb\nc", "b\nc", "a*\nb", "b", "b\nc", "a\nb", "b"]


def test_there_are_25_instruction_types_and_gpt4_follows_as_many_as_published(checkers, shared_data):
    from benchmarks.ifeval import accuracies

    with (shared_data / "ifeval" / "input_data.jsonl").open() as lines:
        assert len({name for line in lines for name in json.loads(line)["instruction_id_list"]}) == 25
    counts = accuracies(shared_data / "ifeval")
    assert (counts.prompts, counts.instructions) == (541, 834)
    assert 415 <= counts.prompt_strict <= 417
    assert 696 <= counts.instruction_strict <= 698


def test_what_is_missing_is_said_when_the_reward_is_named(monkeypatch):
    monkeypatch.setattr(ifeval_module, "PACKAGES", ("no_such_package",))
    with pytest.raises(
        UsageError, match=r"the package no_such_package is not installed; install maxent-grpo\[ifeval\]"
    ):
        load_rewards(["ifeval"])
    monkeypatch.setattr(ifeval_module, "PACKAGES", ())
    monkeypatch.setattr(ifeval_module, "_DATA", "tokenizers/no_such_data")
    pytest.importorskip("nltk")
    with pytest.raises(
        UsageError, match=r"punkt_tab data are not here; install .* or name their folder in NLTK_DATA"
    ):
        load_rewards(["ifeval"])


def test_data_that_nltk_refuses_are_named_with_the_remedy(monkeypatch, tmp_path):
    nltk = pytest.importorskip("nltk")
    bundle = next(iter(ifeval_module._bundles()), None)
    if bundle is None:
        pytest.skip("llama-index-core, which carries the data, is not installed")
    shutil.copytree(bundle, tmp_path / "data")
    for file in list((tmp_path / "data").rglob("*.tab")):
        os.link(file, file.with_suffix(".second"))
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(ifeval_module, "_bundles", lambda: [str(tmp_path / "data")])
    with pytest.raises(UsageError, match=r"NLTK refuses its data .* install again with UV_LINK_MODE=copy"):
        load_rewards(["ifeval"])
