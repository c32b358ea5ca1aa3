"""The grammar of the catalog: components, the settings that their numbers come from, and their choice by name.

Nothing here imports torch: a component is a path until it is built.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from maxent_grpo.named import load_named
from maxent_grpo.settings import Setting

Settings = Callable[[str], Any]
"""Name of a setting → its value in an objective."""


@dataclass(frozen=True)
class Number:
    """A number or switch of a component, and the setting that gives it."""

    name: str
    default: Any
    """What it is where neither the recipe nor the objective says."""
    setting: Setting | None = None
    """None: no setting of this package. Either one of TRL's has this name, or objectives alone set it."""

    def numbers(self) -> Iterator["Number"]:
        yield self

    def problems(self, value_of: Settings) -> Iterator[str]:
        yield from ()

    def built(self, value_of: Settings) -> Any:
        return value_of(self.name)

    def is_on(self, value_of: Settings) -> bool:
        """Whether it differs from its default, which is off."""
        return bool(value_of(self.name) != self.default)


@dataclass(frozen=True)
class Component:
    """A class, or a function that is its own value, of a module of `maxent_grpo.objectives`."""

    path: str
    """``module:NAME``"""
    arguments: Mapping[str, "Part"] = field(default_factory=dict)
    """Argument of the class → where it comes from."""
    on: Number | None = None
    """What turns on a component that an objective may lack."""
    traits: frozenset[str] = frozenset()
    """What is known of it without building it."""
    refuses: Callable[[Settings], Iterator[str]] | None = None
    """Contradictions of its settings with each other or with others, each ``setting: why, and what to do``."""

    def numbers(self) -> Iterator[Number]:
        """Its own numbers, and those of the components within."""
        if self.on is not None:
            yield self.on
        for part in self.arguments.values():
            yield from part.numbers()

    def problems(self, value_of: Settings) -> Iterator[str]:
        """What it and the components within refuse."""
        if self.refuses is not None:
            yield from self.refuses(value_of)
        for part in self.arguments.values():
            yield from part.problems(value_of)

    def is_on(self, value_of: Settings) -> bool:
        return self.on is None or self.on.is_on(value_of)

    def built(self, value_of: Settings) -> Any:
        """The value, with its numbers; None where it is off."""
        if not self.is_on(value_of):
            return None
        target = load_named("objective", f"maxent_grpo.objectives.{self.path}")
        if not isinstance(target, type):
            return target
        return target(**{name: part.built(value_of) for name, part in self.arguments.items()})


@dataclass(frozen=True)
class Choice:
    """One of several components, or plain values, by name. An objective may also give the value itself."""

    number: Number
    options: Mapping[str, Any]
    own: str = ""
    """``module:NAME`` of what makes a component of a value that an objective gives; "": it is one."""
    implied: Callable[[Settings], str] | None = None
    """The name where the setting is None."""

    def __post_init__(self) -> None:
        if self.number.setting is not None and not self.number.setting.choices:
            setting = replace(self.number.setting, choices=tuple(self.options))
            object.__setattr__(self, "number", replace(self.number, setting=setting))

    def numbers(self) -> Iterator[Number]:
        yield self.number
        for option in self.options.values():
            if isinstance(option, Component):
                yield from option.numbers()

    def chosen(self, value_of: Settings) -> Any:
        """The option that is chosen: a `Component`, a plain value, or what an objective gave in its place."""
        name = value_of(self.number.name)
        if name is None and self.implied is not None:
            name = self.implied(value_of)
        return self.options[name] if isinstance(name, str) else name

    def problems(self, value_of: Settings) -> Iterator[str]:
        option = self.chosen(value_of)
        if isinstance(option, Component):
            yield from option.problems(value_of)

    def built(self, value_of: Settings) -> Any:
        option = self.chosen(value_of)
        if isinstance(option, Component):
            return option.built(value_of)
        return load_named("objective", f"maxent_grpo.objectives.{self.own}")(option) if self.own else option


@dataclass(frozen=True)
class Every:
    """Those of several components that are on, in this order."""

    components: tuple[Component, ...]

    def numbers(self) -> Iterator[Number]:
        for component in self.components:
            yield from component.numbers()

    def problems(self, value_of: Settings) -> Iterator[str]:
        for component in self.components:
            yield from component.problems(value_of)

    def built(self, value_of: Settings) -> tuple[Any, ...]:
        return tuple(c.built(value_of) for c in self.components if c.is_on(value_of))


Part = Number | Component | Choice | Every
