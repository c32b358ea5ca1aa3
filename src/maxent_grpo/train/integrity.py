"""Saved files that prove to be whole: checksums when they are written, and one line with a way on where one is damaged.

A checkpoint's ``manifest.json`` has the size and checksum of every other file of it; ``SHA256SUMS`` has those of the
final policy, for ``sha256sum --check``.
"""

import errno
import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed import DistError

from maxent_grpo.errors import RunError, UsageError

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
PIECE = 64 << 20
"""Bytes of a file that one thread reads; a larger file's checksum is that of its pieces' checksums."""
PLAIN, PIECED = "sha256", "sha256_of_64MiB_pieces"
POSITION = "trainer_state.json"
"""The file that every checkpoint of this package's loop has."""
FULL_DISK = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE, errno.ENOENT, errno.EACCES,
})  # fmt: skip
"""What writing a file of a run that has begun can meet."""
NOT_DISK = frozenset({errno.ENOENT, errno.EACCES})
"""Of those, what is about the output directory only where it names a file of it."""
NAME = re.compile(r"checkpoint-(\d+)")
_RUST = re.compile(r"\(os error (\d+)\)")
logger = logging.getLogger(__name__)


def checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [(int(m[1]), p) for p in output_dir.glob("checkpoint-*") if (m := NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found) if (path / MANIFEST).is_file()]


def sums_of(paths: Sequence[Path]) -> list[str]:
    """The checksum of each file: its SHA-256, or that of its pieces' where it is larger than PIECE."""
    starts = [range(0, max(path.stat().st_size, 1), PIECE) for path in paths]
    pieces = [(path, start) for path, each in zip(paths, starts, strict=True) for start in each]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        digests = threads.map(_piece_sum, pieces)
        own = [[next(digests) for _ in each] for each in starts]
    return [(one[0] if len(one) == 1 else hashlib.sha256(b"".join(one)).digest()).hex() for one in own]


def flushed_sums(paths: Sequence[Path]) -> list[str]:
    """`sums_of` files that are on the disk when this returns."""
    with ThreadPoolExecutor(2) as threads:
        flushed = [threads.submit(flush, path) for path in paths]
        sums = sums_of(paths)
        for one in flushed:
            one.result()
    return sums


def manifest_of(directory: Path, names: Sequence[str], sums: Sequence[str]) -> dict[str, Any]:
    """What `MANIFEST` says: of each file its size in bytes and its checksum."""
    sizes = [(directory / name).stat().st_size for name in names]
    return {
        name: {"size": size, PLAIN if size <= PIECE else PIECED: digest}
        for name, size, digest in zip(names, sizes, sums, strict=True)
    }


def damage_of(checkpoint: Path) -> str | None:
    """The first fault of a checkpoint that has a manifest; None: it is as it was written.

    Checkpoints of earlier versions have no checksums: sizes, JSON and the headers of tensor files are looked at.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        entries = {str(name): _entry(entry) for name, entry in manifest.items()}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        return f"{MANIFEST} cannot be read: {_short(error)}"
    if POSITION not in entries:
        return f"{MANIFEST} does not name {POSITION}"
    for name, (size, _) in entries.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or truncated"
    summed = [name for name, (_, digest) in entries.items() if digest is not None]
    sums = sums_of([checkpoint / name for name in summed])
    for name, digest in zip(summed, sums, strict=True):
        if digest != entries[name][1]:
            return f"{name} has other bytes than when it was saved: its SHA-256 is not that of {MANIFEST}"
    if not summed:
        logger.warning(
            "%s has no checksums, as an earlier version wrote it: sizes and headers are checked alone",
            checkpoint,
        )
        return unreadable(checkpoint)
    return None


def unreadable(directory: Path) -> str | None:
    """The first JSON or safetensors file of ``directory`` that cannot be opened, and why; None: there is none."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            return f"{name} cannot be read: {_short(error)}"
    return None


def refuse_damage(checkpoint: Path) -> None:
    """Raise `UsageError` where ``checkpoint`` is not as it was written; it names the newest earlier one that is."""
    fault = damage_of(checkpoint)
    if fault is not None:
        raise damaged(checkpoint, fault)


