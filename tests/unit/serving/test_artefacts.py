"""Which form of the network is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.bundle import describe_file, open_bundle
from pipeline.manifest import MANIFEST_NAME
from serving.artefacts import open_best
from tests.bundles import write_manifest


def test_an_engine_that_is_not_proven_is_passed_over_and_the_way_out_said(
    bundle_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_folder, folder)
    (folder / "model.engine").write_bytes(b"engine")
    manifest: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text())
    file = describe_file(folder, folder / "model.engine").model_dump()
    unproven = {"name": "tensorrt", "runtime": "tensorrt", "precision": "fp16", "files": [file]}
    manifest["unproven"] = [{**unproven, "reason": "there was no GPU"}]
    write_manifest(folder, manifest)
    opened = open_best(open_bundle(folder), threads=1)
    assert opened.artefact.name == "onnx"
    (said,) = opened.passed_over
    assert "tensorrt" in said
    assert f"stillface parity {folder}" in said
