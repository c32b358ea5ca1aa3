"""Names: the files of a run directory, the metrics that this package reads, and settings that hold secrets.

What each metric means is in ``metrics.yaml`` (`maxent_grpo.observe.definitions`).
"""

import re
from collections.abc import Mapping
from typing import Any, Final

METRICS_FILE: Final = "metrics.jsonl"
TIMINGS_FILE: Final = "timings.jsonl"
COMPLETIONS_FILE: Final = "completions.jsonl"
BANK_FILE: Final = "replay_bank.jsonl"
CONFIG_FILE: Final = "resolved_config.yaml"
LOCK_FILE: Final = ".run.lock"
STOP_FILE: Final = "stop"  # not of a run: whoever makes it asks the run to save and end

REWARD: Final = "train/reward"
PASS: Final = "train/pass"
COVERAGE: Final = "train/coverage"
TAU: Final = "train/tau"
BETA: Final = "train/beta"
KL: Final = "train/kl"
TOKEN_ENTROPY: Final = "train/entropy"
WEIGHT_ENTROPY: Final = "train/weight_entropy"
TOKENS_PER_SECOND: Final = "tokens/s"

_SECRET = re.compile(
    r"(^|[^a-z])(token|password|passwd|secret|credentials?|authorization|(extra_)?headers)$"
    r"|(api|access|private)_?key"
)
# Tokens in the sense of language models, which no one needs to hide.
_HARMLESS = re.compile(r"(^|[^a-z])(bos|eos|pad|unk|sep|cls|mask)_token$|per(_\w+)?_token$")


def is_secret(key: str) -> bool:
    """True where a setting called ``key`` holds a secret, as far as its name tells."""
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
