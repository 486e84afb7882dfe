"""HTTP as uvicorn speaks it, but not for clients that take for ever over their headers, and in fewer packets."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Joined:
    """A transport that sends what is written in one turn of the loop at once.

    uvicorn writes an answer's headers and its body one after the other: two calls of the system, and a client that is
    woken twice.

    Args:
        transport: The connection's.
        loop: Its event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send this with the rest of this turn."""
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)

    def close(self) -> None:
        """Send what was written, then close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))


def impatient(header_timeout_s: float) -> type[asyncio.Protocol]:
    """A protocol that closes a connection whose request's headers do not come within so many seconds."""

    class ImpatientProtocol(HttpToolsProtocol):
        """Starts a clock with each connection and each request, and stops it at the end of the headers."""

        clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(Joined(transport, self.loop))  # type: ignore[arg-type]
            self._start()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._start()

        def on_headers_complete(self) -> None:
            self._stop()
            super().on_headers_complete()

        def _start(self) -> None:
            self._stop()
            self.clock = self.loop.call_later(header_timeout_s, self.transport.close)

        def _stop(self) -> None:
            if self.clock is not None:
                self.clock.cancel()
                self.clock = None

    return ImpatientProtocol
