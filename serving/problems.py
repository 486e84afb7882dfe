"""Everything that can go wrong with a request, by name: one table of problems (RFC 9457) and their answers."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from serving.schemas import Problem

MEDIA_TYPE = "application/problem+json"

ProblemName = Literal[
    "bad-request",
    "unauthorized",
    "forbidden",
    "not-found",
    "method-not-allowed",
    "not-acceptable",
    "too-slow",
    "conflict",
    "too-large",
    "unsupported-type",
    "invalid",
    "bad-image",
    "bad-video",
    "rate-limited",
    "internal",
    "network-failed",
    "overloaded",
    "not-ready",
    "runtime-failed",
]


class _Kind(NamedTuple):
    status: int
    title: str


KINDS: dict[ProblemName, _Kind] = {
    "bad-request": _Kind(400, "The request cannot be understood"),
    "unauthorized": _Kind(401, "No valid API key"),
    "forbidden": _Kind(403, "This key may not do that"),
    "not-found": _Kind(404, "There is no such thing"),
    "method-not-allowed": _Kind(405, "This method is not for this address"),
    "not-acceptable": _Kind(406, "No answer of an accepted type"),
    "too-slow": _Kind(408, "The request came in too slowly"),
    "conflict": _Kind(409, "Not possible in this state"),
    "too-large": _Kind(413, "The body is too large"),
    "unsupported-type": _Kind(415, "This type of body is not taken"),
    "invalid": _Kind(422, "A parameter is not valid"),
    "bad-image": _Kind(422, "The picture cannot be used"),
    "bad-video": _Kind(422, "The video cannot be used"),
    "rate-limited": _Kind(429, "Too many requests with this key"),
    "internal": _Kind(500, "The server made a mistake"),
    "network-failed": _Kind(500, "The network gave no usable answer"),
    "overloaded": _Kind(503, "The server is busy"),
    "not-ready": _Kind(503, "The server is not ready"),
    "runtime-failed": _Kind(503, "The runtime failed and is being replaced"),
}
_BY_STATUS: dict[int, ProblemName] = {kind.status: name for name, kind in reversed(KINDS.items())}


class ProblemError(Exception):
    """Ends a request with a problem.

    Args:
        name: Which one.
        detail: What was given, what was expected, the way out.
        retry_after: Seconds after which it is worth trying again; rounded up.
        close: Close the connection afterwards, because the rest of the body is not wanted.
    """

    def __init__(
        self, name: ProblemName, detail: str, *, retry_after: float | None = None, close: bool = False
    ) -> None:
        super().__init__(detail)
        self.name = name
        self.detail = detail
        self.retry_after = retry_after
        self.close = close

    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.name == "unauthorized":
            headers["www-authenticate"] = "Bearer"
        if self.close:
            headers["connection"] = "close"
        return headers


def problem_of(error: ProblemError, request_id: str) -> Problem:
    """The problem as it stands in an answer."""
    kind = KINDS[error.name]
    return Problem(
        type=f"/problems/{error.name}",
        title=kind.title,
        status=kind.status,
        detail=error.detail,
        request_id=request_id,
    )


def answer(scope: Scope, error: ProblemError) -> JSONResponse:
    """The response for a problem; the tensor routes have their protocol's own form."""
    status = KINDS[error.name].status
    if scope["path"].startswith("/v2"):
        return JSONResponse({"error": error.detail}, status, headers=error.headers())
    content = problem_of(error, request_id_of(scope)).model_dump()
    return JSONResponse(content, status, headers=error.headers(), media_type=MEDIA_TYPE)


def request_id_of(scope: Scope) -> str:
    """The request's id, which `serving.guard` gave it."""
    return str(scope.get("state", {}).get("request_id", ""))


def install(app: FastAPI) -> None:
    """Answer every error of an app as a problem."""

    async def on_problem(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ProblemError)  # noqa: S101 - narrows the type that Starlette hands over
        return answer(request.scope, error)

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101
        name = _BY_STATUS.get(error.status_code, "bad-request" if error.status_code < 500 else "internal")
        problem = ProblemError(name, str(error.detail), close=error.status_code == KINDS["too-large"].status)
        response = answer(request.scope, problem)
        response.headers.update(error.headers or {})
        return response

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return answer(request.scope, ProblemError("invalid", told))

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)


def documented(*names: ProblemName) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of the problems a route may answer with."""
    by_status: dict[int, list[ProblemName]] = {}
    for name in (*names, *_EVERYWHERE):
        kinds = by_status.setdefault(KINDS[name].status, [])
        if name not in kinds:
            kinds.append(name)
    return {
        status: {
            "description": "; ".join(f"{KINDS[name].title} (`/problems/{name}`)" for name in kinds),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, kinds in sorted(by_status.items())
    }


_EVERYWHERE: tuple[ProblemName, ...] = ("unauthorized", "too-slow", "too-large", "rate-limited", "internal")
