"""The text of ``--help``. Reads only light modules: it must not wait for torch or Hydra."""

import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maxent_grpo.config.settings import MachineSettings, ScriptFields, TrainingFields
from maxent_grpo.settings import Setting, settings_of

OWN_HELP = {
    "math-eval": (
        "evaluation:",
        "maxent-grpo-math-eval inference.dataset=NAME 'inference.models=[MODEL]' [inference.KEY=VALUE ...]",
    ),
    "study": ("study\n", "maxent-grpo-study study.plan=FILE [study.KEY=VALUE ...]"),
}
"""Command with a script of its own and no settings of training → how its part of help.txt begins, and its usage."""


def help_text(width: int | None = None, command: str | None = None) -> str:
    """The whole help, wrapped to ``width`` columns (the terminal's by default), or the part of one command."""
    columns = width or min(shutil.get_terminal_size((110, 24)).columns, 120)
    text = Path(__file__).with_name("help.txt").read_text(encoding="utf-8")
    if command in OWN_HELP:
        begins, usage = OWN_HELP[command]
        parts = text.split("\n\n")
        own = next(part for part in parts if part.startswith(begins))
        ends = next(part for part in parts if part.startswith("exit codes"))
        return f"usage: {usage}\n\n{own}\n\n{ends.rstrip()}\n\nmaxent-grpo --help lists all commands and settings."
    return text.replace("$SETTINGS", "\n".join(_setting_lines(columns)))


def topics() -> dict[str, list[Setting]]:
    """Heading → this package's settings under it."""
    records = (
        *settings_of(ScriptFields, section="script"),
        *settings_of(TrainingFields),
        *settings_of(MachineSettings, section="environment"),
    )
    found: dict[str, list[Setting]] = {}
    for record in records:
        found.setdefault(f"{record.topic} ({record.section})", []).append(record)
    return found


def _setting_lines(columns: int) -> Iterator[str]:
    yield "settings of this package, with defaults"
    for heading, records in topics().items():
        yield f"\n {heading}"
        for record in records:
            yield from _describe(record, columns)


def _describe(record: Setting, columns: int) -> list[str]:
    indent = " " * 6
    text = textwrap.wrap(
        f"{record.help}{facts(record)}", max(columns, 40), initial_indent=indent, subsequent_indent=indent
    )
    return [f"  {named(record)} ({shown(record.default)})", *text]


def named(record: Setting) -> str:
    """The words that users write: a key, or a variable of the environment."""
    return record.env[0] if record.section == "environment" else record.name


def facts(record: Setting) -> str:
    """Facts of a record besides its help: range, choices, other names, environment variables; "" for nothing."""
    told = all(str(choice) in record.help for choice in record.options)
    choices = "" if told else ", ".join(map(str, record.options))
    parts = [
        f"must be {record.range}" if record.range and record.range not in record.help else "",
        f"one of {choices}" if choices else "",
        f"also: {', '.join(record.aliases)}" if record.aliases else "",
        f"environment: {', '.join(name for name in record.env if name not in record.help + named(record))}",
    ]
    said = "; ".join(part for part in parts if part and not part.endswith(": "))
    return f" [{said}]" if said else ""


def shown(value: Any) -> str:
    """A default in words."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) else str(value)
