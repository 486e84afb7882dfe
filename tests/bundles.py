"""Makes a real, small bundle for tests: a random network as ONNX, true hashes, made-up thresholds."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np

NETWORK = "mobilevitv2_050"
SIZE = 64
TEMPERATURE = 1.7


def write_checkpoint(path: Path, *, seed: int = 3, size: int = SIZE) -> Path:
    """A random network whose scores differ from face to face."""
    import torch

    from training.checkpoint import CheckpointInfo, save_checkpoint
    from training.networks import build_student

    torch.manual_seed(seed)
    detector, _ = build_student(NETWORK, image_size=size, pretrained="none", dropout=0.0)
    with torch.no_grad():
        # spreads the scores of the clips around a half
        detector.head.weight.mul_(4)
        detector.head.bias[1] -= 1.9
    info = CheckpointInfo(
        stage="stage2", epoch=1, val_auc=None, threshold=0.5, network=detector.spec, config={}, provenance={}
    )
    save_checkpoint(path, detector.state_dict(), info)
    return path


def write_bundle(folder: Path, checkpoint: Path) -> Path:
    """A bundle with the artefact "onnx" of a checkpoint."""
    from pipeline import assets
    from pipeline.bundle import describe_file, sha256_of
    from pipeline.manifest import UNSEALED_ID
    from training.checkpoint import load_detector

    detector, info = load_detector(checkpoint)
    folder.mkdir(parents=True)
    finder = folder / "yunet.onnx"
    shutil.copy(assets.fetch("yunet"), finder)
    graph = folder / "model.onnx"
    _export(detector, graph)
    report = folder / "parity.json"
    report.write_text("{}\n")
    spec = info.network
    manifest = {
        "schema_version": 1,
        "id": UNSEALED_ID,
        "network": {
            "name": spec.name,
            "image_size": spec.image_size,
            "mean": spec.mean,
            "std": spec.std,
            "parameters": sum(p.numel() for p in detector.parameters()),
            "evidence": [spec.image_size // 32] * 2,
        },
        "crop": {},
        "face_finder": {"file": describe_file(folder, finder).model_dump()},
        "aggregation": {"frames": 6},
        "calibration": _calibration(),
        "artefacts": [
            {
                "name": "onnx",
                "runtime": "onnxruntime",
                "precision": "fp32",
                "files": [describe_file(folder, graph).model_dump()],
                "parity": {
                    "passed": True,
                    "artefact_sha256": sha256_of(graph),
                    "report": describe_file(folder, report).model_dump(),
                    "max_abs_logit": 0.0,
                    "max_abs_p": 0.0,
                    "flips": {},
                    "compared": 1,
                },
            }
        ],
        "measured": _measured(),
        "training": {
            "checkpoint_sha256": info.sha256,
            "stage": info.stage,
            "epoch": info.epoch,
            "val_auc": None,
            "config_sha256": "0" * 64,
            "git_revision": None,
            "parent_sha256": None,
            "packages": {},
        },
        "packages": {},
    }
    write_manifest(folder, manifest)
    return folder


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Store a manifest as a bundle's, checked and sealed."""
    from pipeline.manifest import MANIFEST_NAME, Manifest, sealed

    text = sealed(Manifest.model_validate(manifest)).model_dump_json(indent=1)
    (folder / MANIFEST_NAME).write_text(text)


def _export(detector: Any, path: Path) -> None:
    import torch

    class WithEvidence(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = detector

        def forward(self, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.detector.forward_with_evidence(crops)

    side = detector.spec.image_size
    axes = {"crops": {0: "n"}, "logits": {0: "n"}, "evidence": {0: "n"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            WithEvidence().eval(),
            (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
            str(path),
            dynamo=False,
            opset_version=18,
            input_names=["crops"],
            output_names=["logits", "evidence"],
            dynamic_axes=axes,
        )


def _calibration() -> dict[str, Any]:
    def point(name: str, level: str, threshold: float) -> dict[str, Any]:
        return {"name": name, "level": level, "threshold": threshold, "fpr": 0.1, "tpr": 0.9}

    points = [point("eer", "frame", 0.5), point("eer", "video", 0.45), point("fpr-1%", "frame", 0.95)]
    band = {"level": "frame", "low": 0.48, "high": 0.52, "max_error": 0.05}
    return {
        "temperature": TEMPERATURE,
        "operating_points": [*points, point("fpr-1%", "video", 0.9)],
        "default_point": "eer",
        "abstain": [band],
    }


def _measured() -> dict[str, Any]:
    from pipeline.metrics import Resampling, measure_collected
    from pipeline.samples import collect

    scores = np.array([0.1, 0.4, 0.6, 0.9])
    collected = collect(scores, [0, 0, 1, 1], ["a", "b", "c", "d"], ["real", "real", "swap", "swap"])
    metrics = measure_collected(collected, threshold=0.5, how=Resampling(0))
    return {
        "data": "made up",
        "data_sha256": "0" * 64,
        "split": "val",
        "fakes": "labelled",
        "metrics": metrics.model_dump(),
    }
