"""The shapes: where they lie, that they mirror, how far they are eroded, and what happens to thin ones."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.selfblend import upright_landmarks
from training.masks import (
    ELASTIC_SIGMA,
    MASK_KINDS,
    MIRROR,
    RATIOS,
    BlendMaskRecipe,
    MaskKind,
    blend_mask,
    draw_blend_mask_recipe,
    draw_outlines,
    elastic_displacement,
    face_mask,
    flip_landmarks,
    outlines,
)

SIDE = 240
# A grid of the image's own size: one grid pixel is one image pixel.
PLAIN = BlendMaskRecipe(
    height=SIDE, width=SIDE, erode_kernel=11, blur_kernel=5, blur_sigma=10, ratio=1.0, elastic_alpha=0.0
)


@pytest.fixture
def landmarks() -> NDArray[np.float32]:
    """A face of 160x200 pixels in an image of 240x240, mirror-symmetric about x = 119.5."""
    points = upright_landmarks() * np.array([160, 200], np.float32) + np.array([39.5, 20], np.float32)
    return np.asarray(points, np.float32)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[NDArray[np.float32]]:
    return [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32)]


def test_mirror_is_its_own_inverse_and_swaps_sides() -> None:
    assert sorted(MIRROR) == list(range(81))
    np.testing.assert_array_equal(MIRROR[MIRROR], np.arange(81))
    pairs = {0: 16, 8: 8, 17: 26, 21: 22, 27: 27, 31: 35, 33: 33, 36: 45, 37: 44, 39: 42, 40: 47, 41: 46}
    pairs |= {48: 54, 49: 53, 51: 51, 57: 57, 58: 56, 60: 64, 62: 62, 66: 66, 67: 65, 68: 80, 74: 74}
    assert {point: int(MIRROR[point]) for point in pairs} == pairs


@pytest.mark.parametrize("count", [68, 81])
def test_flipping_twice_is_the_identity(landmarks: NDArray[np.float32], count: int) -> None:
    landmarks = landmarks[:count] + np.random.default_rng(0).normal(0, 3, (count, 2)).astype(np.float32)
    before = landmarks.copy()
    flipped = flip_landmarks(landmarks, SIDE)
    assert not np.array_equal(flipped, landmarks)
    np.testing.assert_allclose(flip_landmarks(flipped, SIDE), landmarks, atol=1e-4)
    np.testing.assert_array_equal(landmarks, before)


def test_flip_keeps_the_meaning_of_points(landmarks: NDArray[np.float32]) -> None:
    landmarks[36] = (61.0, 100.0)  # outer corner of the eye at image-left
    flipped = flip_landmarks(landmarks, SIDE)
    assert flipped[45].tolist() == [SIDE - 1 - 61.0, 100.0]
    # The face is symmetric, so mirrored points land on the points whose place they take.
    np.testing.assert_allclose(np.delete(flipped, [36, 45], 0), np.delete(landmarks, [36, 45], 0), atol=1e-3)


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_a_mirrored_face_has_the_mirrored_mask(landmarks: NDArray[np.float32], kind: MaskKind) -> None:
    landmarks = landmarks + np.random.default_rng(1).normal(0, 4, landmarks.shape).astype(np.float32)
    mask = face_mask(landmarks, kind, SIDE, SIDE)
    mirrored = face_mask(flip_landmarks(landmarks, SIDE), kind, SIDE, SIDE)
    # Outlines are anti-aliased, hence not exactly symmetric.
    assert np.mean(np.abs(mask[:, ::-1] - mirrored)) < 0.003


def test_shapes_cover_what_they_are_named_for(landmarks: NDArray[np.float32]) -> None:
    masks = {kind: face_mask(landmarks, kind, SIDE, SIDE) for kind in MASK_KINDS}
    hull_68 = face_mask(landmarks[:68], "hull", SIDE, SIDE)

    def at(kind: MaskKind, point: NDArray[np.float32]) -> float:
        x, y = np.round(point).astype(int)
        return float(masks[kind][y, x])

    mouth, forehead = landmarks[62], landmarks[74] + np.array([0, 12], np.float32)
    above_brow = landmarks[19] - np.array([0, 4], np.float32)
    beside_nose = (landmarks[30] + landmarks[40]) / 2
    assert [at(kind, mouth) for kind in MASK_KINDS] == [1.0] * 4
    assert [at(kind, forehead) for kind in MASK_KINDS] == [0.0, 0.0, 0.0, 1.0]
    assert [at(kind, above_brow) for kind in MASK_KINDS] == [0.0, 1.0, 0.0, 1.0]
    assert at("components", landmarks[29] + np.array([-6, 2], np.float32)) == 0.0
    assert at("full", beside_nose) == 1.0
    area = {kind: float(mask.sum()) for kind, mask in masks.items()}
    assert area["components"] < area["full"] < area["extended"] < area["hull"]
    # Nothing but the hull and the raised brows leaves the hull of the 68 points (by more than an outline).
    assert np.maximum(masks["full"] - hull_68, 0).sum() < 2
    assert np.maximum(masks["components"] - hull_68, 0).sum() < 2


def test_full_face_has_no_slit_at_ear_height(landmarks: NDArray[np.float32]) -> None:
    for kind in ("full", "extended"):
        count, _ = cv2.connectedComponents((face_mask(landmarks, kind, SIDE, SIDE) == 0).astype(np.uint8))
        assert count == 2  # the label of the inside, and one connected outside: no holes


def test_brows_are_raised_by_half_their_gap(landmarks: NDArray[np.float32]) -> None:
    landmarks[17:27, 1] = 90.0
    landmarks[[37, 38, 43, 44], 1] = 110.0
    highest = min(float(polygon[:, 1].min()) for polygon in outlines(landmarks, "extended"))
    assert highest == pytest.approx(80.0)


def test_forehead_matters_to_the_hull_only(landmarks: NDArray[np.float32]) -> None:
    for kind in MASK_KINDS:
        same = np.array_equal(
            face_mask(landmarks, kind, SIDE, SIDE), face_mask(landmarks[:68], kind, SIDE, SIDE)
        )
        assert same == (kind != "hull")


def test_outlines_are_drawn_to_a_fraction_of_a_pixel() -> None:
    mask = draw_outlines(rectangle(10.0, 10.0, 20.5, 20.0), 40, 40)
    assert mask[15, 10] == 255
    assert mask[15, 20] == 255
    assert 0 < mask[15, 21] < 255
    assert mask[15, 23] == 0
    assert mask[5, 15] == 0


@pytest.mark.parametrize("kernel", [5, 11, 25])
def test_erosion_takes_half_the_kernel_from_each_side(kernel: int) -> None:
    recipe = replace(PLAIN, erode_kernel=kernel, blur_kernel=5)
    mask = blend_mask(rectangle(60, 70, 180, 190), (SIDE, SIDE), recipe, np.random.default_rng(0))
    kept = np.argwhere(mask.weights == 256)
    # Pixels 60..180 are inside; the first blur takes kernel//2, the second softens 2 more of what is left.
    lost = kernel // 2 + 2
    assert kept.min(axis=0).tolist() == [70 + lost, 60 + lost]
    assert kept.max(axis=0).tolist() == [190 - lost, 180 - lost]
    x0, y0, x1, y1 = mask.extent
    outside = mask.weights.copy()
    outside[y0:y1, x0:x1] = 0
    assert outside.max() == 0
    assert (x0, y0) <= (60 + kernel // 2 - 2, 70 + kernel // 2 - 2)
    assert x0 > 60 + kernel // 2 - 6


def slow_weights(
    polygons: list[NDArray[np.float32]], canvas: tuple[int, int], recipe: BlendMaskRecipe
) -> NDArray[np.float64]:
    """Step by step as the method tells it, at full size and in double precision."""
    full = draw_outlines(polygons, canvas[1], canvas[0]).astype(np.float64) / 255
    mask = cv2.resize(full, (recipe.width, recipe.height), interpolation=cv2.INTER_LINEAR)
    mask = cv2.GaussianBlur(mask, (recipe.erode_kernel,) * 2, 0)
    mask = mask / mask.max()
    mask[mask < 1 - 1e-9] = 0
    mask = cv2.GaussianBlur(mask, (recipe.blur_kernel,) * 2, recipe.blur_sigma)
    mask = mask / mask.max()
    return np.asarray(cv2.resize(mask, canvas, interpolation=cv2.INTER_LINEAR) * recipe.ratio)


@pytest.mark.parametrize("seed", range(12))
def test_small_grid_equals_the_plain_recipe_at_full_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = 720, 621
    points = upright_landmarks() * np.array([300, 400], np.float32) + np.array([210, 110], np.float32)
    points += rng.normal(0, 3, points.shape).astype(np.float32)
    # No components here: at full size slits of a pixel decide what their erosion leaves.
    polygons = outlines(points.astype(np.float32), ("full", "extended", "hull")[seed % 3])
    recipe = replace(draw_blend_mask_recipe(rng), elastic_alpha=0.0)
    fast = blend_mask(polygons, (width, height), recipe, rng).weights / 256
    slow = slow_weights(polygons, (width, height), recipe)
    assert fast.max() == pytest.approx(recipe.ratio, abs=0.004)
    # An outline may fall on the next grid pixel: the soft border then shifts by one.
    assert np.abs(fast - slow).mean() < 0.012 * recipe.ratio
    assert abs(fast.mean() / slow.mean() - 1) < 0.06


def test_mean_weight_equals_the_plain_recipe_over_many_draws() -> None:
    points = upright_landmarks() * np.array([300, 400], np.float32) + np.array([210, 110], np.float32)
    fast, slow = [], []
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        polygons = outlines(points.astype(np.float32), MASK_KINDS[seed % 4])
        recipe = draw_blend_mask_recipe(rng)
        fast.append(float(blend_mask(polygons, (720, 621), recipe, rng).weights.mean()) / 256)
        slow.append(float(slow_weights(polygons, (720, 621), recipe).mean()))
    assert np.mean(fast) == pytest.approx(np.mean(slow), rel=0.05)
    assert np.std(fast) == pytest.approx(np.std(slow), rel=0.05)


def test_bytes_are_hardly_eroded() -> None:
    face = rectangle(60, 70, 180, 190)
    recipe = replace(PLAIN, erode_kernel=25, blur_kernel=5)
    as_floats = blend_mask(face, (SIDE, SIDE), recipe, np.random.default_rng(0))
    as_bytes = blend_mask(face, (SIDE, SIDE), recipe, np.random.default_rng(0), as_bytes=True)
    full_area = 121 * 121
    assert (as_bytes.weights > 128).sum() == pytest.approx(full_area, rel=0.02)
    assert (as_floats.weights > 128).sum() == pytest.approx(97 * 97, rel=0.02)


def test_thin_shape_is_eroded_by_smaller_kernels_instead_of_away() -> None:
    # 9 pixels high: a kernel of 25 leaves nothing, 25 -> 13 -> 7 does.
    recipe = replace(PLAIN, erode_kernel=25, blur_kernel=5, blur_sigma=5)
    mask = blend_mask(rectangle(60, 100, 180, 108), (SIDE, SIDE), recipe, np.random.default_rng(0))
    assert mask.weights.max() == 256
    rows = np.flatnonzero(mask.weights.any(axis=1))
    # Rows 103..105 are kept, and the second blur reaches 2 further.
    assert rows.tolist() == list(range(101, 108))


def test_shape_smaller_than_a_pixel_keeps_its_most_covered_pixel() -> None:
    dot = [np.array([[50.3, 60.2], [50.6, 60.2], [50.4, 60.5]], np.float32)]
    mask = blend_mask(dot, (SIDE, SIDE), PLAIN, np.random.default_rng(0))
    y, x = np.unravel_index(int(mask.weights.argmax()), mask.weights.shape)
    assert mask.weights.max() == 256
    assert abs(x - 50) <= 1
    assert abs(y - 60) <= 1


def test_shape_outside_the_image_has_no_weight() -> None:
    mask = blend_mask(rectangle(500, 500, 600, 600), (SIDE, SIDE), PLAIN, np.random.default_rng(0))
    assert mask.weights.shape == (SIDE, SIDE)
    assert not mask.weights.any()
    assert mask.extent == (0, 0, 0, 0)


def test_shape_at_the_image_border_is_not_eroded_there() -> None:
    # Blurring mirrors the image at its border, so a shape that goes on beyond it stays whole there.
    recipe = replace(PLAIN, erode_kernel=11, blur_kernel=5)
    mask = blend_mask(rectangle(-50, 70, 100, 190), (SIDE, SIDE), recipe, np.random.default_rng(0))
    assert mask.weights[130, 0] == 256
    assert mask.weights[130, 95] < 256


def test_ratio_is_the_largest_weight() -> None:
    for ratio in (0.25, 0.5, 0.75, 1.0):
        recipe = replace(PLAIN, ratio=ratio)
        mask = blend_mask(rectangle(60, 70, 180, 190), (SIDE, SIDE), recipe, np.random.default_rng(0))
        assert mask.weights.max() == 256 * ratio


def test_elastic_noise_has_the_spread_and_ripple_of_full_size_noise() -> None:
    alpha, scale = 50.0, (0.31, 0.36)
    expected = alpha / np.sqrt(3) / (2 * np.sqrt(np.pi) * ELASTIC_SIGMA)
    along_x, along_y = elastic_displacement(256, 256, scale, alpha, np.random.default_rng(3))
    noise = np.random.default_rng(4).uniform(-1, 1, (700, 800))
    slow = alpha * np.asarray(cv2.GaussianBlur(noise, (0, 0), ELASTIC_SIGMA))
    assert float(slow.std()) == pytest.approx(expected, rel=0.05)
    assert float(along_x.std()) / scale[0] == pytest.approx(expected, rel=0.06)
    assert float(along_y.std()) / scale[1] == pytest.approx(expected, rel=0.06)
    assert abs(float(along_x.mean())) < 0.05 * expected

    def correlation(field: NDArray[np.floating], step: int) -> float:
        return float(np.corrcoef(field[:, step:].ravel(), field[:, :-step].ravel())[0, 1])

    # Three grid pixels along x are 9.7 image pixels; smoothed noise correlates as exp(-d^2 / 4 sigma^2).
    distance = 3 / scale[0]
    assert correlation(along_x, 3) == pytest.approx(np.exp(-(distance**2) / (4 * 49)), abs=0.05)
    assert correlation(slow, 10) == pytest.approx(np.exp(-100 / (4 * 49)), abs=0.05)
    # The two directions are independent.
    assert abs(np.corrcoef(along_x.ravel(), along_y.ravel())[0, 1]) < 0.1


def test_recipes_keep_to_their_ranges() -> None:
    rng = np.random.default_rng(0)
    recipes = [draw_blend_mask_recipe(rng) for _ in range(3000)]
    for values, lowest, highest in (
        ([recipe.height for recipe in recipes], 192, 256),
        ([recipe.width for recipe in recipes], 192, 256),
        ([recipe.blur_sigma for recipe in recipes], 5, 45),
    ):
        assert set(values) == set(range(lowest, highest + 1))
    for kernels in ([r.erode_kernel for r in recipes], [r.blur_kernel for r in recipes]):
        assert set(kernels) == set(range(5, 26, 2))
    ratios = np.array([recipe.ratio for recipe in recipes])
    assert set(ratios) == set(RATIOS)
    assert np.mean(ratios == 1.0) == pytest.approx(0.5, abs=0.04)
    assert np.mean(ratios == 0.25) == pytest.approx(1 / 6, abs=0.03)
    assert {recipe.elastic_alpha for recipe in recipes} == {50.0}
