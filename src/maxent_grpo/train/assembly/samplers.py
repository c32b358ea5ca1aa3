"""Who samples (the learner's own model, a vLLM server, a vLLM engine in this process) and how it gets the weights."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.config.loading import RunConfig
from maxent_grpo.config.vllm import server_settings
from maxent_grpo.data.prompts import PromptSettings
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.models.loading import ModelSource, stop_token_ids
from maxent_grpo.rollout.dialogue import DialogueSampler
from maxent_grpo.rollout.environment import load_environment
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.parts import SamplerInParts
from maxent_grpo.rollout.publish.control import VLLMControl
from maxent_grpo.rollout.publish.disk_transport import DiskTransport
from maxent_grpo.rollout.publish.gloo_transport import GlooTransport
from maxent_grpo.rollout.publish.publisher import Publisher, PublishFailed
from maxent_grpo.rollout.publish.server_publisher import Nothing, ServerPublisher, Transport
from maxent_grpo.rollout.publish.vllm_transport import VLLMTransport
from maxent_grpo.rollout.sampler import Sampler, SamplingSettings
from maxent_grpo.rollout.settings import EngineSettings, ServerSettings
from maxent_grpo.rollout.vllm.colocate import (
    ColocatedPublisher,
    VLLMColocateSampler,
    start_engine,
)
from maxent_grpo.rollout.vllm.server import VLLMServerSampler
from maxent_grpo.train.learner import Learner
from maxent_grpo.train.published_weights import PolicyWeights
from maxent_grpo.train.publishing import TOLERANCE, Publishing, make_probe, weights_step
from maxent_grpo.train.ranks import gathered, together
from maxent_grpo.train.state import Run
from maxent_grpo.types import Metrics, Prompt, mean_stat

WEIGHTS_FOLDER = ".published"
"""Folder of the output directory for weights that travel by disk."""


@dataclass(frozen=True)
class SamplerParts:
    """What samplers are made of."""

    config: RunConfig
    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    sampling: SamplingSettings
    prompts: Sequence[Prompt]  # of the training data, for probes
    source: ModelSource
    output_dir: Path


def make_sampler(parts: SamplerParts) -> tuple[Sampler, Publishing | None]:
    """The sampler that the configuration names, and what keeps it on the learner's weights; None: it samples with them.

    Raises `UsageError` for what the sampler cannot do, and `RunError` where a server is not there.
    """
    training, learner = parts.config.training, parts.learner
    if not training.use_vllm or training.driver != "inline":  # rollout workers have engines of their own
        model = learner.strategy.sampling_model
        return LocalSampler(model, parts.tokenizer, learner.accelerator.autocast), None
    make = colocated if training.vllm_mode == "colocate" else served
    sampler, publisher, dtype = make(parts)
    rank = learner.accelerator.process_index
    precision = coarser(dtype, torch.bfloat16 if training.bf16 else parts.source.dtype)
    publishing = Publishing(
        sampler=sampler,
        publisher=publisher,
        weights=PolicyWeights(learner.policy.model, learner.strategy.gathered),
        probe=make_probe(parts.prompts, parts.sampling, precision, int(parts.tokenizer.pad_token_id), rank),
        source=learner,
        seed=training.seed,
        every=training.vllm_sync_interval_steps if training.vllm_sync_weights else 0,
    )
    one = learner.accelerator.num_processes == 1  # several ranks publish together, after they have sampled
    if isinstance(sampler, VLLMServerSampler) and publishing.every > 0 and one:
        sampler.restore = publishing.restore
    return sampler, publishing


def configured(sampler: Sampler, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """``sampler``, in parts where ``sampling_batch_size`` is set, in several turns where there is an environment."""
    training = config.training
    if training.sampling_batch_size is not None:
        sampler = SamplerInParts(sampler, training.sampling_batch_size)
    if training.environment is None:
        return sampler
    settings = PromptSettings(system_prompt=training.system_prompt, chat_template=training.chat_template)
    environment = load_environment(training.environment)
    return DialogueSampler(sampler, environment, training.max_turns, tokenizer, settings)


def served(parts: SamplerParts) -> tuple[Sampler, Publisher, torch.dtype]:
    """A sampler of a vLLM server, what publishes to it, and the precision that it computes in."""
    training, learner = parts.config.training, parts.learner
    accelerator = learner.accelerator
    rank, ranks = accelerator.process_index, accelerator.num_processes
    settings = server_settings(training, ranks, rank, os.environ)
    sampler = VLLMServerSampler(
        settings,
        parts.tokenizer,
        stop_token_ids(learner.model, parts.tokenizer),
        vocabulary=int(learner.model.config.vocab_size),
        backfill=backfill(parts) if training.vllm_backfill_with_model else None,
    )
    together(lambda: sampler.check(parts.sampling))
    first = accelerator.is_main_process and training.vllm_sync_weights
    made = together(lambda: server_publisher(parts, settings) if first else None)
    publisher, dtype = made or (ServerPublisher([], Nothing(), patience=0.0, is_sender=False), torch.float32)
    (name, *_) = gathered([str(dtype).removeprefix("torch.")], accelerator)
    return sampler, publisher, getattr(torch, name)


def backfill(parts: SamplerParts) -> Sampler:
    """The learner's own model for what a server does not deliver. Raises `UsageError` where ranks hold shards of it."""
    learner = parts.learner
    if learner.strategy.sampling_model is not learner.policy.model:
        raise UsageError(
            "vllm_backfill_with_model: each rank holds a part of the policy and cannot sample alone; remove it, or "
            "use distributed=ddp"
        )
    return LocalSampler(learner.model, parts.tokenizer, learner.accelerator.autocast)


