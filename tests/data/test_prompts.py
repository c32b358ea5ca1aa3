"""From rows to prompts: columns, templates, clipping, tokens."""

import json
import logging
import sys

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from maxent_grpo.data import templates
from maxent_grpo.data.prompts import PromptSettings, build_prompts
from maxent_grpo.data.sources import load_rows
from maxent_grpo.errors import UsageError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_tokenizer(template=TEMPLATE, adds_bos=False):
    """One token per byte, plus four special tokens."""
    special = ["<|pad|>", "<|bos|>", "<|start|>", "<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if adds_bos:
        core.post_processor = processors.TemplateProcessing("<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|start|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def rows_of(*problems, **columns):
    return [{"problem": p, "answer": str(i), **columns} for i, p in enumerate(problems)]


def test_the_tokenizers_template_frames_system_prompt_and_question():
    (prompt,) = build_prompts(rows_of("1+1?"), byte_tokenizer(), PromptSettings(system_prompt="Be brief."))
    assert prompt.text == (
        "<|bos|><|start|>system\nBe brief.<|end|><|start|>user\n1+1?<|end|><|start|>assistant\n"
    )
    assert prompt.columns == {"problem": "1+1?", "answer": "0"}
    assert (prompt.index, prompt.epoch) == (0, 0)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_ids_encode_the_text_with_the_bos_exactly_once(adds_bos):
    tokenizer = byte_tokenizer(adds_bos=adds_bos)
    (prompt,) = build_prompts(rows_of("π?"), tokenizer, PromptSettings())
    assert prompt.token_ids[0] == tokenizer.bos_token_id
    assert prompt.token_ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(prompt.token_ids) == prompt.text


@pytest.mark.parametrize(("adds_bos", "begin"), [(False, ""), (True, "<|bos|>")])
def test_without_a_template_roles_are_spelt_out_and_the_bos_is_as_the_tokenizer_has_it(adds_bos, begin):
    tokenizer = byte_tokenizer(template=None, adds_bos=adds_bos)
    (prompt,) = build_prompts(rows_of("1+1?"), tokenizer, PromptSettings(system_prompt="Be brief."))
    assert prompt.text == begin + "SYSTEM: Be brief.\nUSER: 1+1?\nASSISTANT:"
    assert prompt.token_ids.count(tokenizer.bos_token_id) == len(begin) // 7
    assert tokenizer.decode(prompt.token_ids) == prompt.text


def test_a_given_template_wins_over_the_tokenizers():
    settings = PromptSettings(chat_template="Q: {{ messages[0]['content'] }} A:")
    (prompt,) = build_prompts(rows_of("1+1?"), byte_tokenizer(), settings)
    assert prompt.text == "Q: 1+1? A:"


def test_a_chat_in_the_prompt_column_is_used_as_it_is_and_keeps_its_own_system_message():
    chat = [
        {"role": "system", "content": "Own."},
        {"role": "user", "content": "Hi", "name": None},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "1+1?"},
    ]
    rows = datasets.Dataset.from_list([{"prompt": chat, "answer": "2"}])
    settings = PromptSettings(prompt_column="prompt", system_prompt="Not this.", chat_template=None)
    (prompt,) = build_prompts(rows, byte_tokenizer(template=None), settings)
    assert prompt.text == "SYSTEM: Own.\nUSER: Hi\nASSISTANT: Hello\nUSER: 1+1?\nASSISTANT:"


def test_a_template_that_refuses_a_chat_is_a_usage_error():
    template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UsageError, match=r"row 0: System role not supported"):
        build_prompts(rows_of("x"), byte_tokenizer(template=template), PromptSettings())


@pytest.mark.parametrize("column", ["prompt", "question"])
def test_the_default_prompt_column_falls_back(column):
    rows = [{column: "1+1?", "answer": "2"}]
    assert "1+1?" in build_prompts(rows, byte_tokenizer(), PromptSettings())[0].text


def test_prompt_is_preferred_to_question_and_a_named_column_has_no_fallback():
    rows = [{"question": "no", "prompt": "yes", "answer": "2"}]
    assert "yes" in build_prompts(rows, byte_tokenizer(), PromptSettings())[0].text
    with pytest.raises(UsageError, match=r"no column 'query'.*it has question, prompt, answer"):
        build_prompts(rows, byte_tokenizer(), PromptSettings(prompt_column="query"))


