"""``command=generate``, and the same by dashed flags: ``python -m maxent_grpo.generate --hf-dataset … --model …``."""

import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any

from maxent_grpo.cli.boundary import INTERRUPTED, Place, exit_code_of, show
from maxent_grpo.cli.logs import configure_logging
from maxent_grpo.errors import UsageError

_HEAD = """\
usage: python -m maxent_grpo.generate --hf-dataset NAME --model NAME [--flag value ...]
       maxent-grpo-generate generate.args.hf_dataset=NAME generate.args.model=NAME [generate.args.KEY=VALUE ...]

Completes every row of a data set at an OpenAI-compatible endpoint and writes <output_dir>/rows.jsonl, one line a row.
The same call again goes on where it was stopped and retries what failed.

flags and keys (generate.args.hf_dataset is --hf-dataset), with defaults
"""
_TAIL = """
exit codes
  0 every row is there   1 the run failed, or rows have no completion   2 the request is wrong   130 interrupted
"""


def generate_rows(args: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Carry out ``generate.args``. Raises `UsageError` and `RunError`."""
    from maxent_grpo.generate.settings import read_settings

    settings = read_settings(args)
    configure_logging(environ.get("MAXENT_LOG_LEVEL") or environ.get("MAXENT_GRPO_LOGLEVEL") or "warning")

    from maxent_grpo.generate.run import generate

    show(generate(settings).summary())


def is_flags(arguments: Sequence[str]) -> bool:
    """Whether the arguments are this module's dashed flags, and not settings or flags for Hydra."""
    from maxent_grpo.generate.settings import GenerateSettings

    names = {"help", "no_help", *(field.name for field in fields(GenerateSettings))}
    flags = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]
    known = [flag.replace("-", "_").removeprefix("no_") in names for flag in flags]
    return any(known) or "-h" in arguments


def run_generation_flags(arguments: Sequence[str]) -> int:
    """Generate as dashed flags say; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        show(help_text())
        return 0
    place = Place("generate")
    try:
        return exit_code_of(lambda: generate_rows(read_flags(arguments), os.environ), place)
    except KeyboardInterrupt:
        print(place.line("interrupted"), file=sys.stderr)
        return INTERRUPTED


def read_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """``--name value``, ``--name=value``, ``--switch`` and ``--no-switch`` as settings. Raises `UsageError`."""
    given: dict[str, Any] = {}
    tokens: Iterator[str] = iter(arguments)
    switches = _switches()
    for token in tokens:
        name, equals, value = token.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not token.startswith("--"):
            raise UsageError(f"{token}: a flag starts with --; generate.args.KEY=VALUE and flags do not mix")
        if equals:
            given[name] = value
        elif name in switches:
            given[name] = True
        elif name.removeprefix("no_") in switches:
            given[name.removeprefix("no_")] = False
        else:
            following = next(tokens, None)
            if following is None or following.startswith("--"):
                raise UsageError(f"--{name.replace('_', '-')} needs a value")
            given[name] = following
    return {name: None if value == "null" else value for name, value in given.items()}


def help_text() -> str:
    """All settings with their defaults."""
    from maxent_grpo.generate.settings import GenerateSettings

    return (
        _HEAD + "\n".join(line for field in fields(GenerateSettings) for line in _lines(field)) + "\n" + _TAIL
    )


def _lines(field: "Field[Any]") -> list[str]:
    default = "unset" if field.default is None else field.default
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    head = f"  --{field.name.replace('_', '-')}" + (f" ({shown})" if shown else "")
    indent = " " * 6
    return [
        head,
        *textwrap.wrap(str(field.metadata["help"]), 104, initial_indent=indent, subsequent_indent=indent),
    ]


def _switches() -> set[str]:
    from maxent_grpo.generate.settings import GenerateSettings

    return {field.name for field in fields(GenerateSettings) if isinstance(field.default, bool)}
