"""Routes for pictures: one, or several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from starlette.requests import ClientDisconnect

from serving.problems import ProblemError, documented, problem_of, request_id_of
from serving.road import Wishes
from serving.schemas import BatchItem, BatchResult, ImageResult
from serving.service import Service, service_of
from serving.uploads import IMAGE_TYPES, body_of, open_images, read_image

router = APIRouter(tags=["detection"])
_T = TypeVar("_T")

Point = Annotated[
    str | None,
    Query(
        max_length=64,
        description="Threshold by name; `/v1/bundle` lists them. By default the bundle's.",
        examples=["eer"],
    ),
]
Rule = Annotated[
    str | None,
    Query(
        max_length=64,
        description="How faces and frames become one score; `/v1/bundle` lists the rules. By default the bundle's.",
        examples=["max-mean"],
    ),
]
Evidence = Annotated[
    Literal["none", "grid", "png"],
    Query(description="Evidence map of each face: none, numbers, or a picture."),
]


async def image_wishes(
    request: Request, operating_point: Point = None, aggregation: Rule = None, evidence: Evidence = "none"
) -> Wishes:
    """A picture's query parameters."""
    return Wishes(request_id_of(request.scope), operating_point, aggregation, evidence)


@router.post(
    "/v1/images",
    summary="Analyse a picture",
    response_model=ImageResult,
    responses=documented(
        "bad-request",
        "unsupported-type",
        "bad-image",
        "invalid",
        "network-failed",
        "overloaded",
        "runtime-failed",
    ),
    openapi_extra=body_of("A JPEG, PNG, WebP, BMP, TIFF, PPM or GIF picture.", IMAGE_TYPES),
)
async def post_image(
    request: Request,
    wishes: Annotated[Wishes, Depends(image_wishes)],
    service: Annotated[Service, Depends(service_of)],
) -> ImageResult:
    """Find the faces of a picture and say of each, and of the picture, whether it is forged.

    Send the picture as the body, or as the one file of a form. Of an animation the first picture is taken.
    """
    service.road.images.check()
    data = await read_image(request)
    with service.road.images.enter(), service.engines.current.use() as engine:
        return await until_gone(request, service.road.image(engine, data, wishes))


@router.post(
    "/v1/batch",
    summary="Analyse several pictures",
    response_model=BatchResult,
    responses=documented("bad-request", "unsupported-type", "invalid", "overloaded"),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": body_of("Pictures.", (), several=True)["requestBody"]["content"][  # type: ignore[index]
                    "multipart/form-data"
                ]
            },
        }
    },
)
async def post_batch(
    request: Request,
    wishes: Annotated[Wishes, Depends(image_wishes)],
    service: Annotated[Service, Depends(service_of)],
) -> BatchResult:
    """Analyse the files of a form. One that cannot be used has a problem instead of a result."""
    service.road.images.check()
    async with open_images(request, service.settings.max_batch_images) as files:
        names = [file.filename or str(place) for place, file in enumerate(files)]
        pictures = [await file.read() for file in files]
    with service.road.images.enter(), service.engines.current.use() as engine:

        async def one(name: str, data: bytes) -> BatchItem:
            try:
                return BatchItem(name=name, result=await service.road.image(engine, data, wishes))
            except ProblemError as error:
                return BatchItem(name=name, problem=problem_of(error, wishes.request_id))

        async def every() -> list[BatchItem]:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(one(name, data)) for name, data in zip(names, pictures, strict=True)
                ]
            return [task.result() for task in tasks]

        return BatchResult(items=await until_gone(request, every()), request_id=wishes.request_id)


async def until_gone(request: Request, work: Awaitable[_T]) -> _T:
    """Wait for `work`, whose request's body was read; cancel it when the client goes away.

    Raises:
        ClientDisconnect: The client is gone.
    """
    worker, gone = asyncio.current_task(), False
    assert worker is not None  # noqa: S101 - a coroutine runs in a task

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        worker.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        # whoever else cancels this request is obeyed
        if gone and not worker.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()
