"""A checkpoint is measured on a prepared folder, from the files to the report."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.errors import InputError
from pipeline.scoring import p_fake
from training.checkpoint import CheckpointInfo, save_checkpoint
from training.dataset import BlendedFaces, LabelledFaces
from training.evaluate import evaluate
from training.evaluation_report import compare, read_report
from training.face_scores import (
    LoaderSettings,
    Network,
    in_torch,
    score_loader,
    score_pairs,
    score_records,
)
from training.index import FaceRecord, index_hash, read_index, write_index
from training.networks import Detector, NetworkSpec

SIDE, SIZE = 120, 64
CPU = LoaderSettings(batch_size=5, workers=0, device=torch.device("cpu"))


class Brightness(nn.Module):
    """Knows a fake by its brightness: logits (0, 20 * (mean - 0.5))."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = NetworkSpec(name="brightness", image_size=SIZE)

    def forward(self, crops: Tensor) -> Tensor:
        assert crops.dtype == torch.uint8
        margin = 20 * (crops.float().mean(dim=(1, 2, 3)) / 255 - 0.5)
        return torch.stack((torch.zeros_like(margin), margin), dim=1)


def by_brightness() -> Network:
    return in_torch(Brightness(), "cpu")  # type: ignore[arg-type]


def landmarks() -> np.ndarray:
    """81 points on rings around the middle: enough of a face for blending."""
    angle = np.linspace(0, 2 * np.pi, 81, endpoint=False)
    radius = np.tile((30.0, 18.0, 8.0), 27)
    return np.stack((60 + radius * np.cos(angle), 60 + radius * np.sin(angle)), axis=1).astype(np.float32)


def store(folder: Path, clips: list[tuple[str, str, int, str]], *, frames: int = 2) -> list[FaceRecord]:
    """Write textured crops for (video, method, brightness, split) clips, with a dark second face each."""
    rng = np.random.default_rng(0)
    records = []
    for video, method, brightness, split in clips:
        for frame in range(frames):
            for face, level in ((0, brightness), (1, 10)):
                path = folder / "faces" / video / f"{frame}_{face}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                texture = rng.integers(-20, 20, (SIDE, SIDE, 3))
                cv2.imwrite(str(path), np.clip(level + texture + 3 * frame, 0, 255).astype(np.uint8))
                half = 35 if face == 0 else 30
                records.append(
                    FaceRecord(
                        path=path.absolute(),
                        video=video,
                        identity=None,
                        split=split,
                        label=int(method != "real"),
                        method=method,
                        frame=frame,
                        time_s=frame / 25,
                        face=face,
                        box=(60.0 - half, 60.0 - half, 60.0 + half, 60.0 + half),
                        landmarks=landmarks(),
                        origin=(0, 0),
                        width=SIDE,
                        height=SIDE,
                    )
                )
    write_index(folder, records)
    return read_index(folder)


