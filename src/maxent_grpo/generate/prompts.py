"""From rows of a data set to the messages that a model gets."""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from maxent_grpo.errors import UsageError
from maxent_grpo.generate.settings import PROMPT_COLUMNS, GenerateSettings

if TYPE_CHECKING:
    from datasets import Dataset

INSTRUCTION = "instruction"
"""What a template calls the prompt column."""


class EmptyPrompt(Exception):
    """A row that asks for nothing, or cannot be rendered; the message says which."""


class Prompts:
    """The rendered prompt of each row.

    Raises `UsageError` for a column that the rows do not have and a template that cannot work.
    """

    def __init__(self, settings: GenerateSettings, rows: "Dataset") -> None:
        self.column = prompt_column(settings, rows.column_names)
        # The template comes from the user, the values from strangers: neither gets at Python's internals.
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        try:
            self._template = environment.from_string(settings.prompt_template)
            variables = meta.find_undeclared_variables(environment.parse(settings.prompt_template))
        except TemplateSyntaxError as error:
            raise UsageError(f"prompt_template: not a Jinja template ({error})") from error
        if not variables:
            raise UsageError(
                f"prompt_template={settings.prompt_template!r} reads nothing of a row, so that all prompts would be "
                "the same: write {{ instruction }} where the prompt goes"
            )
        unknown = sorted(variables - {INSTRUCTION, *rows.column_names})
        if unknown:
            raise UsageError(
                f"prompt_template: there is no {', '.join(unknown)}; it may read {INSTRUCTION} and the columns "
                f"{', '.join(rows.column_names)}"
            )
        read = {self.column if name == INSTRUCTION else name for name in variables}
        self._rows = rows.select_columns(sorted(read))

    def __getitem__(self, index: int) -> str:
        """Raises `EmptyPrompt`."""
        row: dict[str, Any] = self._rows[index]
        value = row.get(self.column)
        if self.column in row and not isinstance(value, str):
            raise EmptyPrompt(f"column {self.column} holds no text but {type(value).__name__}")
        try:
            text = self._template.render(row | {INSTRUCTION: value})
        except (TemplateError, TypeError, ValueError) as error:
            raise EmptyPrompt(f"prompt_template: {type(error).__name__}: {error}") from error
        if not text.strip():
            raise EmptyPrompt("the prompt is empty")
        return text

    def digest(self) -> str:
        """SHA-256 of everything that prompts are made of, all rows."""
        digest = hashlib.sha256()
        for row in self._rows:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()


def prompt_column(settings: GenerateSettings, columns: Sequence[str]) -> str:
    """The column that holds the prompts. Raises `UsageError` where there is none."""
    wanted = PROMPT_COLUMNS if settings.prompt_column is None else (settings.prompt_column,)
    found = next((name for name in wanted if name in columns), None)
    if found is None:
        raise UsageError(
            f"prompt_column: dataset '{settings.hf_dataset}' has no {' or '.join(wanted)}; it has {', '.join(columns)}"
        )
    return found
