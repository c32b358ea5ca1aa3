"""The three sections of a configuration as plain dataclasses, their records, and the conversion of values.

Light: neither torch nor TRL is imported. `SECTIONS` holds what a recipe may say; after `rules.settle` the training
section holds what a run will use, except what depends on the device.
"""

import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, Field, InstanceOf, Strict, TypeAdapter, ValidationError

from maxent_grpo.config.settings import ScriptFields, TrainingFields
from maxent_grpo.config.trl_settings import trl_fields
from maxent_grpo.objectives.components import SYNONYMS
from maxent_grpo.settings import Setting, settings_of

_TRL_SCRIPT: Any = trl_fields("script")
_TRL_TRAINING: Any = trl_fields("training")
_TRL_MODEL: Any = trl_fields("model")


@dataclass
class ScriptSettings(ScriptFields, _TRL_SCRIPT):
    """Data and rewards."""


@dataclass
class TrainingSettings(TrainingFields, _TRL_TRAINING):
    """Everything about training."""


@dataclass
class ModelSettings(_TRL_MODEL):
    """The model and how it is loaded."""


SECTIONS: dict[str, Any] = {"script": ScriptSettings, "training": TrainingSettings, "model": ModelSettings}
"""Section → its settings, in the order in which a flat recipe's keys are routed."""

RECORDS: dict[str, dict[str, Setting]] = {
    section: {record.name: record for record in settings_of(group, section=section)}
    for section, group in SECTIONS.items()
}
"""Section → setting → its record."""

ALL = tuple(record for records in RECORDS.values() for record in records.values())
ALIASES = {alias: record.name for record in ALL for alias in record.aliases}
"""Other name → setting."""

OWN = frozenset(f.name for group in (ScriptFields, TrainingFields) for f in fields(group))
"""Settings that this package declares."""

SAME_RESULTS = frozenset(record.name for record in ALL if not record.changes_results)
"""Settings that leave the trained policy and its records as they are."""


LARGEST: dict[Any, float] = {int: 2**63 - 1, float: 1e15}
"""Bound of a number whose setting names none: beyond it lies a slip of the keyboard."""
ANY_RANGE = "in [-1e15, 1e15]"


def fed(part: str) -> dict[str, str]:
    """Field → the setting that feeds it, of one component."""
    pairs = ((*record.feeds.partition(".")[::2], record.name) for record in ALL if record.feeds)
    return {field: name for owner, field, name in pairs if owner == part}


def section_of(key: str) -> str | None:
    """The section that takes ``key`` or the name that it stands for; the first of script, training, model."""
    name = ALIASES.get(key, key)
    return next((section for section, records in RECORDS.items() if name in records), None)


def admits_null(record: Setting) -> bool:
    """Whether null is a value of the setting; where it is not, null unsets it."""
    return type(None) in _members(record.type)


def without_null(record: Setting) -> Setting:
    """The record with a type that does not admit null."""
    members = tuple(member for member in _members(record.type) if member is not type(None))
    return replace(record, type=Union[members])  # noqa: UP007  made at run time


def parse(record: Setting, value: Any) -> Any:
    """``value`` as the setting declares it. Raises ``ValueError`` with ``name: value`` and what is expected."""
    kind = chosen_type(record)
    if record.choices and isinstance(value, str):
        value = SYNONYMS.get(value, value)
    try:
        return _adapter(kind, record.ge, record.gt, record.le, record.lt).validate_python(value)
    except ValidationError as error:
        kinds = {problem["type"] for problem in error.errors()}
    if any(kind.startswith(("greater_than", "less_than")) for kind in kinds):
        try:
            shown = _adapter(kind).validate_python(value)
        except ValidationError:  # beyond `LARGEST`
            shown = value
        raise ValueError(f"{record.name}: {shown} must be {record.range or ANY_RANGE}") from None
    expected = describe(kind)
    hint = ""
    if isinstance(value, bool) and "true" not in expected:
        hint = " (YAML reads a bare yes, no, on or off as true or false: quote it)"
    elif isinstance(value, str) and "a list of texts" in expected:
        hint = f"; write [{value}]"
    raise ValueError(f"{record.name}: {value!r} is not {expected}{hint}")


