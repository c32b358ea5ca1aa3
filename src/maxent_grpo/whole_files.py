"""Files that appear whole or not at all."""

import os
from pathlib import Path


def replace_file(path: Path, contents: str | bytes) -> None:
    """Put ``contents`` at ``path``, on the disk: a reader sees the old file or the new one, also after a crash.

    Text is written as UTF-8. One process at a time: what it has not finished lies beside ``path`` under one name,
    which the next call takes again.
    """
    unfinished = path.with_name(f".{path.name}.partial")
    with unfinished.open("wb") as file:
        file.write(contents.encode() if isinstance(contents, str) else contents)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
