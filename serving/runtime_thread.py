"""A thread that owns one runtime, so that one that hangs can be left behind and replaced."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")


class RuntimeThread:
    """Runs calls one after the other in a daemon thread of its own.

    A hung call cannot be ended from outside; `abandon` lets the thread end after it, if it ever does, and a
    daemon thread does not keep the process alive.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any, Any], None]] | None]
        self._calls = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def call(self, work: Callable[[], _T], timeout: float) -> _T:
        """Run `work` in the thread and wait for its result.

        Raises:
            TimeoutError: It took longer than `timeout` seconds; it may still be running.
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

        self._calls.put((work, report))
        return await asyncio.wait_for(future, timeout)

    def abandon(self) -> None:
        """Let the thread end after what it is doing."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            work, report = call
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - handed to the one who waits
                report(None, error)
            else:
                report(result, None)