def chosen_type(record: Setting) -> Any:
    """The record's type, with its choices in place of any text."""
    members = [Literal[record.choices] if record.choices and m is str else m for m in _members(record.type)]
    return Union[tuple(members)]  # noqa: UP007  made at run time


def convert(value: Any, annotation: Any) -> Any:
    """``value`` as ``annotation``, where that loses nothing: "1e-6" is a float, 8.0 an int, "true" a bool.

    A text is never made of a number, nor a list of a text. Raises ``ValueError`` with what was expected.
    """
    try:
        return _adapter(annotation).validate_python(value)
    except ValidationError:
        raise ValueError(f"expected {describe(annotation)}") from None


@cache
def field_types(cls: type) -> Mapping[str, Any]:
    """Field name → resolved annotation of a dataclass, inherited fields included."""
    return get_type_hints(cls)


def describe(annotation: Any) -> str:
    """What a user may give for ``annotation``, in words."""
    words = []
    for member in _members(annotation):
        origin = get_origin(member) or member
        if origin is Literal:
            words.append("one of " + ", ".join(str(choice) for choice in get_args(member)))
        elif isinstance(origin, type) and issubclass(origin, Enum):
            words.append("one of " + ", ".join(str(choice.value) for choice in origin))
        elif origin is list:
            (item,) = get_args(member) or (Any,)
            words.append("a list" if item is Any else f"a list of {_PLURALS.get(item, 'values')}")
        else:
            words.append(_WORDS.get(origin, getattr(member, "__name__", str(member))))
    return " or ".join(words)


def _members(annotation: Any) -> tuple[Any, ...]:
    """What a union is made of; a text beside an enum (as Transformers writes it) is no choice of its own."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    has_enum = any(isinstance(member, type) and issubclass(member, Enum) for member in members)
    return tuple(member for member in members if not (has_enum and member is str))


@cache
def _adapter(annotation: Any, *bounds: float | None) -> Any:
    names = ("ge", "gt", "le", "lt")
    return TypeAdapter(
        _strict(annotation, {k: v for k, v in zip(names, bounds, strict=False) if v is not None})
    )


def _strict(annotation: Any, bounds: Mapping[str, float]) -> Any:
    """``annotation`` for pydantic: lossless, and "true" is a bool before it is a text."""
    members = sorted(_members(annotation), key=_rank)
    if len(members) > 1:
        union: Any = Union[tuple(_strict(member, bounds) for member in members)]  # noqa: UP007  made at run time
        return Annotated[union, Field(union_mode="left_to_right")]
    member: Any = members[0]
    origin = get_origin(member) or member
    if origin is list:
        (item,) = get_args(member) or (Any,)
        return list.__class_getitem__(_strict(item, {}))
    if isinstance(origin, type) and issubclass(origin, Enum):
        return Annotated[origin, BeforeValidator(_no_bool)]
    if member in (int, float):
        within = {} if {"le", "lt"} & bounds.keys() else {"le": LARGEST[member]}
        least = {} if {"ge", "gt"} & bounds.keys() else {"ge": -LARGEST[member]}
        return Annotated[_STRICT[member], Field(**dict[str, Any]({**bounds, **within, **least}))]
    if isinstance(member, type) and origin not in (Any, dict, bool, str):
        return InstanceOf.__class_getitem__(member)
    return _STRICT.get(member, member)


def _rank(member: Any) -> int:
    order = (bool, str, int, float)
    return order.index(member) if member in order else len(order)


def _only_bool(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError("not a bool")
    return value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a bool")
    return value


def _no_enum(value: Any) -> Any:
    if isinstance(value, Enum):
        raise ValueError("an enum")
    return value


_STRICT: dict[Any, Any] = {
    bool: Annotated[bool, BeforeValidator(_only_bool)],
    int: Annotated[int, BeforeValidator(_no_bool)],
    float: Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)],
    str: Annotated[str, Strict(), BeforeValidator(_no_enum)],
}
_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
    str: "a text",
    dict: "a mapping",
    type(None): "null",
}
_PLURALS = {str: "texts", float: "numbers", int: "integers"}
