"""maxent-grpo-vllm-proxy: one address for several vLLM servers.

Generation requests go to the healthy server with the fewest requests in flight, requests of one client tag to one
server with ``--pin-by-tag``. The tag of a request is copied into its JSON answer or the events of its stream, as
`client_tag.EchoMiddleware` does on the server itself with whole answers. What changes a server's state (weights,
caches, pause and resume, adapters) goes to all of them, and answers 200 only where all of them did. A server that was
lost after it had received weights is used again only after it has received the next ones: a restarted server has the
weights that it was started with.

Whoever reaches the port may steer the servers, except through somebody's browser: a request that a web page of another
origin made is refused, and what changes a server's state must be JSON and come from no web page at all. Connections
without a request, headers and bodies have deadlines, the bodies that are held have a common bound, and large JSON is
parsed in a process of its own, so that one client costs the others neither time nor memory.
"""

import argparse
import asyncio
import hashlib
import logging
import multiprocessing
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from maxent_grpo.errors import UsageError
from maxent_grpo.rollout.vllm.client_tag import FORGED, HEADER, TaggedEvents, asked_tag, tagged_content

R = TypeVar("R")

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
SAFE = ("GET", "HEAD", "OPTIONS")
HEALTH_TIMEOUT = 5.0


@dataclass(frozen=True)
class Budgets:
    """The share of the proxy that one client can take."""

    largest_request: int = 64 * 2**20
    """Bytes of one body."""
    held_bodies: int = 256 * 2**20
    """Bytes of all bodies that have begun to arrive and are not answered yet."""
    idle_seconds: float = 20.0
    """A connection without a whole request line and headers, fresh or kept alive."""
    body_seconds: float = 60.0
    """From the headers to the last byte of the body."""
    parsed_here: int = 256 * 2**10
    """Bytes of JSON that the event loop parses itself, a few milliseconds."""


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
    budgets: Budgets = field(default_factory=Budgets)
    _control: asyncio.Lock = field(default_factory=asyncio.Lock)
    _held: int = 0
    """Bytes of bodies, see `Budgets.held_bodies`."""
    _busy: set[Any] = field(default_factory=set)
    """Connections whose request is being answered."""
    _idle_since: dict[Any, float] = field(default_factory=dict)
    """The other ones."""
    _parsers: ProcessPoolExecutor | None = None

    def application(self) -> web.Application:
        """The application for aiohttp to run."""
        app = web.Application(middlewares=[self._guarded])
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
            if self._parsers is not None:
                self._parsers.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def listening(self, host: str, port: int, access_log: Any = None) -> AsyncIterator[int]:
        """Serve at ``host``; the port that was taken. Raises `OSError` where it is not free."""
        # A client that leaves is not generated for.
        runner = web.AppRunner(self.application(), handler_cancellation=True, access_log=access_log)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            dropping = asyncio.create_task(self._drop_idle(runner))
            yield int(runner.addresses[0][1])
            dropping.cancel()
        finally:
            await runner.cleanup()

    async def _drop_idle(self, runner: web.AppRunner) -> None:
        """Close connections that send no whole request: aiohttp waits for one without end."""
        while True:
            await asyncio.sleep(self.budgets.idle_seconds / 4)
            open_now = set(runner.server.connections if runner.server is not None else ())
            now = time.monotonic()
            self._idle_since = {c: self._idle_since.get(c, now) for c in open_now - self._busy}
            for connection, since in self._idle_since.items():
                if now - since >= self.budgets.idle_seconds:
                    connection.force_close()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        refusal = refused(request.method, request.path, request.headers)
        if refusal is not None:
            return _refusal(*refusal)
        connection = request.protocol
        self._busy.add(connection)
        try:
            answer: web.StreamResponse = await handler(request)
            return answer
        except web.HTTPException as stopped:
            return _refusal(stopped.status, stopped.text or stopped.reason)
        finally:
            self._busy.discard(connection)
            self._idle_since[connection] = time.monotonic()

    @asynccontextmanager
    async def _body(self, request: web.Request) -> AsyncIterator[bytes]:
        """The body, within the budgets; it is counted until the request is answered."""
        most, held, parts = self.budgets.largest_request, 0, []
        if (request.content_length or 0) > most:
            raise web.HTTPRequestEntityTooLarge(most, request.content_length or 0)
        try:
            try:
                async with asyncio.timeout(self.budgets.body_seconds):
                    async for part in request.content.iter_any():
                        held, self._held = held + len(part), self._held + len(part)
                        if held > most:
                            raise web.HTTPRequestEntityTooLarge(most, held)
                        if self._held > self.budgets.held_bodies:
                            raise web.HTTPServiceUnavailable(
                                text="too many request bodies at a time; ask again"
                            )
                        parts.append(part)
            except TimeoutError:
                text = f"the request's body did not arrive within {self.budgets.body_seconds:g} s"
                raise web.HTTPRequestTimeout(text=text) from None
            yield b"".join(parts)
        finally:
            self._held -= held

    async def _parsed(self, size: int, parse: Callable[..., R], *args: Any) -> R:
        """``parse(…)``, off the event loop where there is much of it. Python's JSON holds the lock of its process."""
        if size <= self.budgets.parsed_here:
            return parse(*args)
        if self._parsers is None:
            self._parsers = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))
        try:
            return await asyncio.get_running_loop().run_in_executor(self._parsers, parse, *args)
        except BrokenProcessPool:
            self._parsers = None
            raise web.HTTPServiceUnavailable(
                text="the process that parses large JSON ended; ask again"
            ) from None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.health_interval)
            await self._look_at_all()

    async def _look_at_all(self) -> None:
        await asyncio.gather(*(self._look_at(server) for server in self.servers))

    async def _look_at(self, server: ProxiedServer) -> None:
        try:
            timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT)
            async with self._session.get(
                f"{server.url}/health", timeout=timeout, allow_redirects=False
            ) as response:
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
        async with self._body(request) as body:
            header = request.headers.get(HEADER)
            tag = await self._parsed(0 if header is not None else len(body), asked_tag, header, body)
            return await self._answered(request, body, tag)

    async def _answered(self, request: web.Request, body: bytes, tag: str | None) -> web.StreamResponse:
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
            if 300 <= answer.status < 400 and request.method not in SAFE:
                return _refusal(502, f"{server.url} redirects {request.path}, which is not followed")
            headers.pop(HEADER, None)  # the request's tag alone counts
            if answer.content_type == "text/event-stream":
                stream = web.StreamResponse(status=answer.status, headers=headers)
                await stream.prepare(request)
                events = TaggedEvents(tag)
                async for piece in answer.content.iter_any():
                    await stream.write(events.fed(piece))
                await stream.write_eof(events.end())
                return stream
            content = await answer.read()
            server.served += 1
            if answer.status == 200 and (tag is not None or any(mark in content for mark in FORGED)):
                content = await self._parsed(len(content), tagged_content, content, tag)
            return web.Response(status=answer.status, body=content, headers=headers)

    async def _broadcast(self, request: web.Request) -> web.Response:
        """One request to every server, one such request at a time. Servers that are down are left out until they have
        received weights; where a healthy one fails, the answer is its failure, and it is left out as well."""
        async with self._body(request) as body, self._control:
            return await self._sent_to_all(request, body)

    async def _sent_to_all(self, request: web.Request, body: bytes) -> web.Response:
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
                allow_redirects=False,
            ) as answer:
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            server.lost(_in_words(error), self.weights_loaded)
            return 0, _in_words(error)


