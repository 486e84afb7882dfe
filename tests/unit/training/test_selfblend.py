"""Self-blending: held against the same steps done slowly on the whole image, and every promise it makes."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.selfblend import drawn_face
from pipeline.crop import Box, tight_window
from pipeline.errors import InputError
from training.masks import MASK_KINDS, blend_mask, flip_landmarks, outlines
from training.photometric import SourceRecipe, Tone, apply_photometric, apply_source
from training.selfblend import Pair, Recipe, blend, draw_recipe, follow_recipe, geometry, make_pair

WIDTH, HEIGHT = 303, 290


class Face(NamedTuple):
    image: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    box: Box


@pytest.fixture
def face() -> Face:
    return Face(*drawn_face(width=WIDTH, height=HEIGHT, face=(85, 60, 215, 230)))


@pytest.fixture(scope="module")
def recipes() -> list[Recipe]:
    rng = np.random.default_rng(0)
    return [draw_recipe(rng, phase="train") for _ in range(4000)]


def pair_of(face: Face, seed: int, **options: object) -> Pair:
    settings = {"phase": "train", **options}
    return make_pair(*face, np.random.default_rng(seed), **settings)  # type: ignore[arg-type]


def follow(face: Face, recipe: Recipe, *, seed: int = 0, quirks: bool = False) -> Pair:
    return follow_recipe(*face, recipe, np.random.default_rng(seed), reference_quirks=quirks)


def levels(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.abs(first.astype(np.int64) - second.astype(np.int64))


def slow_pair(face: Face, recipe: Recipe, *, seed: int, quirks: bool) -> Pair:
    """The method's steps in its order, each on the whole image, blended in double precision."""
    image, landmarks, box = face
    if recipe.flip:
        image = np.ascontiguousarray(image[:, ::-1])
        landmarks = flip_landmarks(landmarks, WIDTH)
        box = (WIDTH - box[2], box[1], WIDTH - box[0], box[3])
    changed = apply_source(image, recipe.source, reference_quirks=quirks)
    source, target = (changed, image) if recipe.change_source else (image, changed)
    matrix = geometry(recipe, WIDTH, HEIGHT)
    moved = cv2.warpAffine(source, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
    points = landmarks[:68] if recipe.drop_forehead else landmarks
    polygons = [
        (polygon @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
        for polygon in outlines(points, recipe.mask_kind)
    ]
    noise = np.random.default_rng(seed)
    weights = blend_mask(polygons, (WIDTH, HEIGHT), recipe.mask, noise, as_bytes=quirks).weights / 256
    fake = weights[..., None] * moved + (1 - weights[..., None]) * target
    layers = [target, np.floor(fake).astype(np.uint8)]
    if recipe.photometric is not None:
        layers = [apply_photometric(layer, recipe.photometric, reference_quirks=quirks) for layer in layers]
    x0, y0, x1, y1 = tight_window(box, WIDTH, HEIGHT, recipe.margins)
    real, blended = (layer[y0:y1, x0:x1] for layer in layers)
    return Pair(real, blended, weights[y0:y1, x0:x1].astype(np.float32))


@pytest.mark.parametrize("quirks", [False, True])
@pytest.mark.parametrize("phase", ["train", "val"])
def test_equals_the_steps_done_on_the_whole_image(face: Face, phase: str, quirks: bool) -> None:
    rng = np.random.default_rng(7)
    for seed in range(40):
        recipe = draw_recipe(rng, phase=phase, reference_quirks=quirks)  # type: ignore[arg-type]
        fast = follow(face, recipe, seed=seed, quirks=quirks)
        slow = slow_pair(face, recipe, seed=seed, quirks=quirks)
        # OpenCV's way back from HSV rounds differently in the last columns of a row, wherever they are, and
        # sharpening and JPEG magnify that. Other processors may do so in other operations too.
        allowed = 1.0 if quirks else 0.05
        assert levels(fast.real, slow.real).mean() < allowed
        np.testing.assert_array_equal(fast.mask, slow.mask)
        # OpenCV's warp reads coordinates in 1/32 pixel, which fall differently on a window.
        assert levels(fast.fake, slow.fake).mean() < allowed + 0.25
        assert np.percentile(levels(fast.fake, slow.fake), 99) <= 6


def test_equal_seeds_give_equal_pixels_and_others_do_not(face: Face) -> None:
    first, again, other = pair_of(face, 5), pair_of(face, 5), pair_of(face, 6)
    for name in ("real", "fake", "mask"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.fake.shape != other.fake.shape or not np.array_equal(first.fake, other.fake)


def test_global_generators_have_no_say(face: Face) -> None:
    before = pair_of(face, 3)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    after = pair_of(face, 3)
    np.testing.assert_array_equal(before.fake, after.fake)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # type: ignore[index]


def test_inputs_stay_as_they_are(face: Face) -> None:
    image, landmarks = face.image.copy(), face.landmarks.copy()
    for seed in range(12):
        pair = pair_of(face, seed)
        pair.real[:] = 0
        pair.fake[:] = 0
    np.testing.assert_array_equal(face.image, image)
    np.testing.assert_array_equal(face.landmarks, landmarks)


def test_shapes_and_types(face: Face) -> None:
    pair = pair_of(face, 0)
    assert pair.real.shape == pair.fake.shape == (*pair.mask.shape, 3)
    assert [str(array.dtype) for array in (pair.real, pair.fake, pair.mask)] == ["uint8", "uint8", "float32"]
    assert 0 <= pair.mask.min() < pair.mask.max() <= 1


@pytest.mark.parametrize("quirks", [False, True])
def test_fake_equals_real_outside_the_mask_and_differs_inside(face: Face, quirks: bool) -> None:
    for seed in range(20):
        pair = pair_of(face, seed, phase="val", reference_quirks=quirks)
        different = (pair.fake != pair.real).any(axis=2)
        assert not different[pair.mask == 0].any()
        assert different[pair.mask == pair.mask.max()].mean() > 0.3


def test_real_and_fake_share_window_and_change_after_blending(face: Face, recipes: list[Recipe]) -> None:
    # A source that is neither changed nor moved blends into an equal fake; what follows is shared by both.
    nothing = SourceRecipe(Tone(), downscale=None, sharpen=None)
    compressed = 0
    for recipe in recipes[:40]:
        pair = follow(face, replace(recipe, source=nothing, shift=(0.0, 0.0), scale=(1.0, 1.0)))
        assert pair.mask.max() > 0
        np.testing.assert_array_equal(pair.real, pair.fake)
        compressed += recipe.photometric is not None and recipe.photometric.jpeg_quality is not None
    assert compressed > 10


def test_real_is_the_untouched_crop_unless_the_target_was_changed(face: Face) -> None:
    x0, y0, x1, y1 = tight_window(face.box, WIDTH, HEIGHT)
    crop = face.image[y0:y1, x0:x1]
    rng = np.random.default_rng(2)
    for _ in range(12):
        recipe = draw_recipe(rng, phase="val")
        changed_source = follow(face, replace(recipe, change_source=True))
        changed_target = follow(face, replace(recipe, change_source=False))
        np.testing.assert_array_equal(changed_source.real, crop)
        expected = apply_source(face.image, recipe.source)[y0:y1, x0:x1]
        np.testing.assert_array_equal(changed_target.real, expected)
        assert not np.array_equal(changed_target.real, crop)


def test_flipping_equals_flipping_the_input(face: Face) -> None:
    uneven = face.landmarks + np.random.default_rng(1).normal(0, 3, (81, 2)).astype(np.float32)
    face = Face(face.image, uneven.astype(np.float32), (80.0, 60.0, 211.0, 230.0))
    mirrored = Face(
        np.ascontiguousarray(face.image[:, ::-1]),
        flip_landmarks(face.landmarks, WIDTH),
        (WIDTH - 211.0, 60.0, WIDTH - 80.0, 230.0),
    )
    rng = np.random.default_rng(4)
    for _ in range(8):
        recipe = draw_recipe(rng, phase="train")
        flipped = follow(face, replace(recipe, flip=True))
        given = follow(mirrored, replace(recipe, flip=False))
        np.testing.assert_array_equal(flipped.real, given.real)
        np.testing.assert_array_equal(flipped.fake, given.fake)
        np.testing.assert_array_equal(flipped.mask, given.mask)


def test_mask_covers_the_face_in_flipped_images_too(face: Face) -> None:
    # Eye and mouth are the only dark places drawn: where the mask is full they must be found.
    recipe = draw_recipe(np.random.default_rng(0), phase="val")
    small = replace(recipe.mask, erode_kernel=5, blur_kernel=5, ratio=1.0)
    plain = replace(recipe, mask_kind="full", shift=(0.0, 0.0), scale=(1.0, 1.0), mask=small)
    for flip in (False, True):
        pair = follow(Face(*face), replace(plain, flip=flip))
        dark = pair.real.max(axis=2) < 90
        assert dark.sum() > 500
        assert pair.mask[dark].mean() > 0.9


def test_window_is_the_crop_contracts(face: Face, recipes: list[Recipe]) -> None:
    for recipe in recipes[:20]:
        box = (
            face.box
            if not recipe.flip
            else (WIDTH - face.box[2], face.box[1], WIDTH - face.box[0], face.box[3])
        )
        x0, y0, x1, y1 = tight_window(box, WIDTH, HEIGHT, recipe.margins)
        assert follow(face, recipe).real.shape == (y1 - y0, x1 - x0, 3)
    x0, y0, x1, y1 = tight_window(face.box, WIDTH, HEIGHT)
    assert pair_of(face, 0, phase="val").real.shape == (y1 - y0, x1 - x0, 3)


def test_recipes_keep_to_their_ranges(recipes: list[Recipe]) -> None:
    for chance, wanted in (
        ([recipe.flip for recipe in recipes], 0.5),
        ([recipe.drop_forehead for recipe in recipes], 0.25),
        ([recipe.change_source for recipe in recipes], 0.5),
        *(([recipe.mask_kind == kind for recipe in recipes], 0.25) for kind in MASK_KINDS),
    ):
        assert np.mean(chance) == pytest.approx(wanted, abs=0.03)
    shift_x, shift_y = np.array([recipe.shift for recipe in recipes]).T
    for values, lowest, highest in (
        (shift_x, -0.03, 0.03),
        (shift_y, -0.015, 0.015),
        (np.array([recipe.scale for recipe in recipes]), 0.95, 1 / 0.95),
        (np.array([recipe.margins for recipe in recipes]), 0.05, 0.20),
    ):
        assert lowest <= values.min() < lowest + 0.02 * (highest - lowest)
        assert highest - 0.02 * (highest - lowest) < values.max() <= highest
        assert values.mean() == pytest.approx((lowest + highest) / 2, abs=0.02 * (highest - lowest))
    scale_x, scale_y = np.array([recipe.scale for recipe in recipes]).T
    margins = np.array([recipe.margins for recipe in recipes]).T
    # Drawn apart from each other: no two numbers move together.
    drawn = np.corrcoef(np.stack([shift_x, shift_y, scale_x, scale_y, *margins]))
    assert np.abs(drawn - np.eye(8)).max() < 0.06


def test_val_phase_blends_but_changes_nothing_else() -> None:
    rng = np.random.default_rng(0)
    recipes = [draw_recipe(rng, phase="val") for _ in range(300)]
    assert {recipe.flip for recipe in recipes} == {False}
    assert {recipe.photometric for recipe in recipes} == {None}
    assert {recipe.margins for recipe in recipes} == {(0.125,) * 4}
    assert {recipe.mask_kind for recipe in recipes} == set(MASK_KINDS)
    assert {recipe.change_source for recipe in recipes} == {True, False}


@pytest.mark.parametrize("phase", ["train", "val"])
def test_quirks_change_mask_shape_and_hsv_only(phase: str) -> None:
    for seed in range(60):
        sane, quirky = (
            draw_recipe(np.random.default_rng(seed), phase=phase, reference_quirks=quirks)  # type: ignore[arg-type]
            for quirks in (False, True)
        )
        assert quirky.mask_kind == "hull"
        assert without_hsv(replace(sane, mask_kind="hull")) == without_hsv(quirky)


def without_hsv(recipe: Recipe) -> Recipe:
    def bare(tone: Tone) -> Tone:
        return replace(tone, hsv=None)

    photometric = recipe.photometric
    return replace(
        recipe,
        source=replace(recipe.source, tone=bare(recipe.source.tone)),
        photometric=None if photometric is None else replace(photometric, tone=bare(photometric.tone)),
    )


def test_quirky_masks_are_larger_because_they_are_hardly_eroded(face: Face) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        recipe = replace(draw_recipe(rng, phase="val"), mask_kind="hull", drop_forehead=False)
        sane, quirky = (follow(face, recipe, quirks=quirks).mask.mean() for quirks in (False, True))
        assert quirky > sane


def test_geometry_scales_about_the_centre_and_shifts_by_shares() -> None:
    recipe = replace(
        draw_recipe(np.random.default_rng(0), phase="val"), shift=(0.03, -0.01), scale=(1.05, 0.95)
    )
    matrix = geometry(recipe, 201, 101)
    np.testing.assert_allclose(matrix @ [100, 50, 1], [100 + 0.03 * 201, 50 - 0.01 * 101])
    np.testing.assert_allclose(matrix @ [0, 0, 1], [100 - 105 + 0.03 * 201, 50 - 47.5 - 0.01 * 101])


def test_source_brings_black_in_from_beyond_the_image() -> None:
    # A face at the left border: moved right, its source shows black where the image ended.
    image, landmarks, box = drawn_face(width=200, height=200, face=(-30, 20, 130, 190))
    recipe = draw_recipe(np.random.default_rng(0), phase="val")
    recipe = replace(
        recipe,
        mask_kind="hull",
        drop_forehead=False,
        shift=(0.03, 0.0),
        scale=(1.0, 1.0),
        change_source=False,
        mask=replace(recipe.mask, erode_kernel=5, blur_kernel=5, ratio=1.0, elastic_alpha=0.0),
    )
    pair = follow(Face(image, landmarks, box), recipe)
    edge = pair.fake[60:120, :5].astype(int)
    assert pair.mask[60:120, :5].min() == 1.0
    assert edge.max() == 0


def test_blend_is_exact_where_source_and_target_agree() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    weights = rng.integers(0, 257, (40, 30)).astype(np.uint16)
    np.testing.assert_array_equal(blend(image, image, weights), image)


def test_blend_drops_the_fraction() -> None:
    source, target = np.full((1, 4, 3), 255, np.uint8), np.full((1, 4, 3), 100, np.uint8)
    weights = np.array([[0, 64, 255, 256]], np.uint16)
    # 100 + 155 w: 100, 138.75, 254.4, 255.
    assert blend(source, target, weights)[0, :, 0].tolist() == [100, 138, 254, 255]


def test_typical_strength_of_the_difference(face: Face) -> None:
    pairs = [pair_of(face, seed) for seed in range(150)]
    areas = [float((pair.mask > 0).mean()) for pair in pairs]
    changes = [float(levels(pair.fake, pair.real)[pair.mask > 0.2].mean()) for pair in pairs]
    assert 0.2 < np.mean(areas) < 0.6
    # Subtle, but there: a few levels on average, and no pair without any.
    assert 4 < np.mean(changes) < 20
    assert min(changes) > 0.3


@pytest.mark.parametrize("seed", range(6))
def test_faces_cut_by_the_image_border_are_blended(seed: int) -> None:
    image, landmarks, box = drawn_face(width=180, height=170, face=(-40, 30, 110, 215))
    pair = make_pair(image, landmarks, box, np.random.default_rng(seed), phase="train")
    assert pair.mask.max() > 0


def test_small_faces_are_blended() -> None:
    image, landmarks, box = drawn_face(width=40, height=44, face=(12, 10, 28, 30))
    for seed in range(30):
        pair = make_pair(image, landmarks, box, np.random.default_rng(seed), phase="train")
        assert pair.mask.max() > 0


def test_a_mask_whose_rest_is_outside_the_crop_gives_way_to_the_hull(face: Face) -> None:
    # A box on the upper half only, whose window ends above what heavy erosion leaves of the parts.
    box = (85.0, 60.0, 215.0, 150.0)
    recipe = replace(draw_recipe(np.random.default_rng(0), phase="val"), mask_kind="components")
    recipe = replace(recipe, mask=replace(recipe.mask, erode_kernel=25, blur_kernel=5))
    tight = replace(recipe, margins=(0.0, 0.0, 0.0, -0.42))
    pair = follow(Face(face.image, face.landmarks, box), tight)
    assert pair.mask.max() == pytest.approx(recipe.mask.ratio, abs=0.005)
    assert (pair.mask > 0).mean() > 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: Face(f.image.astype(np.float32), f.landmarks, f.box), "RGB uint8"),
        (lambda f: Face(f.image[..., 0], f.landmarks, f.box), "RGB uint8"),
        (lambda f: Face(f.image, f.landmarks[:5], f.box), "Landmarks must be"),
        (lambda f: Face(f.image, f.landmarks + 400, f.box), "Only 0 of 81 landmarks lie inside"),
        (lambda f: Face(f.image, f.landmarks * 0 + 120, f.box), "at least 8 by 8"),
        (lambda f: Face(f.image, f.landmarks * np.float32(np.nan), f.box), "Only 0 of 81"),
        (lambda f: Face(f.image, f.landmarks, (220.0, 60.0, 300.0, 200.0)), "lies outside the face box"),
        (lambda f: Face(f.image, f.landmarks, (215.0, 60.0, 85.0, 230.0)), "face box"),
        (lambda f: Face(f.image, f.landmarks, (float("nan"),) * 4), "face box"),
    ],
)
def test_faces_that_do_not_fit_are_refused(face: Face, change: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pair_of(change(face), 0)  # type: ignore[operator]
