"""What a generation is told in these tests, and the lines that it leaves."""

import json
from pathlib import Path
from typing import Any

from maxent_grpo.generate.settings import GenerateSettings


def settings_of(url: str, data: Path, tmp_path: Path, **changes: Any) -> GenerateSettings:
    """Rows of ``data`` answered by the server at ``url`` into ``tmp_path/out``, four rows at a time."""
    settings = {
        "hf_dataset": str(data),
        "model": "served",
        "vllm_server_url": url,
        "output_dir": str(tmp_path / "out"),
        "input_batch_size": 4,
        "timeout": 5.0,
        "retries": 1,
    }
    return GenerateSettings(**(settings | changes))


def lines(tmp_path: Path, name: str = "rows.jsonl") -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out" / name).read_text().splitlines()]
