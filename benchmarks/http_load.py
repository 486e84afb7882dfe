"""A light HTTP client that keeps a server busy: so many at once (closed loop), or so many a second (open loop)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import uvicorn

MOST_WAITING_S = 60.0
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready to be sent.

    Attributes:
        head: Request line and headers, ending in an empty line.
        body: The body.
        right: Whether an answer's body is the right one.
    """

    head: bytes
    body: bytes
    right: Callable[[bytes], bool]

    @classmethod
    def post(cls, path: str, body: bytes, headers: dict[str, str], right: Callable[[bytes], bool]) -> Request:
        """A POST over a connection that stays open."""
        lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return cls(("\r\n".join(lines) + "\r\n\r\n").encode(), body, right)


@dataclass(slots=True)
class Load:
    """What came back.

    Attributes:
        seconds: How long it was kept up.
        accepted: Seconds of each request that was answered 200.
        statuses: How many answers of each status; 0 stands for none (connection lost, or no answer in time).
        wrong: Answers 200 whose content was not the right one.
        without_retry: Answers 429 or 503 without Retry-After.
    """

    seconds: float = 0.0
    accepted: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    without_retry: int = 0

    @classmethod
    def of(cls, parts: Sequence[Load]) -> Load:
        """Several runs as one."""
        whole = cls()
        for part in parts:
            whole.seconds += part.seconds
            whole.accepted += part.accepted
            whole.statuses += part.statuses
            whole.wrong += part.wrong
            whole.without_retry += part.without_retry
        return whole

    @property
    def throughput(self) -> float:
        """Requests answered 200 a second."""
        return len(self.accepted) / self.seconds

    def percentile(self, share: float) -> float | None:
        """Milliseconds within which this share (0..1) of the accepted requests was answered."""
        return float(np.quantile(self.accepted, share) * 1000) if self.accepted else None

    def summary(self) -> dict[str, object]:
        """JSON-able."""
        return {
            "seconds": round(self.seconds, 2),
            "accepted": len(self.accepted),
            "per_second": round(self.throughput, 2),
            "ms": {f"p{round(share * 100)}": self.percentile(share) for share in (0.5, 0.9, 0.99)},
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "wrong": self.wrong,
            "without_retry_after": self.without_retry,
        }


class Connection:
    """One connection, opened anew when the server closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: Request, load: Load) -> None:
        """Send a request and note what came back."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(MOST_WAITING_S):
                status, headers, body = await self._exchange(request)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            self.close()
            load.statuses[0] += 1
            return
        load.statuses[status] += 1
        if status == 200:
            load.accepted.append(time.perf_counter() - started)
            load.wrong += not request.right(body)
        elif status in (429, 503):
            load.without_retry += b"retry-after:" not in headers
        if b"connection: close" in headers:
            self.close()

    async def _exchange(self, request: Request) -> tuple[int, bytes, bytes]:
        if self._streams is not None and self._streams[0].at_eof():
            # it was idle for longer than the server keeps such connections
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        reader, writer = self._streams
        writer.write(request.head + request.body)
        await writer.drain()
        headers = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(headers.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(headers[9:12]), headers, await reader.readexactly(length)

    def close(self) -> None:
        """Forget the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def run_loop(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a load in the event loop that servers use: the client takes its processor time from the same cores."""
    with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner:
        return runner.run(work)


async def closed_loop(port: int, requests: Sequence[Request], at_once: int, seconds: float) -> Load:
    """Keep `at_once` requests under way for a while; the next starts when one is answered."""
    load = Load()
    started = time.perf_counter()

    async def client(number: int) -> None:
        connection, place = Connection(port), number
        while time.perf_counter() - started < seconds:
            await connection.ask(requests[place % len(requests)], load)
            place += at_once
        connection.close()

    await asyncio.gather(*(client(number) for number in range(at_once)))
    load.seconds = time.perf_counter() - started
    return load


async def open_loop(
    port: int, requests: Sequence[Request], per_second: float, seconds: float, seed: int = 0
) -> Load:
    """Start requests at random moments (a Poisson process), however slowly they are answered."""
    load, chance = Load(), np.random.default_rng(seed)
    idle: list[Connection] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(request: Request) -> None:
        connection = idle.pop() if idle else Connection(port)
        await connection.ask(request, load)
        idle.append(connection)

    started = time.perf_counter()
    due, place = 0.0, 0
    while due < seconds:
        pause = due - (time.perf_counter() - started)
        if pause > 0:
            await asyncio.sleep(pause)
        task = asyncio.create_task(one(requests[place % len(requests)]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        place += 1
        due += float(chance.exponential(1 / per_second))
    await asyncio.gather(*tasks)
    load.seconds = time.perf_counter() - started
    for connection in idle:
        connection.close()
    return load
