"""Rewards of a launched run that look at the rank, in a module of their own so that its dotted path is unique."""

import os


def fails_on_rank_1(completions, **_):
    """Raises in the second process only."""
    if os.environ.get("RANK") == "1":
        raise ValueError("no such file on this machine")
    return [0.0] * len(completions)
