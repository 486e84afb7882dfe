"""Takes a picture or a video out of a request: the raw body, or a part of a form. Nothing is kept under a name."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from typing import IO

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from serving.problems import ProblemError

FORM = "multipart/form-data"
RAW = "application/octet-stream"
IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff", "image/gif", RAW)
VIDEO_TYPES = (
    "video/mp4",
    "video/webm",
    "video/quicktime",
    "video/x-matroska",
    "video/x-msvideo",
    "video/mpeg",
    "video/mp2t",
    "video/ogg",
    RAW,
)
_MAX_FIELDS = 8
_MAX_FIELD_BYTES = 4096


async def read_image(request: Request) -> bytes:
    """The bytes of the one picture that a request carries.

    Raises:
        ProblemError: Another type of body, none or several files in the form, or no byte at all.
    """
    if _type_of(request) == FORM:
        async with _files(request, 1) as files:
            return await files[0].read()
    _expect(request, "image/", IMAGE_TYPES)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
    if not data:
        raise _empty()
    return bytes(data)


@contextlib.asynccontextmanager
async def open_images(request: Request, most: int) -> AsyncIterator[list[UploadFile]]:
    """All pictures of a form, gone when this ends.

    Raises:
        ProblemError: It is no form, or has no file or more than `most`.
    """
    if _type_of(request) != FORM:
        raise ProblemError("unsupported-type", f"Send several pictures as {FORM}, one file per part.")
    async with _files(request, most) as files:
        yield files


@contextlib.asynccontextmanager
async def open_video(request: Request) -> AsyncIterator[IO[bytes]]:
    """The one video that a request carries, as an open file without a name, gone when this ends.

    Raises:
        ProblemError: As for `read_image`.
    """
    if _type_of(request) == FORM:
        async with _files(request, 1) as files:
            yield files[0].file
        return
    _expect(request, "video/", VIDEO_TYPES)
    with tempfile.TemporaryFile() as file:
        size = 0
        async for chunk in request.stream():
            size += file.write(chunk)
        file.flush()
        if not size:
            raise _empty()
        yield file


def body_of(what: str, types: tuple[str, ...], *, several: bool = False) -> dict[str, object]:
    """The OpenAPI entry of such a body."""
    part: dict[str, object] = {"type": "string", "format": "binary", "description": what}
    if several:
        part = {"type": "array", "items": part, "minItems": 1}
    form = {"type": "object", "properties": {"file": part}, "required": ["file"]}
    content: dict[str, object] = {FORM: {"schema": form}}
    content |= {kind: {"schema": {"type": "string", "format": "binary"}} for kind in types}
    return {"requestBody": {"required": True, "content": content}}


@contextlib.asynccontextmanager
async def _files(request: Request, most: int) -> AsyncIterator[list[UploadFile]]:
    try:
        form = await request.form(max_files=most, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)
    except HTTPException as error:
        raise ProblemError("bad-request", f"The form cannot be read: {error.detail}") from error
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise ProblemError("invalid", "The form holds no file: send it as a part with a file name.")
        for file in files:
            if not file.size:
                raise _empty(file.filename)
        yield files
    finally:
        await form.close()


def _type_of(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _expect(request: Request, family: str, types: tuple[str, ...]) -> None:
    given = _type_of(request)
    if not given.startswith(family) and given != RAW:
        raise ProblemError(
            "unsupported-type",
            f"The body is {given or 'of no stated type'}; send {', '.join(types)} or a form ({FORM}).",
            close=True,
        )


def _empty(name: str | None = None) -> ProblemError:
    return ProblemError("invalid", f"{name or 'The body'} is empty (0 bytes).")
