"""Does a vLLM server echo client tags? Starts one with the echo middleware, or takes one that runs, and asks it.

python tools/vllm_client_tag_smoke.py --model Qwen/Qwen2.5-0.5B-Instruct
python tools/vllm_client_tag_smoke.py --no-launch --port 8000 --client-tag rank-3-of-8     # a server or proxy that runs

Prints "server echoed client_tag '…'" and exits 0. Exit 1: it does not echo, or failed; 2: the request is wrong.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.http import Answer, Fault, excerpt, fetch, read_json
from maxent_grpo.rollout.vllm.client_tag import FIELD, HEADER, is_tag, own_part
from maxent_grpo.rollout.vllm.protocol import Limits, parse

MIDDLEWARE = "maxent_grpo.rollout.vllm.client_tag.EchoMiddleware"
STARTUP = 300.0  # seconds
LOG_LINES = 40  # of the server's log, shown when it fails
MAX_TOKENS = 16


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", help="hub id or directory; needed to launch, and the served name (default: the only one)")
    add("--revision", help="revision of --model")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=29525)
    add("--group-port", type=int, help="exported to the server as VLLM_GROUP_PORT")
    add("--tensor-parallel-size", type=int, default=1)
    add("--dtype", default="float16")
    add("--gpu-memory-utilization", type=float, default=0.9)
    add("--client-tag", default="smoke-rank-0")
    add("--prompts", nargs="+", default=["What is 2 + 2?", "Name a colour."], metavar="TEXT")
    add("--n", type=int, default=2, help="completions per prompt (2)")
    add("--temperature", type=float, default=0.8)
    add("--return-logprobs", action="store_true", help="ask for log-probs as well, and require them")
    add("--request-timeout", type=float, default=60.0, help="seconds (60)")
    add("--no-launch", action="store_true", help="ask the server that runs at --host and --port")
    add("--server-log", type=Path, help="where the launched server writes (default: a temporary file)")
    add("--keep-server", action="store_true", help="leave the launched server running")
    return parser


def main(given: Sequence[str] | None = None) -> int:
    options, server_options = arguments().parse_known_args(given)
    try:
        if server_options and options.no_launch:
            raise UsageError(f"{server_options[0]}: is for the server, and --no-launch starts none")
        if not options.no_launch and options.model is None:
            raise UsageError("--model: name what to serve, or ask a server that runs with --no-launch")
        if not is_tag(options.client_tag):
            raise UsageError(
                f"--client-tag: {options.client_tag!r} is not 1 to 128 printable ASCII characters"
            )
        if options.no_launch:
            tags = ask(options)
        else:
            with launched(options, server_options):
                tags = ask(options)
    except (UsageError, RunError) as error:
        print(f"vllm_client_tag_smoke: {error}", file=sys.stderr)
        return error.exit_code
    print(f"server echoed client_tag {options.client_tag!r} in {tags} completions")
    return 0


@contextmanager
def launched(options: argparse.Namespace, server_options: Sequence[str]) -> Iterator[None]:
    """A `vllm serve` with the middleware, healthy; ended on leaving unless --keep-server. Unknown options go to it."""
    vllm = Path(sys.executable).with_name("vllm")
    command = [str(vllm) if vllm.exists() else "vllm", "serve", options.model, "--middleware", MIDDLEWARE]
    for name in ("revision", "host", "port", "tensor_parallel_size", "dtype", "gpu_memory_utilization"):
        value = getattr(options, name)
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    environ = dict(os.environ)
    if options.group_port is not None:
        environ["VLLM_GROUP_PORT"] = str(options.group_port)
    log = options.server_log or Path(tempfile.mkdtemp(prefix="vllm-smoke-")) / "server.log"
    print(f"starting vllm serve, log in {log}", flush=True)
    with log.open("wb") as sink:
        try:
            server = subprocess.Popen(
                [*command, *server_options],
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise UsageError("there is no vllm command here: install vLLM, or use --no-launch") from None
    try:
        wait_until_healthy(options, server, log)
        yield
    except BaseException:
        options.keep_server = False
        raise
    finally:
        if options.keep_server:
            print(f"server left running: process {server.pid} on {options.host}:{options.port}")
        else:
            stop(server)


def wait_until_healthy(options: argparse.Namespace, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTUP
    while True:
        if server.poll() is not None:
            raise RunError(f"vllm serve ended with code {server.returncode} at its start:\n{tail(log)}")
        try:
            if fetch(f"http://{options.host}:{options.port}/health", timeout=5).status == 200:
                return
        except Fault:
            pass  # not listening yet
        if time.monotonic() > deadline:
            raise RunError(f"vllm serve is not healthy after {STARTUP:g} s:\n{tail(log)}")
        time.sleep(1)


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and the workers that it started: they share a session of their own."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, ending)
        except ProcessLookupError:
            return
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            continue


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def ask(options: argparse.Namespace) -> int:
    """How many completions carry the tag: all that were asked for. Raises `RunError` where one does not."""
    url = f"http://{options.host}:{options.port}/v1"
    asked: dict[str, Any] = {"timeout": options.request_timeout, "headers": {HEADER: options.client_tag}}
    try:
        body: dict[str, Any] = {
            "model": served_model(fetch(f"{url}/models", **asked), f"{url}/models", options.model),
            "prompt": options.prompts,
            "n": options.n,
            "temperature": options.temperature,
            "max_tokens": MAX_TOKENS,
            "return_token_ids": True,
            "logprobs": 0,
            FIELD: options.client_tag,
        }
        answer = fetch(f"{url}/completions", "POST", json=body, **asked)
    except Fault as fault:
        absent = "no server answers: " if fault.lost else ""
        remedy = "; start one, or leave out --no-launch" if fault.lost else ""
        raise RunError(f"{url}: {absent}{fault}{remedy}") from None
    if answer.status != 200:
        raise RunError(f"{url}/completions: HTTP {answer.status}: {excerpt(answer.content, ())}")
    wanted = len(options.prompts) * options.n
    try:
        reply = read_json(answer.content)
        own = own_part(reply, options.client_tag, "strict")
        if own.kept != wanted:
            raise RunError(
                f"{url}: {own.kept} of {own.kept + own.dropped} completions carry metadata.client_tag "
                f"{options.client_tag!r}, expected {wanted}; start vLLM with --middleware {MIDDLEWARE}, or put "
                "maxent-grpo-vllm-proxy in front of it"
            )
        if options.return_logprobs:
            parse(own.reply, len(options.prompts), options.n, Limits(2**31, MAX_TOKENS))
    except Fault as error:
        raise RunError(f"{url}: {error}") from error
    return own.kept


def served_model(answer: Answer, url: str, wanted: str | None) -> str:
    if answer.status != 200:
        raise RunError(f"{url}: HTTP {answer.status}: this is no vLLM server")
    names = [card["id"] for card in read_json(answer.content).get("data", [])]
    if wanted in names:
        return str(wanted)
    if len(names) == 1:
        return str(names[0])
    raise UsageError(f"--model: {wanted!r} is not among the served models: {', '.join(names)}")


if __name__ == "__main__":
    sys.exit(main())