CLIPS = [
    ("youtube/000", "real", 60, "test"),
    ("youtube/001", "real", 80, "test"),
    ("youtube/002", "real", 150, "test"),
    ("Swap/000_001", "Swap", 200, "test"),
    ("Swap/001_000", "Swap", 190, "test"),
    ("Reenact/000_001", "Reenact", 140, "test"),
    ("Reenact/001_002", "Reenact", 120, "test"),
    ("youtube/700", "real", 60, "val"),
    ("youtube/701", "real", 70, "val"),
    ("youtube/702", "real", 80, "val"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    store(folder, CLIPS)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    spec = NetworkSpec(name="mobilevitv2_050", image_size=SIZE)
    info = CheckpointInfo(
        stage="stage1", epoch=3, val_auc=0.75, threshold=0.5, network=spec, config={"seed": 5}, provenance={}
    )
    path = tmp_path_factory.mktemp("run") / "3_0.7500_val.pth"
    save_checkpoint(path, Detector(spec).state_dict(), info)
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def of_split(data: Path, split: str, label: int | None = None) -> list[FaceRecord]:
    return [record for record in read_index(data) if record.split == split and label in (None, record.label)]


class TestScoring:
    def test_labelled_faces_keep_their_order_and_place(self, data: Path) -> None:
        records = of_split(data, "test")
        scored = score_records(by_brightness(), records, CPU)
        for record, score in zip(scored.records, scored.scores, strict=True):
            expected = cv2.imread(str(record.path)).mean() / 255
            assert score == pytest.approx(1 / (1 + np.exp(-20 * (expected - 0.5))), abs=0.02)

    def test_a_frame_is_as_fake_as_its_worst_face_and_a_video_the_mean(self, data: Path) -> None:
        found = score_records(by_brightness(), of_split(data, "test"), CPU).collect("max-mean")
        assert found.frame.scores.size == 14
        assert found.video.scores.size == 7
        assert (found.faces, found.faces_used) == (28, 28)  # the second face is 73 % of the first
        # the dark second faces never decide
        bright = {video: level for video, _, level, split in CLIPS if split == "test"}
        order = [video for video, _ in sorted(bright.items())]
        assert (
            np.argsort(found.video.scores).tolist() == np.argsort([bright[video] for video in order]).tolist()
        )

    def test_self_blended_scores_belong_to_their_pairs(self, data: Path) -> None:
        records = of_split(data, "val")
        scored = score_pairs(by_brightness(), records, CPU, seed=3, draws=2)
        faces = BlendedFaces(records, sizes=(SIZE,), seed=3, phase="val")
        detector = Brightness()
        count = len(records)
        for draw in range(2):
            for index, record in enumerate(records):
                (pair,) = faces[draw, index]
                expected = p_fake(detector(pair).numpy())
                place = draw * count + index
                assert scored.scores[place] == pytest.approx(expected[0])
                assert scored.scores[2 * count + place] == pytest.approx(expected[1])
                real, fake = scored.records[place], scored.records[2 * count + place]
                assert (real.video, real.label, real.method) == (record.video, 0, "real")
                assert fake.video == f"{record.video}/self-blended"
                assert (fake.label, fake.method) == (1, "self-blended")
        assert len(set(scored.frames[: 2 * count])) == 2 * count

    def test_workers_and_batch_size_change_nothing(self, data: Path) -> None:
        records = of_split(data, "val")
        alone = score_pairs(by_brightness(), records, CPU, seed=3, draws=1)
        crowd = LoaderSettings(batch_size=8, workers=2, device=torch.device("cpu"))
        together = score_pairs(by_brightness(), records, crowd, seed=3, draws=1)
        np.testing.assert_array_equal(alone.scores, together.scores)

    def test_the_mode_of_the_network_is_put_back_and_dropout_is_off(self, data: Path) -> None:
        torch.manual_seed(0)
        detector = Detector(NetworkSpec(name="mobilevitv2_050", image_size=SIZE, dropout=0.5)).train()
        faces = LabelledFaces(of_split(data, "val")[:4], sizes=(32, SIZE))
        done: list[int] = []
        loader = DataLoader(faces, batch_size=3)
        network = in_torch(detector, "cpu")
        first = score_loader(network, loader, progress=done.append)
        second = score_loader(network, loader)
        assert detector.training
        np.testing.assert_array_equal(first.logits, second.logits)
        assert done == [3, 1]
        assert first.labels.tolist() == [0, 0, 0, 0]

    def test_crops_of_another_size_are_refused(self, data: Path) -> None:
        loader = DataLoader(LabelledFaces(of_split(data, "val"), sizes=(32,)), batch_size=3)
        with pytest.raises(InputError, match=r"takes 64 px crops, the loader gives \[32\]"):
            score_loader(by_brightness(), loader)


class TestLabelled:
    def test_the_report_and_its_files(self, data: Path, checkpoint: Path, tmp_path: Path) -> None:
        report = evaluate(checkpoint, data, out=tmp_path / "out", batch_size=4, resamples=50)
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "evaluation.json",
            "evaluation.md",
            "reliability.png",
            "roc.png",
            "scores.csv",
            "scores.png",
        }
        assert read_report(tmp_path / "out") == report
        assert report.checkpoint.sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        assert report.data.index_sha256 == index_hash(data)
        counts = {count.method: (count.videos, count.frames, count.faces) for count in report.data.counts}
        assert counts == {"real": (3, 6, 12), "Swap": (2, 4, 8), "Reenact": (2, 4, 8)}
        assert sorted(report.metrics.methods) == ["Reenact", "Swap"]
        assert report.metrics.threshold == 0.5
        assert "checkpoint's" in report.threshold_source

    def test_the_scores_written_give_the_auc_reported(
        self, data: Path, checkpoint: Path, tmp_path: Path
    ) -> None:
        report = evaluate(checkpoint, data, out=tmp_path, resamples=0)
        with (tmp_path / "scores.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        frames: dict[tuple[str, str], float] = {}
        labels: dict[tuple[str, str], int] = {}
        for row in rows:
            key = (row["video"], row["frame"])
            frames[key] = max(frames.get(key, 0.0), float(row["p_fake"]))
            labels[key] = int(row["label"])
            assert (data / row["path"]).is_file()
        expected = roc_auc_score([labels[key] for key in frames], list(frames.values()))
        assert report.metrics.overall.frame.auc.value == pytest.approx(expected)

    def test_the_page_says_what_was_measured(self, data: Path, checkpoint: Path, tmp_path: Path) -> None:
        report = evaluate(checkpoint, data, out=tmp_path, resamples=50, threshold=0.25)
        page = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
        for told in (
            report.checkpoint.sha256,
            report.data.index_sha256,
            "Swap: 2 videos, 4 frames, 8 faces",
            "0.25, given",
            "mobilevitv2_050 at 64 px",
            f"{report.metrics.overall.video.auc.value:.3f}",
            "only 3 real videos",
        ):
            assert told in page
        assert "None" not in page

    def test_an_empty_split_is_refused_with_those_there_are(self, data: Path, checkpoint: Path) -> None:
        with pytest.raises(InputError, match=r"'train'.*val: 12 real and 0 fake, test: 12 real and 16 fake"):
            evaluate(checkpoint, data, split="train")

    def test_scores_that_are_not_finite_stop_the_evaluation(
        self, data: Path, checkpoint: Path, tmp_path: Path
    ) -> None:
        content = torch.load(checkpoint, weights_only=True)
        content["model"]["head.weight"].fill_(3e38)  # finite, but its products overflow
        broken = tmp_path / "broken.pth"
        torch.save(content, broken)
        with pytest.raises(InputError, match="28 of 28 rows of logits are NaN"):
            evaluate(broken, data, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("setting", "said"),
        [
            ({"threshold": 1.5}, "threshold is 1.5"),
            ({"batch_size": 0}, "batch size 0"),
            ({"self_blended": True, "blend_draws": 0}, "blend draws 0"),
            ({"blend_draws": 2}, "add --self-blended"),
            ({"rule": "median"}, "'median' is unknown"),
        ],
    )
    def test_unusable_settings_are_refused(
        self, data: Path, checkpoint: Path, setting: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(InputError, match=said):
            evaluate(checkpoint, data, **setting)


class TestOneClass:
    def test_only_reals_point_to_self_blending(self, data: Path, checkpoint: Path, tmp_path: Path) -> None:
        report = evaluate(checkpoint, data, split="val", out=tmp_path, resamples=50)
        level = report.metrics.overall.video
        assert level.auc.value is None
        assert level.auc.reason == "undefined: only real samples"
        assert level.at_threshold is not None
        assert level.at_threshold.fpr.value is not None
        assert any("--self-blended" in message for message in report.messages)
        assert not (tmp_path / "roc.png").exists()
        assert (tmp_path / "scores.png").exists()
        assert json.loads((tmp_path / "evaluation.json").read_text())["metrics"]["methods"] == {}
        assert "undefined: only real samples" in (tmp_path / "evaluation.md").read_text(encoding="utf-8")


class TestSelfBlended:
    def test_measures_both_classes_and_says_what_it_is_not(
        self, data: Path, checkpoint: Path, tmp_path: Path
    ) -> None:
        report = evaluate(
            checkpoint, data, split="val", self_blended=True, blend_draws=3, out=tmp_path, resamples=50
        )
        counts = {count.method: (count.videos, count.frames, count.faces) for count in report.data.counts}
        assert counts == {"real": (3, 36, 36), "self-blended": (3, 36, 36)}
        assert report.metrics.overall.frame.auc.value is not None
        assert "not accuracy on deepfakes" in report.statement
        assert report.statement in (tmp_path / "evaluation.md").read_text(encoding="utf-8")
        assert (report.data.blend_draws, report.data.seed) == (3, 5)

    def test_leaves_out_the_fakes_of_the_split(self, data: Path, checkpoint: Path) -> None:
        report = evaluate(checkpoint, data, self_blended=True, resamples=0)
        assert {count.method for count in report.data.counts} == {"real", "self-blended"}
        assert report.data.counts[0].videos == 3

    def test_needs_real_faces(self, checkpoint: Path, tmp_path: Path) -> None:
        store(tmp_path, [("Swap/000_001", "Swap", 100, "test")])
        with pytest.raises(InputError, match="no real face in split 'test'"):
            evaluate(checkpoint, tmp_path, self_blended=True)


class TestCompare:
    def test_one_row_per_report(self, data: Path, checkpoint: Path) -> None:
        report = evaluate(checkpoint, data, resamples=50)
        table = compare({"teacher": report, "student": report})
        lines = table.splitlines()
        assert lines[2].startswith("| teacher | mobilevitv2_050 @ 64 | ")
        assert lines[3].startswith("| student | ")
        assert f"{report.metrics.overall.frame.auc.value:.3f} (" in lines[2]
        assert report.statement in table

    def test_other_data_do_not_belong_in_one_table(self, data: Path, checkpoint: Path) -> None:
        labelled = evaluate(checkpoint, data, resamples=0)
        other = labelled.model_copy(update={"data": labelled.data.model_copy(update={"split": "val"})})
        with pytest.raises(InputError, match=r"'a' and 'b'.*split test and val"):
            compare({"a": labelled, "b": other})

    def test_nothing_to_compare(self) -> None:
        with pytest.raises(InputError, match="no report"):
            compare({})


class TestReadReport:
    def test_refuses_what_is_no_report(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such report"):
            read_report(tmp_path)
        (tmp_path / "evaluation.json").write_text('{"schema_version": 2}')
        with pytest.raises(InputError, match="not an evaluation report"):
            read_report(tmp_path)


def test_mislabelled_video_ids_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    records = store(tmp_path, [("a", "real", 50, "test"), ("b", "Swap", 150, "test")], frames=1)
    write_index(tmp_path, [replace(record, video="a") for record in records])
    with pytest.raises(InputError, match="video 'a' has two labels"):
        evaluate(checkpoint, tmp_path)
