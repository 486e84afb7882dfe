"""Make a training pair from one real face: the face, and the face blended with a changed copy of itself.

The method is self-blended images (Shiohara and Yamasaki, CVPR 2022). Nothing outside the final crop is
ever seen, so every step works on the crop's pixels (and the few around them that it needs) and on a small
grid for the mask; tests hold the result against the same steps done slowly on the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.crop import TEST_MARGIN, Box, Margins, Window, tight_window
from pipeline.errors import InputError
from training.masks import (
    MASK_KINDS,
    BlendMask,
    BlendMaskRecipe,
    MaskKind,
    Points,
    blend_mask,
    draw_blend_mask_recipe,
    flip_landmarks,
    outlines,
)
from training.photometric import (
    Image,
    PhotometricRecipe,
    SourceRecipe,
    apply_photometric,
    apply_source,
    draw_photometric,
    draw_source,
)

Phase: TypeAlias = Literal["train", "val"]

SHIFT_X, SHIFT_Y = 0.03, 0.015
SCALE_RANGE = (0.95, 1 / 0.95)
MARGIN_RANGE = (0.05, 0.20)
FOREHEAD_DROP = 0.25

_LANDMARK_COUNTS = (68, 81)
# Pixels around a region that the 4-times downscale, the sharpening and the resampling look at.
_REACH = 8
# JPEG codes blocks of 16x16 pixels (8x8 of halved colour), counted from the image's corner.
_JPEG_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Pair:
    """A real face and its self-blended twin, both cut to the tight crop, before any resize.

    Attributes:
        real: RGB uint8 [h, w, 3].
        fake: RGB uint8 [h, w, 3].
        mask: float32 [h, w], the weight of the source in `fake`, 0..1 in steps of 1/256.
    """

    real: Image
    fake: Image
    mask: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything drawn for one pair, apart from the noise that wobbles the mask.

    Attributes:
        flip: Mirror the image left to right first.
        drop_forehead: Use the 68 points only.
        mask_kind: Shape of the mask.
        change_source: The source is changed before blending; otherwise the target is, and with it the real.
        source: That change.
        shift: Translation of source and mask along x and y, as a share of image width and height.
        scale: Their scale along x and y, about the image's centre.
        mask: How the mask is eroded and softened.
        photometric: What both get after blending; None in the val phase.
        margins: Left, top, right, bottom of the tight crop, as shares of the box's side.
    """

    flip: bool
    drop_forehead: bool
    mask_kind: MaskKind
    change_source: bool
    source: SourceRecipe
    shift: tuple[float, float]
    scale: tuple[float, float]
    mask: BlendMaskRecipe
    photometric: PhotometricRecipe | None
    margins: Margins


def draw_recipe(rng: np.random.Generator, *, phase: Phase, reference_quirks: bool = False) -> Recipe:
    """Draw one recipe; the val phase draws the blending but no flip, no photometric change, fixed margins."""
    training = phase == "train"
    flip = bool(rng.random() < 0.5)
    drop_forehead = bool(rng.random() < FOREHEAD_DROP)
    kind = MASK_KINDS[int(rng.integers(len(MASK_KINDS)))]
    change_source = bool(rng.random() < 0.5)
    shift_x, shift_y = rng.uniform((-SHIFT_X, -SHIFT_Y), (SHIFT_X, SHIFT_Y))
    scale_x, scale_y = rng.uniform(*SCALE_RANGE, size=2)
    left, top, right, bottom = (float(m) for m in rng.uniform(*MARGIN_RANGE, size=4))
    return Recipe(
        flip=flip and training,
        drop_forehead=drop_forehead,
        mask_kind="hull" if reference_quirks else kind,
        change_source=change_source,
        source=draw_source(rng, reference_quirks=reference_quirks),
        shift=(float(shift_x), float(shift_y)),
        scale=(float(scale_x), float(scale_y)),
        mask=draw_blend_mask_recipe(rng),
        photometric=draw_photometric(rng, reference_quirks=reference_quirks) if training else None,
        margins=(left, top, right, bottom) if training else (TEST_MARGIN,) * 4,
    )


def make_pair(
    image: Image,
    landmarks: Points,
    box: Box,
    rng: np.random.Generator,
    *,
    phase: Phase,
    reference_quirks: bool = False,
) -> Pair:
    """Blend a face with itself.

    Args:
        image: RGB uint8 [H, W, 3], the loose crop around one real face.
        landmarks: float32 [81 or 68, 2], x and y in image pixels, canonical order (see `training.masks`).
        box: The face finder's x0, y0, x1, y1 in image pixels; the tight crop is cut from it.
        rng: The only source of chance: equal arguments and generator state give equal pixels.
        phase: "train", or "val" (no flip, no change after blending, fixed margins).
        reference_quirks: Reproduce two oddities of the widely used recipe: the mask is always the points'
            hull as 8-bit 0/1 (so that hardly anything is eroded), and hue, saturation and value are shifted
            by ±0.3 8-bit steps (so that they change by 0 or -1).

    Returns:
        The pair; real and fake are cut by the same window and went through the same change after blending.

    Raises:
        InputError: Landmarks or box do not fit the image or each other.
    """
    check_face(image, landmarks, box)
    recipe = draw_recipe(rng, phase=phase, reference_quirks=reference_quirks)
    return follow_recipe(image, landmarks, box, recipe, rng, reference_quirks=reference_quirks)


