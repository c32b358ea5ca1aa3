"""A reward for runs that take seconds, in a module of its own so that its dotted path is unique."""


def checksum(completions, **_):
    """A reward that every group has a spread of, whatever the policy: a checksum of the text, in [0, 1]."""
    return [sum(map(ord, c)) % 7 / 6 for c in completions]
