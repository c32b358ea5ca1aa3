"""maxent-grpo-vllm-proxy: one address for several vLLM servers.

Generation requests go to the healthy server with the fewest requests in flight, requests of one client tag to one
server with ``--pin-by-tag``. The tag of a request is copied into its JSON answer, as `client_tag.EchoMiddleware` does
on the server itself. What changes a server's state (weights, caches, pause and resume, adapters) goes to all of them,
and answers 200 only where all of them did. A server that was lost after it had received weights is used again only
after it has received the next ones: a restarted server has the weights that it was started with.
"""

import argparse
import asyncio
import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from maxent_grpo.errors import UsageError
from maxent_grpo.rollout.vllm.client_tag import HEADER, asked_tag, tagged_content

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
CONTROL_PATHS = (
    "/pause", "/resume", "/sleep", "/wake_up", "/abort_requests", "/collective_rpc", "/init_weight_transfer_engine",
    "/start_weight_update", "/start_draft_weight_update", "/update_weights", "/finish_weight_update",
    "/update_weight_version", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
    # TRL's former own server
    "/init_communicator/", "/update_named_param/", "/batch_update_named_params/", "/reset_prefix_cache/",
    "/close_communicator/",
)  # fmt: skip
"""POST requests that every server must get."""
WEIGHTS_LOADED = ("/finish_weight_update", "/v1/load_lora_adapter", "/batch_update_named_params/")
"""Those after which a server has the weights that the others have; also `RELOAD`, sent to /collective_rpc."""
RELOAD = b"reload_weights"
HOP_BY_HOP = {"connection", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
# aiohttp unpacks bodies and counts them anew.
NOT_PASSED_ON = HOP_BY_HOP | {"content-length", "content-encoding"}
LARGEST_REQUEST = 256 * 2**20
HEALTH_TIMEOUT = 5.0


@dataclass
class ProxiedServer:
    """One vLLM server as the proxy knows it."""

    url: str
    healthy: bool = False
    stale: bool = False
    """Lost since weights were loaded: not used until they are loaded again."""
    in_flight: int = 0
    served: int = 0
    last_error: str = ""

    @property
    def usable(self) -> bool:
        return self.healthy and not self.stale

    def lost(self, reason: str, after_weights: bool) -> None:
        """Leave it out until it is healthy again, and has weights again if it had been given some."""
        if self.healthy:
            logger.warning("lost %s: %s", self.url, reason)
        self.healthy, self.last_error = False, reason
        self.stale |= after_weights


def choose(servers: Sequence[ProxiedServer], tag: str | None, pin_by_tag: bool) -> ProxiedServer | None:
    """The server of a request: its tag's own one where tags are pinned, else the least loaded; None: none is usable.

    A tag keeps its server while that is usable, whatever happens to the others (rendezvous hashing).
    """
    usable = [server for server in servers if server.usable]
    if not usable:
        return None
    if pin_by_tag and tag is not None:
        return max(usable, key=lambda b: hashlib.sha256(f"{tag}\x1f{b.url}".encode()).digest())
    return min(usable, key=lambda b: (b.in_flight, b.served))


@dataclass
class Proxy:
    """The application. All of its work happens in one event loop."""

    servers: list[ProxiedServer]
    pin_by_tag: bool = False
    timeout: float = 600.0
    """Seconds for one request."""
    health_interval: float = 2.0
    weights_loaded: bool = False
    """Weights have gone through here."""
    _control: asyncio.Lock = field(default_factory=asyncio.Lock)

    def application(self) -> web.Application:
        """The application for aiohttp to run."""
        app = web.Application(client_max_size=LARGEST_REQUEST)
        app.cleanup_ctx.append(self._lifetime)
        app.router.add_get("/health", self._health)
        app.router.add_get("/proxy/status", self._status)
        for path in CONTROL_PATHS:
            app.router.add_post(path, self._broadcast)
        app.router.add_route("*", "/{path:.*}", self._forward)
        return app

    async def _lifetime(self, _: web.Application) -> Any:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=True) as self._session:
            await self._look_at_all()
            watching = asyncio.create_task(self._watch())
            yield
            watching.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.health_interval)
            await self._look_at_all()

    async def _look_at_all(self) -> None:
        await asyncio.gather(*(self._look_at(server) for server in self.servers))

    async def _look_at(self, server: ProxiedServer) -> None:
        try:
            timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT)
            async with self._session.get(f"{server.url}/health", timeout=timeout) as response:
                if response.status != 200:
                    server.lost(f"GET /health answers HTTP {response.status}", self.weights_loaded)
                elif not server.healthy:
                    state = ", waiting for weights" if server.stale else ""
                    logger.info("%s is healthy%s", server.url, state)
                    server.healthy, server.last_error = True, ""
        except (aiohttp.ClientError, TimeoutError) as error:
            server.lost(_in_words(error), self.weights_loaded)

    async def _health(self, _: web.Request) -> web.Response:
        """200 while any server can be used, as a single server would answer."""
        usable = sum(server.usable for server in self.servers)
        return web.json_response(
            {"usable": usable, "servers": len(self.servers)}, status=200 if usable else 503
        )

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response({"servers": [asdict(server) for server in self.servers]})

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        """One request to one server. A server that cannot be reached is left out, and another one is asked."""
        body = await request.read()
        tag = asked_tag(request.headers.get(HEADER), body)
        while True:
            server = choose(self.servers, tag, self.pin_by_tag)
            if server is None:
                down = "; ".join(f"{b.url}: {_state(b)}" for b in self.servers)
                return _refusal(503, f"no vLLM server is usable ({down})")
            server.in_flight += 1
            try:
                return await self._relay(request, server, body, tag)
            except aiohttp.ClientConnectorError as error:  # nothing was sent: another may do it
                server.lost(_in_words(error), self.weights_loaded)
            except TimeoutError:
                return _refusal(504, f"{server.url} gave no whole answer within {self.timeout:g} s")
            except aiohttp.ClientError as error:
                server.lost(_in_words(error), self.weights_loaded)
                return _refusal(502, f"{server.url} broke off: {_in_words(error)}")
            finally:
                server.in_flight -= 1

    async def _relay(
        self, request: web.Request, server: ProxiedServer, body: bytes, tag: str | None
    ) -> web.StreamResponse:
        async with self._session.request(
            request.method,
            f"{server.url}{request.rel_url.raw_path_qs}",
            data=body or None,
            headers=_passed_on(request.headers),
            timeout=aiohttp.ClientTimeout(total=self.timeout),
            allow_redirects=False,
        ) as answer:
            headers = _passed_on(answer.headers)
            if answer.content_type == "text/event-stream":
                stream = web.StreamResponse(status=answer.status, headers=headers)
                await stream.prepare(request)
                async for piece in answer.content.iter_any():
                    await stream.write(piece)
                await stream.write_eof()
                return stream
            content = await answer.read()
            server.served += 1
            if tag is not None and answer.status == 200 and answer.content_type == "application/json":
                content = tagged_content(content, tag)
            return web.Response(status=answer.status, body=content, headers=headers)

    async def _broadcast(self, request: web.Request) -> web.Response:
        """One request to every server, one such request at a time. Servers that are down are left out until they have
        received weights; where a healthy one fails, the answer is its failure, and it is left out as well."""
        body = await request.read()
        async with self._control:
            reached = [server for server in self.servers if server.healthy]
            if not reached:
                return _refusal(503, f"no vLLM server is healthy for {request.path}")
            results = await asyncio.gather(*(self._order(request, server, body) for server in reached))
            failed = [(b, r) for b, r in zip(reached, results, strict=True) if r[0] != 200]
            if request.path in WEIGHTS_LOADED or (request.path == "/collective_rpc" and RELOAD in body):
                self.weights_loaded = True
                for server in self.servers:
                    server.stale = server not in reached or any(server is b for b, _ in failed)
        if failed:
            words = "; ".join(f"{b.url}: HTTP {status}: {text[:200]}" for b, (status, text) in failed)
            return _refusal(502, f"{request.path} failed on {len(failed)} of {len(reached)} servers: {words}")
        first = results[0][1]
        content_type = "application/json" if first.lstrip()[:1] in ("{", "[") else "text/plain"
        return web.Response(
            text=first, content_type=content_type, headers={"X-VLLM-Servers": str(len(reached))}
        )

    async def _order(self, request: web.Request, server: ProxiedServer, body: bytes) -> tuple[int, str]:
        try:
            async with self._session.post(
                f"{server.url}{request.rel_url.raw_path_qs}",
                data=body or None,
                headers=_passed_on(request.headers),
                timeout=aiohttp.ClientTimeout(total=self.timeout),
            ) as answer:
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            server.lost(_in_words(error), self.weights_loaded)
            return 0, _in_words(error)


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in NOT_PASSED_ON}


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "proxy_error", "code": status}}, status=status
    )


