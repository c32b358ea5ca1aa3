"""Whatever a caller from Python has as data becomes rows, or is refused in one line that says what to give instead."""

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from maxent_grpo.data.given import given_rows
from maxent_grpo.errors import UsageError

CHAT = [{"role": "user", "content": "1+1="}]
ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": None}]
SET = datasets.Dataset.from_list(ROWS)
LISTS = datasets.Dataset.from_list([{"prompt": CHAT, "golds": ["2", "3"]}] * 2)


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        tuple(ROWS),
        SET,
        SET.with_format("numpy"),
        SET.with_format("pandas"),
        SET.with_format("torch"),
        {"prompt": ["1+1=", "2+2="], "answer": ["2", None]},
        {"prompt": SET["prompt"], "answer": SET["answer"]},
        {"prompt": pd.Series(["1+1=", "2+2="]), "answer": ["2", None]},
        pd.DataFrame(ROWS),
        pd.DataFrame(ROWS, index=[7, 9]),
        np.array(ROWS, dtype=object),
    ],
)
def test_rows_in_every_form_are_the_same_rows(given):
    assert list(given_rows(given, "train_dataset")) == ROWS


@pytest.mark.parametrize(
    "given",
    [
        ["1+1=", "2+2="],
        SET["prompt"],
        np.array(["1+1=", "2+2="]),
        pd.Series(["1+1=", "2+2="], index=[3, 1]),
    ],
)
def test_texts_are_prompts(given):
    assert list(given_rows(given, "train_dataset")) == [{"prompt": "1+1="}, {"prompt": "2+2="}]


def test_chats_are_prompts_and_arrays_in_rows_are_lists():
    assert list(given_rows([CHAT, CHAT], "train_dataset")) == [{"prompt": CHAT}] * 2
    expected = [{"prompt": CHAT, "golds": ["2", "3"]}] * 2
    for given in (LISTS.with_format("numpy"), LISTS.to_pandas()):
        assert [dict(row) for row in given_rows(given, "train_dataset")] == expected
    (row,) = given_rows([{"prompt": "x", "answer": np.float64(2.5)}], "train_dataset")
    assert type(row["answer"]) is float


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "train_dataset is missing"),
        ([], "train_dataset is empty"),
        ({}, "train_dataset is empty"),
        (SET.select([]), "train_dataset is empty"),
        ("3+4=", "is a text: give a list of texts"),
        (3, "is a int: give a list"),
        ([1, 2], r"row 0: 1 is a int, expected a text, a chat or a row"),
        (["a", None], r"row 1: None is a NoneType"),
        (["a", b"b"], r"row 1: b'b' is a bytes"),
        (["a", []], r"row 1: \[\] is a list"),
        (torch.arange(3), "row 0: 0 is a int"),
        (CHAT, "is one chat: give a list of chats"),
        ((text for text in ["a"]), "is a generator, whose rows cannot be counted"),
        ({"a", "b"}, "is a set, whose rows cannot be counted"),
        (SET.to_iterable_dataset(), "is a IterableDataset, whose rows cannot be counted.*islice"),
        (datasets.DatasetDict(train=SET, test=SET), r"several data sets \('train', 'test'\): give one"),
        ({"easy": ROWS, "hard": ROWS}, r"several data sets \('easy', 'hard'\)"),
        ({"prompt": ["a"], "answer": []}, "not of one length: 'prompt' has 1, 'answer' has 0"),
        ({"prompt": "a"}, "column 'prompt': a str"),
    ],
)
def test_what_cannot_be_rows_is_refused_in_one_line(given, said):
    with pytest.raises(UsageError, match=said) as caught:
        given_rows(given, "train_dataset")
    assert "\n" not in str(caught.value)
