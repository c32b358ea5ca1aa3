"""What the processes of a job find in their environment, and what is never printed of it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from maxent_grpo.observe.names import is_secret

HIDDEN = "***"
SHORTEST_SECRET = 6
"""A secret's value is hidden wherever it appears; a value shorter than this would hide innocent text."""

CACHES = {
    "HF_HOME": "cache/huggingface",
    "TORCH_HOME": "cache/torch",
    "TORCHINDUCTOR_CACHE_DIR": "cache/torchinductor",
    "TRITON_CACHE_DIR": "cache/triton",
    "VLLM_CACHE_ROOT": "cache/vllm",
    "XDG_CACHE_HOME": "cache/xdg",
    "PIP_CACHE_DIR": "cache/pip",
    "WANDB_DIR": "artifacts/wandb",
    "WANDB_CACHE_DIR": "cache/wandb",
    "TMPDIR": "tmp",
}
"""Variable → its place under ``var/``. One that is set already stays as it is."""


def job_environment(environ: Mapping[str, str], root: Path) -> dict[str, str]:
    """``environ`` with every cache under ``root/var``, shallow checkpoints, and nothing of the user's site-packages.

    A token that `hf auth login` stored under the home directory is found although HF_HOME moves.
    """
    result = dict(environ)
    for variable, place in CACHES.items():
        result.setdefault(variable, str(root / "var" / place))
    home = environ.get("HF_HOME") or str(
        Path(environ.get("HOME", "~")).expanduser() / ".cache" / "huggingface"
    )
    stored = Path(home) / "token"
    if "HF_TOKEN" not in environ and stored.is_file():
        result.setdefault("HF_TOKEN_PATH", str(stored))
    result.setdefault("MAXENT_CHECKPOINT_METADATA_MODE", "shallow")
    result |= {"PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1"}
    return result


def make_folders(environment: Mapping[str, str]) -> None:
    """Make the folders that the caches point to."""
    for variable in CACHES:
        Path(environment[variable]).mkdir(parents=True, exist_ok=True)


def shown_words(words: Sequence[str], environ: Mapping[str, str]) -> str:
    """A command line for people: values of secret flags and of secret variables hidden, quoted for a shell."""
    shown, hide = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        secret = is_secret(flag.removeprefix("--"))
        shown.append(HIDDEN if hide else f"{flag}={HIDDEN}" if secret and equals else word)
        hide = secret and not equals and word.startswith("--")
    return without_values(" ".join(_quoted(word) for word in shown), environ)


def without_values(text: str, environ: Mapping[str, str]) -> str:
    """``text`` without the value of any variable whose name says that it is a secret."""
    secrets = {v for name, v in environ.items() if is_secret(name) and len(v) >= SHORTEST_SECRET}
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w@%+=:,./{}*$-]+", word) else "'" + word.replace("'", "'\"'\"'") + "'"
