"""Whether what IFEval needs is installed, and where NLTK finds its data without a network."""

import importlib.util
from pathlib import Path

from maxent_grpo.errors import UsageError

PACKAGES = ("lm_eval", "langdetect", "nltk", "immutabledict")

_DATA = "tokenizers/punkt_tab/english"
_BUNDLE = "core/_static/nltk_cache"  # inside the package llama_index, which carries NLTK's data in its wheel
_REMEDY = "install maxent-grpo[ifeval]"


def ensure_ifeval() -> None:
    """Point NLTK to its ``punkt_tab`` data: where NLTK_DATA and its own places have them, else a wheel that does.

    Raises `UsageError` with the remedy where a package or the data are missing.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"reward ifeval: the package {package} is not installed; {_REMEDY}")
    import nltk

    for folder in ["", *_bundles()]:
        if folder and folder not in nltk.data.path:
            nltk.data.path.append(folder)
        try:
            nltk.data.find(_DATA)
        except LookupError:
            continue
        return
    raise UsageError(
        "reward ifeval: NLTK's punkt_tab data are not here; "
        f"{_REMEDY}, which brings them, or name their folder in NLTK_DATA"
    )


def _bundles() -> list[str]:
    spec = importlib.util.find_spec("llama_index")
    folders = (spec.submodule_search_locations or []) if spec else []
    return [str(Path(folder) / _BUNDLE) for folder in folders]
