"""The settings of a vLLM sampler."""

from dataclasses import dataclass
from typing import Literal

from maxent_grpo.config.fields import setting


@dataclass
class VLLMFields:
    """How vLLM gets the learner's weights, and how a server is asked (docs/guides/vllm.md)."""

    vllm_url: str | None = setting(
        None,
        "vLLM generate endpoint; with use_vllm in server mode it gives the server base URL, host and port.",
    )

    # Weights of a vLLM sampler
    vllm_sync_weights: bool = setting(
        True,
        "Give the vLLM sampler the learner's weights; false: it samples from those that it was started with.",
    )
    vllm_sync_interval_steps: int = setting(
        1, "Optimiser steps between two such publications, ≥ 0; 0: never, as vllm_sync_weights=false."
    )
    vllm_sync_backend: Literal["auto", "disk", "gloo", "nccl", "ipc"] = setting(
        "auto",
        "How weights reach a server: by files (disk), or the backend of its --weight-transfer-config; auto: that "
        "backend, else disk.",
    )
    vllm_sync_urls: list[str] = setting(
        [],
        "Base URLs of all servers behind a proxy, which all get the weights; empty: vllm_server_base_url alone.",
    )
    vllm_sync_dir: str | None = setting(
        None, "Directory for disk, under one path on trainer and servers; unset: a folder of output_dir."
    )

    # How a vLLM server is asked (use_vllm with vllm_mode server)
    vllm_api: Literal["auto", "openai", "generate", "trl"] = setting(
        "auto",
        "Protocol of the server: openai (/v1/completions), generate (vLLM's /inference/v1/generate), trl (TRL's former "
        "server); auto: openai where it is there, else trl.",
    )
    vllm_model: str | None = setting(
        None, "Name under which the server must serve the policy; unset: the only model that it serves."
    )
    vllm_request_timeout: float | None = setting(
        None, "Seconds from sending a request to the last byte of its answer; unset: VLLM_TIMEOUT, else 120."
    )
    vllm_max_retries: int | None = setting(
        None, "Further attempts of a request that failed, 0 to 50; unset: VLLM_MAX_RETRIES, else 3."
    )
    vllm_backoff: float | None = setting(
        None, "Seconds before the first further attempt, jitter comes on top; unset: VLLM_BACKOFF, else 1."
    )
    vllm_backoff_multiplier: float | None = setting(
        None, "Factor from one such pause to the next, ≥ 1; unset: VLLM_BACKOFF_MULTIPLIER, else 2."
    )
    vllm_max_completion_rounds: int = setting(
        0, "Rounds that ask for completions that are missing; 0: num_generations of them."
    )
    vllm_retry_sleep: float = setting(0.5, "Seconds between two such rounds.")
    vllm_concurrency: int = setting(64, "Requests of one process in flight at a time.")
    vllm_prompts_per_request: int = setting(
        1, "Prompts in one request; more than one share a seed, so that a completion depends on its company."
    )
    vllm_backfill_with_model: bool = setting(
        False, "Sample what the server does not deliver with the trainer's own model, counted and logged."
    )
    vllm_client_tag: str | None = setting(
        None,
        "Tag of this process's requests; unset: VLLM_CLIENT_TAG, else rank-R-of-W among several processes.",
    )
    vllm_client_tag_policy: Literal["strict", "lenient"] | None = setting(
        None,
        "What to do with untagged answers: strict drops them, lenient keeps them; unset: strict with a tag.",
    )
    vllm_client_tag_fail_fast: bool | None = setting(
        None,
        "End the run at once where an answer holds no group of this process, instead of asking again; unset: "
        "MAXENT_VLLM_CLIENT_TAG_FAIL_FAST, else true.",
    )
    vllm_logprob_fail_after: int | None = setting(
        None,
        "Answers in a row without log-probs that end the run, whatever attempts remain; 0: no such limit; unset: "
        "MAXENT_VLLM_LOGPROB_FAIL_AFTER, else 3.",
    )
