"""A reward that breaks on some completions, in a module of its own so that its dotted path is unique."""

import os
import time


def fragile(completions, **_):
    """The checksum of each text in [0, 1]; the process hangs on some texts and dies on others."""
    sums = [sum(map(ord, c)) % 7 for c in completions]
    if 0 in sums:
        time.sleep(60)
    if 1 in sums:
        os._exit(1)
    return [s / 6 for s in sums]