def follow_recipe(
    image: Image,
    landmarks: Points,
    box: Box,
    recipe: Recipe,
    rng: np.random.Generator,
    *,
    reference_quirks: bool = False,
) -> Pair:
    """The pair that a drawn recipe makes; arguments as in `make_pair`, `rng` gives the mask's noise only."""
    height, width = image.shape[:2]
    if recipe.flip:
        image = np.asarray(cv2.flip(image, 1), np.uint8)
        landmarks = flip_landmarks(landmarks, width)
        box = (width - box[2], box[1], width - box[0], box[3])
    window = tight_window(box, width, height, recipe.margins)
    work = _work_region(window, recipe, width, height)
    part, weights = _weights(landmarks, (width, height), window, work, recipe, rng, reference_quirks)
    source, target = _layers(image, work, part, recipe, reference_quirks)
    fake = target.copy()
    inner = _inside(part, work)
    fake[inner] = blend(source, target[inner], weights)
    real = target
    if recipe.photometric is not None:
        real, fake = (
            apply_photometric(layer, recipe.photometric, reference_quirks=reference_quirks)
            for layer in (real, fake)
        )
    full = np.zeros(target.shape[:2], np.float32)
    np.multiply(weights, np.float32(1 / 256), out=full[inner])
    cut = _inside(window, work)
    return Pair(real[cut], fake[cut], full[cut])


def blend(source: Image, target: Image, weights: NDArray[np.uint16]) -> Image:
    """weights/256 of source, the rest target, the fraction dropped; exact where the two are equal.

    Args:
        source: RGB uint8 [h, w, 3].
        target: RGB uint8 [h, w, 3].
        weights: uint16 [h, w] in 0..256.

    Returns:
        RGB uint8 [h, w, 3].
    """
    share = np.asarray(cv2.merge([weights, weights, weights]), np.uint16)
    # At most 255 * 256: fits 16 bits.
    mixed = share * source
    np.subtract(256, share, out=share)
    share *= target
    mixed += share
    mixed >>= 8
    return mixed.astype(np.uint8)


def geometry(recipe: Recipe, width: int, height: int) -> NDArray[np.float64]:
    """The affine map [2, 3] that moves source and mask, in pixel-centre coordinates of the image."""
    (scale_x, scale_y), (shift_x, shift_y) = recipe.scale, recipe.shift
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    return np.array(
        [
            [scale_x, 0.0, (1 - scale_x) * centre_x + shift_x * width],
            [0.0, scale_y, (1 - scale_y) * centre_y + shift_y * height],
        ]
    )


def _weights(
    landmarks: Points,
    canvas: tuple[int, int],
    window: Window,
    work: Window,
    recipe: Recipe,
    rng: np.random.Generator,
    as_bytes: bool,
) -> tuple[Window, NDArray[np.uint16]]:
    """The blended part of the work region and its weights, not all zero within the window.

    Erosion can leave of a shape of several parts only those outside the crop, if the face reaches beyond
    the image. A fake that equals its real would be a wrong label, so the hull, uneroded, takes its place.
    """
    plain = replace(recipe, mask_kind="hull", mask=replace(recipe.mask, erode_kernel=1, elastic_alpha=0.0))
    for attempt in (recipe, plain):
        mask = _moved_mask(landmarks, attempt, canvas, rng, as_bytes)
        part, seen = _intersection(mask.extent, work), _intersection(mask.extent, window)
        if part is not None and seen is not None and mask.weights[_at(seen)].any():
            return part, mask.weights[_at(part)]
    raise InputError(
        f"The crop window {window} holds nothing of the landmarks' hull: box and landmarks belong to "
        "different faces. Prepare the folder again."
    )


def _moved_mask(
    landmarks: Points,
    recipe: Recipe,
    canvas: tuple[int, int],
    rng: np.random.Generator,
    as_bytes: bool,
) -> BlendMask:
    matrix = geometry(recipe, *canvas)
    points = landmarks[:68] if recipe.drop_forehead else landmarks
    gain, offset = np.float32(matrix[[0, 1], [0, 1]]), np.float32(matrix[:, 2])
    polygons = [polygon * gain + offset for polygon in outlines(points, recipe.mask_kind)]
    return blend_mask(polygons, canvas, recipe.mask, rng, as_bytes=as_bytes)


