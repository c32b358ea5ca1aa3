"""Code rewards: what passes, what no completion can read, write or forge, and that nothing is left behind."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.rewards import code
from maxent_grpo.rewards.code import (
    binary_code,
    check_confinement,
    program_in,
    python_unit_tests,
    share_of_outputs,
    share_of_tests,
)
from maxent_grpo.rewards.code_sandbox import missing_confinement

ADD = "```python\ndef add(a, b):\n    return a + b\n```"
TESTS = [
    "assert add(1, 2) == 3",
    "assert add(0, 0) == 0",
    "assert add(1, 1) == 3",
    "assert add('a', 'b') == 'ab'",
]
confined = pytest.mark.skipif(bool(missing_confinement()), reason=missing_confinement())


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
    ("program", "test"),
    [
        (
            "def f(x): return (x, [x], {x: {x}}, None, 1.5, b'a', 2j)",
            "assert f(3) == (3, [3], {3: {3}}, None, 1.5, b'a', 2j)",
        ),
        (
            "from collections import Counter\ndef f(s): return Counter(s)",
            "assert f('aab') == {'a': 2, 'b': 1}",
        ),
        (
            "from fractions import Fraction\ndef f(): return Fraction(1, 3)",
            "import fractions\nassert f() * 3 == 1",
        ),
        ("def f(xs): xs.sort(); xs.append([0])", "xs = [2, 1]\nf(xs)\nassert xs == [1, 2, [0]]"),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]\nassert sum(f(3)) == 3"),
        ("class S:\n    def g(self, x=1): return x + 1", "s = S()\nassert s.g(x=2) == 3 and s.g() == 2"),
        ("class P:\n    def __init__(self, a): self.a = a", "p = P(1)\np.a = 5\nassert p.a == 5"),
        ("def f(g, x): return g(g(x))", "assert f(lambda v: v + 2, 1) == 5"),
        (
            "def f(x): raise ValueError('no')",
            "try:\n    f(1)\nexcept ValueError as e:\n    assert 'no' in str(e)\nelse:\n    assert 0",
        ),
        ("def sum(a, b): return a * b", "assert sum(2, 5) == 10"),
        ("def is_even(n): return n % 2 == 0", "assert is_even(4) is True and is_even(3) is False"),
        ("class N(int): pass\nclass T(str): pass\ndef f(): return N(3), T('a')", "assert f() == (3, 'a')"),
        ("def f(n): return 10 ** n", "assert f(5000) == 10 ** 5000"),
        ("import math\ndef f(x): return math.sqrt(x)", "assert abs(f(2) - 1.41421356) < 1e-6"),
        (
            "def f(x): return x",
            "def check(candidate):\n    for i in range(9):\n        assert candidate(i) == i\ncheck(f)",
        ),
    ],
)
def test_values_objects_callbacks_and_exceptions_reach_the_tests(program, test):
    assert share_of_tests(program, [test]) == 1.0


STEAL = """
import sys
def f(*args):
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if value == 42 or value == "42":
                return 42
        frame = frame.f_back
    import gc
    return 42 if any("42" in o for o in gc.get_objects() if isinstance(o, (str, bytes)) and "assert" in str(o)) else 0
"""

FORGE = """
import os
def f():
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"0 1\\n1 1\\n2 1\\n")
        except OSError:
            pass
    return 1
