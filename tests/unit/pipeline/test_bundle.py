"""A bundle is opened only when it is, byte for byte, what was proven."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.bundle import check_file, describe_file, open_bundle, read_manifest
from pipeline.errors import InputError
from pipeline.manifest import MANIFEST_NAME, Manifest, content_hash, sealed
from pipeline.metrics import summarise

Change = Callable[[dict[str, Any]], None]
POINT = {"name": "eer", "level": "frame", "threshold": 0.5, "fpr": 0.1, "tpr": 0.9}


def raw_manifest(folder: Path) -> dict[str, Any]:
    """A manifest for files that are not what they pretend to be: nothing here runs them."""
    for name in ("onnx/model.onnx", "rtx/model.engine", "finder.onnx", "parity.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")

    def file(name: str) -> dict[str, Any]:
        return describe_file(folder, folder / name).model_dump()

    metrics = summarise([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], list("abcd"), ["real", "real", "x", "x"])
    onnx = file("onnx/model.onnx")
    parity = {
        "passed": True,
        "artefact_sha256": onnx["sha256"],
        "report": file("parity.json"),
        "max_abs_logit": 1e-6,
        "max_abs_p": 1e-7,
        "flips": {"frame eer": 0},
        "compared": 4,
    }
    return {
        "schema_version": 1,
        "id": "unsealed-000000000000",
        "network": {
            "name": "mobilevitv2_050",
            "image_size": 64,
            "mean": (0, 0, 0),
            "std": (1, 1, 1),
            "parameters": 10,
            "evidence": (2, 2),
        },
        "crop": {},
        "face_finder": {"file": file("finder.onnx")},
        "aggregation": {},
        "calibration": {
            "temperature": 1.5,
            "operating_points": [POINT, {**POINT, "level": "video"}, {**POINT, "name": "fpr-1%"}],
            "default_point": "eer",
            "abstain": [{"level": "frame", "low": 0.55, "high": 0.6, "max_error": 0.05}],
        },
        "artefacts": [
            {"name": "onnx", "runtime": "onnxruntime", "precision": "fp32", "files": [onnx], "parity": parity}
        ],
        "rejected": [{"name": "onnx-int8", "reason": "not worth it: 0.9 times the speed of fp32"}],
        "unproven": [
            {
                "name": "tensorrt-rtx",
                "runtime": "tensorrt-rtx",
                "precision": "fp16",
                "files": [file("rtx/model.engine")],
                "reason": "no GPU here",
            }
        ],
        "measured": {
            "data": "faces",
            "data_sha256": "0" * 64,
            "split": "val",
            "fakes": "labelled",
            "metrics": metrics.model_dump(),
        },
        "training": {
            "checkpoint_sha256": "1" * 64,
            "stage": "stage2",
            "epoch": 3,
            "val_auc": 0.9,
            "config_sha256": "2" * 64,
            "git_revision": None,
            "parent_sha256": None,
            "packages": {},
        },
        "packages": {"onnx": "1"},
        "documents": [file("parity.json")],
    }


def store(folder: Path, change: Change | None = None, *, seal: bool = True) -> Path:
    """Write the manifest, changed in place and with the id that belongs to it."""
    raw = raw_manifest(folder)
    if change is not None:
        change(raw)
    if seal:
        raw["id"] = f"mobilevitv2_050-{content_hash(json.loads(json.dumps(raw)))}"
    (folder / MANIFEST_NAME).write_text(json.dumps(raw))
    return folder


def test_a_sound_bundle_opens_and_tells_what_it_holds(tmp_path: Path) -> None:
    bundle = open_bundle(store(tmp_path))
    assert bundle.path(bundle.artefact("onnx").files[0]).read_text() == "content of onnx/model.onnx"
    assert bundle.operating_point("frame").name == "eer"
    assert bundle.operating_point("frame", "fpr-1%").name == "fpr-1%"
    with pytest.raises(InputError, match="'fpr-1%' for video scores; there is: eer"):
        bundle.operating_point("video", "fpr-1%")


def test_the_abstain_band_always_holds_the_threshold(tmp_path: Path) -> None:
    bundle = open_bundle(store(tmp_path))
    assert bundle.abstain_band(bundle.operating_point("frame")) == (0.5, 0.6)
    assert bundle.abstain_band(bundle.operating_point("video")) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("onnx-int8", "rejected at export: not worth it"),
        ("tensorrt-rtx", "built but not proven: run `stillface parity"),
        ("tensorrt", "has no artefact 'tensorrt'; it has onnx"),
    ],
)
def test_what_is_not_served_says_why(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_bundle(store(tmp_path)).artefact(name)


@pytest.mark.parametrize("name", ["onnx/model.onnx", "rtx/model.engine", "finder.onnx", "parity.json"])
def test_one_flipped_byte_of_any_file_is_found(tmp_path: Path, name: str) -> None:
    store(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[3] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is not the file that was exported"):
        open_bundle(tmp_path)


def test_a_changed_threshold_is_found(tmp_path: Path) -> None:
    store(tmp_path)
    path = tmp_path / MANIFEST_NAME
    path.write_text(path.read_text().replace('"threshold": 0.5', '"threshold": 0.6', 1))
    with pytest.raises(InputError, match="is not as it was exported: its content does not belong to its id"):
        open_bundle(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    store(tmp_path)
    (tmp_path / "finder.onnx").unlink()
    with pytest.raises(InputError, match=r"finder\.onnx is missing although the manifest names it"):
        open_bundle(tmp_path)


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    folder = store(tmp_path / "bundle")
    finder = folder / "finder.onnx"
    finder.rename(tmp_path / "elsewhere.onnx")
    finder.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(InputError, match="leads out of the bundle"):
        check_file(folder, read_manifest(folder).face_finder.file)


@pytest.mark.parametrize("path", ["../finder.onnx", "/etc/passwd", "a/../../b", "c:finder", "a\\b", ""])
def test_a_path_that_escapes_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    store(tmp_path, lambda raw: raw["face_finder"]["file"].update(path=path))
    with pytest.raises(InputError, match=r"face_finder\.file\.path.*leads out of the bundle"):
        open_bundle(tmp_path)


def _other_bytes(raw: dict[str, Any]) -> None:
    raw["artefacts"][0]["parity"]["artefact_sha256"] = "3" * 64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw.update(schema_version=2), "has schema_version 2, this stillface reads 1"),
        (lambda raw: raw.pop("schema_version"), "has schema_version None"),
        (lambda raw: raw.update(colour="red"), "colour: Extra inputs are not permitted"),
        (lambda raw: raw.pop("network"), "network: Field required"),
        (lambda raw: raw.update(artefacts=[]), "artefacts: .*at least 1"),
        (lambda raw: raw["artefacts"].append(raw["artefacts"][0]), "two artefacts share a name"),
        (lambda raw: raw["artefacts"][0]["parity"].update(passed=False), "did not pass the parity gate"),
        (_other_bytes, "was measured on another file"),
        (lambda raw: raw["calibration"].update(temperature=0), "temperature: Input should be greater than 0"),
        (lambda raw: raw["calibration"].update(default_point="x"), "is none of the operating points"),
        (lambda raw: raw["calibration"]["abstain"][0].update(low=0.7), "is upside down"),
        (lambda raw: raw["aggregation"].update(rule="median"), "rule: .*'median' is unknown"),
    ],
)
def test_a_manifest_that_breaks_the_contract_is_refused(tmp_path: Path, change: Change, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_bundle(store(tmp_path, change))


def test_no_manifest_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no bundle.*stillface export"):
        open_bundle(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        open_bundle(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text("[]")
    with pytest.raises(InputError, match="schema_version None"):
        open_bundle(tmp_path)


def test_a_sealed_manifest_survives_being_written_and_read(tmp_path: Path) -> None:
    manifest = sealed(Manifest.model_validate(raw_manifest(tmp_path)))
    (tmp_path / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2))
    assert read_manifest(tmp_path) == manifest
    assert manifest.id.startswith("mobilevitv2_050-")
