"""Where rows come from, and what each way of not getting them says."""

import json
import logging
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub.errors import HfHubHTTPError

from maxent_grpo.data.sources import RetryPolicy, load_rows, with_retries
from maxent_grpo.errors import RunError, UsageError

ROWS = [{"problem": f"{i}+1", "answer": str(i + 1), "level": i % 3} for i in range(10)]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # nothing here reaches for the hub


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_every_file_type_gives_the_same_rows(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    rows = [{**row, "answer": f"x{row['answer']}"} for row in ROWS]  # CSV would read bare digits as integers
    dataset = datasets.Dataset.from_list(rows)
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        {".jsonl": dataset.to_json, ".parquet": dataset.to_parquet, ".csv": dataset.to_csv}[suffix](str(path))
    assert list(load_rows(str(path))) == rows


def test_columns_are_selected_and_a_missing_one_is_named_with_those_available(jsonl):
    assert load_rows(str(jsonl), columns=["answer"]).column_names == ["answer"]
    with pytest.raises(UsageError, match=r"no column 'gold'; it has 'problem', 'answer', 'level'"):
        load_rows(str(jsonl), columns=["answer", "gold"])


def test_a_slice_of_a_file_is_a_split(jsonl):
    assert list(load_rows(str(jsonl), split="train[2:4]")) == ROWS[2:4]


def test_saved_datasets_are_read_back(tmp_path):
    train, test = datasets.Dataset.from_list(ROWS[:6]), datasets.Dataset.from_list(ROWS[6:])
    train.save_to_disk(tmp_path / "single")
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "splits")
    assert list(load_rows(str(tmp_path / "single"))) == ROWS[:6]
    assert list(load_rows(str(tmp_path / "splits"), split="test")) == ROWS[6:]
    with pytest.raises(UsageError, match=r"splits': there is no split 'dev'; it has 'train', 'test'"):
        load_rows(str(tmp_path / "splits"), split="dev")
    with pytest.raises(UsageError, match=r"single': there is no split 'test'; it has 'train'"):
        load_rows(str(tmp_path / "single"), split="test")


def test_a_folder_of_data_files_has_the_splits_that_its_file_names_say(tmp_path, jsonl):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text(jsonl.read_text())
    (folder / "test.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert len(load_rows(str(folder))) == 10
    assert len(load_rows(str(folder), split="test")) == 1
    with pytest.raises(UsageError, match="nope"):
        load_rows(str(folder), split="nope")


@pytest.mark.parametrize(
    ("name", "content", "split", "said"),
    [
        ("gone.jsonl", None, "train", "there is no such file"),
        ("gone", None, "train", "there is no such file"),
        ("empty.jsonl", "", "train", "the file is empty"),
        ("header.csv", "problem,answer\n", "train", "corresponds to no data"),
        ("rows.txt", "hello", "train", r"'\.txt' are not read; use one of \.jsonl"),
        ("broken.jsonl", '{"problem": "x"}\n{"problem": \n', "train", "JSON parse error"),
        ("fine.jsonl", '{"problem": "x"}\n', "test", r'Unknown split "test"'),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line_with_its_name(tmp_path, name, content, split, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said) as caught:
        load_rows(str(tmp_path / name), split=split)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dataset_without_rows_is_a_usage_error(tmp_path):
    datasets.Dataset.from_dict({"problem": [], "answer": []}).save_to_disk(tmp_path / "hollow")
    with pytest.raises(UsageError, match=r"hollow': split 'train' has no rows"):
        load_rows(str(tmp_path / "hollow"))


def test_a_folder_without_data_files_is_a_usage_error(tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(UsageError, match=r"bare.*any data files"):
        load_rows(str(tmp_path / "bare"))


def test_task_rows_follow_the_options():
    rows = load_rows("task:arithmetic", config="train_size=8")
    assert len(rows) == 8
    assert list(rows) == list(load_rows("task:arithmetic", config="seed=0,train_size=8"))
    assert list(rows) != list(load_rows("task:arithmetic", config="seed=4,train_size=8"))


def _http_error(status):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(f"status {status}", response=response)


@pytest.mark.parametrize(
    "error", [ConnectionError("down"), TimeoutError("slow"), _http_error(429), _http_error(503)]
)
def test_passing_failures_are_retried_with_jittered_exponential_waits(error, caplog):
    failures, waits = [error] * 4, []

    def load():
        if failures:
            raise failures.pop()
        return "rows"

    with caplog.at_level(logging.WARNING):
        policy = RetryPolicy(retries=4, sleep=2.0, max_sleep=10.0)
        assert with_retries(load, "org/name", policy, sleep=waits.append) == "rows"
    assert len(caplog.records) == len(waits) == 4
    assert all(0.85 * d <= w <= 1.15 * d for w, d in zip(waits, [2.0, 4.0, 8.0, 10.0], strict=True))
    assert len({round(w / d, 6) for w, d in zip(waits, [2.0, 4.0, 8.0, 10.0], strict=True)}) == 4


def test_a_lasting_failure_is_not_retried():
    calls = []

    def load():
        calls.append(1)
        raise _http_error(404)

    with pytest.raises(HfHubHTTPError):
        with_retries(load, "org/name", RetryPolicy(), sleep=lambda _: None)
    assert len(calls) == 1


def test_retries_run_out_with_a_line_that_names_dataset_and_remedy(monkeypatch):
    attempts = []

    def unreachable(*args, **kwargs):
        attempts.append(args)
        raise ConnectionError("Couldn't reach 'org/name' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(RunError, match=r"'org/name' cannot be fetched.*3 attempts.*local copy") as caught:
        load_rows("org/name", retry=RetryPolicy(retries=2, sleep=0.0))
    assert len(attempts) == 3
    assert "\n" not in str(caught.value)


def test_offline_mode_fails_at_once(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def unreachable(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(RunError, match=r"'org/name' cannot be fetched from the hub \(offline mode is on\)"):
        load_rows("org/name", retry=RetryPolicy(sleep=1e9))


def test_an_unknown_hub_dataset_is_a_usage_error(monkeypatch):
    def not_found(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/name' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", not_found)
    with pytest.raises(UsageError, match=r"'org/name'.*check the name"):
        load_rows("org/name")


def test_gsm8k_loads_whole(shared_data):
    rows = load_rows(str(shared_data / "benchmarks" / "gsm8k_train.jsonl"))
    assert len(rows) == 7473
    assert all("####" in answer for answer in rows["answer"])
