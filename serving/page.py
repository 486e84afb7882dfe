"""The web page at `/` and its files: plain HTML, CSS and JavaScript modules that ask nobody but this server."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.exceptions import HTTPException

_FOLDER = Path(__file__).parent / "web"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",  # the chosen file; evidence maps and thumbnails out of the answer
        "media-src blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Content security policy: nothing inline, nothing from elsewhere, in nobody's frame."""

_HEADERS = {
    "content-security-policy": POLICY,
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
}


def page_router() -> APIRouter:
    """Routes `/` and `/page/<file>`; the files are read once, when the server starts."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _TYPES}

    @router.get("/")
    def index() -> Response:
        return _answer(INDEX, files[INDEX])

    @router.get("/page/{name}")
    def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, f"The page has no file {name!r}.")
        return _answer(name, files[name])

    return router


def _answer(name: str, content: bytes) -> Response:
    return Response(content, headers=_HEADERS, media_type=_TYPES[Path(name).suffix])
