"""Components found by name: in a registry, or as ``module:NAME`` in somebody else's module. Standard library only."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from maxent_grpo.errors import UsageError, did_you_mean


def find_named(
    key: str,
    name: str,
    known: Mapping[str, Any],
    kind: str = "",
    accepts: Callable[[Any], bool] | None = None,
) -> Any:
    """The component of ``known`` called ``name``, or the one that ``module:NAME`` names.

    Args:
        key: the setting that gave the name, for the front of error messages.
        known: name → component, or its own ``module:NAME`` as a text, imported when it is asked for.
        kind, accepts: what a component is, in words ("an ObjectiveSpec") and as a test.

    Raises:
        UsageError: there is none, it cannot be imported, or it is something else.
    """
    entry = known.get(name, name)
    found = load_named(key, entry) if isinstance(entry, str) and is_path(entry) else known.get(name)
    if found is None:
        hint = did_you_mean(name, known)
        raise UsageError(
            f"{key}: there is no {name!r}{hint}; known: {', '.join(known)}; your own: module:NAME"
        )
    if accepts is not None and not accepts(found):
        raise UsageError(f"{key}: {name!r} must name {kind}, and is a {type(found).__name__}")
    return found


def load_named(key: str, path: str) -> Any:
    """What ``module:NAME`` names. Raises `UsageError`, ``key`` in front, where it cannot be imported."""
    module, _, attribute = path.partition(":")
    try:
        loaded = importlib.import_module(module)
    # Importing runs somebody's module, which can raise anything: whatever it is, this name cannot be used.
    except Exception as error:
        raise UsageError(
            f"{key}: module {module!r} of {path!r} cannot be imported ({one_line(error)}); "
            "is its directory on PYTHONPATH?"
        ) from error
    if not hasattr(loaded, attribute):
        raise UsageError(
            f"{key}: module {module!r} has no {attribute!r}{did_you_mean(attribute, dir(loaded))}"
        )
    return getattr(loaded, attribute)


def is_path(name: str) -> bool:
    """Whether ``name`` is ``module:NAME``."""
    module, colon, attribute = name.partition(":")
    return bool(module and colon and attribute)


def one_line(error: Exception, limit: int = 300) -> str:
    """An exception for use inside a message: its type and text on one line, cut at ``limit`` characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
