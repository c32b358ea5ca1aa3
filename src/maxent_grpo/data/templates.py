"""Templates are other people's programs: a rendering that does not end is ended."""

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

RENDER_SECONDS = 10.0
"""For one prompt, of which an ordinary template needs a ten-thousandth."""


class EndlessTemplateError(Exception):
    """A rendering took longer than `RENDER_SECONDS`."""


def rendered(render: Callable[[], Any]) -> str:
    """The text that ``render`` makes, which calls a Jinja template.

    The clock is looked at in every line of the template and at every call. Under a debugger or a measurement of
    coverage, which watch the same way, it is not.

    Raises:
        EndlessTemplateError: after `RENDER_SECONDS`.
    """
    if sys.gettrace() is not None:
        return str(render())
    deadline = time.monotonic() + RENDER_SECONDS

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > deadline:
            raise EndlessTemplateError(f"not done after {RENDER_SECONDS:g} s, as if in a loop without end")
        return watch if frame.f_code.co_filename == "<template>" else None

    sys.settrace(watch)
    try:
        return str(render())
    finally:
        sys.settrace(None)