def test_the_gold_is_passed_under_its_own_name_and_as_answer():
    rows = [{"problem": "x", "gold": ["1", "2"]}]
    (prompt,) = build_prompts(rows, byte_tokenizer(), PromptSettings(solution_column="gold"))
    assert prompt.columns == {"problem": "x", "gold": ["1", "2"], "answer": ["1", "2"]}


def test_a_missing_solution_column_is_only_a_warning(caplog):
    (prompt,) = build_prompts([{"problem": "x"}], byte_tokenizer(), PromptSettings())
    assert prompt.columns == {"problem": "x"}
    assert "no column 'answer'" in caplog.text


def test_rows_without_prompt_or_gold_are_left_out_and_counted_and_the_rest_keep_their_row_numbers(caplog):
    rows = [
        {"problem": " \n", "answer": "1"},
        {"problem": "a", "answer": "2"},
        {"problem": None, "answer": "3"},
        {"problem": "b", "answer": " "},
        {"problem": "c", "answer": "0"},
    ]
    prompts = build_prompts(datasets.Dataset.from_list(rows), byte_tokenizer(), PromptSettings())
    assert [p.index for p in prompts] == [1, 4]
    assert [r.message for r in caplog.records] == ["3 rows without a prompt or a gold answer left out of 5"]


def test_clipping_cuts_the_question_and_never_the_template(caplog):
    rows = rows_of("x" * 50, "y" * 20, "z" * 21)
    prompts = build_prompts(
        rows, byte_tokenizer(), PromptSettings(max_prompt_chars=20, system_prompt="s" * 40)
    )
    frame = "<|bos|><|start|>system\n" + "s" * 40 + "<|end|><|start|>user\n{}<|end|><|start|>assistant\n"
    assert [p.text for p in prompts] == [frame.format(c * 20) for c in "xyz"]
    assert prompts[0].columns["problem"] == "x" * 50
    assert [r.message for r in caplog.records] == [
        "2 prompts clipped: their user text has more than 20 characters"
    ]


@pytest.mark.parametrize(
    ("chars", "tokens", "limit"), [(2048, None, 2048), (2048, 100, 2048), (100, 30, 120)]
)
def test_the_character_limit_leaves_four_characters_per_token(chars, tokens, limit):
    assert PromptSettings(max_prompt_chars=chars, max_prompt_length=tokens).char_limit == limit


def test_prompts_with_too_many_tokens_are_left_out_with_one_warning(caplog):
    tokenizer = byte_tokenizer(template="{{ messages[0]['content'] }}")
    rows = rows_of("x" * 9, "x" * 8, "x" * 30, "x")
    prompts = build_prompts(rows, tokenizer, PromptSettings(max_prompt_length=8))
    assert [p.index for p in prompts] == [1, 3]
    assert [r.message for r in caplog.records] == [
        "2 prompts of more than 8 tokens left out (max_prompt_length)"
    ]


def test_nothing_left_is_a_usage_error():
    with pytest.raises(
        UsageError, match=r"none of the 2 rows.*1 have an empty.*1 exceed max_prompt_length=3"
    ):
        build_prompts(rows_of("x" * 9, ""), byte_tokenizer(), PromptSettings(max_prompt_length=3))
    with pytest.raises(UsageError, match="no rows"):
        build_prompts([], byte_tokenizer(), PromptSettings())


@pytest.mark.parametrize("problem", [3, {"text": "x"}, [{"role": "user"}], ["x"]])
def test_something_that_is_no_prompt_is_refused_with_row_and_column(problem):
    with pytest.raises(UsageError, match=r"row 1, column 'problem': a (prompt|message) is"):
        build_prompts(rows_of("x", problem), byte_tokenizer(), PromptSettings())


def test_rows_with_different_columns_are_refused():
    rows = [{"problem": "x", "answer": "1"}, {"problem": "x"}]
    with pytest.raises(UsageError, match="row 1 has the columns problem, and row 0 has problem, answer"):
        build_prompts(rows, byte_tokenizer(), PromptSettings())


