"""Routes for videos: one answer at the end, events while frames are scored, or a job."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import IO, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from serving.problems import ProblemError, documented, problem_of, request_id_of
from serving.road import RoadEvents, Wishes
from serving.routes_media import Evidence, Point, Rule, until_gone
from serving.schemas import Job, VideoEnd, VideoFailed, VideoResult
from serving.service import Service, service_of
from serving.uploads import VIDEO_TYPES, body_of, open_video

router = APIRouter(tags=["detection"])
NDJSON, SSE = "application/x-ndjson", "text/event-stream"

_EVENTS = "First a `start`, then a `frame` for each frame as soon as it is scored, at last a `result` or an `error`."
_STREAMED = {
    NDJSON: {"schema": {"type": "string", "description": f"One JSON object per line. {_EVENTS}"}},
    SSE: {"schema": {"type": "string", "description": f"Server-sent events. {_EVENTS}"}},
}


async def video_wishes(
    request: Request,
    service: Annotated[Service, Depends(service_of)],
    operating_point: Point = None,
    aggregation: Rule = None,
    evidence: Evidence = "none",
    frames: Annotated[
        int | None,
        Query(
            ge=1, le=10_000, description="Frames looked at, evenly in time. By default the bundle's number."
        ),
    ] = None,
    thumbnails: Annotated[bool, Query(description="A small picture of each frame looked at.")] = False,
) -> Wishes:
    """A video's query parameters."""
    most = service.settings.max_frames
    if frames is not None and frames > most:
        raise ProblemError("invalid", f"frames is {frames}; this server looks at {most} at most.")
    request_id = request_id_of(request.scope)
    return Wishes(request_id, operating_point, aggregation, evidence, frames, thumbnails)


@router.post(
    "/v1/videos",
    summary="Analyse a video",
    response_model=VideoResult,
    responses={
        200: {"description": f"The result, or events by the Accept header. {_EVENTS}", "content": _STREAMED},
        202: {"model": Job, "description": "The video runs as a job; its address is in `Location`."},
        **documented(
            "bad-request",
            "unsupported-type",
            "bad-video",
            "invalid",
            "conflict",
            "network-failed",
            "overloaded",
            "runtime-failed",
        ),
    },
    openapi_extra=body_of("A video.", VIDEO_TYPES),
)
async def post_video(
    request: Request,
    wishes: Annotated[Wishes, Depends(video_wishes)],
    service: Annotated[Service, Depends(service_of)],
) -> Response:
    """Look at frames evenly over a video and say whether the faces in them are forged.

    `Accept: application/x-ndjson` or `text/event-stream` streams frames as they are scored. With
    `Prefer: respond-async`, or when the video is long, it runs as a job: 202 with the job's address.
    """
    accept = request.headers.get("accept", "")
    stream = next((kind for kind in (NDJSON, SSE) if kind in accept), None)
    as_job = stream is None and "respond-async" in request.headers.get("prefer", "")
    (service.jobs if as_job else service.road.videos).check()
    async with AsyncExitStack() as files, AsyncExitStack() as work:
        video = await files.enter_async_context(open_video(request))
        if as_job:
            return _accepted(service, video, files.pop_all(), wishes, request)
        work.enter_context(service.road.videos.enter())
        engine = work.enter_context(service.engines.current.use())
        decoding = await work.enter_async_context(service.road.open_video(engine, video, wishes))
        if stream is not None:
            events = _events(service.road.video(engine, decoding, wishes), wishes, stream)
            return _Stream(events, stream, [files.pop_all(), work.pop_all()])
        if decoding.facts.duration_s > service.settings.job_after_s and service.settings.max_jobs:
            # gives back what a short video needs, keeps the open file
            await work.aclose()
            return _accepted(service, video, files.pop_all(), wishes, request)
        result = await until_gone(request, _last(service.road.video(engine, decoding, wishes)))
        return JSONResponse(result.model_dump(mode="json"))


@router.get(
    "/v1/jobs/{job}",
    summary="See how a job stands",
    response_model=Job,
    responses=documented("not-found", "invalid"),
    tags=["jobs"],
)
async def get_job(job: str, request: Request, service: Annotated[Service, Depends(service_of)]) -> Job:
    """Ask again until `state` is `done`, `failed` or `cancelled`."""
    return service.jobs.get(job, owner_of(request))


@router.delete(
    "/v1/jobs/{job}",
    summary="Cancel a job, or forget its result",
    response_model=Job,
    responses=documented("not-found", "invalid"),
    tags=["jobs"],
)
async def delete_job(job: str, request: Request, service: Annotated[Service, Depends(service_of)]) -> Job:
    """A job that waits or runs is stopped; one that is over is forgotten."""
    return await service.jobs.cancel(job, owner_of(request))


def owner_of(request: Request) -> str | None:
    """Id of the key that a request came with."""
    key = request.scope["state"].get("key")
    return None if key is None else str(key.id)


class _Stream(StreamingResponse):
    """Streams events and gives back what the video holds, also when the client goes away before the first."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], kind: str, held: Sequence[AsyncExitStack]
    ) -> None:
        super().__init__(events, media_type=kind)
        self._events = events
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
            for resources in reversed(self._held):
                await resources.aclose()


def _accepted(
    service: Service, video: IO[bytes], resources: AsyncExitStack, wishes: Wishes, request: Request
) -> Response:
    job = service.jobs.add(video, resources, owner_of(request), wishes)
    headers = {"location": f"/v1/jobs/{job.id}", "retry-after": "1"}
    return JSONResponse(job.model_dump(mode="json"), 202, headers=headers)


async def _last(events: RoadEvents) -> VideoResult:
    async with aclosing(events):
        async for item in events:
            if isinstance(item, VideoResult):
                return item
    raise RuntimeError("a video's events ended without a result")


async def _events(events: RoadEvents, wishes: Wishes, kind: str) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        try:
            async for item in events:
                yield _line(VideoEnd(result=item) if isinstance(item, VideoResult) else item, kind)
        except ProblemError as error:
            yield _line(VideoFailed(problem=problem_of(error, wishes.request_id)), kind)


def _line(item: BaseModel, kind: str) -> bytes:
    text = item.model_dump_json()
    if kind == NDJSON:
        return f"{text}\n".encode()
    name: Any = item.model_dump(include={"event"})["event"]
    return f"event: {name}\ndata: {text}\n\n".encode()
