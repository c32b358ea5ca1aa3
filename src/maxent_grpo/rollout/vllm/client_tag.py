"""Client tags: whose completions these are, where several trainers share one vLLM endpoint.

A request carries its sender's tag in the ``X-VLLM-Client-Tag`` header and in the ``client_tag`` field of its JSON; a
server copies it into every group of its answer, and the sender drops what is not its own. A stock vLLM does the
copying with `EchoMiddleware`:

    vllm serve MODEL --middleware maxent_grpo.rollout.vllm.client_tag.EchoMiddleware

Standard library only, and so is what it imports: a server imports this module.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from maxent_grpo.files import utf8
from maxent_grpo.rollout.settings import TagPolicy

logger = logging.getLogger(__name__)

HEADER = "X-VLLM-Client-Tag"
FIELD = "client_tag"
FORGED = (FIELD.encode(), b"\\u00")
"""What an answer holds that may carry a tag of its own, which nobody's request gave."""
VARIABLE = "VLLM_CLIENT_TAG"
LONGEST_TAG = 128
PLACES = ("metadata", "meta", "context", "extra", "request")
"""Keys of a group under which a tag is looked for, besides the group itself."""
DEEPEST = 5
GROUP_KEYS = ("results", "choices")


def derive_tag(explicit: str | None, rank: int, ranks: int, environ: Mapping[str, str]) -> str | None:
    """The sender's tag: ``explicit``, else VLLM_CLIENT_TAG, else ``rank-R-of-W`` among several; None for a lone one.

    Raises:
        ValueError: the tag is no header value: empty, longer than 128 characters, or not printable ASCII.
    """
    tag = explicit or environ.get(VARIABLE) or (f"rank-{rank}-of-{ranks}" if ranks > 1 else None)
    if tag is not None and not is_tag(tag):
        raise ValueError(f"{tag[:40]!r} is no tag: use 1 to {LONGEST_TAG} printable ASCII characters")
    return tag