def test_gsm8k_becomes_prompts_without_any_setting(shared_data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = load_rows(str(shared_data / "benchmarks" / "gsm8k_train.jsonl"), split="train[:300]")
    with caplog.at_level(logging.WARNING):
        prompts = build_prompts(rows, byte_tokenizer(), PromptSettings())
    assert len(prompts) == 300
    assert not caplog.records
    assert prompts[0].columns["answer"].endswith("#### 72")
    assert "Natalia sold clips" in prompts[0].text


def test_columns_may_lie_inside_others():
    rows = [
        {"data": {"problem": "3+4="}, "reward_model": {"ground_truth": "7", "style": "rule"}},
        {"data": {"problem": "1+1="}, "reward_model": None},
    ]
    settings = PromptSettings(prompt_column="data.problem", solution_column="reward_model.ground_truth")
    (prompt,) = build_prompts(rows, byte_tokenizer(), settings)
    assert "3+4=" in prompt.text
    assert prompt.columns["answer"] == "7"
    literal = [{"problem": "3+4=", "a.b": "1", "a": {"b": "2"}}]
    (prompt,) = build_prompts(literal, byte_tokenizer(), PromptSettings(solution_column="a.b"))
    assert prompt.columns["answer"] == "1"


ASKED = {"role": "user", "content": "3+4="}
BEGUN = {"role": "assistant", "content": "Let me think. 3+4"}


def test_a_chat_that_ends_with_an_answer_is_continued():
    (prompt,) = build_prompts([{"prompt": [ASKED, BEGUN]}], byte_tokenizer(), PromptSettings())
    assert prompt.text == "<|bos|><|start|>user\n3+4=<|end|><|start|>assistant\nLet me think. 3+4"
    (plain,) = build_prompts([{"prompt": [ASKED, BEGUN]}], byte_tokenizer(template=None), PromptSettings())
    assert plain.text == "USER: 3+4=\nASSISTANT: Let me think. 3+4"


def test_tools_and_template_arguments_of_a_row_reach_the_template():
    template = (
        "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{{ messages[0].content }}"
        "{% if add_generation_prompt and not enable_thinking %}<no-think>{% endif %}{{ extra }}"
    )
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    rows = [
        {
            "prompt": [ASKED],
            "tools": [tool],
            "chat_template_kwargs": {"enable_thinking": False, "extra": None},
        },
        {"prompt": [ASKED], "tools": None, "chat_template_kwargs": '{"enable_thinking": true}'},
        {"prompt": [ASKED], "tools": [], "chat_template_kwargs": None},
    ]
    texts = [p.text for p in build_prompts(rows, byte_tokenizer(template=template), PromptSettings())]
    assert texts == ["[add]3+4=<no-think>", "3+4=", "3+4=<no-think>"]
    (prompt,) = build_prompts(
        [{"prompt": [ASKED], "tools": json.dumps([tool])}], byte_tokenizer(template), PromptSettings()
    )
    assert prompt.text == "[add]3+4=<no-think>"
    with pytest.raises(UsageError, match=r"row 0, column 'tools': .*no list of tools"):
        build_prompts([{"prompt": [ASKED], "tools": "hammer"}], byte_tokenizer(), PromptSettings())
    rows = [{"prompt": [ASKED], "chat_template_kwargs": "thinking"}]
    with pytest.raises(UsageError, match=r"row 0, column 'chat_template_kwargs': .*no mapping of arguments"):
        build_prompts(rows, byte_tokenizer(), PromptSettings())


def test_a_text_of_the_column_prompt_goes_to_the_model_as_it_is(caplog):
    tokenizer = byte_tokenizer(adds_bos=True)
    templated = "<|bos|><|start|>user\n3+4=<|end|><|start|>assistant\n"
    for row, settings, text in (
        ({"prompt": "3+4="}, PromptSettings(), "<|bos|>3+4="),
        ({"prompt": "<|bos|>3+4="}, PromptSettings(), "<|bos|>3+4="),
        ({"problem": "3+4="}, PromptSettings(), templated),
        ({"prompt": "3+4="}, PromptSettings(apply_chat_template=True), templated),
        ({"problem": "3+4="}, PromptSettings(apply_chat_template=False), "<|bos|>3+4="),
        (
            {"prompt": "3+4="},
            PromptSettings(system_prompt="S"),
            "<|bos|><|start|>system\nS<|end|>" + templated[7:],
        ),
        ({"prompt": [ASKED]}, PromptSettings(apply_chat_template=False), templated),
    ):
        (prompt,) = build_prompts([row], tokenizer, settings)
        assert prompt.text == text
        assert prompt.token_ids.count(tokenizer.bos_token_id) == 1
    assert caplog.text.count("go to the model as they are; apply_chat_template=true") == 2
    with pytest.raises(UsageError, match="system_prompt: needs the chat template"):
        build_prompts(
            [{"prompt": "a"}], tokenizer, PromptSettings(apply_chat_template=False, system_prompt="S")
        )


def test_prompt_comes_before_problem_and_that_is_said(caplog):
    rows = [{"problem": "9-1=", "prompt": [ASKED], "solution": "7"}]
    (prompt,) = build_prompts(rows, byte_tokenizer(), PromptSettings(solution_column="solution"))
    assert "3+4=" in prompt.text
    assert "taken from the column 'prompt', not problem" in caplog.text
    (prompt,) = build_prompts(rows, byte_tokenizer(), PromptSettings("problem", "solution"))
    assert "9-1=" in prompt.text


def test_a_question_is_not_cut_unless_a_limit_is_set():
    (prompt,) = build_prompts(rows_of("x" * 5000 + "?"), byte_tokenizer(), PromptSettings())
    assert "x" * 5000 + "?" in prompt.text


def test_rows_without_a_gold_stay_where_no_reward_reads_golds(caplog):
    rows = [{"prompt": "a", "answer": None}, {"prompt": "b", "answer": ""}, {"prompt": "c", "answer": "3"}]
    assert len(build_prompts(rows, byte_tokenizer(), PromptSettings(apply_chat_template=False))) == 1
    caplog.clear()
    settings = PromptSettings(needs_gold=False, apply_chat_template=False)
    assert len(build_prompts(rows, byte_tokenizer(), settings)) == 3
    assert len(build_prompts([{"prompt": "a"}], byte_tokenizer(), settings)) == 1
    assert not caplog.records


@pytest.mark.parametrize("prompt", ["a \ud800 b", [{"role": "user", "content": "\udfff"}]])
def test_half_a_character_is_named_with_its_row(prompt):
    rows = [{"prompt": prompt, "answer": "1"}]
    with pytest.raises(UsageError, match=r"^row 0, column 'prompt': holds half a character"):
        build_prompts(rows, byte_tokenizer(), PromptSettings())


def test_texts_beside_chats_are_refused_with_the_row():
    rows = [{"prompt": [{"role": "user", "content": "a"}], "answer": "1"}, {"prompt": "b", "answer": "2"}]
    for mixed, kind in ((rows, "text"), (rows[::-1], "chat")):
        with pytest.raises(UsageError, match=rf"^row 1, column 'prompt': a {kind}, and row 0 is none"):
            build_prompts(mixed, byte_tokenizer(), PromptSettings())


def test_a_template_that_fails_is_named_with_the_row():
    with pytest.raises(UsageError, match=r"template fails on the prompt of row 0 \(ZeroDivisionError"):
        build_prompts(rows_of("1+1?"), byte_tokenizer(template="{{ 1 / 0 }}"), PromptSettings())


ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% if a == 1e9 %}x{% endif %}{% endfor %}{% endfor %}"
CALLS_ITSELF = "{% macro f() %}{% for i in range(9) %}{{ f() }}{% endfor %}{% endmacro %}{{ f() }}"


@pytest.mark.parametrize("template", [ENDLESS, CALLS_ITSELF])
def test_a_template_that_does_not_end_is_ended(template, monkeypatch):
    if sys.gettrace() is not None:
        pytest.skip("coverage or a debugger watches")
    monkeypatch.setattr(templates, "RENDER_SECONDS", 0.3)
    with pytest.raises(UsageError, match=r"template fails on the prompt of row 0 \((Endless|Recursion)"):
        build_prompts(rows_of("1+1?"), byte_tokenizer(template=template), PromptSettings())
    assert sys.gettrace() is None


def test_what_a_template_makes_is_left_as_it_is_and_nothing_watches_afterwards():
    assert templates.rendered(lambda: "abc") == "abc"
    with pytest.raises(ZeroDivisionError):
        templates.rendered(lambda: 1 / 0)
    assert sys.gettrace() is None
