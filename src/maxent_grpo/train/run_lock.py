"""One run at a time in an output directory: a lock of the kernel, which a killed process cannot leave behind.

The lock is on the file ``.run.lock``, whose one line of JSON says whose it is; it is empty where no run is. Where the
file system has no such locks (some network file systems), the line alone decides.
"""

import errno
import fcntl
import getpass
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from maxent_grpo.errors import UsageError
from maxent_grpo.observe.names import LOCK_FILE

NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""What ``flock`` says where the file system has no locks."""
logger = logging.getLogger(__name__)


@contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """Hold ``output_dir`` for a run of this process.

    Raises:
        UsageError: another run has it, or its file cannot be written.
    """
    path = output_dir / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(
            f"output_dir: cannot write {path} ({error.strerror}); choose another directory"
        ) from error
    _held.add(descriptor)
    try:
        _take(descriptor, path)
        try:
            yield
        finally:
            os.truncate(descriptor, 0)
    finally:
        _held.discard(descriptor)
        os.close(descriptor)  # which gives the lock back


def _take(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        kernel = True
    except OSError as error:
        if error.errno not in {*NO_LOCKS, errno.EAGAIN, errno.EACCES}:
            raise UsageError(f"output_dir: cannot lock {path} ({error.strerror})") from error
        if error.errno not in NO_LOCKS:
            raise _refusal(path, _owner(descriptor), "") from None
        kernel = False
    before, here = _owner(descriptor), socket.gethostname()
    if before and not kernel and (before.get("host") != here or _lives(before)):
        advice = f"; this file system has no locks: if that run is over, delete {path}"
        raise _refusal(path, before, advice)
    if before and before.get("host") not in (None, here):
        logger.warning(
            "%s was held by %s, which did not give it back; the lock is free, so that run is taken to be dead",
            path.parent,
            _named(before),
        )
    elif before:
        logger.info("%s: taking over from %s, which was killed", path.parent, _named(before))
    owner = {
        "user": _user(),
        "host": here,
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "born": _birth(os.getpid()),
    }
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(owner) + "\n").encode(), 0)


def _refusal(path: Path, owner: dict[str, Any], advice: str) -> UsageError:
    return UsageError(
        f"output_dir: {path.parent} is in use by {_named(owner)}; wait for that run, stop it, or choose another "
        f"directory{advice}"
    )


def _owner(descriptor: int) -> dict[str, Any]:
    """What the file says; empty where it says nothing that can be read."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _named(owner: dict[str, Any]) -> str:
    if not owner:
        return "another run"
    return (
        f"the run of {owner.get('user')} on {owner.get('host')} (process {owner.get('pid')}, started "
        f"{owner.get('started')})"
    )


def _lives(owner: dict[str, Any]) -> bool:
    """Whether the process that ``owner`` names, on this host, is there and not a later one of the same number."""
    pid = owner.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return owner.get("born") in (None, _birth(pid))


def _birth(pid: int) -> int | None:
    """The process's start in clock ticks since boot; None where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


_held: set[int] = set()


def _forget_in_child() -> None:
    """A forked child must not keep the lock of a parent that was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
