"""A thread that owns one runtime, so that one that hangs can be left behind and replaced."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")


class NeverRunError(Exception):
    """A call was not run, because one before it failed or the thread was abandoned."""


class RuntimeThread:
    """Runs calls one after the other in a daemon thread of its own, none after one that failed.

    A hung call cannot be ended from outside; `abandon` lets the thread end after it, if it ever does, and a
    daemon thread does not keep the process alive.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any, Any], None]] | None]
        self._calls = queue.SimpleQueue()
        self._pending: set[asyncio.Future[Any]] = set()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def call(self, work: Callable[[], _T], timeout: float) -> _T:
        """Run `work` in the thread and wait for its result.

        Raises:
            TimeoutError: It took longer than `timeout` seconds; it may still be running.
            NeverRunError: It will not be run.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def tell(result: Any, error: Any) -> None:
            if not future.done():
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)

        def report(result: Any, error: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell, result, error)

        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        self._calls.put((work, report))
        return await asyncio.wait_for(future, timeout)

    def abandon(self) -> None:
        """Let the thread end after what it is doing, and give up what waits for it. To be called in the event loop."""
        self._calls.put(None)
        for future in list(self._pending):
            if not future.done():
                future.set_exception(NeverRunError)

    async def ended(self, within: float) -> None:
        """Wait until a thread that was abandoned has ended, at most so many seconds."""
        await asyncio.to_thread(self._thread.join, within)

    def _work(self) -> None:
        failed = False
        while (call := self._calls.get()) is not None:
            work, report = call
            try:
                if failed:
                    raise NeverRunError
                result = work()
            except BaseException as error:  # noqa: BLE001 - handed to the one who waits
                failed = True
                report(None, error)
            else:
                report(result, None)