def is_tag(value: object) -> bool:
    """True if ``value`` can travel as a header: printable ASCII, not empty, not padded, of bounded length."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= LONGEST_TAG
        and value.isascii()
        and value.isprintable()
        and value == value.strip()
    )


def tag_of(group: Any, depth: int = 0) -> str | None:
    """The tag of one result, choice or output: its own ``client_tag``, or the first one under `PLACES`, to depth 5."""
    if not isinstance(group, Mapping) or depth > DEEPEST:
        return None
    own = group.get(FIELD)
    if isinstance(own, str):
        return own
    found = (tag_of(group.get(place), depth + 1) for place in PLACES)
    return next((tag for tag in found if tag is not None), None)


@dataclass(frozen=True)
class Filtered:
    """An answer without what belongs to others."""

    reply: dict[str, Any]
    kept: int
    """Groups, or outputs where only those carry tags."""
    dropped: int
    untagged: int
    """Those without any tag: dropped, or kept under the lenient policy."""


def own_part(reply: Mapping[str, Any], tag: str | None, policy: TagPolicy) -> Filtered:
    """``reply`` with the groups of ``tag`` only. Without a tag of one's own everything is kept.

    A group's tag counts for its outputs; outputs are looked at one by one where the group has none. An answer whose
    completions are bare lists takes the tag that stands at its top. ``strict`` drops what has no tag, ``lenient``
    keeps it; both drop what has another one.
    """
    key = next((key for key in GROUP_KEYS if isinstance(reply.get(key), list)), None)
    if tag is None:
        return Filtered(dict(reply), kept=len(reply[key]) if key else 1, dropped=0, untagged=0)
    top = tag_of(reply)
    if key is None:
        mine = top == tag or (top is None and policy == "lenient")
        return Filtered(dict(reply) if mine else {}, int(mine), int(not mine), int(top is None))
    groups: list[Any] = []
    dropped = untagged = 0
    for group in reply[key]:
        found = tag_of(group) or top
        outputs = group.get("outputs") if isinstance(group, Mapping) else None
        if found is None and isinstance(outputs, list):
            tags = [tag_of(output) for output in outputs]
            untagged += tags.count(None)
            own = [o for o, t in zip(outputs, tags, strict=True) if _is_own(t, tag, policy)]
            dropped += not own
            if own:
                groups.append({**group, "outputs": own})
            continue
        untagged += found is None
        if _is_own(found, tag, policy):
            groups.append(group)
        else:
            dropped += 1
    if dropped:
        logger.debug("Filtered %d extraneous vLLM result groups for client_tag=%s", dropped, tag)
    return Filtered({**reply, key: groups}, kept=len(groups), dropped=dropped, untagged=untagged)


def _is_own(found: str | None, tag: str, policy: TagPolicy) -> bool:
    return found == tag or (found is None and policy == "lenient")


def with_tag(reply: Any, tag: str | None) -> Any:
    """A JSON answer with ``metadata.client_tag`` at its top and in every choice, result and output, and with no other
    tag where `tag_of` looks for one; None: without any. What is no object passes."""
    if not isinstance(reply, dict):
        return reply
    tagged = _tagged(reply, tag)
    for key in GROUP_KEYS:
        if isinstance(tagged.get(key), list):
            tagged[key] = [_tagged(group, tag) for group in tagged[key]]
            for group in tagged[key]:
                if isinstance(group, dict) and isinstance(group.get("outputs"), list):
                    group["outputs"] = [_tagged(output, tag) for output in group["outputs"]]
    return tagged


def _untagged(group: Any, depth: int = 0) -> Any:
    """``group`` without what `tag_of` would find."""
    if not isinstance(group, dict) or depth > DEEPEST:
        return group
    return {
        key: _untagged(value, depth + 1) if key in PLACES else value
        for key, value in group.items()
        if key != FIELD
    }


def _tagged(group: Any, tag: str | None) -> Any:
    if not isinstance(group, dict):
        return group
    group = _untagged(group)
    if tag is None:
        return group
    metadata = group.get("metadata")
    return {**group, "metadata": {**(metadata if isinstance(metadata, dict) else {}), FIELD: tag}}


def asked_tag(header: str | None, body: bytes) -> str | None:
    """The tag of a request: its header's, else its body's; None where that is no tag."""
    tag: Any = header
    if tag is None and body[:1] == b"{":
        try:
            tag = json.loads(body).get(FIELD)
        except (ValueError, RecursionError):  # not for us to report
            return None
    return tag if is_tag(tag) else None


def tagged_content(content: bytes, tag: str | None) -> bytes:
    """JSON with the tag (`with_tag`), or without any; anything else as it is, for the client to find out."""
    try:
        tagged = with_tag(json.loads(content), tag)
        return utf8(json.dumps(tagged, ensure_ascii=False, separators=(",", ":")))
    except (ValueError, RecursionError):
        return content


class TaggedEvents:
    """A stream of server-sent events with the tag in the JSON of each (`with_tag`), or without any.

    An event passes when its blank line has arrived, before which no client looks at it.
    """

    def __init__(self, tag: str | None) -> None:
        self._tag = tag
        self._lines: list[bytes] = []  # of the event that has begun
        self._rest = b""  # of the line that has begun

    def fed(self, piece: bytes) -> bytes:
        """The events that ``piece`` completes."""
        lines = (self._rest + piece).splitlines(keepends=True)
        # A carriage return may be the half of a line's end.
        self._rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        events = []
        for line in lines:
            self._lines.append(line)
            if not line.strip(b"\r\n"):
                events.append(self._event())
        return b"".join(events)

    def end(self) -> bytes:
        """What has arrived of an event that never ended."""
        self._lines.append(self._rest)
        self._rest = b""
        return self._event()

    def _event(self) -> bytes:
        lines, self._lines = self._lines, []
        said = [line.rstrip(b"\r\n")[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
        content = b"\n".join(said)
        if self._tag is None and not any(mark in content for mark in FORGED):
            return b"".join(lines)
        tagged = tagged_content(content, self._tag) if content.lstrip()[:1] == b"{" else content
        if tagged == content:
            return b"".join(lines)
        others = [line for line in lines if not line.startswith(b"data:") and line.strip(b"\r\n")]
        return b"".join([*others, b"data: " + tagged + b"\n\n"])


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class EchoMiddleware:
    """ASGI middleware that copies a request's tag into its JSON answer; everything else passes untouched.

    The header wins over the body. Streamed, compressed and unsuccessful answers are left as they are, so that a tag
    never delays a token and an error stays the server's own.
    """

    def __init__(self, app: Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get("method") != "POST":
            await self._app(scope, receive, send)
            return
        echo = _Echo(dict(scope["headers"]).get(HEADER.lower().encode()), receive, send)
        await self._app(scope, echo.receive, echo.send)


class _Echo:
    """One request on its way in and its answer on the way out."""

    def __init__(self, header: bytes | None, receive: Receive, send: Send) -> None:
        self._header, self._receive, self._send = header, receive, send
        self._question: list[bytes] = []
        self._answer: list[bytes] = []
        self._start: Message | None = None  # held back until the length of the answer is known

    async def receive(self) -> Message:
        message = await self._receive()
        if self._header is None and message["type"] == "http.request":
            self._question.append(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_json(message):
            self._start = message
        elif message["type"] != "http.response.body" or self._start is None:
            await self._send(message)
        else:
            self._answer.append(message.get("body", b""))
            if not message.get("more_body", False):
                header = None if self._header is None else self._header.decode("latin-1")
                tag, body = asked_tag(header, b"".join(self._question)), b"".join(self._answer)
                body = body if tag is None else tagged_content(body, tag)
                kept = [h for h in self._start["headers"] if h[0].lower() != b"content-length"]
                length = (b"content-length", str(len(body)).encode())
                await self._send({**self._start, "headers": [*kept, length]})
                await self._send({**message, "body": body})


def _is_json(start: Message) -> bool:
    headers = {name.lower(): value for name, value in start["headers"]}
    return (
        start["status"] == 200
        and headers.get(b"content-type", b"").split(b";")[0].strip() == b"application/json"
        and b"content-encoding" not in headers
    )
