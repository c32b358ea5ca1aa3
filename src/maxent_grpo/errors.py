"""The two ways a run can end badly, and the exit code of each."""


class UsageError(Exception):
    """The request is wrong: a key, a value, a file. Found before anything expensive starts; exit code 2.

    The message is one line: what is wrong, where (key, file, row), and what to do about it.
    """

    exit_code = 2


class RunError(Exception):
    """The request was fine and the run failed: exit code 1. The message follows the rule of `UsageError`."""

    exit_code = 1
