"""What a bundle says of itself: the one schema that export writes and a server believes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.crop import TEST_MARGIN
from pipeline.metrics_report import MetricsReport
from pipeline.scoring import DEFAULT_RULE, Interval, Level, OperatingPoint, Share, check_rule

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

ArtefactName = Literal[
    "onnx",
    "onnx-fp16",
    "onnx-int8",
    "onnx-cuda",
    "openvino",
    "openvino-int8",
    "tensorrt",
    "tensorrt-int8",
    "tensorrt-rtx",
    "torch-tensorrt",
]
"""Formats that can be exported; an artefact is called by its format."""
RuntimeName = Literal[
    "onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx", "torch-tensorrt"
]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BundleFile(_Model):
    """A file of the bundle.

    Attributes:
        path: Relative to the bundle's folder, with forward slashes, never leading out of it.
        sha256: Of its bytes, lower-case hex.
        size: In bytes.
    """

    path: str
    sha256: Sha256
    size: int = Field(ge=0)

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if not value or path.is_absolute() or ".." in path.parts or "\\" in value or ":" in value:
            raise ValueError(f"{value!r} leads out of the bundle; expected a relative path inside it")
        return value


class NetworkFacts(_Model):
    """The network of a bundle. Every graph takes uint8 RGB [N, image_size, image_size, 3].

    Attributes:
        name: The backbone's timm name.
        image_size: Side of the square crop in pixels.
        mean, std: What the graph itself subtracts and divides by, per RGB channel, after /255.
        parameters: Number of weights.
        evidence: Height and width of the class-activation map; None for a network that has none.
    """

    name: str
    image_size: int = Field(ge=32, le=4096)
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    parameters: int = Field(gt=0)
    evidence: tuple[int, int] | None


class CropRule(_Model):
    """How a face becomes the network's pixels; see `pipeline.crop`."""

    margin: float = Field(default=TEST_MARGIN, ge=0, le=1)
    interpolation: Literal["bilinear"] = "bilinear"
    keep_aspect: Literal[False] = False


class FaceFinderRule(_Model):
    """The face finder, its file (part of the bundle) and its settings; see `pipeline.faces.FaceFinder`."""

    name: Literal["yunet"] = "yunet"
    file: BundleFile
    max_side: int = Field(default=640, ge=32)
    min_score: float = Field(default=0.7, gt=0, lt=1)


class Aggregation(_Model):
    """How faces and frames become a video's score; see `pipeline.scoring`."""

    rule: str = DEFAULT_RULE
    frames: int = Field(default=32, ge=1)

    @field_validator("rule")
    @classmethod
    def _known(cls, value: str) -> str:
        return check_rule(value)


class AbstainBand(_Model):
    """Calibrated scores in [low, high) are too close to call.

    Below `low` at most `max_error` of the fakes of the validation data were missed; from `high` on at most
    `max_error` of its real samples were called fake. Where the detector is good enough for one threshold to
    do both there is no band.
    """

    level: Level
    low: Share
    high: Share
    max_error: Share

    @model_validator(mode="after")
    def _ordered(self) -> AbstainBand:
        if self.low > self.high:
            raise ValueError(f"abstain band {self.low}..{self.high} is upside down")
        return self


class ScoreCalibration(_Model):
    """From logits to decisions: everything here was fitted on validation data, never on a test set.

    Attributes:
        temperature: p_fake = softmax(logits / temperature)[1].
        temperature_interval: Bootstrap interval over videos; None with too few videos.
        operating_points: Thresholds on calibrated scores, for frames and for videos.
        default_point: Name of the operating point used where a request names none.
        abstain: At most one band per level.
        ece_before, ece_after: Expected calibration error of frame scores without and with the temperature.
        notes: What to keep in mind, such as that the fakes were self-blended.
    """

    temperature: Positive
    temperature_interval: Interval | None = None
    operating_points: tuple[OperatingPoint, ...] = Field(min_length=1)
    default_point: str
    abstain: tuple[AbstainBand, ...] = ()
    ece_before: float | None = None
    ece_after: float | None = None
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _unambiguous(self) -> ScoreCalibration:
        named = [(point.level, point.name) for point in self.operating_points]
        if len(set(named)) < len(named):
            raise ValueError(f"two operating points share a level and a name: {sorted(named)}")
        if self.default_point not in {point.name for point in self.operating_points}:
            raise ValueError(f"default_point {self.default_point!r} is none of the operating points")
        levels = [band.level for band in self.abstain]
        if len(set(levels)) < len(levels):
            raise ValueError("two abstain bands for one level")
        return self


