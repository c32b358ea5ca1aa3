"""Settings of a generation; every field is ``generate.args.NAME`` and ``--name-with-dashes``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from maxent_grpo.config.records import convert
from maxent_grpo.errors import UsageError, did_you_mean
from maxent_grpo.settings import setting, settings_of

PROMPT_COLUMNS = ("prompt", "problem", "question", "instruction")
"""Read, in this order, where ``prompt_column`` is not given."""


# fmt: off
@dataclass(frozen=True)
class GenerateSettings:
    """One call of the command."""

    # The rows and their prompts
    hf_dataset: str = setting("", "Rows to complete: hub id, local file or folder, task:NAME. Required.")
    hf_dataset_config: str | None = setting(None, "Configuration of hf_dataset.")
    hf_dataset_split: str = setting("train", "Split of hf_dataset.")
    limit: int | None = setting(None, "The first rows only; a later call without it goes on from them.", ge=1)
    prompt_column: str | None = setting(None, "Column that the template calls instruction; unset: prompt, else "
        "problem, question, instruction.")
    prompt_template: str = setting("{{ instruction }}", "Jinja template of the user's message; every column is a "
        "variable of it.")
    system_prompt: str | None = setting(None, "System message before it.")

    # The endpoint
    model: str = setting("", "Name that the endpoint serves the model by. Required.")
    vllm_server_url: str = setting("http://localhost:8000/v1", "OpenAI-compatible endpoint, up to /v1.")
    api_key_env: str = setting("OPENAI_API_KEY", "Environment variable that holds the endpoint's key.")
    engine: Literal["builtin", "distilabel"] = setting("builtin", "Who sends the requests; distilabel needs "
        "seed=null, temperature, top_p, and the extra distilabel.")

    # The draws
    temperature: float | None = setting(None, "Sampling temperature; unset: the server's.", ge=0, lt=float("inf"))
    top_p: float | None = setting(None, "Nucleus; unset: the server's.", gt=0, le=1)
    max_new_tokens: int = setting(8192, "Tokens of a completion at most.", ge=1)
    num_generations: int = setting(1, "Completions per row, grouped in one list.", ge=1)
    seed: int | None = setting(0, "Each completion's seed comes from this, its row and its number; null: none is "
        "sent.")

    # The load on the server
    input_batch_size: int = setting(64, "Requests in flight per replica.", ge=1)
    client_replicas: int = setting(1, "Replicas; input_batch_size times this are in flight.", ge=1)
    timeout: float = setting(600.0, "Seconds for one attempt at a completion, all of it.", gt=0)
    retries: int = setting(3, "Further attempts of a request, after growing pauses.", ge=0)

    # The results
    output_dir: str | None = setting(None, "Folder for rows.jsonl; unset: "
        "var/data/generate/DATASET--SPLIT--MODEL. Holds one generation.")
    output_format: Literal["jsonl", "dataset"] = setting("jsonl", "dataset: also a folder that "
        "datasets.load_from_disk reads.")
    output_column: str = setting("generation", "Column of the completions, and the start of the others' names.")
    allow_failed_rows: bool = setting(False, "Finish, push and exit with 0 although rows failed; they are listed "
        "and hold no completion.")
    resume: bool = setting(True, "False: drop what rows.jsonl holds and start over.")
    hf_output_dataset: str | None = setting(None, "Hub id to push the data set to; unset: nothing is pushed.")
    private: bool = setting(False, "Push it as a private data set.")
    # fmt: on

    @property
    def concurrency(self) -> int:
        """Requests in flight."""
        return self.input_batch_size * self.client_replicas

    @property
    def folder(self) -> str:
        """``output_dir``, or the default one."""
        if self.output_dir is not None:
            return self.output_dir
        parts = (_tail(self.hf_dataset), self.hf_dataset_split, _tail(self.model))
        return "var/data/generate/" + "--".join(re.sub(r"[^A-Za-z0-9._-]+", "_", part) for part in parts)

    def check(self) -> None:
        """Raise `UsageError` for settings that cannot work."""
        url, greedy = self.vllm_server_url, self.temperature == 0 and self.num_generations > 1
        ranges = [(r, getattr(self, r.name)) for r in RECORDS.values() if r.range]
        problems = [
            (not self.hf_dataset, "hf_dataset: name the rows to complete (generate.args.hf_dataset=…)"),
            (not self.model, "model: name the model as the endpoint serves it (generate.args.model=…)"),
            (not url, "vllm_server_url must be provided for generation jobs"),
            (not re.match(r"https?://[^/]", url), f"vllm_server_url={url}: it starts with http:// or https://"),
            *((v is not None and not r.holds(v), f"{r.name}={v}: must be {r.range}") for r, v in ranges),
            (greedy, f"temperature=0 is greedy, so all {self.num_generations} completions of a row would be the same"),
            (self.private and self.hf_output_dataset is None, "private: nothing is pushed; set hf_output_dataset"),
        ]
        for wrong, message in problems:
            if wrong:
                raise UsageError(message)


RECORDS = {record.name: record for record in settings_of(GenerateSettings)}


def read_settings(given: Mapping[str, Any]) -> GenerateSettings:
    """The settings in ``given``, checked. Raises `UsageError` for an unknown name or a value that does not fit."""
    values = {}
    for key, value in given.items():
        if key not in RECORDS:
            hint = did_you_mean(str(key), RECORDS)
            raise UsageError(f"generate.args.{key}: unknown{hint}; --help lists what there is")
        try:
            values[key] = convert(value, RECORDS[key].type)
        except ValueError as error:
            raise UsageError(f"generate.args.{key}={value}: {error}") from error
    settings = GenerateSettings(**values)
    settings.check()
    return settings


def _tail(name: str) -> str:
    return [part for part in re.split(r"[/\\:]+", name) if part][-1]
