"""Components by name, and what is said where there is none."""

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.named import find_named, load_named

KNOWN = {"tau": 6.28, "join": "os.path:join"}


def test_a_name_of_the_registry_and_a_path_are_both_found() -> None:
    import os.path

    assert find_named("thing", "tau", KNOWN) == 6.28
    assert find_named("thing", "join", KNOWN) is os.path.join
    assert find_named("thing", "os.path:split", KNOWN) is os.path.split


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "tua",
            r"^thing: there is no 'tua' \(did you mean tau\?\); known: tau, join; your own: module:NAME$",
        ),
        ("os:", r"^thing: there is no 'os:'; known"),
        (":x", r"^thing: there is no ':x'"),
        (
            "no_such:X",
            r"^thing: module 'no_such' of 'no_such:X' cannot be imported \(ModuleNotFoundError: .*PYTHONPATH",
        ),
        ("os.path:jion", r"^thing: module 'os.path' has no 'jion' \(did you mean join\?\)$"),
        ("os:sep", r"^thing: 'os:sep' must name a number, and is a str$"),
    ],
)
def test_an_unknown_name_says_what_would_do(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_named("thing", name, KNOWN, "a number", lambda found: isinstance(found, float))


def test_a_failing_import_is_one_line(tmp_path, monkeypatch) -> None:
    (tmp_path / "two_lines_fail.py").write_text("raise RuntimeError('two\\n   lines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"cannot be imported \(RuntimeError: two lines\)"):
        load_named("thing", "two_lines_fail:X")