def refused(method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
    """Status and message for a request that a web page made, or that steers servers without being JSON; else None.

    Browsers say where a request comes from (Sec-Fetch-Site, and Origin with every POST); programs say neither. Orders
    to the servers are no page's business, not even of a page that claims this address as its own (DNS rebinding).
    """
    if method in SAFE:
        return None
    origin, site, control = headers.get("Origin"), headers.get("Sec-Fetch-Site"), path in CONTROL_PATHS
    foreign = site not in (None, "none", "same-origin") or (
        origin is not None and urlsplit(origin).netloc.lower() != headers.get("Host", "").lower()
    )
    if foreign or (control and (origin is not None or site is not None)):
        return 403, f"{path}: refused, as a web page asks for it ({origin or site})"
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    has_body = headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers
    if control and (has_body or kind) and kind != "application/json" and not kind.endswith("+json"):
        return 415, f"{path}: takes Content-Type: application/json, not {kind or 'an unnamed type'}"
    return None


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


async def _serve(proxy: Proxy, host: str, port: int, access_log: Any) -> None:
    """Serve until SIGINT or SIGTERM."""
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with proxy.listening(host, port, access_log) as taken:
        shown = f"[{host}]" if ":" in host else host
        print(f"maxent-grpo-vllm-proxy: listening on http://{shown}:{taken} (Ctrl-C ends it)", flush=True)
        await ended.wait()


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
        asyncio.run(_serve(proxy, options.host, options.port, logger if options.verbose else None))
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        where = f"{options.host}:{options.port}"
        print(f"maxent-grpo-vllm-proxy: cannot listen on {where}: {error}", file=sys.stderr)
        return UsageError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
