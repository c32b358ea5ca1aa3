"""From what YAML, Hydra and a shell give to what a dataclass field declares: strict, and never lossy."""

import math
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NoneType = type(None)


@cache
def field_types(cls: type) -> Mapping[str, Any]:
    """Field name → resolved annotation of a dataclass, inherited fields included."""
    return get_type_hints(cls)


def convert(value: Any, annotation: Any) -> Any:
    """``value`` as ``annotation``, where that loses nothing: "1e-6" is a float, 8.0 an int, "true" a bool.

    A text is never made of a number, nor a list of a text. Raises ``ValueError`` with what was expected.
    """
    says_bool = isinstance(value, str) and value.lower() in ("true", "false")

    def rank(member: Any) -> int:  # what fits exactly goes first, so that "1" stays a text in `int | str`
        return 0 if says_bool and member is bool else 1 if type(value) is member else 2

    for member in sorted(_members(annotation), key=rank):
        try:
            return _checked(value, member)
        except ValueError:
            continue
    raise ValueError(f"expected {describe(annotation)}")


def describe(annotation: Any) -> str:
    """What a user may give for ``annotation``, in words."""
    words = []
    for member in _members(annotation):
        if get_origin(member) is Literal:
            words.append("one of " + ", ".join(str(choice) for choice in get_args(member)))
        elif isinstance(member, type) and issubclass(member, Enum):
            words.append("one of " + ", ".join(str(choice.value) for choice in member))
        elif get_origin(member) is list:
            (item,) = get_args(member) or (Any,)
            words.append("a list" if item is Any else f"a list of {_PLURALS.get(item, 'values')}")
        else:
            words.append(_WORDS.get(get_origin(member) or member, getattr(member, "__name__", str(member))))
    return " or ".join(words)


def _members(annotation: Any) -> tuple[Any, ...]:
    """What a union is made of; a text beside an enum (as Transformers writes it) is no choice of its own."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    has_enum = any(isinstance(member, type) and issubclass(member, Enum) for member in members)
    return tuple(member for member in members if not (has_enum and member is str))


def _checked(value: Any, member: Any) -> Any:
    if member is Any:
        return value
    origin = get_origin(member) or member
    if origin is Literal:
        return _choice(value, get_args(member))
    if isinstance(origin, type) and issubclass(origin, Enum):
        return origin(_choice(value, tuple(choice.value for choice in origin)))
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise ValueError("not a list")
        (item,) = get_args(member) or (Any,)
        return [convert(part, item) for part in value]
    if origin in _CONVERTERS:
        return _CONVERTERS[origin](value)
    if isinstance(origin, type) and isinstance(value, origin):
        return value
    raise ValueError(f"not a {origin}")


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    if isinstance(value, bool) and True not in choices and False not in choices:
        raise ValueError("not a choice")  # YAML's bare `no`/`off`; as a number, True would equal 1
    if value not in choices:
        raise ValueError("not a choice")
    return value


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError("not a bool")


def _int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("not an int")
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("not an int")
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("not a float")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _str(value: Any) -> str:
    if not isinstance(value, str) or isinstance(value, Enum):
        raise ValueError("not a text")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("not a mapping")
    return dict(value)


def _none(value: Any) -> None:
    if value is not None:
        raise ValueError("not null")


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    dict: _dict,
    NoneType: _none,
}
_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
    str: "a text",
    dict: "a mapping",
    NoneType: "null",
}
_PLURALS = {str: "texts", float: "numbers", int: "integers"}
