"""Where the answer stands in a completion."""

import re

MAX_PLAIN_CHARACTERS = 160
READ_CHARACTERS = (
    65_536  # an answer stands at the end of a completion: no more than this is searched for a box
)

_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_PREFIX = re.compile(
    r"(?:(?:so|thus|hence|therefore|the|my|final|answer|solution|result|is)\b[\s:,]*)+|=", re.IGNORECASE
)
_WRAPPING = " \t*`\"'$."


def extract_answer(response: str) -> str | None:
    """The content of the last balanced ``\\boxed{…}``, else the response itself where it is one short plain line.

    A plain line has at most `MAX_PLAIN_CHARACTERS` characters; words such as "The answer is:" before it and
    quotes, emphasis or a full stop around it are stripped. None where there is no answer. Linear in the length.
    """
    boxed = last_boxed(response[-READ_CHARACTERS:])
    if boxed is not None:
        return boxed.strip() or None
    if len(response) > READ_CHARACTERS:
        return None
    line = response.strip()
    if not line or len(line) > MAX_PLAIN_CHARACTERS or len(line.splitlines()) != 1:
        return None
    line = line.strip(_WRAPPING)
    prefix = _PREFIX.match(line)
    return (line[prefix.end() :] if prefix else line).strip(_WRAPPING) or None


def last_boxed(text: str) -> str | None:
    """The content of the balanced box that opens last."""
    opened: list[int | None] = []  # where the content of each open box starts; None for a plain brace
    last: tuple[int, int] | None = None
    for found in _BRACE.finditer(text):
        symbol = found.group()
        if symbol.startswith("\\boxed"):
            opened.append(found.end())
        elif symbol == "{":
            opened.append(None)
        elif symbol == "}" and opened:
            start = opened.pop()
            if start is not None and (last is None or start > last[0]):
                last = (start, found.start())
    return None if last is None else text[last[0] : last[1]]
