"""Runs a server until it is told to stop: SIGTERM and Ctrl-C drain it, SIGHUP reloads the bundle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Coroutine, Iterator

import uvicorn

from pipeline.errors import InputError
from serving.app import create_app
from serving.logs import configure, event
from serving.memory import freeze
from serving.protocol import impatient
from serving.service import Service
from serving.settings import Settings


def serve(settings: Settings) -> None:
    """Serve until stopped.

    Raises:
        InputError: The bundle, the key file or the address cannot be used.
    """
    configure(settings.log_level)
    factory = uvicorn.Config("", log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    listener = _listen(settings)
    with contextlib.closing(listener):
        service = await Service.open(settings)
        try:
            server = DrainingServer(service)
            freeze()
            await server.serve(sockets=[listener])
        finally:
            await service.close()
    event("stopped")


class DrainingServer(uvicorn.Server):
    """A server that says it is not ready before it stops listening, and finishes what it started.

    Args:
        service: What it serves.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        settings = service.settings
        config = uvicorn.Config(
            create_app(service),
            http=impatient(settings.header_timeout_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.max_connections,
            timeout_graceful_shutdown=round(settings.drain_timeout_s) or 1,
        )
        super().__init__(config)
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so only then."""
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            event("serving", url=f"http://{shown}:{port}", **self.service.engines.current.used.model_dump())

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals in the loop; a stop that was asked for ends with exit code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self.reload}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Drain and stop; asked a second time, stop at once."""
        if self.service.draining:
            self.should_exit = self.force_exit = True
            return
        self.service.draining = True
        event("draining")
        self._spawn(self._drain())

    def reload(self) -> None:
        """Serve what lies in the bundle's folder now."""
        self._spawn(self._reload())

    async def _drain(self) -> None:
        await asyncio.sleep(self.service.settings.drain_delay_s)
        await self.service.drain()
        self.should_exit = True

    async def _reload(self) -> None:
        try:
            await self.service.engines.swap()
        except InputError as error:
            event("bundle not swapped", level=logging.ERROR, reason=str(error))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise InputError(
            f"Cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another --host or --port."
        ) from error
    listener.set_inheritable(False)
    return listener