def damaged(checkpoint: Path, fault: str) -> UsageError:
    """The error about ``checkpoint``, with what to type."""
    return UsageError(f"resume_from_checkpoint: {checkpoint} is damaged ({fault}); {_way_back(checkpoint)}")


def _way_back(checkpoint: Path) -> str:
    match = NAME.fullmatch(checkpoint.name)
    number = int(match[1]) if match else 0
    for earlier in reversed(checkpoints(checkpoint.parent)):
        if int(earlier.name.rpartition("-")[2]) < number and damage_of(earlier) is None:
            return f"{earlier.name} is whole: resume_from_checkpoint={earlier} goes on from there"
    return (
        "no earlier checkpoint is whole: restore the file, or start over with resume_from_checkpoint=false "
        "overwrite_output_dir=true"
    )


@contextmanager
def naming_damage(checkpoint: Path) -> Iterator[None]:
    """Around reading ``checkpoint``: what does not fit ends as one line about it."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DistError | torch.OutOfMemoryError) or "gloo" in str(error):
            raise
        raise _misfit(checkpoint, error) from error
    except (
        *(OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
        *(EOFError, pickle.UnpicklingError, SafetensorError),
    ) as error:
        raise _misfit(checkpoint, error) from error


def _misfit(checkpoint: Path, error: Exception) -> UsageError:
    return UsageError(
        f"resume_from_checkpoint: {checkpoint} does not fit this run, or is damaged ({_short(error)}); resume with the "
        f"model and settings that it was saved with; if they are the same, {_way_back(checkpoint)}"
    )


@contextmanager
def naming_failed_writes(output_dir: Path) -> Iterator[None]:
    """Around what writes into ``output_dir``: a disk that is full, or gone, ends as one line with the way on.

    Raises:
        RunError: in place of the exception.
    """
    try:
        yield
    except (RunError, UsageError):
        raise
    except Exception as error:
        reason = _write_failure(error, output_dir)
        if reason is None:
            raise
        raise RunError(
            f"output_dir: {reason}; see to that, and then {way_on(output_dir)}".replace("\n", " ")
        ) from error


def way_on(output_dir: Path) -> str:
    """How to go on after a run that ended early."""
    newest = checkpoints(output_dir)[-1:]
    if newest:
        return f"resume_from_checkpoint=true goes on from {newest[0].name}"
    return "start it again: there is no checkpoint yet"


def _write_failure(error: BaseException, output_dir: Path) -> str | None:
    """What is the matter with the disk, if that is what ``error`` is about: libraries say it each in their own way."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        number = cause.errno if isinstance(cause, OSError) else None
        path = (
            Path(os.fsdecode(cause.filename))
            if number and isinstance(cause, OSError) and cause.filename
            else None
        )
        if number is None and (told := _RUST.search(str(cause))):
            number = int(told[1])
        ours = number not in NOT_DISK if path is None else path.is_relative_to(output_dir)
        if number in FULL_DISK and ours:
            return f"cannot write {path or output_dir} ({os.strerror(number or 0)})"
        cause = cause.__cause__ or cause.__context__
    return None


def write_sums(directory: Path, names: Sequence[str]) -> None:
    """`SUMS` of the final policy, as ``sha256sum`` writes it; all of it is on the disk when this returns."""
    lines = []
    for name in names:
        flush(directory / name)
        with (directory / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    (directory / SUMS).write_text("".join(lines))
    flush(directory / SUMS)


def read_json(path: Path) -> Any:
    """The value in a file of a checkpoint. Raises `UsageError` where it is missing or not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path.parent, f"{path.name} cannot be read: {_short(error)}") from error


def _entry(entry: int | Mapping[str, Any]) -> tuple[int, str | None]:
    """Size and checksum; earlier versions wrote the size alone."""
    if isinstance(entry, int):
        return entry, None
    size = int(entry["size"])
    return size, str(entry[PLAIN if size <= PIECE else PIECED])


def _piece_sum(piece: tuple[Path, int]) -> bytes:
    path, start = piece
    digest, left = hashlib.sha256(), PIECE
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.digest()


def flush(path: Path) -> None:
    """Have the file or folder on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
