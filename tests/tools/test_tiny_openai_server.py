"""The small server says in one line that its port is taken."""

import socket
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "tiny_openai_server.py"


def test_a_busy_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        done = subprocess.run(
            [sys.executable, TOOL, "--port", port], capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith(f"tiny_openai_server: cannot listen on 127.0.0.1:{port}: ")
    assert "Traceback" not in done.stderr