class Parity(_Model):
    """What the parity gate found for one artefact.

    Attributes:
        passed: A server loads nothing that did not.
        artefact_sha256: Hash of the artefact's first file as it was measured.
        report: The full report (JSON) in the bundle.
        max_abs_logit: Largest difference of a logit from PyTorch's in fp32.
        max_abs_p: Largest difference of p_fake.
        flips: Decisions that differ, by operating point ("frame eer"), out of `compared`.
        compared: Crops compared.
        measured_with: Runtime, version and device that ran it, such as "onnxruntime 1.32.0 CPU".
        sqnr_db: Signal to quantisation noise of the logits; None where they are equal to the last bit.
        delta_auc: Frame AUC of the artefact minus PyTorch's on the labelled set.
        speedup: Time of the fp32 artefact of the same runtime over this one's, for reduced precision.
    """

    passed: bool
    artefact_sha256: Sha256
    report: BundleFile
    max_abs_logit: float
    max_abs_p: float
    flips: dict[str, int]
    compared: int = Field(gt=0)
    measured_with: str | None = None
    sqnr_db: float | None = None
    delta_auc: float | None = None
    speedup: float | None = None


class EngineFacts(_Model):
    """What a serialized engine is bound to; compared before it is ever deserialized (`pipeline.engine_check`).

    Attributes:
        runtime_version: Version of the library that built it; no other one opens it.
        compute_capabilities: What it was built for: one, such as "8.9", or several where it was built ahead of time.
        device: Name of the GPU it was built on; None when it was built without one.
        driver: Highest CUDA version that GPU's driver knew, such as "13.0"; None without a GPU.
        platform: "linux-x86_64"; "any" where the library says that its engines move between platforms.
        profiles: Smallest, optimal and largest batch, of each optimization profile.
        onnx_sha256: Hash of the graph it was built from; None when it was built from PyTorch's own.
        tf32: Whether its float32 products may be rounded to 10-bit mantissas.
        layer_types: Layers of the built engine by the narrowest type they read; a layer fused of many counts once,
            and once per profile.
        weight_layer_types: Of these, the ones that hold weight matrices, by the type of those.
    """

    runtime_version: str
    compute_capabilities: tuple[str, ...] = Field(min_length=1)
    device: str | None
    driver: str | None
    platform: str
    profiles: tuple[tuple[int, int, int], ...] = Field(min_length=1)
    onnx_sha256: Sha256 | None
    tf32: bool = False
    layer_types: dict[str, int] = Field(default_factory=dict)
    weight_layer_types: dict[str, int] = Field(default_factory=dict)

    @property
    def max_batch(self) -> int:
        """Largest batch of any profile."""
        return max(largest for _, _, largest in self.profiles)


class Artefact(_Model):
    """One runnable form of the network.

    Attributes:
        name: Its format, unique in the bundle.
        runtime: What opens it.
        precision: Of most of its arithmetic.
        files: The first is the one opened; others (weights of an OpenVINO model) lie beside it.
        max_batch: Largest batch it takes; None for any.
        parity: The gate's verdict.
        engine: For serialized engines.
        notes: How it was made, for instance which nodes an int8 graph keeps in float.
    """

    name: ArtefactName
    runtime: RuntimeName
    precision: Precision
    files: tuple[BundleFile, ...] = Field(min_length=1)
    max_batch: int | None = Field(default=None, ge=1)
    parity: Parity
    engine: EngineFacts | None = None
    notes: tuple[str, ...] = ()


