"""Texts that make a grader compute, recurse or search for ever. Each batch has a process of its own."""

import json
import subprocess
import sys

import pytest

HOSTILE = {
    "tower": r"10^{10^{10}}",
    "high tower": "9^{" * 30 + "9" + "}" * 30,
    "plain tower": "2^" * 1900 + "2",
    "factorials": "(((100!)!)!)!",
    "huge factorial": "99999999999!",
    "binomial": r"\binom{10^{9}}{10^{8}}",
    "exponentials": "e^{e^{e^{e^{10}}}}",
    "sine of a huge number": r"\sin(10^{100000})",
    "megabyte of digits": "9" * 1_000_000,
    "many digits": "9" * 3900,
    "brackets": "(" * 5000 + "1" + ")" * 5000,
    "open braces": "{" * 5000,
    "open boxes": r"\boxed{" * 3000,
    "nested boxes": r"\boxed{" * 3000 + "1" + "}" * 3000,
    "open formulas": r"\(" * 50_000,
    "open tags": "<answer>" * 20_000,
    "spaces": " " * 200_000,
    "tildes": "~" * 200_000,
    "dollars": "$" * 100_001,
    "minuses": "-" * 3900 + "7",
    "divisions": "1/" * 1900 + "3",
    "commas": "1," * 1900 + "1",
    "signs": r"\pm 1" * 900,
    "sum of signs": "+".join([r"\pm 1"] * 500),
    "roots": r"\sqrt" * 1000 + "2",
    "fractions": r"\frac{" * 900 + "1",
    "expansion": "(x+y+z+w)^{500}",
    "sum": r"\sum_{k=1}^{10^{10}} k^{10}",
    "integral": r"\int_0^\infty x^{100} e^{-x} dx",
    "product": r"\prod_{k=1}^{10^9} k",
    "matrices": r"\begin{pmatrix}" * 200 + "1",
    "exponent": "1e999999999",
    "repeating": r"0.\overline{" + "123456789" * 200 + "}",
    "unions": r"(1,2)\cup" * 400 + "(1,2)",
    "equations": "x=y" * 1000,
    "null bytes": "\x00\x00x\x00",
    "right to left": "\u202e6\u202c",
    "lone surrogate": "\ud800",
    "code": "__import__('os').system('echo')",
}  # fmt: skip

SCRIPT = r"""
import json, sys
from math_answers import GraderPolicy, grade
policies = [GraderPolicy(), GraderPolicy(extraction=("boxed", "answer_tag", "phrase", "math", "last_number", "whole"))]
for line in sys.stdin:
    name, text = json.loads(line)
    for gold in (r"\frac{x^{2}+1}{2}", "(1,2)", r"10^{10^{10^{10}}}"):
        for policy, wrapped in zip(policies, (r"\boxed{" + text + "}", text)):
            print(json.dumps([name, gold, grade(wrapped, gold, policy).right]), flush=True)
"""


@pytest.mark.parametrize("batch", range(4))
def test_a_verdict_comes_back_and_it_is_no(batch):
    names = list(HOSTILE)[batch::4]
    lines = "".join(json.dumps([name, HOSTILE[name]]) + "\n" for name in names)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=lines, capture_output=True, text=True, timeout=120
    )
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-500:]
    assert len(verdicts) == 6 * len(names)
    assert [verdict for verdict in verdicts if verdict[2]] == []


def test_a_hostile_answer_is_still_itself():
    from math_answers import equivalent

    for name in ("tower", "high tower", "megabyte of digits", "brackets", "huge factorial"):
        assert equivalent(HOSTILE[name], HOSTILE[name]).right
    assert not equivalent(r"10^{10^{10^{11}}}", r"10^{10^{10^{10}}}").right
