"""Recipes on disk, and a resolver that touches no real environment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from maxent_grpo.config.loading import RunConfig, resolve


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes settings (or raw text) as a recipe in a folder whose name says nothing."""

    def write(settings: dict[str, Any] | str) -> Path:
        path = tmp_path / "plain" / "recipe.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings), encoding="utf-8")
        return path

    return write


@pytest.fixture
def resolved_recipe(recipe: Callable[..., Path]) -> Callable[..., RunConfig]:
    """Resolves settings as a recipe of a command, with overrides by name alone."""

    def run(command: str, settings: dict[str, Any], environ: Any = None, **flat: Any) -> RunConfig:
        return resolve(command, recipe(settings), {"flat": flat}, {} if environ is None else environ)

    return run
