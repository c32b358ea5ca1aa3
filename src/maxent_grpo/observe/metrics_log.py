"""Append-only JSON-lines files that survive a kill at any moment and can be cut back to a checkpoint.

Line 1 of ``metrics.jsonl`` is the run's header (``{"step": 0, "run/git_sha": …}``); every other line is one
record. Equal records give equal bytes, so that a run that was killed, cut back and resumed leaves the file
of an uninterrupted one.
"""

import json
import math
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maxent_grpo.errors import RunError
from maxent_grpo.whole_files import replace_file


def strict_json(value: Any) -> Any:
    """``value`` with every NaN and infinity replaced by None, which strict JSON writes as ``null``."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    return value


class JsonlLog:
    """One JSON object a line. Floats are written by ``repr`` and therefore read back as the same float64."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Write ``record`` as one line and flush it. Non-finite numbers become ``null``."""
        line = json.dumps(strict_json(record), ensure_ascii=False, allow_nan=False) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())

    def cut_back(self, step: int) -> None:
        """Atomically drop the records whose step is greater than ``step``, and a torn last line.

        What stays keeps its bytes. A file that does not exist has nothing to cut.
        """
        if not self.path.exists():
            return
        kept = b"".join(line + b"\n" for line, record in _records(self.path) if record["step"] <= step)
        if kept != self.path.read_bytes():
            replace_file(self.path, kept)

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """The records of ``path``; a last line torn by a kill is left out.

        Raises `RunError` where any other line is not a JSON object with a step.
        """
        return [record for _, record in _records(path)]


def _records(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each line as its bytes, without the newline, and its record.

    A proper prefix of a JSON object is never a JSON value, so a last line that parses was written whole.
    """
    lines = path.read_bytes().split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise RunError(
                f"{path}: line {number} is not JSON ({error}); restore the file or delete the line"
            ) from error
        if not isinstance(record, dict) or "step" not in record:
            raise RunError(
                f"{path}: line {number} is not a record with a step; restore the file or delete the line"
            )
        found.append((line, record))
    return found


def git_sha(environ: Mapping[str, str]) -> str:
    """The commit that runs: ``MAXENT_GIT_SHA``, else that of the package's checkout, else of the directory.

    "unknown" where none of the three is known, for instance for a wheel outside any repository.
    """
    if environ.get("MAXENT_GIT_SHA"):
        return environ["MAXENT_GIT_SHA"]
    git = shutil.which("git")
    if git is None:
        return "unknown"
    for directory in (Path(__file__).parent, Path.cwd()):
        command = [git, "-C", str(directory), "rev-parse", "--verify", "--quiet", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return answer.stdout.strip()
    return "unknown"
