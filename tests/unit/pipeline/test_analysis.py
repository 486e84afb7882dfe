"""The road from crop to verdict, on real faces."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.analysis import Analyser
from pipeline.bundle import Bundle, open_bundle
from pipeline.crop import crop_face, tight_window
from pipeline.errors import InputError
from pipeline.faces import FaceFinder
from pipeline.road import analyse_image, analyse_video, run_in_batches
from pipeline.runtime import Answer, Runtime, open_artefact
from pipeline.scoring import Verdict, p_fake
from tests.bundles import SIZE, TEMPERATURE

Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return open_bundle(bundle_folder)


@pytest.fixture(scope="module")
def runtime(bundle: Bundle) -> Runtime:
    return open_artefact(bundle.folder, bundle.artefact("onnx"), threads=1)


def side_by_side(big: Image, small: Image) -> Image:
    """The second picture at a quarter of the first one's size beside it."""
    reduced = cv2.resize(small, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)
    canvas = np.full((big.shape[0], big.shape[1] + reduced.shape[1], 3), 90, np.uint8)
    canvas[:, : big.shape[1]] = big
    canvas[: reduced.shape[0], big.shape[1] :] = reduced
    return canvas


def test_a_score_is_the_crop_contract_the_network_and_the_temperature(
    bundle: Bundle, runtime: Runtime, portraits: list[Image]
) -> None:
    analyser = Analyser(bundle)
    for image in portraits:
        found = analyse_image(analyser, runtime, image)
        (face,) = FaceFinder().find(image)
        crop = crop_face(image, tight_window(face.box, image.shape[1], image.shape[0]), SIZE)
        expected = p_fake(runtime.run(crop[None]).logits, TEMPERATURE)[0]
        assert found.frames[0].faces[0].p_fake == pytest.approx(expected, abs=1e-12)
        assert found.conclusion.aggregate.score == found.frames[0].score
    scores = {analyse_image(analyser, runtime, image).frames[0].score for image in portraits}
    assert len(scores) == len(portraits)


def test_only_prominent_faces_count(bundle: Bundle, runtime: Runtime, portraits: list[Image]) -> None:
    image = side_by_side(portraits[0], portraits[1])
    frame = analyse_image(Analyser(bundle), runtime, image).frames[0]
    assert [face.seen.counted for face in frame.faces] == [True, False]
    assert frame.faces[1].p_fake is None
    assert frame.faces[1].evidence is None
    assert frame.score == frame.faces[0].p_fake


def test_no_face_is_a_verdict_of_its_own(bundle: Bundle, runtime: Runtime) -> None:
    found = analyse_image(Analyser(bundle), runtime, np.full((120, 160, 3), 127, np.uint8))
    assert found.conclusion.verdict is Verdict.NO_FACE
    assert found.conclusion.aggregate.score is None
    assert "no face" in found.conclusion.reason


def test_more_faces_than_the_limit_are_left_out_by_size(bundle: Bundle, portraits: list[Image]) -> None:
    tile = cv2.resize(portraits[0][:, 280:1000], (180, 180), interpolation=cv2.INTER_AREA)
    crowd = np.tile(tile, (2, 3, 1))
    look = Analyser(bundle, max_faces=4).look(crowd)
    assert len(look.faces) == 6
    assert look.crops.shape == (4, SIZE, SIZE, 3)
    assert [face.counted for face in look.faces] == [True] * 4 + [False] * 2


def test_the_verdict_follows_threshold_and_band(
    bundle: Bundle, runtime: Runtime, portraits: list[Image]
) -> None:
    analyser = Analyser(bundle)
    look = analyser.look(portraits[0])

    def verdict(margin: float, point: str | None = None) -> tuple[Verdict, str]:
        answer = Answer(np.array([[0.0, margin * TEMPERATURE]], np.float32), None)
        said = analyser.conclude([analyser.weigh(look, answer)], "frame", operating_point=point)
        return said.verdict, said.reason

    assert verdict(2.0)[0] is Verdict.FAKE
    assert verdict(-2.0)[0] is Verdict.REAL
    assert verdict(0.0)[0] is Verdict.UNCERTAIN
    assert "0.4800 and 0.5200" in verdict(0.0)[1]
    # sigmoid(2) = 0.88 lies below the stricter threshold of 0.95, whose band reaches down to 0.48
    assert verdict(2.0, "fpr-1%")[0] is Verdict.UNCERTAIN
    with pytest.raises(InputError, match="no operating point 'strict'"):
        verdict(2.0, "strict")


def test_a_picture_of_two_is_judged_by_the_higher_unless_asked(
    bundle: Bundle, runtime: Runtime, portraits: list[Image]
) -> None:
    both = np.hstack([portraits[0][:, 240:1040], portraits[1][:, 240:1040]])
    found = analyse_image(Analyser(bundle), runtime, both)
    scores = [face.p_fake for face in found.frames[0].faces]
    assert len(scores) == 2
    assert found.conclusion.aggregate.score == max(scores)
    assert found.conclusion.notes == ()
    mean = analyse_image(Analyser(bundle), runtime, both, rule="mean-all").conclusion
    assert mean.aggregate.score == pytest.approx(np.mean(scores))
    assert "max-mean, not for mean-all" in mean.notes[0]


def test_a_logit_that_is_not_finite_gives_no_score(bundle: Bundle, portraits: list[Image]) -> None:
    analyser = Analyser(bundle)
    with pytest.raises(InputError, match="NaN"):
        analyser.weigh(analyser.look(portraits[0]), Answer(np.full((1, 2), np.nan, np.float32), None))


def test_a_video_is_scored_frame_by_frame(bundle: Bundle, runtime: Runtime, clip: Path) -> None:
    found = analyse_video(Analyser(bundle), runtime, clip, frames=4, rule="mean-all", decoder_threads=1)
    assert [frame.index for frame in found.frames] == sorted({frame.index for frame in found.frames})
    assert len(found.frames) == 4
    scores = [frame.score for frame in found.frames if frame.score is not None]
    assert found.conclusion.aggregate.score == pytest.approx(np.mean(scores))
    assert found.conclusion.level == "video"
    assert any("max-mean" in note for note in found.conclusion.notes)
    assert set(found.timings) == {"decode", "find", "crop", "infer", "total"}
    with pytest.raises(InputError, match="rule"):
        analyse_video(Analyser(bundle), runtime, clip, rule="median")


def test_batches_change_no_score(runtime: Runtime) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (19, SIZE, SIZE, 3), dtype=np.uint8)
    whole = run_in_batches(runtime, crops)
    single = run_in_batches(runtime, crops, max_batch=1)
    assert whole is not None
    assert single is not None
    np.testing.assert_allclose(whole.logits, single.logits, atol=2e-5)
    assert whole.evidence is not None
    assert whole.evidence.shape == (19, 2, 2)
    assert run_in_batches(runtime, crops[:0]) is None
