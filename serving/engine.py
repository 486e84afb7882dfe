"""A bundle in service, and its replacement by another while requests go on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.analysis import Analyser
from pipeline.bundle import Bundle, open_bundle
from pipeline.runtime import Runtime, open_artefact
from serving.artefacts import Opened, open_best
from serving.batcher import Batcher, BatchPolicy
from serving.batches import MOST_TRIED, MOST_TRIED_EACH, buckets_up_to
from serving.copies import Copies, find_copies, given_copies
from serving.logs import event
from serving.memory import clear_away, give_back
from serving.metrics import Metrics
from serving.schemas import BundleUsed
from serving.settings import Settings, cores

_HEARTBEATS_PER_WINDOW = 3
_ON_PROCESSORS = ("onnxruntime", "openvino")


class Engine:
    """One bundle, its runtime and the queue in front of it. Made by `Engine.open`."""

    def __init__(
        self, bundle: Bundle, opened: Opened, copies: Copies, settings: Settings, metrics: Metrics
    ) -> None:
        self.bundle = bundle
        self.analyser = Analyser(bundle, max_faces=settings.max_faces)
        self.used = BundleUsed(
            id=bundle.manifest.id, artefact=opened.artefact.name, runtime=opened.runtime.label
        )
        # runs that have a thread each save nothing by batches
        most = settings.max_batch or (
            1 if copies.at_once > 1 else MOST_TRIED if copies.count == 1 else MOST_TRIED_EACH
        )
        policy = BatchPolicy(
            buckets=buckets_up_to(min(most, opened.artefact.max_batch or most)),
            find_out=settings.max_batch is None and copies.at_once == 1,
            most_bytes=settings.batch_memory / copies.count,
            on_processors=opened.artefact.runtime in _ON_PROCESSORS,
            max_wait_s=settings.max_wait_ms / 1000,
            capacity=settings.max_inflight * settings.max_faces,
            infer_timeout_s=settings.infer_timeout_s,
            queue_timeout_s=settings.queue_timeout_s,
            replicas=copies.count,
            at_once=copies.at_once,
        )
        factory = _factory(bundle, opened, copies.threads)
        self.batcher = Batcher(factory, self.analyser.image_size, policy, metrics)
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @classmethod
    async def open(cls, folder: Path, settings: Settings, metrics: Metrics) -> Engine:
        """Check a bundle, load its network and run it.

        Raises:
            InputError: The bundle or its artefact cannot be used.
        """
        bundle, opened, copies = await asyncio.to_thread(_open, folder, settings)
        for reason in opened.passed_over:
            event("artefact passed over", reason=reason)
        event("copies of the network", copies=copies.count, threads=copies.threads, at_once=copies.at_once)
        engine = cls(bundle, opened, copies, settings, metrics)
        await engine.batcher.start()
        return engine

    @contextlib.contextmanager
    def use(self) -> Iterator[Engine]:
        """While this is open the engine is not closed."""
        self._users += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def close_when_unused(self) -> None:
        """Wait for those who use it, then close."""
        await self._unused.wait()
        await self.batcher.close()

    async def close(self) -> None:
        """Close now."""
        await self.batcher.close()


class Engines:
    """The engine in service.

    Args:
        settings: The server's.
        metrics: Where to count.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._engine: Engine | None = None
        self._swapping = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def current(self) -> Engine:
        """The engine that new requests get."""
        if self._engine is None:
            raise RuntimeError("the engine was not started")
        return self._engine

    @property
    def ready(self) -> bool:
        """Whether a real inference succeeded lately."""
        engine = self._engine
        if engine is None or not engine.batcher.alive:
            return False
        return time.monotonic() - engine.batcher.last_success < self._settings.ready_window_s

    async def start(self) -> None:
        """Open the bundle.

        Raises:
            InputError: It cannot be used.
        """
        self._engine = await Engine.open(self._settings.bundle, self._settings, self._metrics)
        self._metrics.serves(self._engine.used)
        self._spawn(self._beat())

    async def swap(self) -> BundleUsed:
        """Open the bundle's folder again and serve what lies there now; the old one ends its requests.

        Raises:
            InputError: It cannot be used; the old one goes on.
        """
        async with self._swapping:
            try:
                engine = await Engine.open(self._settings.bundle, self._settings, self._metrics)
            except BaseException:
                self._metrics.swaps.labels("refused").inc()
                raise
            old, self._engine = self._engine, engine
            self._metrics.swaps.labels("done").inc()
            self._metrics.serves(engine.used)
            event("bundle swapped", bundle=engine.used.id, artefact=engine.used.artefact)
            if old is not None:
                self._spawn(_retire(old))
            return engine.used

    async def close(self) -> None:
        """Close the engine in service."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._engine is not None:
            await self._engine.close()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _beat(self) -> None:
        """Keep readiness true to life when nobody asks anything: run one crop now and then."""
        pause = self._settings.ready_window_s / _HEARTBEATS_PER_WINDOW
        while True:
            await asyncio.sleep(pause)
            batcher = self.current.batcher
            if time.monotonic() - batcher.last_success >= pause:
                await batcher.probe()


def _open(folder: Path, settings: Settings) -> tuple[Bundle, Opened, Copies]:
    """A bundle, the first copy of its network, and how many there are to be."""
    bundle = open_bundle(folder)
    given = given_copies(settings.replicas, settings.runtime_threads, cores())
    opened = open_best(bundle, settings.artefact, threads=given.threads if given else cores())
    if given is not None:
        return bundle, opened, given
    if opened.artefact.runtime not in _ON_PROCESSORS:
        return bundle, opened, Copies(1, cores())
    copies, first = find_copies(
        opened.runtime,
        lambda: open_artefact(bundle.folder, opened.artefact, threads=1),
        bundle.manifest.network.image_size,
        cores(),
        settings.batch_memory,
    )
    return bundle, replace(opened, runtime=first), copies


async def _retire(engine: Engine) -> None:
    await engine.close_when_unused()
    del engine
    clear_away()


def _factory(bundle: Bundle, opened: Opened, threads: int) -> Callable[[], Runtime]:
    """Gives the runtime that is open already, then opens more."""
    first = [opened.runtime]

    def make() -> Runtime:
        runtime = first.pop() if first else open_artefact(bundle.folder, opened.artefact, threads=threads)
        # reading a graph leaves a copy of its weights behind: 70 MiB of mobilevitv2_200
        give_back()
        return runtime

    return make
