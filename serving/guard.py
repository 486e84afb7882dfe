"""What stands in front of every route: request id, key, rate, body size, upload speed, log and count."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.keys import KeyEntry, Keys
from serving.logs import event
from serving.metrics import Metrics
from serving.problems import ProblemError, answer
from serving.settings import Settings

OPEN_PATHS = frozenset({"/", "/favicon.ico", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
OPEN_PREFIX = "/page/"
"""Addresses that need no key: the page and its files, and what a load balancer asks."""
VIDEO_PATH = "/v1/videos"
BATCH_PATH = "/v1/batch"

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
_LINGER_S, _LINGER_BYTES = 1.0, 4 << 20
"""A refused upload is read on for so long, so that the client sees the answer and not a broken connection."""


@dataclass(slots=True)
class _Told:
    """What the answer was, for the log."""

    status: int = 0
    started: bool = False


class Guard:
    """ASGI middleware; the outermost.

    Args:
        app: What is guarded.
        settings: Limits.
        keys: None: no key is asked for.
        metrics: Where to count.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys | None, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys
        self._metrics = metrics
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.match(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        told, started = _Told(), time.perf_counter()

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                told.status, told.started = message["status"], True
                there = {name for name, _ in message["headers"]}
                added = [(name, value) for name, value in _SAFE if name not in there]
                identity = (b"x-request-id", request_id.encode())
                message["headers"] = [*message["headers"], identity, *added]
            await send(message)

        try:
            await self._guarded(scope, headers, receive, tell)
        except asyncio.CancelledError:
            told.status = told.status or 499
            raise
        except Exception as error:
            event("request failed", level=40, error=error, request_id=request_id, path=scope["path"])
            if told.started:
                raise
            await answer(scope, ProblemError("internal", "See the server's log."))(scope, receive, tell)
        finally:
            self._record(scope, told, time.perf_counter() - started)

    async def _guarded(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        try:
            self._admit(scope, headers)
        except ProblemError as error:
            await self._refuse(scope, error, headers, receive, send)
            return
        if not _has_body(headers):
            await self._app(scope, receive, send)
            return
        if self._uploads >= self._settings.max_uploads:
            self._metrics.shed.labels("uploads").inc()
            busy = ProblemError("overloaded", "Too many uploads at once.", retry_after=1, close=True)
            await self._refuse(scope, busy, headers, receive, send)
            return
        self._uploads += 1
        limit = body_limit(scope["path"], self._settings)
        body = _Body(receive, limit, self._settings, self._metrics, self._received)
        try:
            await self._app(scope, body, send)
        finally:
            body.done()

    def _received(self) -> None:
        self._uploads -= 1

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Refuse, before the body is read, a request without a good key, over its rate, or of too many bytes.

        Raises:
            ProblemError: It is refused.
        """
        scope["state"]["key"] = self._entry(scope["path"], headers)
        declared = headers.get("content-length", "0")
        if not declared.isdecimal():
            raise ProblemError("bad-request", "Content-Length is not a number.", close=True)
        limit = body_limit(scope["path"], self._settings)
        if int(declared) > limit:
            raise ProblemError(
                "too-large", f"The body has {int(declared):,} bytes; the limit here is {limit:,}.", close=True
            )

    def _entry(self, path: str, headers: Headers) -> KeyEntry | None:
        if self._keys is None or path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
            return None
        entry = self._keys.find(_key_in(headers))
        if entry is None:
            self._metrics.shed.labels("key").inc()
            detail = "Send a key of this server as `Authorization: Bearer KEY` or `X-API-Key: KEY`."
            raise ProblemError("unauthorized", detail, close=_has_body(headers))
        wait = self._keys.wait_for(entry)
        if wait:
            self._metrics.shed.labels("rate").inc()
            detail = f"This key may send {entry.per_minute} requests a minute."
            raise ProblemError("rate-limited", detail, retry_after=wait, close=_has_body(headers))
        return entry

    async def _refuse(
        self, scope: Scope, error: ProblemError, headers: Headers, receive: Receive, send: Send
    ) -> None:
        """Answer at once, then let the client finish a little of what it is sending before closing."""
        response = answer(scope, error)
        start = {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        }
        await send(start)
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        if _has_body(headers):
            await _drain(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _record(self, scope: Scope, told: _Told, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(route, str(told.status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        key = scope["state"].get("key")
        event(
            "request",
            request_id=scope["state"]["request_id"],
            method=scope["method"],
            path=scope["path"],
            status=told.status,
            ms=round(seconds * 1000, 1),
            key=key.id if key else None,
            client=scope["client"][0] if scope.get("client") else None,
        )


class _Body:
    """`receive` that gives up on a body that trickles in or does not end.

    Args:
        receive: The connection's.
        limit: Most bytes; what a body declares was checked before, but it need not declare anything.
        settings: How slow is too slow.
        metrics: Where to count.
        when_done: Called once, when the body is there or is not wanted any more.
    """

    def __init__(
        self,
        receive: Receive,
        limit: int,
        settings: Settings,
        metrics: Metrics,
        when_done: Callable[[], None],
    ) -> None:
        self._receive = receive
        self._limit = limit
        self._settings = settings
        self._metrics = metrics
        self._when_done = when_done
        self._started = time.monotonic()
        self._bytes = 0
        self._done = False

    async def __call__(self) -> Message:
        """Next message of the connection."""
        if self._done:
            return await self._receive()
        allowed = self._settings.body_timeout_s + self._bytes / self._settings.body_bytes_per_s
        try:
            async with asyncio.timeout(self._started + allowed - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            self.done()
            self._metrics.shed.labels("slow").inc()
            raise ProblemError(
                "too-slow", f"{self._bytes:,} bytes in {allowed:.0f} s are too few.", close=True
            ) from None
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limit:
            self.done()
            raise ProblemError("too-large", f"The limit here is {self._limit:,} bytes.", close=True)
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.done()
        return message

    def done(self) -> None:
        """The body needs no more time; may be called again."""
        if not self._done:
            self._done = True
            self._when_done()


_SAFE = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


def body_limit(path: str, settings: Settings) -> int:
    """Most bytes of a body at an address."""
    if path.startswith(VIDEO_PATH):
        return settings.max_video_bytes
    if path.startswith(BATCH_PATH):
        return settings.max_batch_bytes
    return settings.max_image_bytes


def _key_in(headers: Headers) -> str:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


async def _drain(receive: Receive) -> None:
    left = _LINGER_BYTES
    try:
        async with asyncio.timeout(_LINGER_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
