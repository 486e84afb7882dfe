"""Everything one server holds, put together and taken apart in the right order."""

from __future__ import annotations

import asyncio

import cv2
from fastapi import Request

from serving.engine import Engines
from serving.jobs import Jobs
from serving.keys import Keys, read_keys
from serving.metrics import Metrics
from serving.road import Road
from serving.settings import Settings


class Service:
    """The parts of a server. Made by `Service.open`.

    Attributes:
        draining: It is stopping: what was started is finished, /readyz says no.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.keys: Keys | None = None if settings.keys is None else read_keys(settings.keys)
        self.engines = Engines(settings, self.metrics)
        self.road = Road(settings, self.metrics)
        self.jobs = Jobs(settings, self.engines, self.road, self.metrics)
        self.draining = False
        self.metrics.ready.set_function(lambda: float(self.ready))

    @classmethod
    async def open(cls, settings: Settings) -> Service:
        """Load the bundle and start what needs time to start.

        Raises:
            InputError: The bundle or the key file cannot be used.
        """
        # for a picture that is alone; of several at once OpenCV gives its threads to one, the others do without
        cv2.setNumThreads(settings.look_threads)
        service = cls(settings)
        try:
            await service.engines.start()
        except BaseException:
            await service.close()
            raise
        service.road.start()
        return service

    @property
    def ready(self) -> bool:
        """What /readyz says."""
        return not self.draining and self.engines.ready

    async def drain(self) -> None:
        """Finish jobs that run, for as long as settings allow."""
        self.draining = True
        try:
            async with asyncio.timeout(self.settings.drain_timeout_s):
                await self.jobs.drain()
        except TimeoutError:
            pass

    async def close(self) -> None:
        """Stop everything."""
        await self.jobs.close()
        self.road.close()
        await self.engines.close()


async def service_of(request: Request) -> Service:
    """The service behind a request. A coroutine, as every dependency here: others are sent to a thread each time."""
    service: Service = request.app.state.service
    return service