def _layers(
    image: Image,
    work: Window,
    part: Window,
    recipe: Recipe,
    quirks: bool,
) -> tuple[Image, Image]:
    """The moved source on the blended part and the target on the work region; one of them changed."""
    height, width = image.shape[:2]
    matrix = geometry(recipe, width, height)
    (scale_x, scale_y), (shift_x, shift_y) = matrix[[0, 1], [0, 1]], matrix[:, 2]
    x0, y0, x1, y1 = part
    seen = (
        (x0 - shift_x) / scale_x,
        (y0 - shift_y) / scale_y,
        (x1 - shift_x) / scale_x,
        (y1 - shift_y) / scale_y,
    )
    origin = _grown(_whole_pixels(seen), _REACH, 4, width, height)
    source = image[_at(origin)]
    around = _grown(work, _REACH, 4, width, height)
    if recipe.change_source:
        source = apply_source(source, recipe.source, reference_quirks=quirks)
        target = image[_at(work)].copy()  # the caller keeps the image
    else:
        target = apply_source(image[_at(around)], recipe.source, reference_quirks=quirks)[
            _inside(work, around)
        ]
    local = matrix.copy()
    local[:, 2] += matrix[:, :2] @ np.array(origin[:2], np.float64) - np.array(part[:2], np.float64)
    moved = cv2.warpAffine(source, local, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
    return np.asarray(moved, np.uint8), target


def _work_region(window: Window, recipe: Recipe, width: int, height: int) -> Window:
    """The tight crop, or the JPEG blocks that it touches if it is to be compressed."""
    if recipe.photometric is None or recipe.photometric.jpeg_quality is None:
        return window
    # Two pixels more: the decoder smooths colour across block borders.
    return _grown(window, 2, _JPEG_BLOCK, width, height)


def _grown(region: Window, reach: int, multiple: int, width: int, height: int) -> Window:
    """The region plus `reach` on each side, its corners moved out to multiples, clipped to the image."""
    x0, y0, x1, y1 = region
    left = min(max(0, (x0 - reach) // multiple * multiple), width - 1)
    top = min(max(0, (y0 - reach) // multiple * multiple), height - 1)
    right = max(min(width, -(-(x1 + reach) // multiple) * multiple), left + 1)
    bottom = max(min(height, -(-(y1 + reach) // multiple) * multiple), top + 1)
    return left, top, right, bottom


def _whole_pixels(area: tuple[float, float, float, float]) -> Window:
    x0, y0, x1, y1 = area
    return int(np.floor(x0)), int(np.floor(y0)), int(np.ceil(x1)) + 1, int(np.ceil(y1)) + 1


def _intersection(first: Window, second: Window) -> Window | None:
    x0, y0 = max(first[0], second[0]), max(first[1], second[1])
    x1, y1 = min(first[2], second[2]), min(first[3], second[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _at(window: Window) -> tuple[slice, slice]:
    """Index of a window within an array of the whole image."""
    return slice(window[1], window[3]), slice(window[0], window[2])


def _inside(inner: Window, outer: Window) -> tuple[slice, slice]:
    """Index of a region within an array that holds a larger region."""
    return (
        slice(inner[1] - outer[1], inner[3] - outer[1]),
        slice(inner[0] - outer[0], inner[2] - outer[0]),
    )


def check_face(image: Image, landmarks: Points, box: Box) -> None:
    """Refuse a face whose landmarks or box cannot belong to the image.

    Args:
        image: RGB uint8 [H, W, 3].
        landmarks: [81 or 68, 2] in image pixels; at least half of them inside the image, spanning 8 by 8.
        box: x0, y0, x1, y1; it must hold the landmarks' centre.

    Raises:
        InputError: One of these does not hold.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"A face crop must be RGB uint8 [H, W, 3], not {image.dtype} {list(image.shape)}.")
    if landmarks.ndim != 2 or landmarks.shape[1] != 2 or len(landmarks) not in _LANDMARK_COUNTS:
        raise InputError(f"Landmarks must be [68, 2] or [81, 2], not {list(landmarks.shape)}.")
    height, width = image.shape[:2]
    x, y = landmarks[:, 0], landmarks[:, 1]
    within = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    if 2 * int(within.sum()) < len(landmarks):
        raise InputError(
            f"Only {int(within.sum())} of {len(landmarks)} landmarks lie inside the {width}x{height} crop: "
            "they belong to another image or scale. Prepare the folder again."
        )
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    if not np.isfinite(low + high).all() or float((high - low).min()) < 8:
        raise InputError(
            f"Landmarks span {tuple(np.round(high - low, 1).tolist())} pixels: a face needs at least 8 by 8. "
            "Prepare the folder again, or leave such small faces out."
        )
    centre_x, centre_y = landmarks.mean(axis=0)
    if not (box[0] <= centre_x <= box[2] and box[1] <= centre_y <= box[3]):
        raise InputError(
            f"The landmarks' centre ({centre_x:.0f}, {centre_y:.0f}) lies outside the face box {tuple(box)}: "
            "they belong to different faces. Prepare the folder again."
        )
