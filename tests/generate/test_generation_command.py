"""The command line of a generation: flags, keys, exit codes, and the tiny server of the smoke runs behind it."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from maxent_grpo.cli.flags import generation_flags, is_generation
from maxent_grpo.cli.main import generate, main
from maxent_grpo.errors import UsageError
from openai_server import Reply, chat, serving

ROOT = Path(__file__).resolve().parents[2]


def test_flags_become_settings():
    flags = [
        "--hf-dataset",
        "a",
        "--num-generations=4",
        "--allow-failed-rows",
        "--no-resume",
        "--seed",
        "null",
    ]
    assert generation_flags(flags) == {
        "hf_dataset": "a",
        "num_generations": "4",
        "allow_failed_rows": True,
        "resume": False,
        "seed": None,
    }
    with pytest.raises(UsageError, match="--model needs a value"):
        generation_flags(["--model"])
    with pytest.raises(UsageError, match="do not mix"):
        generation_flags(["--model", "m", "generate.args.limit=3"])


def test_keys_and_hydras_own_flags_are_not_taken_for_flags():
    assert is_generation(["--hf-dataset", "a"])
    assert is_generation(["--help"])
    assert not is_generation(["generate.args.model=m", "--multirun"])
    assert not is_generation([])


def test_the_help_names_every_setting_with_its_default(capsys):
    assert generate(["--help"]) == 0
    text = capsys.readouterr().out
    for line in ("--hf-dataset\n", "--vllm-server-url (http://localhost:8000/v1)", "--max-new-tokens (8192)"):
        assert line in text
    assert "--private (false)" in text


@pytest.mark.parametrize("spelling", ["keys", "flags"])
def test_both_spellings_generate(tmp_path, capsys, spelling):
    given = {"hf_dataset": "task:arithmetic", "model": "m", "limit": "2", "output_dir": str(tmp_path / "out")}
    with serving(lambda request: chat("4")) as server:
        given["vllm_server_url"] = server.url
        if spelling == "keys":
            code = main(
                ["command=generate", *(f"generate.args.{key}={value}" for key, value in given.items())]
            )
        else:
            code = generate(
                [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)]
            )
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.out.startswith("2 of 2 rows generated in ")
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 2


def test_failed_rows_are_exit_code_1_and_wrong_settings_2(tmp_path, capsys):
    with serving(lambda request: Reply(b"no", status=400)) as server:
        given = [
            f"generate.args.vllm_server_url={server.url}",
            f"generate.args.output_dir={tmp_path / 'out'}",
        ]
        given += [
            "generate.args.hf_dataset=task:arithmetic",
            "generate.args.model=m",
            "generate.args.limit=2",
        ]
        assert generate(given) == 1
        assert "maxent-grpo: generate: 2 of 2 rows have no completion" in capsys.readouterr().err
        assert generate([*given, "generate.args.modle=m"]) == 2
        assert "generate.args.modle: unknown (did you mean model?)" in capsys.readouterr().err
        assert generate([*given, "generate.model=m"]) == 2
        assert "generate.model: unknown key; write generate.args.model" in capsys.readouterr().err


@contextmanager
def tiny_server() -> Iterator[str]:
    command = [sys.executable, str(ROOT / "tools" / "tiny_openai_server.py"), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
def test_a_real_policy_answers_through_the_tiny_server(tmp_path):
    def flags(out: str) -> list[str]:
        return (
            f"--hf-dataset task:graph_coloring --model bundled:tiny-policy --vllm-server-url {url} --limit 6 "
            f"--num-generations 4 --max-new-tokens 16 --temperature 1 --output-dir {tmp_path / out}"
        ).split()

    with tiny_server() as url:
        assert json.load(urllib.request.urlopen(f"{url}/models"))["data"][0]["id"] == "bundled:tiny-policy"
        assert generate(flags("a")) == 0
        assert generate([*flags("b"), "--input-batch-size", "1"]) == 0
    runs = [(tmp_path / out / "rows.jsonl").read_text().splitlines() for out in "ab"]
    rows, again = ({row["generation_row"]: row for row in map(json.loads, lines)} for lines in runs)
    assert rows == again  # a completion's seed is its own, whatever runs beside it
    assert len(rows) == 6
    assert all(len(row["generation"]) == 4 for row in rows.values())
    assert len({text for row in rows.values() for text in row["generation"]}) > 6
    digits = [text for row in rows.values() for text in row["generation"] if set(text) <= set("123")]
    assert len(digits) >= 20  # of 24: the policy answers in colours
