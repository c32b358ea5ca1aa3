"""Writes src/maxent_grpo/config/trl_fields.json: the fields of TRL's dataclasses, read from the installed TRL.

Reading a recipe needs their names, types and defaults, and must not wait for torch. Run it after an update of TRL or
Transformers: ``python tools/trl_fields.py``. A test compares the file with what is installed.
"""

import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trl.scripts.utils import ScriptArguments
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.model_config import ModelConfig

FILE = Path(__file__).resolve().parents[1] / "src/maxent_grpo/config/trl_fields.json"
CLASSES: dict[str, Any] = {"script": ScriptArguments, "training": GRPOConfig, "model": ModelConfig}


def rows(cls: Any) -> Iterator[list[Any]]:
    """``[name, type, default, help]`` of each field; a type is an expression of plain types and `Literal`."""
    types = get_type_hints(cls)
    for field in fields(cls):
        if field.init:
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            help_text = " ".join(str(field.metadata.get("help", "")).split())
            yield [field.name, _type(types[field.name], field), default, help_text]


def _type(annotation: Any, field: "Field[Any]") -> str:
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    enums = [member for member in members if isinstance(member, type) and issubclass(member, Enum)]
    choices = [item.value for enum in enums for item in enum] or field.metadata.get("choices")
    if choices:
        kinds = [str(Literal[tuple(choices)]).removeprefix("typing.")]
        kinds += ["None"] if NoneType in members else []
    else:
        kinds = [_plain(member) for member in members]
    return " | ".join(sorted(kinds, key=lambda kind: kind == "None"))


def _plain(member: Any) -> str:
    if member is NoneType:
        return "None"
    if get_origin(member) is Literal:
        return str(member).removeprefix("typing.")
    if get_origin(member) in (list, dict):
        return f"{get_origin(member).__name__}[{', '.join(_plain(part) for part in get_args(member))}]"
    return member.__name__ if member in (bool, int, float, str, list, dict) else "Any"


def text() -> str:
    """The file, one field a line."""
    sections = []
    for section, cls in CLASSES.items():
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows(cls))
        sections.append(f'"{section}": [\n{lines}\n]')
    return "{\n" + ",\n".join(sections) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