class Rejected(_Model):
    """An artefact that was not taken in, and why: a broken link of the parity chain, or no gain."""

    name: ArtefactName
    reason: str
    report: BundleFile | None = None


class Unproven(_Model):
    """An artefact that was built where it cannot run, such as an engine built without a GPU.

    It is no `Artefact`: nothing can serve it. `stillface parity BUNDLE`, run on a machine that can run it,
    measures it and turns it into an artefact or a rejected one.

    Attributes:
        name, runtime, precision, files, max_batch, engine, notes: As for an `Artefact`.
        reason: Why it could not be measured.
    """

    name: ArtefactName
    runtime: RuntimeName
    precision: Precision
    files: tuple[BundleFile, ...] = Field(min_length=1)
    reason: str
    max_batch: int | None = Field(default=None, ge=1)
    engine: EngineFacts | None = None
    notes: tuple[str, ...] = ()


class MeasuredOn(_Model):
    """The metrics of the bundle and the data they come from.

    Attributes:
        data: Name of the prepared folder.
        data_sha256: Hash of its index.
        split: Its part.
        fakes: Whether the fakes are labelled deepfakes or were blended from the real faces.
        metrics: Of the PyTorch network in fp32, on calibrated scores.
    """

    data: str
    data_sha256: Sha256
    split: str
    fakes: Literal["labelled", "self-blended"]
    metrics: MetricsReport


class TrainingFacts(_Model):
    """Where the network comes from; `provenance` is the checkpoint's own."""

    checkpoint_sha256: Sha256
    stage: str
    epoch: int
    val_auc: float | None
    config_sha256: Sha256
    git_revision: str | None
    parent_sha256: str | None
    packages: dict[str, str]
    provenance: dict[str, Any] = Field(default_factory=dict)


class Manifest(_Model):
    """`manifest.json`. Files not named here are not part of the bundle."""

    schema_version: Literal[1] = 1
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}-[0-9a-f]{12}$")
    """Network and the first 12 digits of the hash over all the rest of the manifest; see `sealed`."""
    network: NetworkFacts
    crop: CropRule
    face_finder: FaceFinderRule
    aggregation: Aggregation
    calibration: ScoreCalibration
    artefacts: tuple[Artefact, ...] = Field(min_length=1)
    rejected: tuple[Rejected, ...] = ()
    unproven: tuple[Unproven, ...] = ()
    measured: MeasuredOn
    training: TrainingFacts
    packages: dict[str, str]
    """Versions of what exported it."""
    documents: tuple[BundleFile, ...] = ()
    """Model card, parity report, plots."""

    @model_validator(mode="after")
    def _one_of_each(self) -> Manifest:
        names = [artefact.name for artefact in self.artefacts] + [item.name for item in self.unproven]
        if len(set(names)) < len(names):
            raise ValueError(f"two artefacts share a name: {names}")
        return self


UNSEALED_ID = "unsealed-000000000000"
"""The id of a manifest that is still being put together."""


def sealed(manifest: Manifest) -> Manifest:
    """The same manifest with the id that belongs to its content; a bundle with any other id is not opened."""
    name = manifest.network.name.partition(".")[0].lower()
    content = json.loads(manifest.model_dump_json())
    return manifest.model_copy(update={"id": f"{name}-{content_hash(content)}"})


def content_hash(content: Mapping[str, Any]) -> str:
    """First 12 hex digits of the SHA-256 over a manifest's JSON without its id, keys sorted, no spaces.

    It is taken of the JSON as it stands and not of the model, so that a field that a later version adds with
    a default does not change the id of older bundles.
    """
    rest = {key: value for key, value in content.items() if key != "id"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
