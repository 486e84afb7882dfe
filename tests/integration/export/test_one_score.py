"""One picture, one score: training's evaluation, `predict`, the server and the parity report agree on it.

Evaluation cuts the very crop that the server cuts, bit for bit, and an artefact has one score of it, whoever asks:
evaluation too, given the bundle. Given the checkpoint it runs PyTorch, whose arithmetic differs: by how much is what
the parity gate bounds and its report says, and the scores here are as far apart as it says.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from numpy.typing import NDArray
from rich.console import Console

from export.exporter import ExportSettings, export_bundle
from export.formats import parse_formats
from export.parity_inputs import drawn_crops
from export.parity_report import ParityReport, read_parity
from pipeline import assets
from pipeline.analysis import Analyser
from pipeline.bundle import open_bundle
from pipeline.images import read_image, save_image
from pipeline.runtime import Crops, open_artefact
from pipeline.scoring import p_fake
from pipeline.video import sample_frames
from serving.predict import Options, Predictor
from serving.settings import Settings
from tests.servers import ServerThread, post_image
from training import prepare
from training.dataset import LabelledFaces
from training.evaluate import evaluate
from training.index import read_index

pytestmark = pytest.mark.slow

CLOSE = 1e-6
ROUNDING = 1e-5
"""Between runtimes: float32's own noise in a network of this depth, which PyTorch, ONNX Runtime and OpenVINO add in
different orders."""
CPU_ARTEFACTS = ("onnx", "openvino")


@dataclass(frozen=True)
class Made:
    pictures: list[Path]
    data: Path
    evaluated: dict[str, float]
    crops: dict[str, Crops]
    bundle: Path
    report: ParityReport

    def trained(self, picture: Path) -> float:
        """Training's score of a picture, with the temperature that the export fitted."""
        before = self.evaluated[picture.stem]
        return 1 / (1 + (1 / before - 1) ** (1 / self.report.calibration.temperature))


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Made:
    """Pictures of two people, evaluated as training does, and a bundle proven on the same pictures."""
    root = tmp_path_factory.mktemp("one_score")
    pictures = []
    for name in ("clip_01", "clip_03"):
        for frame in sample_frames(assets.fetch(name), 2):
            pictures.append(root / "media" / "val" / "real" / f"{name}_{frame.index}.png")
            save_image(pictures[-1], frame.image, store="png")
    data = root / "data"
    prepare.run(root / "media", "folder", data, store="png", workers=1, console=Console(quiet=True))
    evaluate(checkpoint, data, split="val", out=root / "evaluation", resamples=0)
    evaluated = scores_in(root / "evaluation")
    formats = parse_formats(",".join(CPU_ARTEFACTS))
    settings = ExportSettings(checkpoint, root / "bundle", formats, data, images=8, threads=1)
    export_bundle(settings, Console(quiet=True))
    report = read_parity(root / "bundle")
    faces = LabelledFaces(read_index(data), sizes=(report.image_size,))
    crops = {Path(faces.records[face.row].video).stem: face.crops[0].numpy()[None] for face in faces}
    return Made(pictures, data, evaluated, crops, root / "bundle", report)


def scores_in(evaluation: Path) -> dict[str, float]:
    with (evaluation / "scores.csv").open() as table:
        return {Path(row["video"]).stem: float(row["p_fake"]) for row in csv.DictReader(table)}


@pytest.fixture(params=CPU_ARTEFACTS)
def server(request: pytest.FixtureRequest, made: Made) -> Iterator[ServerThread]:
    given: dict[str, Any] = {"artefact": request.param, "runtime_threads": 1, "look_threads": 1}
    running = ServerThread(Settings(bundle=made.bundle, **given))
    yield running
    running.stop()


def test_a_picture_has_one_score(made: Made, server: ServerThread, tmp_path: Path) -> None:
    artefact = str(server.settings.artefact)
    evaluate(made.bundle, made.data, artefact=artefact, split="val", out=tmp_path, resamples=0, threads=1)
    evaluated = scores_in(tmp_path)
    predictor = Predictor(made.bundle, artefact=artefact, threads=1)
    bundle = open_bundle(made.bundle)
    analyser, runtime = Analyser(bundle), open_artefact(bundle.folder, bundle.artefact(artefact), threads=1)
    apart = []
    for picture in made.pictures:
        answer = post_image(server.url, picture.read_bytes()).json()
        assert answer["bundle"]["artefact"] == artefact
        predicted = predictor.predict(picture, Options()).score
        assert answer["score"] == pytest.approx(predicted, abs=CLOSE)
        assert answer["score"] == pytest.approx(evaluated[picture.stem], abs=CLOSE)
        crop = made.crops[picture.stem]
        np.testing.assert_array_equal(analyser.look(read_image(picture.read_bytes())).crops, crop)
        through = p_fake(runtime.run(crop).logits, made.report.calibration.temperature)
        assert answer["score"] == pytest.approx(through.item(), abs=CLOSE)
        apart.append(abs(answer["score"] - made.trained(picture)))
    # the report is about these very pictures, and says how far the artefact is from PyTorch on the worst of them
    assert made.report.shown.counts["real"] == len(made.pictures)
    link = made.report.link(artefact)
    assert link is not None
    assert max(apart) == pytest.approx(link.kinds["real"].max_abs_p, abs=CLOSE)
    assert max(apart) < ROUNDING


def test_what_the_report_shows_number_by_number_is_what_the_server_answers(
    made: Made, server: ServerThread
) -> None:
    crops, _ = drawn_crops(made.report.image_size)
    served = p_fake(_infer(server.url, crops), made.report.calibration.temperature)
    reported = p_fake(made.report.shown.drawn_logits, made.report.calibration.temperature)
    np.testing.assert_allclose(served, reported, atol=ROUNDING, rtol=0)


def _infer(url: str, crops: NDArray[np.uint8]) -> NDArray[np.float64]:
    tensor = {
        "name": "crops",
        "shape": list(crops.shape),
        "datatype": "UINT8",
        "data": crops.ravel().tolist(),
    }
    body = {"inputs": [tensor], "outputs": [{"name": "logits"}]}
    done = requests.post(f"{url}/v2/models/stillface/infer", json=body, timeout=60)
    assert done.status_code == 200, done.text
    return np.array(done.json()["outputs"][0]["data"]).reshape(-1, 2)