def _state(server: ProxiedServer) -> str:
    if not server.healthy:
        return server.last_error or "not seen yet"
    return "waiting for weights" if server.stale else "usable"


def _in_words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())


def server_url(text: str) -> str:
    """``scheme://host:port`` of a server. Raises `UsageError` for anything else."""
    parts = urlsplit(text if "//" in text else f"http://{text}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise UsageError(f"{text!r} is no server address; write http://host:port")
    return f"{parts.scheme}://{parts.netloc}"


EXAMPLE = """examples:
  vllm serve MODEL --port 8001 &
  vllm serve MODEL --port 8002 &
  maxent-grpo-vllm-proxy http://127.0.0.1:8001 http://127.0.0.1:8002 --port 8000
  maxent-grpo command=train-maxent maxent.recipe=RECIPE use_vllm=true vllm_mode=server vllm_server_port=8000

  curl -s http://127.0.0.1:8000/proxy/status    # who is healthy, who waits for weights, who serves how much

The servers need no middleware: the proxy echoes client tags itself. Weight updates through NCCL or gloo form one
process group with one server; behind a proxy sync from disk (POST /collective_rpc reload_weights): all get that.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 stopped, 2 the request is wrong."""
    parser = argparse.ArgumentParser(
        prog="maxent-grpo-vllm-proxy",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("servers", nargs="+", metavar="URL", help="a vLLM server, http://host:port")
    add("--host", default=LOOPBACK, help=f"address to listen on ({LOOPBACK}: this machine only)")
    add("--port", type=int, default=8000, help="port to listen on (8000; 0: a free one, printed)")
    pinned = "send all requests of a client tag to one server, so that its prefix cache is used again"
    add("--pin-by-tag", action="store_true", help=pinned)
    add("--timeout", type=float, default=600.0, help="seconds for one request (600)")
    add("--health-interval", type=float, default=2.0, help="seconds between health checks (2)")
    add("--verbose", action="store_true", help="log every request")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        urls = [server_url(text) for text in options.servers]
        if len(set(urls)) < len(urls):
            raise UsageError("a server is named twice")
        if min(options.timeout, options.health_interval) <= 0 or not 0 <= options.port < 2**16:
            raise UsageError("--timeout and --health-interval must be > 0, --port 0 to 65535")
    except UsageError as error:
        print(f"maxent-grpo-vllm-proxy: {error}", file=sys.stderr)
        return error.exit_code
    servers = [ProxiedServer(url) for url in urls]
    proxy = Proxy(servers, options.pin_by_tag, options.timeout, options.health_interval)
    try:
        web.run_app(
            proxy.application(),
            host=options.host,
            port=options.port,
            access_log=logger if options.verbose else None,
            handler_cancellation=True,  # a client that leaves is not generated for
        )
    except OSError as error:
        where = f"{options.host}:{options.port}"
        print(f"maxent-grpo-vllm-proxy: cannot listen on {where}: {error}", file=sys.stderr)
        return UsageError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
