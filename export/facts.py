"""What a manifest and a report say of the network, the checkpoint and the machine."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict

from export.parity_gate import GATES
from pipeline.manifest import NetworkFacts, TrainingFacts
from pipeline.runtime import Answer
from training.checkpoint import CheckpointInfo
from training.networks import Detector
from training.run_folder import git_revision, version_of

PACKAGES = (
    "stillface",
    "torch",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "nncf",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "torch-tensorrt",
    "numpy",
    "opencv-python-headless",
)


def network_facts(detector: Detector, answer: Answer) -> NetworkFacts:
    """The manifest's entry for a network that gave this answer."""
    spec = detector.spec
    shape = None if answer.evidence is None else answer.evidence.shape[1:]
    return NetworkFacts(
        name=spec.name,
        image_size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        parameters=sum(parameter.numel() for parameter in detector.parameters()),
        evidence=None if shape is None else (int(shape[0]), int(shape[1])),
    )


def training_facts(info: CheckpointInfo) -> TrainingFacts:
    """The manifest's entry for a checkpoint."""
    config = json.dumps(info.config, sort_keys=True, separators=(",", ":")).encode()
    provenance = dict(info.provenance)
    weights = provenance.get("weights")
    parent = weights.get("sha256") if isinstance(weights, dict) else None
    if info.config.get("pretrained") == "imagenet":
        provenance["started_from_imagenet"] = info.config.get("student")
    installed = provenance.get("versions")
    return TrainingFacts(
        checkpoint_sha256=info.sha256,
        stage=info.stage,
        epoch=info.epoch,
        val_auc=info.val_auc,
        config_sha256=hashlib.sha256(config).hexdigest(),
        git_revision=provenance.get("git"),
        parent_sha256=parent or None,
        packages={name: value for name, value in (installed or {}).items() if value},
        provenance=provenance,
    )


def gates() -> dict[str, dict[str, float | bool]]:
    """The bounds that hold, as they are stored in the report."""
    return {
        precision: {name: value for name, value in asdict(gate).items() if value is not None}
        for precision, gate in GATES.items()
    }


def machine(threads: int | None) -> str:
    """Where something was measured."""
    used = "all" if threads is None else str(threads)
    return f"{platform.platform()}, {used} threads, git {git_revision() or 'unknown'}"


def versions() -> dict[str, str]:
    """Installed packages that had a part in an export."""
    found = {name: version_of(name) for name in PACKAGES}
    return {name: version for name, version in found.items() if version}
