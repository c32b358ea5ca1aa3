"""The settings that this package adds to TRL's, with the sentence that explains each.

One module per topic; `training` and `script` put them together, and `config.schema` mixes those two into TRL's classes.
Standard library only: `--help` reads these modules, and must not wait for torch. A name that TRL has too appears here
only where its default or its type differs.
"""

from dataclasses import field
from typing import Any


def setting(default: Any, help_text: str) -> Any:
    """A dataclass field with its help; a list default is copied per instance."""
    metadata = {"help": help_text}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
