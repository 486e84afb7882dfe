"""`stillface predict` as a person types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from pipeline.images import save_image
from pipeline.scoring import p_fake
from tests.bundles import TEMPERATURE
from tests.conftest import ROOT

Run = Callable[..., tuple[int, str, str]]

NO_TORCH = """
import sys
from stillface import app
try:
    app(sys.argv[1:])
except SystemExit as left:
    assert left.code in (0, None), left.code
loaded = {name.partition(".")[0] for name in sys.modules}
assert "onnxruntime" in loaded
assert not loaded & {"torch", "torchvision", "timm", "matplotlib", "sklearn"}, sorted(loaded)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, portraits: list[NDArray[np.uint8]], clip: Path) -> Path:
    """Two pictures and a video."""
    made = tmp_path_factory.mktemp("media")
    for number, image in enumerate(portraits):
        save_image(made / f"{number}.png", image, store="png")
    shutil.copy(clip, made / "clip.mp4")
    return made


def test_a_folder_as_json(run_script: Run, bundle_folder: Path, folder: Path) -> None:
    arguments = ("predict", bundle_folder, folder, "--json", "--evidence", "grid", "--threads", 1)
    code, out, _ = run_script("stillface.py", *arguments)
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["0.png", "1.png", "clip.mp4"]
    picture, video = lines[0]["result"], lines[2]["result"]
    assert picture["kind"] == "image"
    assert picture["verdict"] in {"fake", "real", "uncertain"}
    assert np.shape(picture["faces"][0]["evidence"]["grid"]) == (2, 2)
    assert picture["operating_point"]["level"] == "frame"
    assert video["operating_point"] == {
        "name": "eer",
        "level": "video",
        "threshold": 0.45,
        "fpr": 0.1,
        "tpr": 0.9,
        "abstain": None,
    }
    assert video["aggregation"] == {"rule": "max-mean", "frames": 6, "frames_used": 6, "faces": 6}
    assert video["score"] == pytest.approx(np.mean([frame["score"] for frame in video["frames"]]))


def test_a_table_for_people(
    run_script: Run, bundle_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run_script("stillface.py", "predict", bundle_folder, folder / "0.png", "--threads", 1)
    assert code == 0
    assert "0.png" in out
    assert "0.5000 (eer)" in out


def test_the_same_score_as_training_measures(
    run_script: Run, bundle_folder: Path, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    import torch

    from training import prepare
    from training.checkpoint import load_detector
    from training.dataset import LabelledFaces
    from training.face_scores import in_torch, score_loader
    from training.index import read_index

    pictures = tmp_path / "pictures" / "real"
    pictures.mkdir(parents=True)
    for name in ("0.png", "1.png"):
        shutil.copy(folder / name, pictures)
    out = tmp_path / "prepared"
    prepare.run(pictures.parent, "folder", out, store="png", workers=1, console=Console(quiet=True))
    records = sorted(read_index(out), key=lambda record: record.video)
    detector, _ = load_detector(checkpoint)
    faces = LabelledFaces(records, sizes=(detector.spec.image_size,))
    loader = torch.utils.data.DataLoader(faces, batch_size=2)
    logits = score_loader(in_torch(detector, "cpu"), loader).logits
    measured = p_fake(logits, TEMPERATURE)

    _, said, _ = run_script("stillface.py", "predict", bundle_folder, pictures, "--json", "--threads", 1)
    scores = [json.loads(line)["result"]["score"] for line in said.splitlines()]
    np.testing.assert_allclose(scores, measured, atol=1e-6, rtol=0)


def test_no_torch_in_the_process(bundle_folder: Path, folder: Path) -> None:
    command = [sys.executable, "-c", NO_TORCH, "predict", str(bundle_folder), str(folder / "0.png"), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]["score"] is not None


def test_one_bad_file_does_not_stop_the_others(
    run_script: Run, bundle_folder: Path, folder: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (mixed / "b.mp4").write_bytes(b"nothing")
    shutil.copy(folder / "0.png", mixed / "c.png")
    code, out, err = run_script("stillface.py", "predict", bundle_folder, mixed, "--json", "--threads", 1)
    assert code == 2
    assert "2 of 3 files" in err
    errors = [json.loads(line)["error"] for line in out.splitlines()]
    assert "cannot be read as a picture" in errors[0]
    assert "cannot be opened as a video" in errors[1]
    assert errors[2] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{bundle}", "nowhere.png"), "nowhere.png does not exist"),
        (("{bundle}", "{bundle}/model.onnx"), "neither a picture nor a video"),
        (("{bundle}", "{bundle}"), "holds no picture"),
        (("{media}", "{media}"), "is no bundle"),
        (("{bundle}", "{media}", "--operating-point", "strict"), "it has|there is: eer"),
        (("{bundle}", "{media}", "--aggregation", "median"), "aggregation rule 'median' is unknown"),
        (("{bundle}", "{media}", "--artefact", "tensorrt"), "has no artefact 'tensorrt'"),
        (("{bundle}", "{media}", "--evidence", "png"), "add --json"),
    ],
)
def test_what_cannot_be_done_is_said(
    run_script: Run, bundle_folder: Path, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    import re

    filled = [argument.format(bundle=bundle_folder, media=folder) for argument in arguments]
    code, _, err = run_script("stillface.py", "predict", *filled)
    assert code == 2
    assert re.search(message, err), err
