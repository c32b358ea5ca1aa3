"""Plans as text: titled tables and command lines, in plain characters that a log file keeps, without a secret."""

import re
from collections.abc import Mapping, Sequence

from maxent_grpo.observe.names import is_secret

HIDDEN = "***"
SHORTEST_SECRET = 6
"""A secret's value is hidden wherever it appears; a value shorter than this would hide innocent text."""


def table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """``rows`` under ``title``, every column but the last as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=False)] for row in rows]
    return "\n".join([title, *("  " + "  ".join(row).rstrip() for row in cells)])


def gpu_names(gpus: Sequence[str]) -> str:
    """``GPU 0``, ``GPU 1-7``, ``GPU 0,2`` or ``CPU``."""
    if not gpus:
        return "CPU"
    if len(gpus) > 1 and all(g.isdecimal() for g in gpus):
        numbers = [int(g) for g in gpus]
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            return f"GPU {gpus[0]}-{gpus[-1]}"
    return f"GPU {','.join(gpus)}"


def shown_words(words: Sequence[str], environ: Mapping[str, str]) -> str:
    """A command line for people: values of secret flags and of secret variables hidden, quoted for a shell."""
    shown, hide = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        secret = is_secret(flag.removeprefix("--"))
        shown.append(HIDDEN if hide else f"{flag}={HIDDEN}" if secret and equals else word)
        hide = secret and not equals and word.startswith("--")
    return without_values(" ".join(_quoted(word) for word in shown), environ)


def without_values(text: str, environ: Mapping[str, str]) -> str:
    """``text`` without the value of any variable whose name says that it is a secret."""
    secrets = {v for name, v in environ.items() if is_secret(name) and len(v) >= SHORTEST_SECRET}
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w@%+=:,./{}*$-]+", word) else "'" + word.replace("'", "'\"'\"'") + "'"
