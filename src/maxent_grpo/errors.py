"""The two ways a run can end badly, and the exit code of each."""

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """The request is wrong: a key, a value, a file. Found before anything expensive starts; exit code 2.

    The message is one line: what is wrong, where (key, file, row), and what to do about it.
    """

    exit_code = 2


class RunError(Exception):
    """The request was fine and the run failed: exit code 1. The message follows the rule of `UsageError`."""

    exit_code = 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" (did you mean x?)"`` for a message about ``word``, x the known word nearest to it; "" where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def first_line(problem: BaseException) -> str:
    """An exception's type and the first line of what it says, for a message of one line."""
    said = next((line.strip() for line in str(problem).splitlines() if line.strip()), "")
    return f"{type(problem).__name__}: {said}"[:300] if said else type(problem).__name__
