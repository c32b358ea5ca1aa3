"""Several datasets as one: shares, order, hold-out."""

import json

import datasets
import pytest

from maxent_grpo.data.mixture import load_mixture
from maxent_grpo.errors import UsageError


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Paths of two datasets: 100 rows "a0"… and 10 rows "b0"…, with their columns in different order."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    paths = {}
    for name, count in (("a", 100), ("b", 10)):
        rows = [{"problem": f"{name}{i}", "answer": str(i)} for i in range(count)]
        if name == "b":
            rows = [dict(reversed(row.items())) | {"extra": 1} for row in rows]
        paths[name] = str(tmp_path / f"{name}.jsonl")
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def _settings(parts, **settings):
    columns = ["problem", "answer"]
    entries = [
        {"id": parts["a"], "weight": 0.29, "columns": columns},
        {"id": parts["b"], "config": None, "split": "train", "columns": columns},
    ]
    return {"datasets": entries, **settings}


def test_a_weight_is_the_share_of_a_dataset_that_is_kept(parts):
    train, test = load_mixture(_settings(parts, seed=1))
    assert test is None
    problems = train["problem"]
    assert len(set(problems)) == len(problems) == 29 + 10
    assert sum(p.startswith("a") for p in problems) == 29
    assert {p for p in problems if p.startswith("b")} == {f"b{i}" for i in range(10)}


def test_the_seed_alone_decides_which_rows_and_in_which_order(parts):
    first, again, other = (load_mixture(_settings(parts, seed=s))[0]["problem"] for s in (1, 1, 2))
    assert list(first) == list(again)
    assert set(first) != set(other)
    assert [p[0] for p in first] != sorted(p[0] for p in first)  # shuffled across datasets


def test_a_dataset_listed_twice_is_drawn_twice_independently(parts):
    entry = {"id": parts["a"], "weight": 0.5}
    problems = load_mixture({"datasets": [entry, entry]})[0]["problem"]
    assert len(problems) == 100
    assert 50 < len(set(problems)) < 100


def test_the_held_out_rows_are_a_share_of_all_and_not_trained_on(parts):
    train, test = load_mixture(_settings(parts, test_split_size=0.25))
    assert (len(train), len(test)) == (30, 9)
    assert not set(train["problem"]) & set(test["problem"])


def test_differing_columns_are_refused_by_name(parts):
    with pytest.raises(UsageError, match=r"b\.jsonl' has the columns \['answer', 'extra', 'problem'\]"):
        load_mixture({"datasets": [{"id": parts["a"]}, {"id": parts["b"]}]})


def test_columns_of_two_types_are_refused(parts, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"problem": "c", "answer": {"nested": 3}}\n')
    with pytest.raises(UsageError, match="cannot be joined"):
        load_mixture({"datasets": [{"id": parts["a"]}, {"id": str(tmp_path / "c.jsonl")}]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"datasets": []}, "at least one dataset"),
        ({"sed": 1}, "unknown key 'sed'; known are datasets, seed, test_split_size"),
        ({"test_split_size": 1.0}, "fraction between 0 and 1"),
        ({"test_split_size": 0.001}, "leaves one side empty"),
        ({"datasets": ["a"]}, r"datasets\[0\]: expected a mapping"),
        ({"datasets": [{"id": "a", "wieght": 1}]}, r"datasets\[0\]: unknown key 'wieght'"),
        ({"datasets": [{"id": "a", "weight": 1.5}]}, r"datasets\[0\].weight is 1.5"),
        ({"datasets": [{"id": "a", "weight": 0}]}, r"datasets\[0\].weight is 0"),
        ({"datasets": [{"id": "a", "columns": "problem"}]}, r"datasets\[0\].columns is 'problem'"),
    ],
)
def test_a_wrong_setting_is_named(parts, change, said):
    with pytest.raises(UsageError, match=said):
        load_mixture(_settings(parts) | change)


def test_a_share_that_keeps_nothing_is_refused(parts):
    with pytest.raises(UsageError, match=r"weight 0.01 of the 10 rows of .*b\.jsonl' keeps none"):
        load_mixture({"datasets": [{"id": parts["b"], "weight": 0.01}]})
