"""What is written in one turn of the loop goes out at once."""

from __future__ import annotations

import asyncio
from typing import Any

from serving.protocol import Joined


class Transport:
    """Notes what is done with it."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.done

    def get_extra_info(self, name: str) -> str:
        return name


def test_headers_and_body_are_one_packet_and_later_parts_follow_in_order() -> None:
    async def scene() -> None:
        transport = Transport()
        joined = Joined(transport, asyncio.get_running_loop())  # type: ignore[arg-type]
        joined.write(b"headers ")
        joined.write(b"body")
        assert transport.done == []
        await asyncio.sleep(0)
        assert transport.done == [b"headers body"]
        joined.write(b"event")
        await asyncio.sleep(0)
        assert transport.done == [b"headers body", b"event"]
        assert joined.get_extra_info("peername") == "peername"

    asyncio.run(scene())


def test_what_was_written_goes_out_before_the_end_and_nothing_after_it() -> None:
    async def scene() -> None:
        transport = Transport()
        joined = Joined(transport, asyncio.get_running_loop())  # type: ignore[arg-type]
        joined.write(b"last words")
        joined.close()
        joined.write(b"too late")
        await asyncio.sleep(0.01)
        assert transport.done == [b"last words", "closed"]

    asyncio.run(scene())
