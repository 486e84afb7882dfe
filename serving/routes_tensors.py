"""The seven routes of the Open Inference Protocol v2: raw crops in, logits and evidence out, for KServe's clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict

from serving import __version__
from serving.engine import Engine
from serving.problems import ProblemError
from serving.routes_media import until_gone
from serving.service import Service, service_of
from serving.tensors import HEAD_LENGTH, MODEL, InferRequest, InferResponse, read_request, write_response


class _Plain(APIRoute):
    """A route whose function takes the request and gives a response: FastAPI has nothing to work out for it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


router = APIRouter(prefix="/v2", tags=["tensors"])
infer_router = APIRouter(prefix="/v2", tags=["tensors"], route_class=_Plain)
Parts = Annotated[Service, Depends(service_of)]


class ServerMetadata(BaseModel):
    """What server this is."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor; -1 stands for any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """The network."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Ready(BaseModel):
    """Whether it can answer."""

    name: str
    ready: bool


class ProtocolError(BaseModel):
    """An error in the protocol's form."""

    error: str


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    common = (401, 408, 413, 429, 500)
    return {status: {"model": ProtocolError} for status in sorted({*statuses, *common})}


def _path(*names: str) -> dict[str, Any]:
    """The OpenAPI entry of parameters that a route reads by itself, because FastAPI would take too long over them."""
    entries = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    return {"parameters": entries}


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@infer_router.post(
    "/models/{model}/infer",
    summary="Run the network on crops",
    response_model=InferResponse,
    responses=_errors(400, 404, 422, 503),
    openapi_extra=_BODY | _path("model"),
)
@infer_router.post(
    "/models/{model}/versions/{version}/infer",
    response_model=InferResponse,
    responses=_errors(400, 404, 422, 503),
    openapi_extra=_BODY | _path("model", "version"),
)
async def infer(request: Request) -> Response:
    """Crops of the bundle's crop rule, uint8 RGB [N, side, side, 3], together with those of other requests."""
    service, asked_for = await service_of(request), request.path_params
    service.road.images.check()
    with _engine(service, asked_for["model"], asked_for.get("version")).use() as engine:
        body = await request.body()
        known = ["logits", *(["evidence"] if engine.bundle.manifest.network.evidence else [])]
        length = request.headers.get(HEAD_LENGTH)
        side = engine.analyser.image_size
        with service.road.images.enter():
            if length is None:
                # a long list of numbers takes a while to read
                asked = await asyncio.to_thread(read_request, body, length, side, known)
            else:
                asked = read_request(body, length, side, known)
            served = await until_gone(request, engine.batcher.run(asked.crops))
        head, tail = write_response(asked, served.answer, engine.used.id)
    if not tail:
        return Response(head, media_type="application/json")
    return Response(head + tail, media_type="application/octet-stream", headers={HEAD_LENGTH: str(len(head))})


@router.get("/health/live", summary="Is the process alive?", response_class=Response)
async def live() -> Response:
    """200."""
    return Response()


@router.get(
    "/health/ready",
    summary="Can it answer?",
    response_class=Response,
    responses={503: {"model": ProtocolError}},
)
async def ready(service: Parts) -> Response:
    """200 or 503."""
    _need_ready(service)
    return Response()


@router.get("", summary="Server metadata", response_model=ServerMetadata, responses=_errors())
async def server() -> ServerMetadata:
    """Name, version, extensions."""
    return ServerMetadata(name="stillface", version=__version__, extensions=["binary_tensor_data"])


@router.get(
    "/models/{model}", summary="Model metadata", response_model=ModelMetadata, responses=_errors(404, 422)
)
@router.get("/models/{model}/versions/{version}", response_model=ModelMetadata, responses=_errors(404, 422))
async def metadata(model: str, service: Parts, version: str | None = None) -> ModelMetadata:
    """Inputs and outputs of the network in service."""
    engine = _engine(service, model, version)
    side = engine.analyser.image_size
    outputs = [TensorMetadata(name="logits", datatype="FP32", shape=[-1, 2])]
    cells = engine.bundle.manifest.network.evidence
    if cells is not None:
        outputs.append(TensorMetadata(name="evidence", datatype="FP32", shape=[-1, *cells]))
    return ModelMetadata(
        name=MODEL,
        versions=[engine.used.id],
        platform=engine.used.runtime,
        inputs=[TensorMetadata(name="crops", datatype="UINT8", shape=[-1, side, side, 3])],
        outputs=outputs,
    )


@router.get(
    "/models/{model}/ready",
    summary="Can the model answer?",
    response_model=Ready,
    responses=_errors(404, 422, 503),
)
@router.get(
    "/models/{model}/versions/{version}/ready", response_model=Ready, responses=_errors(404, 422, 503)
)
async def model_ready(model: str, service: Parts, version: str | None = None) -> Ready:
    """200 or 503."""
    _engine(service, model, version)
    _need_ready(service)
    return Ready(name=MODEL, ready=True)


def _engine(service: Service, model: str, version: str | None) -> Engine:
    engine = service.engines.current
    if model != MODEL or version not in (None, engine.used.id):
        raise ProblemError("not-found", f"There is one model, {MODEL}, in one version, {engine.used.id}.")
    return engine


def _need_ready(service: Service) -> None:
    if not service.ready:
        raise ProblemError(
            "not-ready", "No inference succeeded lately, or the server is stopping.", retry_after=1
        )