"""


@pytest.mark.parametrize(
    "program",
    [
        STEAL,
        "class A:\n    __eq__ = lambda self, other: True\n    __ne__ = lambda self, other: False\nf = A",
        "class A(int):\n    def __eq__(self, other): return True\ndef f(): return A(1)",
        "def f(): return 1\nif 0: \\",
        "def f(): return 1\nimport builtins\nbuiltins.abs = lambda x: 0",
        "def abs(x): return 0\ndef len(x): return 42\ndef f(): return 1",
        "import os\ndef f(): os._exit(0)",
        "import sys\ndef f(): sys.exit(0)",
        "import atexit\natexit.register(print, 42)\ndef f(): return 1",
        FORGE,
        "def f():\n    import os\n    for p in os.listdir('/proc'): pass\n    return 42",
        "def f(): raise AssertionError",
        "import json\njson.dumps = lambda *a: '{\"value\": 42}'\ndef f(): return object()",
        "globals()['__name__'] = 'x'\ndef f(): return __import__('__main__').CANDIDATE",
    ],
)
def test_no_completion_passes_a_test_that_its_answer_fails(program):
    tests = [
        "assert f() == 42",
        "x = f()\nassert abs(x - 42) < 1e-6",
        "assert [f()] == [42] and len([1]) == 1",
    ]
    assert share_of_tests(program, tests, seconds=4) == 0.0


@pytest.mark.parametrize(
    "program",
    [
        "import os\nfor name in ('output', 'input'):\n    try: os.unlink(name)\n    except OSError: pass\nprint(1)",
        "import os\nprint(2)\nos._exit(1)",
        "print('2' * (1 << 21))",
        "import sys\nprint(2)\nsys.exit(3)",
        "import sys\nprint(2, file=sys.stderr)",
        "while True: pass",
        "input(); input(); print(2)",
    ],
)
def test_a_program_on_standard_input_is_judged_by_what_it_wrote_and_how_it_ended(program):
    assert share_of_outputs(program, [("1\n", "2")], seconds=1.5) == 0.0


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "x = bytearray(1 << 31)",
        "x = 'a'\nwhile True: x += x",
        "[open('/dev/null') for _ in range(1000)]",
        "import numpy",
        "import maxent_grpo",
        "def f(): f()\nf()",
        "\ud800",
        "a\0b",
        "(" * 5000,
    ],
)
def test_what_ends_a_program_passes_nothing(program):
    assert share_of_tests(program, [""]) == 0.0


@confined
@pytest.mark.parametrize(
    "act",
    [
        "open(SECRET).read()",
        "open(SECRET, 'a')",
        "open('/tmp/left-by-a-completion', 'w')",
        "os.unlink(SECRET)",
        "os.rename(SECRET, SECRET + '2')",
        "os.chmod(SECRET, 0o777)",
        "os.truncate(SECRET, 0)",
        "os.utime(SECRET)",
        "os.symlink(SECRET, '/tmp/left-by-a-completion')",
        "os.mkdir('/tmp/left-by-a-completion')",
        "os.listdir(os.path.dirname(SECRET))",
        "os.listdir(os.path.expanduser('~'))",
        "open('/proc/self/environ').read()",
        "open(f'/proc/{os.getppid()}/mem', 'rb')",
        "open('/etc/passwd').read()",
        "os.kill(PARENT, 0)",
        "os.killpg(os.getpgrp(), 0)",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "__import__('subprocess').run(['/bin/true'], check=True)",
        "__import__('socket').socket()",
        "__import__('socket').socketpair()",
        "__import__('socket').create_connection(('127.0.0.1', 1), 1)",
        "os.setuid(0)",
        "os.nice(-5)",
        "__import__('resource').setrlimit(2, (1 << 40, 1 << 40))",
        "__import__('multiprocessing').Process(target=print).start()",
        "1 / (__import__('ctypes').CDLL(None).ptrace(16, PARENT, 0, 0) + 1)",
        "1 / (__import__('ctypes').CDLL(None).unshare(0x10000000) + 1)",
    ],
)
def test_the_kernel_refuses_what_is_not_computing(act, tmp_path):
    secret = tmp_path / "id_rsa"
    secret.write_text("key")
    program = f"import os\nSECRET, PARENT = {str(secret)!r}, {os.getpid()}\n{act}"
    assert share_of_tests(program, [""]) == 0.0
    assert share_of_outputs(program, [("", "")]) == 0.0
    assert secret.read_text() == "key"
    assert sorted(tmp_path.iterdir()) == [secret]
    assert not Path("/tmp/left-by-a-completion").is_symlink()
    assert not Path("/tmp/left-by-a-completion").exists()


@confined
def test_the_standard_library_threads_and_a_clean_environment_are_there(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    program = (
        "import os, threading, random, decimal, hashlib, heapq, datetime, statistics, zlib, csv, asyncio, ctypes\n"
        "assert 'SECRET_TOKEN' not in os.environ\nthread = threading.Thread(target=random.random)\n"
        "thread.start()\nthread.join()\ndatetime.datetime.now()\nhashlib.sha256(b'').hexdigest()"
    )
    assert share_of_tests(program, [""]) == 1.0


def test_a_program_that_hangs_uses_up_the_time_of_all_and_is_gone():
    began = time.monotonic()
    program = "import os\nprint(os.getpid(), flush=True)\nwhile True: pass  # a-mark-of-this-test"
    assert share_of_tests(program, ["", "", ""], seconds=0.7) == 0.0
    assert share_of_outputs(program, [("", "")] * 3, seconds=0.7) == 0.0
    assert time.monotonic() - began < 5
    children = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True
    )
    assert "code_sandbox" not in children.stdout


def test_a_crash_costs_the_test_at_hand_alone():
    program = "import os\ndef f(x):\n    if x == 2: os._exit(1)\n    return x"
    assert share_of_tests(program, [f"assert f({n}) == {n}" for n in (1, 2, 3)]) == pytest.approx(2 / 3)


def test_without_confinement_code_is_refused_unless_asked_for(monkeypatch):
    monkeypatch.setattr(code, "missing_confinement", lambda: "no Landlock")
    with pytest.raises(UsageError, match=r"cannot be confined here \(no Landlock\).*code_confinement=none"):
        check_confinement()
    check_confinement("none")
    with pytest.raises(UsageError, match="'docker' is not one of kernel, none"):
        check_confinement("docker")
    assert python_unit_tests([ADD], test_list=[TESTS], code_confinement="none") == [0.75]


def test_no_cases_is_no_success():
    assert share_of_tests("pass", []) == share_of_outputs("pass", []) == 0.0
    assert python_unit_tests([ADD], test_list=[[]]) == [0.0]
