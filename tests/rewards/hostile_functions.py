"""Reward functions as worker processes meet them: what each does is said by the completion."""

import os
import random
import signal
import subprocess
import sys
import time


def obey(completions, **columns):
    """Scores the length of a completion, unless it says what to do instead."""
    return [_obey(text) for text in completions]


def _obey(text):
    if text == "sleep":
        time.sleep(60)
    if text == "spin":
        10 ** (10**10)  # holds the interpreter lock: no signal handler and no thread runs
    if text == "exit":
        os._exit(3)
    if text == "sys.exit":
        sys.exit(4)
    if text == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if text == "memory":
        return float(len(bytearray(1 << 32)))
    if text == "raise":
        raise ValueError("no\nway")
    if text == "recursion":
        return _obey(text)
    if text == "nan":
        return float("nan")
    if text == "print":
        print("x" * 100_000)
    if text == "none":
        return None
    return float(len(text))


def compare(completions, **columns):
    """The share of the call's completions that are shorter: a score that depends on the others."""
    if "raise" in completions:
        raise ValueError("no way")
    return [sum(len(other) < len(text) for other in completions) / len(completions) for text in completions]


def draw(completions, **columns):
    """Random scores."""
    return [random.random() for _ in completions]


def where(completions, **columns):
    """The process that scored."""
    return [float(os.getpid())] * len(completions)


def leave_child(completions, **columns):
    """Starts a process that outlives the call, and says which."""
    return [float(subprocess.Popen(["sleep", "300"]).pid) for _ in completions]


def report(completions, trainer_state, log_extra, log_metric, is_eval=False, **columns):
    """What TRL functions may name."""
    log_metric("characters", sum(map(len, completions)))
    log_extra("lengths", [len(c) for c in completions])
    return [trainer_state.global_step + trainer_state.max_steps / 1000 + 0.5 * is_eval] * len(completions)


def miscount(completions, **columns):
    """One score too many."""
    return [0.0] * (len(completions) + 1)


async def later(completions, **columns):
    """An async function."""
    return [float(len(text)) for text in completions]
