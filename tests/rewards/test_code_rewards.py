"""Code rewards: what passes, what may not happen, and that nothing is left behind."""

import os
import time
from pathlib import Path

import pytest

from maxent_grpo.rewards import code
from maxent_grpo.rewards.code import binary_code, passed_share, program_in, python_unit_tests

ADD = "```python\ndef add(a, b):\n    return a + b\n```"
TESTS = [
    "assert add(1, 2) == 3",
    "assert add(0, 0) == 0",
    "assert add(1, 1) == 3",
    "assert add('a', 'b') == 'ab'",
]


def test_the_score_is_the_share_of_asserts_that_pass():
    assert python_unit_tests([ADD, "no code"], test_list=[TESTS, TESTS]) == [0.75, 0.0]
    assert binary_code([ADD, ADD], test_list=[TESTS, TESTS[:2]]) == [0.0, 1.0]


def test_humaneval_and_apps_columns():
    check = "def check(candidate):\n    assert candidate(2, 2) == 4\n"
    assert python_unit_tests([ADD], test=[check], entry_point=["add"]) == [1.0]
    reads = "```py\nn = int(input())\nprint(n * 2, ' ')\nexit()\n```"
    cases = {"inputs": ["1\n", "2\n", "x\n"], "outputs": ["2", "5\n", "0"]}
    assert python_unit_tests([reads], input_output=[cases]) == [pytest.approx(1 / 3)]
    with pytest.raises(TypeError, match="need a column test_list"):
        python_unit_tests([ADD])


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("a\n```\nx\n```\nb\n```py\ny\n```\nc", "y\n"),
        ("```python\nx\n```\n```python\nunclosed", "x\n"),
        ("```x = 1```", "x = 1"),
        ("", ""),
    ],
)
def test_the_program_is_the_last_closed_block(text, program):
    assert program_in(text) == program


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "x = bytearray(1 << 31)",
        "x = 'a'\nwhile True: x += x",
        "open('big', 'w').write('x' * (1 << 22))",
        "[open('/dev/null') for _ in range(1000)]",
        "import numpy",
        "import maxent_grpo",
        "import socket; socket.create_connection(('127.0.0.1', 1), 1)",
        "def f(): f()\nf()",
        "\ud800",
        "a\0b",
        "(" * 5000,
        "print('x' * (1 << 24), flush=True)",
    ],
)
def test_what_a_program_may_not_do_passes_nothing(program):
    assert passed_share(program, [("", None, None)]) == 0.0


def test_a_program_that_hangs_is_stopped_and_what_it_started_too(tmp_path):
    began = time.monotonic()
    program = "import os, time\nif os.fork() == 0:\n    time.sleep(77.5)\nwhile True: pass"
    assert passed_share(program, [("", None, None)] * 5, seconds=0.7) == 0.0
    assert time.monotonic() - began < 3
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)]
    assert not any(b"case.json" in command for command in commands)


def test_the_program_runs_in_a_folder_of_its_own_without_the_users_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.chdir(tmp_path)
    program = (
        "import os\nassert 'SECRET_TOKEN' not in os.environ\n"
        "assert sorted(os.listdir()) == ['input', 'output']\nopen('left', 'w')"
    )
    assert passed_share(program, [("", None, None)]) == 1.0
    assert list(tmp_path.iterdir()) == []


def test_the_network_is_out_of_reach_where_namespaces_are_granted():
    try:
        pid = os.fork()
        if pid == 0:
            import ctypes

            os._exit(int(ctypes.CDLL(None).unshare(0x50000000) != 0))
        granted = os.waitpid(pid, 0)[1] == 0
    except OSError:
        granted = False
    if not granted:
        pytest.skip("this kernel grants no namespaces")
    program = "import socket\nassert socket.if_nameindex() == [(1, 'lo')]"
    assert passed_share(program, [("", None, None)]) == 1.0


def test_no_cases_is_no_success():
    assert passed_share("pass", []) == 0.0
    assert code.python_unit_tests([ADD], test_list=[[]]) == [0.0]


def readable(path):
    try:
        return bool(path.read_bytes())
    except OSError:
        return False
