"""Messages between the processes of a run: failures at the start, shares of the work, and whether they agree."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.distributed import DistError

from maxent_grpo.errors import RunError, UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Say in a line what a broken connection means: another rank has ended, and said why."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, DistError) and "gloo" not in str(error):
            raise
        raise RunError(
            "stopped, as another rank ended or did not answer in time; its own line says why"
        ) from error


@contextmanager
def together() -> Iterator[None]:
    """Around what every rank does without communicating: where it fails on any rank, all fail with that message.

    Without this the ranks that go on would wait for the failed one.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001  raised again below, after the other ranks know of it
        failure = error
    told = [None if failure is None else (type(failure).__name__, str(failure))]
    failures: list[tuple[str, str] | None] = gather_object(told)
    failed = [(rank, message) for rank, message in enumerate(failures) if message is not None]
    if not failed:
        return
    if failure is not None and not isinstance(failure, UsageError | RunError):
        raise failure
    rank, (kind, message) = failed[0]
    front = "" if len(failed) == len(failures) else f"rank {rank}: "
    raise (UsageError if kind == "UsageError" else RunError)(front + message)


def on_first_rank(body: Callable[[], Result], *, is_first: bool) -> Result:
    """``body``'s result on the first rank, on every rank; what it raises there is raised everywhere."""
    with together():
        result = body() if is_first else None
    results: list[Result] = gather_object([result])
    return results[0]


def share(count: int, accelerator: Accelerator) -> slice:
    """This rank's consecutive part of ``count`` things; parts differ by one at most, in rank order."""
    rank, ranks = accelerator.process_index, accelerator.num_processes
    return slice(count * rank // ranks, count * (rank + 1) // ranks)


def own_part(items: Sequence[Item], per_step: int, accelerator: Accelerator) -> list[Item]:
    """This rank's share of a rollout: of each optimiser step's ``per_step`` items the rank's consecutive part.

    A step thus learns from the same items whatever the number of ranks.
    """
    part = share(per_step, accelerator)
    return [
        item for start in range(0, len(items), per_step) for item in items[start : start + per_step][part]
    ]


def gathered(items: Sequence[Any], accelerator: Accelerator) -> list[Any]:
    """The items of all ranks, in rank order, on every rank."""
    return list(items) if accelerator.num_processes == 1 else gather_object(list(items))


def refuse_disagreement(accelerator: Accelerator, facts: dict[str, Any]) -> None:
    """Raise `RunError` where a fact differs between ranks. Each value is one that JSON can say."""
    texts = {name: json.dumps(value, sort_keys=True, default=str) for name, value in facts.items()}
    mine = {name: hashlib.blake2b(text.encode(), digest_size=16).digest() for name, text in texts.items()}
    for rank, theirs in enumerate(everyone := gathered([mine], accelerator)):
        for name in facts:
            if theirs[name] != everyone[0][name]:
                raise RunError(
                    f"ranks 0 and {rank} started with different {name}: give every machine the same recipe, code, "
                    "data and model files"
                )


@torch.no_grad()
def parameter_checksum(model: nn.Module) -> str:
    """A digest of every parameter's name, shape, sum, sum of squares and XOR of bits: equal for equal weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        numbers = [values.double().sum(), values.double().square().sum()]
        bits = torch.hash_tensor(values).view(torch.int64).item()
        digest.update(repr((name, tuple(values.shape), [float(n).hex() for n in numbers], bits)).encode())
    return digest.hexdigest()
