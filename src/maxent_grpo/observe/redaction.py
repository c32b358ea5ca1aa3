"""Keep secrets out of what is shown or uploaded."""

import re
from collections.abc import Mapping
from typing import Any

_SECRET = re.compile(
    r"(^|[^a-z])(token|password|passwd|secret|credentials?|authorization|(extra_)?headers)$"
    r"|(api|access|private)_?key"
)
# Tokens in the sense of language models, which no one needs to hide.
_HARMLESS = re.compile(r"(^|[^a-z])(bos|eos|pad|unk|sep|cls|mask)_token$|per(_\w+)?_token$")


def is_secret(key: str) -> bool:
    """Whether a setting called ``key`` holds a secret, as far as its name tells."""
    name = key.lower().replace("-", "_")
    return bool(_SECRET.search(name)) and not _HARMLESS.search(name)


def without_secrets(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``mapping``, nested mappings and lists included, without the keys that name a secret."""
    return {str(key): _cleaned(value) for key, value in mapping.items() if not is_secret(str(key))}


def _cleaned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_secrets(value)
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return value
