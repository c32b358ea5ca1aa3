"""Reward functions of a user's own module, which imports nothing: each worker that scores imports it again."""


def raises(completions, **_):
    raise ValueError("no such unit")


def tells_apart(completions, **columns):
    return [float(i) for i in range(len(completions))]


def gives_nan(completions, **_):
    return [float("nan")] * len(completions)
