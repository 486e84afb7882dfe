"""The queue in front of the network: batches, limits, cancelled requests, runtimes that throw or hang."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.runtime import Answer, Crops
from serving.batcher import Batcher, BatchPolicy, Served
from serving.metrics import Metrics
from serving.problems import ProblemError

SIDE = 4
BLACK = 0
POISON = 255


class Runtime:
    """Answers each crop with its first pixel; keeps what it was given; can wait, throw or answer nonsense."""

    label = "test"

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.open.set()
        self.poison: Callable[[], None] = lambda: None

    def run(self, crops: Crops) -> Answer:
        marks = [int(crop[0, 0, 0]) for crop in crops]
        self.batches.append(marks)
        self.open.wait()
        if POISON in marks:
            self.poison()
        values = np.array([[0.0, mark] for mark in marks], np.float32)
        values[values == 254] = np.nan
        return Answer(values, values.reshape(-1, 1, 2))

    def served(self) -> list[list[int]]:
        """Batches without the black ones of warming up."""
        return [batch for batch in self.batches if any(batch)]


_R = TypeVar("_R", bound=Runtime)


def crops(*marks: int) -> Crops:
    return np.stack([np.full((SIDE, SIDE, 3), mark, np.uint8) for mark in marks])


def marks_of(served: Served) -> list[float]:
    return [float(value) for value in served.answer.logits[:, 1]]


def batcher_of(opened: Callable[[], Any], **policy: Any) -> Batcher:
    given = {"buckets": (1, 2, 4, 8), "max_wait_s": 0.0, **policy}
    return Batcher(opened, SIDE, BatchPolicy(**given), Metrics())


def play(
    scene: Callable[[Batcher, _R], Coroutine[Any, Any, None]],
    kind: Callable[[], _R] = Runtime,  # type: ignore[assignment]
    **policy: Any,
) -> None:
    """Run a scene with a started batcher over one runtime that is opened again and again."""

    async def whole() -> None:
        runtime = kind()
        batcher = batcher_of(lambda: runtime, **policy)
        await batcher.start()
        try:
            await asyncio.wait_for(scene(batcher, runtime), 20)
        finally:
            runtime.open.set()
            await batcher.close()

    asyncio.run(whole())


def test_requests_share_batches_and_each_gets_its_own_answer() -> None:
    async def scene(batcher: Batcher, runtime: Runtime) -> None:
        runtime.open.clear()
        first = asyncio.create_task(batcher.run(crops(1)))
        while not runtime.served():
            await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.run(crops(mark))) for mark in range(2, 6)]
        pair = asyncio.create_task(batcher.run(crops(6, 7)))
        await asyncio.sleep(0.05)
        runtime.open.set()
        assert [marks_of(served) for served in await asyncio.gather(first, *rest, pair)] == [
            [1],
            [2],
            [3],
            [4],
            [5],
            [6, 7],
        ]
        # six wait: two black ones fill the batch up to eight
        assert runtime.served() == [[1], [2, 3, 4, 5, 6, 7, 0, 0]]
        assert (await batcher.run(crops(9))).queue_s < 0.5

    play(scene)


def test_more_crops_than_a_batch_holds() -> None:
    async def scene(batcher: Batcher, runtime: Runtime) -> None:
        served = await batcher.run(crops(*range(1, 20)))
        assert marks_of(served) == list(range(1, 20))
        assert served.answer.evidence is not None
        assert served.answer.evidence.shape == (19, 1, 2)
        assert {len(batch) for batch in runtime.served()} <= {1, 2, 4, 8}

    play(scene)


def test_a_crop_waits_for_those_announced_but_not_for_ever() -> None:
    async def scene(batcher: Batcher, runtime: Runtime) -> None:
        with batcher.announced():
            first = asyncio.create_task(batcher.run(crops(1)))
            await asyncio.sleep(0.05)
            assert not runtime.served()
            await asyncio.gather(first, batcher.run(crops(2)), batcher.run(crops(3)))
            assert runtime.served() == [[1, 2, 3, 0]]
        # nobody is on the way: at once
        started = time.perf_counter()
        await batcher.run(crops(4))
        assert time.perf_counter() - started < 0.25

    play(scene, max_wait_s=0.5, buckets=(1, 2, 4, 8))


def test_a_cancelled_request_leaves_the_queue() -> None:
    async def scene(batcher: Batcher, runtime: Runtime) -> None:
        runtime.open.clear()
        first = asyncio.create_task(batcher.run(crops(1)))
        while not runtime.served():
            await asyncio.sleep(0.01)
        gone = asyncio.create_task(batcher.run(crops(2)))
        stays = asyncio.create_task(batcher.run(crops(3)))
        await asyncio.sleep(0.02)
        gone.cancel()
        await asyncio.sleep(0.02)
        runtime.open.set()
        await asyncio.gather(first, stays)
        assert runtime.served() == [[1], [3]]

    play(scene)


def test_a_full_queue_turns_away_at_once() -> None:
    async def scene(batcher: Batcher, runtime: Runtime) -> None:
        runtime.open.clear()
        first = asyncio.create_task(batcher.run(crops(1)))
        while not runtime.served():
            await asyncio.sleep(0.01)
        second = asyncio.create_task(batcher.run(crops(2, 3)))
        await asyncio.sleep(0.02)
        with pytest.raises(ProblemError) as refused:
            await batcher.run(crops(4, 5))
        assert refused.value.name == "overloaded"
        assert refused.value.headers()["retry-after"] == "1"
        runtime.open.set()
        await asyncio.gather(first, second)

    play(scene, capacity=3)


def test_an_answer_that_is_not_a_number_fails_only_its_own_request() -> None:
    async def scene(batcher: Batcher, runtime: Runtime) -> None:
        runtime.open.clear()
        first = asyncio.create_task(batcher.run(crops(1)))
        while not runtime.served():
            await asyncio.sleep(0.01)
        bad = asyncio.create_task(batcher.run(crops(254)))
        good = asyncio.create_task(batcher.run(crops(3)))
        await asyncio.sleep(0.02)
        runtime.open.set()
        with pytest.raises(ProblemError) as failed:
            await bad
        assert failed.value.name == "network-failed"
        assert marks_of(await good) == [3]
        await first
        assert batcher.alive

    play(scene)


@pytest.mark.parametrize("how", ["throws", "hangs"])
def test_a_runtime_that_fails_is_replaced_and_refuses_meanwhile(how: str) -> None:
    stuck = threading.Event()

    async def scene() -> None:
        made: list[Runtime] = []
        may_open = threading.Event()
        may_open.set()

        def opened() -> Runtime:
            may_open.wait()
            made.append(Runtime())

            def poison() -> None:
                if how == "hangs":
                    stuck.wait(20)
                raise MemoryError("out of memory on the device")

            made[-1].poison = poison
            return made[-1]

        batcher = batcher_of(opened, infer_timeout_s=0.3)
        await batcher.start()
        before = batcher.last_success
        may_open.clear()
        with pytest.raises(ProblemError) as failed:
            await batcher.run(crops(POISON))
        assert failed.value.name == "runtime-failed"
        assert not batcher.alive
        assert batcher.last_success == before
        with pytest.raises(ProblemError) as refused:
            await batcher.run(crops(1))
        assert refused.value.headers()["retry-after"] == "1"
        may_open.set()
        while not batcher.alive:
            await asyncio.sleep(0.01)
        assert batcher.last_success > before
        assert marks_of(await batcher.run(crops(1))) == [1]
        assert len(made) == 2
        await batcher.close()

    try:
        asyncio.run(asyncio.wait_for(scene(), 20))
    finally:
        stuck.set()


def test_a_replacement_that_cannot_be_opened_is_tried_again() -> None:
    async def scene() -> None:
        calls = 0

        def opened() -> Runtime:
            nonlocal calls
            calls += 1
            if calls in (2, 3):
                raise OSError("the device is busy")
            runtime = Runtime()
            runtime.poison = lambda: (_ for _ in ()).throw(ValueError("lost"))  # type: ignore[assignment]
            return runtime

        batcher = batcher_of(opened)
        await batcher.start()
        with pytest.raises(ProblemError):
            await batcher.run(crops(POISON))
        while not batcher.alive:
            await asyncio.sleep(0.02)
        assert calls == 4
        assert marks_of(await batcher.run(crops(5))) == [5]
        await batcher.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


@pytest.mark.parametrize("how", ["throws", "hangs"])
def test_what_waits_when_a_runtime_fails_is_answered_by_the_next(how: str) -> None:
    stuck = threading.Event()

    async def scene() -> None:
        made: list[Runtime] = []

        def opened() -> Runtime:
            def poison() -> None:
                if how == "hangs":
                    stuck.wait(20)
                raise ValueError("lost")

            made.append(Runtime())
            made[-1].poison = poison
            return made[-1]

        batcher = batcher_of(opened, buckets=(1,), infer_timeout_s=0.3)
        await batcher.start()
        made[0].open.clear()
        failing = asyncio.create_task(batcher.run(crops(POISON)))
        while not made[0].served():
            await asyncio.sleep(0.01)
        # the first of them stands behind the one that runs, in the same thread
        waiting = [asyncio.create_task(batcher.run(crops(mark))) for mark in (7, 8, 9)]
        await asyncio.sleep(0.02)
        made[0].open.set()
        with pytest.raises(ProblemError):
            await failing
        assert [marks_of(await task) for task in waiting] == [[7], [8], [9]]
        stuck.set()
        await asyncio.sleep(0.05)
        assert made[0].served() == [[POISON]]
        assert made[1].served() == [[7], [8], [9]]
        await batcher.close()

    try:
        asyncio.run(asyncio.wait_for(scene(), 20))
    finally:
        stuck.set()


def test_a_full_batch_follows_the_one_that_runs_without_the_loop_s_help() -> None:
    async def scene(batcher: Batcher, runtime: Runtime) -> None:
        runtime.open.clear()
        first = asyncio.create_task(batcher.run(crops(1)))
        while not runtime.served():
            await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.run(crops(mark))) for mark in (2, 3, 4)]
        await asyncio.sleep(0.02)
        runtime.open.set()
        # the loop is busy meanwhile
        end = time.monotonic() + 5
        while len(runtime.served()) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert runtime.served() == [[1], [2, 3]]
        assert [marks_of(served) for served in await asyncio.gather(first, *rest)] == [[1], [2], [3], [4]]

    play(scene, buckets=(1, 2))


def test_stopping_refuses_what_stands_behind_a_batch_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.lanes._END_S", 0.1)

    async def scene(batcher: Batcher, runtime: Runtime) -> None:
        runtime.open.clear()
        tasks = [asyncio.create_task(batcher.run(crops(mark))) for mark in (1, 2, 3)]
        while not runtime.served():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        await batcher.close()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, ProblemError)
            assert outcome.name == "runtime-failed"
        runtime.open.set()

    play(scene, buckets=(1,))


def test_stopping_waits_for_what_runs() -> None:
    """A runtime that comes back into a process that is ending brings it down."""

    class Long(Runtime):
        ended = 0

        def run(self, crops: Crops) -> Answer:
            if crops.any():
                self.batches.append([])
                time.sleep(0.3)
                self.ended += 1
            return super().run(crops)

    async def scene(batcher: Batcher, runtime: Long) -> None:
        task = asyncio.create_task(batcher.run(crops(1)))
        while [] not in runtime.batches:
            await asyncio.sleep(0.01)
        await batcher.close()
        assert runtime.ended == 1
        with pytest.raises(ProblemError):
            await task

    play(scene, Long)


def test_sizes_that_do_not_pay_are_not_used() -> None:
    async def scene() -> None:
        class Steady(Runtime):
            def run(self, crops: Crops) -> Answer:
                time.sleep(0.02 * len(crops) ** 1.2)
                return super().run(crops)

        runtime = Steady()
        batcher = batcher_of(lambda: runtime, find_out=True)
        await batcher.start()
        served = await batcher.run(crops(1, 2, 3))
        assert marks_of(served) == [1, 2, 3]
        assert runtime.served() == [[1], [2], [3]]
        await batcher.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_memory_of_sizes_that_do_not_pay_is_given_back() -> None:
    class Steady(Runtime):
        given_back_after = 0

        def run(self, crops: Crops) -> Answer:
            time.sleep(0.01 * len(crops) ** 1.2)
            return super().run(crops)

        def give_back(self) -> None:
            self.given_back_after = max(len(batch) for batch in self.batches)

    async def scene(batcher: Batcher, runtime: Steady) -> None:
        while not runtime.given_back_after:
            await asyncio.sleep(0.01)
        assert runtime.given_back_after == 8
        await batcher.run(crops(1, 2))
        assert runtime.served() == [[1], [2]]

    play(scene, Steady, find_out=True)


class Slow(Runtime):
    """A tenth of a second for a call, and nothing for its crops: the larger the batch, the better."""

    def run(self, crops: Crops) -> Answer:
        time.sleep(0.1)
        return super().run(crops)

    def tried(self) -> list[int]:
        """Sizes of the black batches."""
        return [len(batch) for batch in self.batches if not any(batch)]


def test_a_slow_network_is_ready_after_three_runs_and_tries_larger_sizes_when_nobody_waits() -> None:
    async def scene(batcher: Batcher, runtime: Slow) -> None:
        assert runtime.tried() == [1, 1, 1]
        assert marks_of(await batcher.run(crops(1, 2, 3))) == [1, 2, 3]
        while len(runtime.tried()) < 12:
            await asyncio.sleep(0.02)
        await batcher.run(crops(*range(1, 9)))
        assert len(runtime.served()[-1]) == 8
        assert runtime.tried() == [1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8]

    play(scene, Slow, find_out=True)


def test_a_slow_network_tries_larger_sizes_even_where_somebody_always_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.batcher._TRIED_AT_LEAST_EVERY_S", 0.25)

    async def scene(batcher: Batcher, runtime: Slow) -> None:
        async def client(mark: int) -> None:
            while len(runtime.tried()) < 12:
                await batcher.run(crops(mark))

        await asyncio.gather(*(client(mark) for mark in range(1, 9)))
        places = [place for place, batch in enumerate(runtime.batches) if not any(batch)]
        # the first may find the queue empty; between the others requests were answered
        assert all(after - before > 1 for before, after in itertools.pairwise(places[4:]))

    play(scene, Slow, find_out=True)


def test_a_size_that_the_runtime_cannot_run_is_not_tried_again() -> None:
    class Small(Slow):
        def run(self, crops: Crops) -> Answer:
            if len(crops) > 2:
                raise MemoryError("out of memory on the device")
            return super().run(crops)

    async def scene(batcher: Batcher, runtime: Slow) -> None:
        while runtime.tried() != [1, 1, 1, 2, 2, 2, 1] or not batcher.alive:
            await asyncio.sleep(0.02)
        # the last one warmed up what replaced it
        assert marks_of(await batcher.run(crops(1, 2, 3, 4))) == [1, 2, 3, 4]
        assert runtime.served() == [[1, 2], [3, 4]]

    play(scene, Small, find_out=True)


def test_replicas_work_side_by_side() -> None:
    async def scene() -> None:
        together = threading.Barrier(2)

        class Meeting(Runtime):
            def run(self, crops: Crops) -> Answer:
                if crops.any():
                    together.wait(5)
                return super().run(crops)

        batcher = batcher_of(Meeting, replicas=2, buckets=(1,))
        await batcher.start()
        answers = await asyncio.gather(batcher.run(crops(1)), batcher.run(crops(2)))
        assert [marks_of(served) for served in answers] == [[1], [2]]
        await batcher.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


class Shared(Runtime):
    """Runs beside itself; notes by which way each batch came."""

    def __init__(self) -> None:
        super().__init__()
        self.ways: list[tuple[int, int]] = []
        self.besides = 0

    def run(self, crops: Crops) -> Answer:
        return self.run_by(0, crops)

    def run_by(self, way: int, crops: Crops) -> Answer:
        self.ways.append((way, int(crops[0, 0, 0, 0])))
        return super().run(crops)

    def beside(self) -> Beside:
        self.besides += 1
        return Beside(self, self.besides)


class Beside:
    label = "test"

    def __init__(self, shared: Shared, way: int) -> None:
        self.shared = shared
        self.way = way

    def run(self, crops: Crops) -> Answer:
        return self.shared.run_by(self.way, crops)


def test_several_run_at_once_in_one_copy_and_a_lone_one_has_all_its_threads() -> None:
    async def scene(batcher: Batcher, runtime: Shared) -> None:
        assert sorted(runtime.ways) == [(0, BLACK), (1, BLACK), (2, BLACK)]
        runtime.ways.clear()
        for mark in (1, 2, 3):
            await batcher.run(crops(mark))
        assert runtime.ways == [(0, 1), (0, 2), (0, 3)]
        runtime.ways.clear()
        runtime.open.clear()
        tasks = [asyncio.create_task(batcher.run(crops(mark))) for mark in (4, 5, 6)]
        while len(runtime.ways) < 3:
            await asyncio.sleep(0.01)
        assert sorted(runtime.ways) == [(0, 4), (1, 5), (2, 6)]
        runtime.open.set()
        assert [marks_of(await task) for task in tasks] == [[4], [5], [6]]

    play(scene, Shared, buckets=(1,), at_once=3)


@pytest.mark.parametrize("poisoned", [1, 2])
def test_what_runs_in_one_copy_is_lost_and_replaced_together(poisoned: int) -> None:
    """Where both of its runs fail, that is one loss, or two if the next copy was given the second before it failed."""

    async def scene() -> None:
        made: list[Shared] = []

        def opened() -> Shared:
            def poison() -> None:
                raise MemoryError("out of memory")

            made.append(Shared())
            made[-1].poison = poison
            return made[-1]

        batcher = batcher_of(opened, buckets=(1,), at_once=2)
        await batcher.start()
        made[0].open.clear()
        given = [POISON] * poisoned + [7] * (2 - poisoned)
        running = [asyncio.create_task(batcher.run(crops(mark))) for mark in given]
        while len(made[0].served()) < 2:
            await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(batcher.run(crops(mark))) for mark in (8, 9)]
        await asyncio.sleep(0.02)
        made[0].open.set()
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        assert all(isinstance(outcome, ProblemError) for outcome in outcomes[:poisoned])
        # one that ran beside the poison was answered before the copy was lost, or by the next
        assert [marks_of(outcome) for outcome in outcomes[poisoned:] if isinstance(outcome, Served)] == [
            [7]
        ] * (2 - poisoned)
        assert [marks_of(await task) for task in waiting] == [[8], [9]]
        while not batcher.alive:  # the copy after the second loss is still being loaded
            await asyncio.sleep(0.01)
        assert 2 <= len(made) <= 1 + poisoned
        await batcher.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_runtime_that_cannot_run_beside_itself_is_refused() -> None:
    async def scene() -> None:
        with pytest.raises(InputError, match="one batch at a time"):
            await batcher_of(Runtime, at_once=2).start()

    asyncio.run(asyncio.wait_for(scene(), 20))