def server_publisher(parts: SamplerParts, settings: ServerSettings) -> tuple[Publisher, torch.dtype]:
    """What publishes to the configured servers, and the precision that they compute in.

    Raises `UsageError` where they cannot take weights the way that ``vllm_sync_backend`` says.
    """
    training = parts.config.training
    headers = dict(settings.extra_headers)
    if settings.api_key is not None:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    servers = [VLLMControl(url, headers) for url in training.vllm_sync_urls or [settings.base_url]]
    try:
        found = [server.settings() for server in servers]
        proxied = any(server.is_proxy() for server in servers)
    except PublishFailed as error:
        raise RunError(f"vllm_sync_weights: {error}") from error
    backends = {(one.get("weight_transfer_config") or {}).get("backend") for one in found}
    backend = backends.pop() if len(backends) == 1 else None
    way = training.vllm_sync_backend
    if way == "auto":
        way = backend if backend in ("gloo", "nccl", "ipc") and not proxied else "disk"
    elif way != "disk" and proxied:
        raise UsageError(
            f"vllm_sync_backend: {way} needs a connection to each server, and {servers[0].url} is a proxy; list the "
            "servers behind it in vllm_sync_urls, or use disk"
        )
    elif way != "disk" and backend != way:
        raise UsageError(
            f"vllm_sync_backend: {way} is not what {servers[0].url} was started with; start every vllm serve with "
            f'--weight-transfer-config \'{{"backend": "{way}"}}\', or use disk'
        )
    if way == "ipc" and parts.learner.accelerator.num_processes > 1:
        raise UsageError("vllm_sync_backend: ipc is for one trainer process; use nccl or disk")
    transport: Transport
    match way:
        case "disk":
            directory = training.vllm_sync_dir or parts.output_dir / WEIGHTS_FOLDER
            transport = DiskTransport(Path(directory))
        case "gloo":
            transport = GlooTransport(training.vllm_group_port)
        case _:
            transport = VLLMTransport(way, training.vllm_group_port)
    publisher = ServerPublisher(
        servers, transport, patience=float(training.vllm_server_timeout), is_sender=True
    )
    dtypes = [dtype_of(one["model_config"]["dtype"]) for one in found]
    return publisher, max(dtypes, key=list(TOLERANCE).index)


def colocated(parts: SamplerParts) -> tuple[Sampler, Publisher, torch.dtype]:
    """An engine in this process, what publishes to it, and the precision that it computes in."""
    learner = parts.learner
    if learner.accelerator.num_processes > 1:
        raise UsageError("vllm_mode: colocate works in one process; use vllm_mode=server for several ranks")
    return engine_here(parts.config, parts.source, learner.model, parts.tokenizer)


def engine_here(
    config: RunConfig, source: ModelSource, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[VLLMColocateSampler, ColocatedPublisher, torch.dtype]:
    """An engine of ``source`` in this process, whose completions end as those of ``model`` do."""
    training = config.training
    if training.vllm_tensor_parallel_size != 1:
        raise UsageError(
            "vllm_tensor_parallel_size: a colocated engine belongs to one rank; use 1, or vllm_mode=server"
        )
    dtype = torch.bfloat16 if training.bf16 else source.dtype
    settings = EngineSettings(
        model=source.location,
        dtype=str(dtype).removeprefix("torch."),
        memory_fraction=training.vllm_gpu_memory_utilization,
        max_model_len=training.vllm_max_model_length,
        temperature=training.temperature,
        sleep=training.vllm_enable_sleep_mode,
        trust_remote_code=training.trust_remote_code,
    )
    engine = start_engine(settings)
    sampler = VLLMColocateSampler(engine, tokenizer, stop_token_ids(model, tokenizer), settings.sleep)
    return sampler, ColocatedPublisher(engine, sleeps=settings.sleep), dtype


def sampling_metrics(run: Run) -> Metrics:
    """What the sampler of its own weights had to do since the last call; nothing for the learner's own model."""
    if run.publishing is None:
        return {}
    sampler = run.publishing.sampler
    metrics = sampler.drain_stats() if isinstance(sampler, VLLMServerSampler) else {}
    behind = float(weights_step(run) - run.sampler_version)
    return metrics | {"sampling/staleness": mean_stat(torch.tensor(behind))}


def coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The one of two precisions that rounds more."""
    return max(one, other, key=list(TOLERANCE).index)


def dtype_of(name: str) -> torch.dtype:
    """vLLM writes ``torch.bfloat16``."""
    return getattr(torch, name.removeprefix("torch."))
