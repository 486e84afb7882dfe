"""HTTP as uvicorn speaks it, but not for clients that take for ever over their headers."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def impatient(header_timeout_s: float) -> type[asyncio.Protocol]:
    """A protocol that closes a connection whose request's headers do not come within so many seconds."""

    class ImpatientProtocol(HttpToolsProtocol):
        """Starts a clock with each connection and each request, and stops it at the end of the headers."""

        clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
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
