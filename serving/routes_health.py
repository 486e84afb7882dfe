"""Routes for those who run the server: alive, ready, metrics, what is served, reload."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from pipeline.errors import InputError
from pipeline.manifest import MeasuredOn
from pipeline.scoring import RULES
from serving.problems import ProblemError, documented
from serving.schemas import BundleFacts, BundleUsed, Health, LevelMeasured, Measured, OfferedPoint
from serving.service import Service, service_of

router = APIRouter(tags=["operation"])
Parts = Annotated[Service, Depends(service_of)]


@router.get("/healthz", summary="Is the process alive?", response_model=Health)
async def healthz() -> Health:
    """Always 200 while the process answers at all."""
    return Health(status="alive")


@router.get("/readyz", summary="Can it answer?", response_model=Health, responses=documented("not-ready"))
async def readyz(service: Parts) -> Health:
    """200 while a real inference succeeded lately; 503 while stopping, or when the runtime has died."""
    if service.draining:
        raise ProblemError("not-ready", "The server is stopping.", retry_after=5)
    if not service.ready:
        raise ProblemError("not-ready", "No inference succeeded lately.", retry_after=1)
    return Health(status="ready")


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}, **documented()},
)
async def metrics(service: Parts) -> Response:
    """Requests, queue, batches, stages, verdicts, requests turned away."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/bundle", summary="What is served", response_model=BundleFacts, responses=documented())
async def get_bundle(service: Parts) -> BundleFacts:
    """The bundle in service, what may be chosen per request, and this server's limits."""
    engine, settings = service.engines.current, service.settings
    manifest = engine.bundle.manifest
    return BundleFacts(
        bundle=engine.used,
        network=manifest.network.name,
        image_size=manifest.network.image_size,
        has_evidence=manifest.network.evidence is not None,
        operating_points=[
            OfferedPoint(**point.model_dump(include=set(OfferedPoint.model_fields)))
            for point in manifest.calibration.operating_points
        ],
        default_point=manifest.calibration.default_point,
        aggregations=list(RULES),
        default_aggregation=manifest.aggregation.rule,
        frames=manifest.aggregation.frames,
        measured=_measured(manifest.measured),
        notes=list(manifest.calibration.notes),
        limits={
            name: getattr(settings, name)
            for name in (
                "max_image_bytes",
                "max_video_bytes",
                "max_batch_images",
                "max_pixels",
                "max_video_pixels",
                "max_duration_s",
                "max_frames",
                "max_faces",
                "job_after_s",
            )
        },
    )


def _measured(measured: MeasuredOn) -> Measured:
    overall, kept = measured.metrics.overall, set(LevelMeasured.model_fields)
    return Measured(
        data=measured.data,
        split=measured.split,
        fakes=measured.fakes,
        frame=LevelMeasured(**overall.frame.model_dump(include=kept)),
        video=LevelMeasured(**overall.video.model_dump(include=kept)),
    )


@router.post(
    "/admin/reload",
    summary="Serve the bundle folder's present content",
    response_model=BundleUsed,
    responses=documented("forbidden", "conflict"),
)
async def reload(request: Request, service: Parts) -> BundleUsed:
    """Open the bundle's folder again, as SIGHUP does, without losing a request. Needs an admin key, where keys are."""
    key = request.scope["state"].get("key")
    if service.keys is not None and not (key and key.admin):
        raise ProblemError("forbidden", "Use a key made with `stillface key NAME --admin`.")
    try:
        return await service.engines.swap()
    except InputError as error:
        raise ProblemError("conflict", f"The bundle in service stays: {error}") from error
