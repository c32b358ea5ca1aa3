"""Who samples (the learner's own model, a vLLM server, a vLLM engine in this process) and how it gets the weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.config.run_settings import NativeSettings
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.models.loading import stop_token_ids
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
from maxent_grpo.rollout.sampler import Sampler
from maxent_grpo.rollout.settings import ServerSettings, SyncSettings
from maxent_grpo.rollout.vllm.colocate import ColocatedPublisher, VLLMColocateSampler, start_engine
from maxent_grpo.rollout.vllm.server import VLLMServerSampler
from maxent_grpo.train.learner import Learner
from maxent_grpo.train.published_weights import PolicyWeights
from maxent_grpo.train.publishing import TOLERANCE, Publishing, make_probe
from maxent_grpo.train.ranks import gathered, together
from maxent_grpo.types import Prompt

WEIGHTS_FOLDER = ".published"
"""Folder of the output directory for weights that travel by disk."""


def make_sampler(
    settings: NativeSettings, learner: Learner, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> tuple[Sampler, Publishing | None]:
    """The sampler that the settings name, and what keeps it on the learner's weights; None: it samples with them.

    ``prompts`` are the training data's, for probes.

    Raises `UsageError` for what the sampler cannot do, and `RunError` where a server is not there.
    """
    asked = settings.sampler
    if asked.name == "local" or settings.workers is not None:  # rollout workers have engines of their own
        return LocalSampler(learner.strategy.sampling_model, tokenizer, learner.accelerator.autocast), None
    sampler: Sampler
    publisher: Publisher
    if asked.name == "vllm_engine":
        sampler, publisher, dtype = engine_here(settings, learner.model, tokenizer)
    else:
        sampler, publisher, dtype = served(settings, learner, tokenizer)
    rank = learner.accelerator.process_index
    precision = coarser(dtype, learner_dtype(settings))
    publishing = Publishing(
        sampler=sampler,
        publisher=publisher,
        weights=PolicyWeights(learner.policy.model, learner.strategy.gathered),
        probe=make_probe(prompts, settings.sampling, precision, int(tokenizer.pad_token_id), rank),
        source=learner,
        seed=settings.seed,
        every=asked.sync.interval,
    )
    one = learner.accelerator.num_processes == 1  # several ranks publish together, after they have sampled
    if isinstance(sampler, VLLMServerSampler) and publishing.every > 0 and one:
        sampler.restore = publishing.restore
    return sampler, publishing


def learner_dtype(settings: NativeSettings) -> torch.dtype:
    """The precision that the learner computes in."""
    return torch.bfloat16 if settings.device.bf16 else settings.model.source.dtype


def configured(sampler: Sampler, settings: NativeSettings, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """``sampler``, in parts where a batch size is set, in several turns where there is an environment."""
    if settings.sampling_batch_size is not None:
        sampler = SamplerInParts(sampler, settings.sampling_batch_size)
    dialogue = settings.dialogue
    if dialogue is None:
        return sampler
    environment = load_environment(dialogue.environment)
    return DialogueSampler(sampler, environment, dialogue.max_turns, tokenizer, dialogue.prompts)


def served(
    settings: NativeSettings, learner: Learner, tokenizer: PreTrainedTokenizerBase
) -> tuple[Sampler, Publisher, torch.dtype]:
    """A sampler of a vLLM server, what publishes to it, and the precision that it computes in."""
    asked, accelerator = settings.sampler, learner.accelerator
    server = asked.server
    assert server is not None, "config.run_settings makes it"
    sampler = VLLMServerSampler(
        server,
        tokenizer,
        stop_token_ids(learner.model, tokenizer),
        vocabulary=int(learner.model.config.vocab_size),
        backfill=backfill(learner, tokenizer) if asked.backfill else None,
    )
    with together():
        sampler.check(settings.sampling)
    made: tuple[Publisher, torch.dtype] | None = None
    with together():
        if accelerator.is_main_process and asked.sync.interval > 0:
            directory = Path(asked.sync.directory or settings.output.directory / WEIGHTS_FOLDER)
            made = server_publisher(asked.sync, server, directory, accelerator.num_processes)
    publisher, dtype = made or (ServerPublisher([], Nothing(), patience=0.0, is_sender=False), torch.float32)
    (name, *_) = gathered([str(dtype).removeprefix("torch.")], accelerator)
    return sampler, publisher, getattr(torch, name)


def backfill(learner: Learner, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """The learner's own model for what a server does not deliver. Raises `UsageError` where ranks hold shards of it."""
    if learner.strategy.sampling_model is not learner.policy.model:
        raise UsageError(
            "vllm_backfill_with_model: each rank holds a part of the policy and cannot sample alone; remove it, or "
            "use distributed=ddp"
        )
    return LocalSampler(learner.model, tokenizer, learner.accelerator.autocast)


def server_publisher(
    sync: SyncSettings, server: ServerSettings, directory: Path, ranks: int
) -> tuple[Publisher, torch.dtype]:
    """What publishes to the configured servers, and the precision that they compute in.

    Raises `UsageError` where they cannot take weights the way that ``vllm_sync_backend`` says.
    """
    headers = dict(server.extra_headers)
    if server.api_key is not None:
        headers["Authorization"] = f"Bearer {server.api_key}"
    servers = [VLLMControl(url, headers) for url in sync.urls or [server.base_url]]
    try:
        found = [one.settings() for one in servers]
        proxied = any(one.is_proxy() for one in servers)
    except PublishFailed as error:
        raise RunError(f"vllm_sync_weights: {error}") from error
    backends = {(one.get("weight_transfer_config") or {}).get("backend") for one in found}
    backend = backends.pop() if len(backends) == 1 else None
    way: str | None = sync.backend
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
    if way == "ipc" and ranks > 1:
        raise UsageError("vllm_sync_backend: ipc is for one trainer process; use nccl or disk")
    transport: Transport
    match way:
        case "disk":
            transport = DiskTransport(directory)
        case "gloo":
            transport = GlooTransport(sync.port)
        case _:
            transport = VLLMTransport(way, sync.port)  # type: ignore[arg-type]  # nccl or ipc
    publisher = ServerPublisher(servers, transport, patience=server.startup_timeout, is_sender=True)
    dtypes = [dtype_of(one["model_config"]["dtype"]) for one in found]
    return publisher, max(dtypes, key=list(TOLERANCE).index)


def engine_here(
    settings: NativeSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[VLLMColocateSampler, ColocatedPublisher, torch.dtype]:
    """An engine of the policy in this process, whose completions end as those of ``model`` do."""
    asked = settings.sampler.engine
    assert asked is not None, "config.run_settings makes it"
    engine = start_engine(replace(asked, model=settings.model.source.location))
    sampler = VLLMColocateSampler(engine, tokenizer, stop_token_ids(model, tokenizer), asked.sleep)
    return sampler, ColocatedPublisher(engine, sleeps=asked.sleep), learner_dtype(settings)


def coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The one of two precisions that rounds more."""
    return max(one, other, key=list(TOLERANCE).index)


def dtype_of(name: str) -> torch.dtype:
    """vLLM writes ``torch.bfloat16``."""
    return getattr(torch, name.removeprefix("torch."))
