"""The one place where controller state meets the disk."""

import json
from pathlib import Path
from typing import Any

from maxent_grpo.errors import UsageError
from maxent_grpo.files import replace_file


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace ``path`` by ``state`` as JSON, all or nothing: a reader sees the old file or the new one.

    Raises ``ValueError`` if the state holds a number that JSON has no word for (NaN, infinity).
    """
    replace_file(path, json.dumps(state, indent=2, allow_nan=False) + "\n")


def read_state(path: Path) -> dict[str, Any]:
    """The state that `write_state` left at ``path``. Raises `UsageError` if it is missing or broken."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no controller state there; name an existing file or checkpoint") from None
    except ValueError as error:  # JSON and UTF-8 decoding alike
        raise UsageError(f"{path}: not JSON ({error}); restore it from a checkpoint, or delete it") from None
    if not isinstance(state, dict):
        raise UsageError(
            f"{path}: holds a {type(state).__name__}, not an object; restore it from a checkpoint"
        )
    return state
