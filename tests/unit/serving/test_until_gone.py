"""Work for a client ends when the client goes away, and only then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from serving.routes_media import until_gone


class Work:
    """Takes until it is told to end; notes whether it was cancelled."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.cancelled = False

    async def __call__(self) -> str:
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return "done"


def request_of(gone: asyncio.Event) -> Request:
    """A request whose client says nothing more until it goes."""

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


def test_work_is_cancelled_when_its_client_goes() -> None:
    async def scene() -> None:
        gone, work = asyncio.Event(), Work()
        asyncio.get_running_loop().call_later(0.02, gone.set)
        with pytest.raises(ClientDisconnect):
            await until_gone(request_of(gone), work())
        assert work.cancelled
        # the task that waited is not marked as cancelled: it goes on
        await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_work_that_ends_leaves_nobody_waiting_for_the_client() -> None:
    async def scene() -> None:
        work = Work()
        work.may_end.set()
        before = asyncio.all_tasks()
        assert await until_gone(request_of(asyncio.Event()), work()) == "done"
        await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == before

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_whoever_else_cancels_is_obeyed() -> None:
    async def scene() -> None:
        gone, work = asyncio.Event(), Work()
        task = asyncio.create_task(until_gone(request_of(gone), work()))
        await asyncio.sleep(0.01)
        task.cancel()
        # at the same moment
        gone.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.cancelled

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_an_error_of_the_work_comes_through() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("broken")

    async def scene() -> None:
        with pytest.raises(ValueError, match="broken"):
            await until_gone(request_of(asyncio.Event()), fail())

    asyncio.run(asyncio.wait_for(scene(), 10))
