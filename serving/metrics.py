"""What a server counts and times, for Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from serving.schemas import BundleUsed

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Metrics:
    """All series of one server, in a registry of their own."""

    def __init__(self) -> None:
        # the time each series was made doubles their number and helps nobody here
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "stillface_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "stillface_request_seconds",
            "Time from the request's headers to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "stillface_stage_seconds",
            "Time of one frame in one stage: decode, find, crop, queue (waiting for a batch), infer.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "stillface_batch_crops",
            "Crops in a batch, without padding.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.shed = Counter(
            "stillface_shed", "Requests turned away before work was done.", ["reason"], registry=registry
        )
        self.verdicts = Counter(
            "stillface_verdicts", "Verdicts given.", ["kind", "verdict"], registry=registry
        )
        self.inflight = Gauge("stillface_inflight", "Requests being worked on.", registry=registry)
        self.inflight_limit = Gauge("stillface_inflight_limit", "Most of them.", registry=registry)
        self.waiting = Gauge("stillface_waiting_crops", "Crops waiting for the network.", registry=registry)
        self.ready = Gauge("stillface_ready", "1 when /readyz says so.", registry=registry)
        self.replaced = Counter(
            "stillface_runtime_replacements", "Runtimes replaced.", ["reason"], registry=registry
        )
        self.swaps = Counter(
            "stillface_bundle_swaps", "Reloads of the bundle.", ["outcome"], registry=registry
        )
        self._bundle = Gauge(
            "stillface_bundle_info", "What answers.", ["id", "artefact", "runtime"], registry=registry
        )

    def serves(self, bundle: BundleUsed) -> None:
        """Say which bundle answers from now on."""
        self._bundle.clear()
        self._bundle.labels(bundle.id, bundle.artefact, bundle.runtime).set(1)

    def stages(self, timings: dict[str, float]) -> None:
        """Record the stages of one frame."""
        for stage, seconds in timings.items():
            if stage != "total":
                self.stage_seconds.labels(stage).observe(seconds)

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        return bytes(generate_latest(self.registry))
