"""One record per setting: default, range, choices, help, and what it feeds. Standard library only.

A setting is declared once, beside what it feeds, as a dataclass field::

    @dataclass(frozen=True)
    class PassAtK:
        "Advantages of the group as all its subsets of k."

        k: int = setting(4, "k of the pass_at_k advantage, at most num_generations.", name="pass_k", ge=1)

`settings_of` collects the records of a class; validation, help, documentation and routing derive from them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, make_dataclass, replace
from functools import partial
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Route = Literal["both", "native", "trl"]
"""Who reads a setting: both trainers, this package's loop alone, or TRL's trainer alone."""


@dataclass(frozen=True)
class Setting:
    """One setting, as `setting` declares it."""

    name: str
    """What users call it: the key of recipes and of the command line."""
    type: Any
    """Its annotation, ``int | None``."""
    default: Any
    help: str
    """One sentence."""
    topic: str = ""
    """The heading of help pages that it stands under."""
    section: Literal["script", "training", "model", "environment"] = "training"
    """Where it is given: a section of a recipe, or environment variables alone."""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] = ()
    unset: str = ""
    """What ``null`` means where that is allowed besides ``type``, as in "the objective's own"; "": not allowed."""
    feeds: str = ""
    """``part.field`` of the component that gets its value; "": configuration alone reads it."""
    route: Route = "both"
    instead: str = ""
    """What to do on the other route; "": set force_custom_loop=true."""
    aliases: tuple[str, ...] = ()
    """Other names, which recipes and command lines take as well."""
    env: tuple[str, ...] = ()
    """Environment variables that give its value where nothing else does; the first that is set counts."""
    changes_results: bool = True
    """Whether two runs that differ in it alone may differ in what they learn: it belongs in fingerprints."""

    @property
    def options(self) -> tuple[Any, ...]:
        """The values that a `Literal` in its type, or ``choices``, allow; empty for no such list."""
        members = get_args(self.type) if get_origin(self.type) in (Union, UnionType) else (self.type,)
        literal = [
            choice for member in members if get_origin(member) is Literal for choice in get_args(member)
        ]
        return self.choices or tuple(literal)

    @property
    def range(self) -> str:
        """What its numbers must be: ``≥ 1``, ``in (0, 1]``; "" for no bound."""
        low = self.ge if self.ge is not None else self.gt
        high = self.le if self.le is not None else self.lt
        if low is not None and high is not None:
            return f"in {'[' if self.gt is None else '('}{low:g}, {high:g}{']' if self.lt is None else ')'}"
        if low is not None:
            return f"{'≥' if self.gt is None else '>'} {low:g}"
        return "" if high is None else f"{'≤' if self.lt is None else '<'} {high:g}"

    def holds(self, value: float) -> bool:
        """Whether a number is within the range; NaN never is."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
            and value == value
        )


def setting(default: Any, help_text: str, **facts: Any) -> Any:
    """A dataclass field that is a setting. ``facts``: fields of `Setting`, ``name`` where the field has another."""
    metadata = {"help": help_text, "setting": facts}
    if isinstance(default, (list, dict)):  # each instance gets its own
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


native = partial(setting, route="native")
"""A setting that TRL's trainer would ignore, and which is refused there."""


def group_of(name: str, records: Iterable[Setting]) -> type:
    """A dataclass whose fields are ``records``."""
    made = []
    for record in records:
        facts = {
            f.name: getattr(record, f.name) for f in fields(Setting) if f.name not in ("default", "help")
        }
        made.append((record.name, record.type, setting(record.default, record.help, **facts)))
    return make_dataclass(name, made)


def settings_of(group: type, **facts: Any) -> tuple[Setting, ...]:
    """The records that ``group``, a dataclass, declares itself or inherits; ``facts`` hold where a record says none.

    A record's topic is the first line of the docstring of the class that declares it.
    """
    types = get_type_hints(group)
    declared = {
        name: owner for owner in reversed(group.__mro__) for name in vars(owner).get("__annotations__", ())
    }
    records = []
    for item in fields(group):
        own: Mapping[str, Any] | None = item.metadata.get("setting")
        if own is None:
            continue
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        topic = (declared[item.name].__doc__ or "").partition("\n")[0].rstrip(".")
        record = Setting(item.name, types[item.name], default, str(item.metadata["help"]), topic)
        if "name" in own:
            record = replace(record, feeds=f"{group.__name__}.{item.name}")
        records.append(replace(record, **{**facts, **own}))
    return tuple(records)
