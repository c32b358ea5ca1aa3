"""Samplers side by side: completion tokens per second, and seconds to publish new weights to each.

The same random policy samples the same prompts in this process, behind a live `vllm serve` of this machine, and in a
vLLM engine inside this process. Run it where vLLM is: var/venv-vllm/bin/python -m benchmarks.rollout
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.models import SIZES, build_model, build_tokenizer
from benchmarks.vllm_process import VLLMProcess
from maxent_grpo.randomness import generator
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import Sampler, SamplingSettings
from maxent_grpo.rollout.settings import EngineSettings, ServerSettings, SyncSettings
from maxent_grpo.rollout.vllm.engine import EngineWeightSync, VLLMEngineSampler, start_engine
from maxent_grpo.rollout.vllm.server import VLLMServerSampler
from maxent_grpo.rollout.weight_sync.control import VLLMControl
from maxent_grpo.rollout.weight_sync.gloo import GlooTransport
from maxent_grpo.rollout.weight_sync.sync import ServerWeightSync, WeightSync
from maxent_grpo.rollout.weight_sync.transports import DiskTransport, Transport
from maxent_grpo.rollout.weight_sync.weights import PolicyWeights
from maxent_grpo.types import Prompt

WAYS = ("local", "server", "colocated")
HEAD = ("sampler", "weights by", "tokens/s", "s per publication")
SPARE = 16  # positions of the model's context beyond prompt and completion


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    size = SIZES[options.size]
    length = options.prompt + options.completion
    tokenizer = build_tokenizer(size)
    model = build_model(size, 0, length + SPARE, seed=0).eval()
    settings = SamplingSettings(options.group, options.completion)
    draws = generator("rollout benchmark").integers(1, size.vocabulary, (options.prompts, options.prompt))
    prompts = [Prompt(i, "", tuple(map(int, row)), {}) for i, row in enumerate(draws)]
    count = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{count:.1f} M parameters in float32, {options.prompts} prompts of {options.prompt} tokens, {options.group} "
        f"completions of {options.completion} each; {torch.get_num_threads()} thread(s) here; medians of "
        f"{options.repeats}\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}"
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        for name, way, sampler, sync in samplers(options, model, tokenizer, folder, stack):
            spent = times(lambda s=sampler: s.sample(prompts, settings, ("benchmark",), 0), options.repeats)
            rate = options.prompts * options.group * options.completion / spent
            cells = [name, way, f"{rate:.0f}", "0"]
            if sync is not None:
                weights = weights_of(model)
                cells[3] = f"{times(lambda p=sync, w=weights: p.sync(w, 'x'), options.repeats):.3f}"
            print(f"| {' | '.join(cells)} |", flush=True)


def samplers(
    options: argparse.Namespace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    stack: ExitStack,
) -> Iterator[tuple[str, str, Sampler, WeightSync | None]]:
    """Name, way of the weights, sampler and sync of each row."""
    limit = options.prompt + options.completion
    if "local" in options.ways:
        yield "local", "the learner's own", LocalSampler(model, tokenizer), None
    if "server" in options.ways:
        flags = [
            "--dtype",
            "float32",
            "--enforce-eager",
            "--max-model-len",
            str(limit),
            "--no-enable-chunked-prefill",
        ]
        flags += ["--weight-transfer-config", '{"backend": "gloo"}']
        log = Path(options.log) if options.log else folder / "serve.log"
        server = stack.enter_context(VLLMProcess(folder / "model", log, options=flags))
        sampler = VLLMServerSampler(ServerSettings(server.url), tokenizer)
        transports: dict[str, Transport] = {
            "disk": DiskTransport(SyncSettings(directory=str(folder / "weights"))),
            "gloo": GlooTransport(SyncSettings()),
        }
        for way, transport in transports.items():
            control = VLLMControl(server.url)
            sync = ServerWeightSync([control], transport, patience=60.0, is_sender=True)
            yield "vLLM server", way, sampler, sync
            sync.close()
    if "colocated" in options.ways:
        engine = start_engine(EngineSettings(str(folder / "model"), "float32", 0.3, limit))
        yield (
            "vLLM in process",
            "this process",
            VLLMEngineSampler(engine, tokenizer, ()),
            EngineWeightSync(engine),
        )


def weights_of(model: PreTrainedModel) -> PolicyWeights:
    """The weights of a model that one process holds whole."""
    return PolicyWeights(model, model.named_parameters)


def times(action: Callable[[], Any], repeats: int) -> float:
    """Median wall-clock seconds of ``action``, after one call that does not count."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="samplers to run (all)")
    parser.add_argument(
        "--size", choices=SIZES, default="4m", help="policy size (4m); head sizes 32 and 64 only"
    )
    parser.add_argument("--prompts", type=int, default=8, help="prompts (8)")
    parser.add_argument("--group", type=int, default=8, help="completions per prompt (8)")
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens (64)")
    parser.add_argument("--completion", type=int, default=64, help="completion tokens (64)")
    parser.add_argument("--repeats", type=int, default=3, help="measured repeats (3)")
    parser.add_argument("--log", help="file for the server's log (a temporary one)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault(
        "VLLM_LOGGING_LEVEL", "ERROR"
    )  # the engine in this process would write between the rows
    main()
