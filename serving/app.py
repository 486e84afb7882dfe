"""Puts the routes together into the application that a server runs."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from serving import __version__, problems, routes_health, routes_media, routes_tensors, routes_video
from serving.guard import Guard
from serving.page import page_router
from serving.schemas import Problem, VideoEnd, VideoFailed, VideoFrame, VideoStart
from serving.service import Service

DESCRIPTION = """
Finds the faces of pictures and videos and says whether they are forged.

A score is a probability under the data that the detector was calibrated on, not a proof. `uncertain` means that the
detector errs too often at this score to decide; `no_face` means that there was nothing to judge. Nothing that is sent
is kept: pictures stay in memory, videos in files without a name, both gone with the request or its job.
"""


def create_app(service: Service) -> ASGIApp:
    """The application of a service that is open."""
    app = FastAPI(
        title="stillface",
        version=__version__,
        description=DESCRIPTION,
        # the usual pages for these load their scripts from elsewhere
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    problems.install(app)
    # looked through in this order for every request: those that are called most stand first, and as the app's own, for
    # in an included router FastAPI looks twice
    tensors = (routes_tensors.infer_router, routes_tensors.router)
    for router in (routes_media.router, *tensors, routes_video.router, routes_health.router, page_router()):
        app.router.routes.extend(router.routes)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "x-api-key", "x-request-id", "prefer", "content-type"],
            expose_headers=["x-request-id", "location", "retry-after"],
        )
    _complete_schema(app, with_keys=service.keys is not None)
    return Guard(app, service.settings, service.keys, service.metrics)


def _complete_schema(app: FastAPI, *, with_keys: bool) -> None:
    """Add to the OpenAPI document what the routes' signatures do not say: problems, events, keys."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        document = made()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (Problem, VideoStart, VideoFrame, VideoEnd, VideoFailed):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            for name, part in schema.pop("$defs", {}).items():
                schemas.setdefault(name, part)
            schemas[model.__name__] = schema
        if with_keys:
            document["components"]["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            document["security"] = [{"bearer": []}, {"header": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
