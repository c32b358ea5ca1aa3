"""A `vllm serve` of this machine as a child process, for benchmarks and tests.

A cluster starts its servers by its own means; nothing in training starts one.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from maxent_grpo.errors import RunError
from maxent_grpo.http import Fault, fetch
from maxent_grpo.rollout.weight_sync.gloo import free_port

ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # the endpoints that pause, reload and resume
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
LAST_LINES = 30


class VLLMProcess:
    """A server of ``model`` on loopback, started by `start` or by entering the context, and ended on leaving it.

    Args:
        model: a directory with a model whose head size vLLM knows (32, 64, 80, 96, 112, 128 …).
        log: file that its output is appended to.
        options: further command-line options of ``vllm serve``.
        environment: on top of `ENVIRONMENT` and of this process's own.
        port: 0 takes a free one.
    """

    def __init__(
        self,
        model: Path,
        log: Path,
        *,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        self.model = model
        self.log = log
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = list(options)
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        self.wait_until_healthy()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return at once."""
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(self.model)),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *self._options,
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | ENVIRONMENT | self._environment,
                start_new_session=True,  # so that its engine processes end with it
            )

    def wait_until_healthy(self, seconds: float = 300.0) -> None:
        """Return once ``/health`` answers. Raises `RunError` if the server ends or the time is over before."""
        assert self._process is not None, "start it first"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RunError(f"vllm serve ended with code {self._process.returncode}: {self.tail()}")
            with suppress(Fault):  # not listening yet
                if fetch(f"{self.url}/health", timeout=5).status == 200:
                    return
            time.sleep(0.5)
        raise RunError(f"vllm serve was not healthy within {seconds:g} s: {self.tail()}")

    def tail(self) -> str:
        """The last lines of its log, with the file's name."""
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return f"{self.log}:\n" + "\n".join(lines)

    def kill(self) -> None:
        """End the server and its engines at once, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask the server to end, and see that it does."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        group = self._process.pid
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):  # it has ended by itself, or will not
            os.killpg(group, how)
            self._process.wait(timeout=20)
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)  # what the server left behind
        self._process.wait()
        self._process = None
