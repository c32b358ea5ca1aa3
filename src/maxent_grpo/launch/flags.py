"""Flags with a variable of the environment behind each. The command line wins; the plan says where a value is from."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maxent_grpo.errors import UsageError


@dataclass(frozen=True)
class Flag:
    """One option of a launcher, without its dashes. Of its variables the first that is set counts."""

    name: str
    default: str | None
    variables: tuple[str, ...] = ()
    switch: bool = False
    """True: it takes no value."""


@dataclass(frozen=True)
class Values:
    """The values that were asked for, and by what: ``--flag``, the variable's name, or ``default``."""

    values: Mapping[str, str | None]
    sources: Mapping[str, str]

    def __getitem__(self, name: str) -> str | None:
        return self.values[name]

    def text(self, name: str) -> str:
        """A value that has a default, or was required."""
        value = self.values[name]
        if value is None:
            raise UsageError(f"--{name} is needed (see --help)")
        return value

    def number(self, name: str, least: int = 1) -> int:
        """A whole number of at least ``least``. Raises `UsageError`."""
        value = self.text(name)
        if not value.isdecimal() or int(value) < least:
            raise UsageError(f"{self.sources[name]}={value}: a whole number of at least {least} is needed")
        return int(value)

    def on(self, name: str) -> bool:
        return self.values[name] not in (None, "", "0", "false")

    def typed(self, *, without: Sequence[str] = ()) -> list[str]:
        """The flags of the command line, as words, but for those in ``without``."""
        given = [name for name, source in self.sources.items() if source.startswith("--")]
        return [f"--{name}={self.values[name]}" for name in given if name not in without]


def read_flags(flags: Sequence[Flag], words: Sequence[str], environ: Mapping[str, str]) -> Values:
    """``--flag value``, ``--flag=value`` and switches. Raises `UsageError` for an unknown one or a missing value."""
    known = {flag.name: flag for flag in flags}
    values: dict[str, str | None] = {}
    sources: dict[str, str] = {}
    for flag in flags:
        variable = next((name for name in flag.variables if environ.get(name)), None)
        values[flag.name] = environ[variable] if variable else flag.default
        sources[flag.name] = variable or "default"
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in known:
            raise UsageError(f"{word}: no such option; see --help (flags of the trainer go into --args '…')")
        if known[name].switch:
            value = value if equals else "1"
        elif not equals:
            if not rest:
                raise UsageError(f"--{name} needs a value")
            value = rest.pop(0)
        values[name], sources[name] = value, f"--{name}"
    return Values(values, sources)


def words_of(text: str) -> tuple[str, ...]:
    """The words of ``--args "…"``, quoted as in a shell. Raises `UsageError` for an open quote."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--args {text!r}: {error}; quote the whole string once") from error


def flag_value(words: Sequence[str], name: str) -> str | None:
    """The value of a TRL-style flag among the trainer's arguments, the last one counts; None: it is not there.

    A bare ``--name`` is "true" and ``--no_name`` is "false".
    """
    found = None
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        flag = flag.removeprefix("--").replace("-", "_") if word.startswith("--") else ""
        following = words[position + 1] if position + 1 < len(words) else "--"
        if flag == name:
            found = value if equals else "true" if following.startswith("--") else following
        elif flag == f"no_{name}":
            found = "false"
    return found
