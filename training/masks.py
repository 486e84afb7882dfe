"""The shapes a self-blended face is pasted through: our own geometry on the iBUG-68 points and a forehead.

Four shapes stand for what manipulations replace: the face without its forehead, the same with raised brows,
its parts with gaps between them, and the whole hull. Each is a union of convex polygons, so moving a shape is
moving its corners, and it can be drawn at any resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

MaskKind: TypeAlias = Literal["full", "extended", "components", "hull"]
MASK_KINDS: tuple[MaskKind, ...] = get_args(MaskKind)

Points: TypeAlias = NDArray[np.float32]

# iBUG-68: jaw 0-16 (image left to right), brows 17-21 and 22-26, nose ridge 27-30, nose base 31-35,
# eyes 36-41 and 42-47, outer lips 48-59, inner lips 60-67; then the forehead 68-80, image left to right.
_MIRROR_PARTS = (
    range(16, -1, -1),
    range(26, 16, -1),
    range(27, 31),
    range(35, 30, -1),
    (45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
    (54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),
    (64, 63, 62, 61, 60, 67, 66, 65),
    range(80, 67, -1),
)
MIRROR = np.array([point for part in _MIRROR_PARTS for point in part])
"""MIRROR[i] is the point that takes the place of point i when the image is flipped left to right."""

_JAW = [*range(17)]
_LOWER_LIP = [48, 54, 55, 56, 57, 58, 59]
_LEFT_BROW = [*range(17, 22)]
_LEFT_EYE = [*range(36, 42)]
_LEFT_UPPER_LID = [37, 38]
_RIDGE = [27, 28, 29, 30]
_NOSE_BASE = [*range(31, 36)]

# The parts of one half of the face, as seen on the image's left; the other half is their mirror image.
_LEFT_JAW = [3, 4, 5, 6, 7, 8, 48, 49, 50, 51, 57, 58, 59]
_LEFT_CHEEK = [0, 1, 2, 3, 31, 36, 39, 40, 41, 48]


def _mirrored(points: list[int]) -> list[int]:
    return [int(MIRROR[point]) for point in points]


def flip_landmarks(landmarks: Points, width: int) -> Points:
    """Mirror landmarks with their image, so that each point keeps its meaning (left brow stays left brow).

    Args:
        landmarks: float32 [68 or 81, 2], x and y in pixels, canonical order.
        width: Width of the image in pixels.

    Returns:
        float32, the same shape; flipping twice gives the input back.
    """
    flipped = np.array(landmarks[MIRROR[: len(landmarks)]], np.float32)
    flipped[:, 0] = width - 1 - flipped[:, 0]
    return flipped


def outlines(landmarks: Points, kind: MaskKind) -> list[Points]:
    """The convex polygons whose union is the shape.

    Args:
        landmarks: float32 [68 or 81, 2], canonical order. Only "hull" uses the forehead.
        kind: "full": jaw and mouth, nose ridge, brows and eyes. "extended": the same parts with the brows
            raised by half the gap between brow and eye. "components": jaw, cheek and eye of either side,
            nose ridge and nose, with gaps between them. "hull": the hull of all points.

    Returns:
        Polygons float32 [corners, 2] in the landmarks' coordinates.
    """
    if kind == "hull":
        parts = [landmarks]
    elif kind == "full":
        parts = [
            landmarks[_JAW + _LOWER_LIP],
            landmarks[_RIDGE + _NOSE_BASE],
            # With the ends of the jaw line, or a slit would part the face at ear height.
            landmarks[[0, *range(17, 27), *range(36, 48), 16]],
        ]
    elif kind == "extended":
        parts = _extended_parts(landmarks)
    else:
        parts = _component_parts(landmarks)
    return [np.asarray(cv2.convexHull(np.ascontiguousarray(part)), np.float32)[:, 0] for part in parts]


def _raised(landmarks: Points, brow: list[int], upper_lid: list[int]) -> Points:
    """The brow moved away from its eye by half of the gap between them."""
    gap = landmarks[brow].mean(axis=0) - landmarks[upper_lid].mean(axis=0)
    raised: Points = np.asarray(landmarks[brow] + 0.5 * gap, np.float32)
    return raised


def _extended_parts(landmarks: Points) -> list[Points]:
    left = _raised(landmarks, _LEFT_BROW, _LEFT_UPPER_LID)
    right = _raised(landmarks, _mirrored(_LEFT_BROW), _mirrored(_LEFT_UPPER_LID))
    temple = [0, 1, *_LEFT_EYE, 27, 28, 29]
    return [
        landmarks[_JAW + _LOWER_LIP],
        np.concatenate([landmarks[temple], left]),
        np.concatenate([landmarks[_mirrored(temple)], right]),
        # `right` is mirrored, so its last point too is the one beside the nose.
        np.concatenate([landmarks[_RIDGE + _NOSE_BASE], left[-2:], right[-2:]]),
    ]


def _component_parts(landmarks: Points) -> list[Points]:
    eye = _LEFT_BROW + _LEFT_EYE
    return [
        *(landmarks[part] for part in (_LEFT_JAW, _mirrored(_LEFT_JAW))),
        *(landmarks[part] for part in (_LEFT_CHEEK, _mirrored(_LEFT_CHEEK))),
        landmarks[[*_RIDGE, 21, 22]],
        *(landmarks[part] for part in (eye, _mirrored(eye))),
        landmarks[[29, 30, *_NOSE_BASE]],
    ]


_SHIFT = 6  # corners are drawn to 1/64 pixel


def draw_outlines(polygons: list[Points], height: int, width: int) -> NDArray[np.uint8]:
    """Draw polygons into one anti-aliased mask.

    Args:
        polygons: Convex polygons float32 [corners, 2]; coordinates are pixel centres of the mask.
        height: Mask height in pixels.
        width: Mask width in pixels.

    Returns:
        uint8 [height, width], 0 outside, 255 inside, between on the outline.
    """
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        corners = np.round(polygon * (1 << _SHIFT)).astype(np.int32)
        cv2.fillConvexPoly(mask, corners, 255, lineType=cv2.LINE_AA, shift=_SHIFT)
    return mask


def face_mask(landmarks: Points, kind: MaskKind, height: int, width: int) -> NDArray[np.float32]:
    """The shape at image resolution, float32 [height, width] in 0..1 (for looking at it)."""
    mask = draw_outlines(outlines(landmarks, kind), height, width)
    return np.asarray(mask / np.float32(255), np.float32)


@dataclass(frozen=True, slots=True)
class BlendMaskRecipe:
    """One draw of how the shape is wobbled, eroded and softened.

    Attributes:
        height: Rows of the small grid the work is done on, 192..256.
        width: Columns of the small grid, 192..256.
        erode_kernel: Odd kernel side of the first blur, of which only the untouched inside is kept, 5..25.
        blur_kernel: Odd kernel side of the second blur, 5..25.
        blur_sigma: Its standard deviation in grid pixels, 5..45.
        ratio: Largest blend weight, one of .25, .5, .75, 1.
        elastic_alpha: Strength of the elastic wobble: unit noise smoothed over `ELASTIC_SIGMA` image
            pixels, times this, is the displacement in image pixels.
    """

    height: int
    width: int
    erode_kernel: int
    blur_kernel: int
    blur_sigma: int
    ratio: float
    elastic_alpha: float = 50.0


ELASTIC_SIGMA = 7.0
RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)


def draw_blend_mask_recipe(rng: np.random.Generator) -> BlendMaskRecipe:
    """Draw sizes, kernels and ratio, each evenly over its range."""
    height, width = rng.integers(192, 257, size=2)
    erode, blur = 2 * rng.integers(2, 13, size=2) + 1
    return BlendMaskRecipe(
        height=int(height),
        width=int(width),
        erode_kernel=int(erode),
        blur_kernel=int(blur),
        blur_sigma=int(rng.integers(5, 46)),
        ratio=RATIOS[int(rng.integers(len(RATIOS)))],
    )


@dataclass(frozen=True, slots=True)
class BlendMask:
    """Blend weights of a whole image.

    Attributes:
        weights: uint16 [height, width] of the image, 0..256, where 256 is a weight of 1.
        extent: x0, y0, x1, y1 of the smallest window that holds every weight above 0; empty if there is none.
    """

    weights: NDArray[np.uint16]
    extent: tuple[int, int, int, int]


def blend_mask(
    polygons: list[Points],
    canvas: tuple[int, int],
    recipe: BlendMaskRecipe,
    rng: np.random.Generator,
    *,
    as_bytes: bool = False,
) -> BlendMask:
    """Turn a shape into blend weights: wobble, erode, soften, all on the small grid.

    Blurring and keeping what is still at the maximum is an erosion by the kernel's square; it is done as one.
    A shape too thin for it (nothing would be left) is eroded by the next smaller kernels, halved until
    something is left; if even a kernel of 1 leaves nothing, its most covered pixels are kept. So the weights
    are all zero only if the shape covers no pixel of the image.

    Args:
        polygons: Convex polygons float32 [corners, 2] in image pixels, already moved.
        canvas: Image width and height in pixels.
        recipe: What was drawn.
        rng: Source of the elastic noise.
        as_bytes: Imitate an 8-bit mask of 0 and 1: the first blur rounds, so hardly anything is eroded.

    Returns:
        The weights, enlarged to the image; their maximum is 256 times `recipe.ratio`.
    """
    scale = (recipe.width / canvas[0], recipe.height / canvas[1])
    on_grid = [_points((polygon + 0.5) * np.array(scale) - 0.5) for polygon in polygons]
    left, top, right, bottom = _part_of_grid(on_grid, recipe)
    local = [_points(polygon - np.array((left, top))) for polygon in on_grid]
    mask = draw_outlines(local, bottom - top, right - left)
    if recipe.elastic_alpha:
        mask = _wobble(mask, scale, recipe.elastic_alpha, rng)
    kept = _blur_as_bytes(mask, recipe.erode_kernel) if as_bytes else _erode(mask, recipe.erode_kernel)
    kernel = (recipe.blur_kernel, recipe.blur_kernel)
    blurred = np.asarray(cv2.GaussianBlur(kept.astype(np.float32), kernel, recipe.blur_sigma), np.float32)
    peak = float(blurred.max())
    grid = np.zeros((recipe.height, recipe.width), np.uint16)
    if peak > 0:
        grid[top:bottom, left:right] = np.round(blurred * np.float32(256 * recipe.ratio / peak))
    return _enlarged(grid, canvas)


def _enlarged(grid: NDArray[np.uint16], canvas: tuple[int, int]) -> BlendMask:
    """The grid at image size, and the image window that its non-zero part reaches."""
    weights = np.asarray(cv2.resize(grid, canvas, interpolation=cv2.INTER_LINEAR), np.uint16)
    reach = []
    for axis, size in ((0, canvas[0]), (1, canvas[1])):
        used = np.flatnonzero(grid.any(axis=axis))
        if used.size == 0:
            return BlendMask(weights, (0, 0, 0, 0))
        # A grid pixel touches the image pixels up to one grid pixel around its centre.
        step = size / len(grid[0] if axis == 0 else grid)
        reach.append((max(0, int((used[0] - 0.5) * step)), min(size, int((used[-1] + 1.5) * step) + 1)))
    return BlendMask(weights, (reach[0][0], reach[1][0], reach[0][1], reach[1][1]))


def _points(values: NDArray[np.floating]) -> Points:
    return np.asarray(values, np.float32)


def _part_of_grid(polygons: list[Points], recipe: BlendMaskRecipe) -> tuple[int, int, int, int]:
    """The grid area that can get weight: the shape, the reach of the blur and of the wobble, clipped."""
    corners = np.concatenate(polygons)
    reach = recipe.blur_kernel // 2 + 6
    limits = (recipe.width, recipe.height)
    low = [int(np.clip(np.floor(corners[:, axis].min()) - reach, 0, limits[axis] - 1)) for axis in (0, 1)]
    high = [
        int(np.clip(np.ceil(corners[:, axis].max()) + reach, low[axis] + 1, limits[axis])) for axis in (0, 1)
    ]
    return low[0], low[1], high[0], high[1]


# Base of the sampling maps: column and row numbers of the largest grid.
_ROWS, _COLUMNS = np.mgrid[0:256, 0:256].astype(np.float32)


def _wobble(
    mask: NDArray[np.uint8], scale: tuple[float, float], alpha: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    height, width = mask.shape
    map_x, map_y = elastic_displacement(height, width, scale, alpha, rng)
    map_x += _COLUMNS[:height, :width]
    map_y += _ROWS[:height, :width]
    return np.asarray(cv2.remap(mask, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))


def elastic_displacement(
    height: int, width: int, scale: tuple[float, float], alpha: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw smooth noise that says how far each grid pixel looks aside.

    At image resolution the displacement is white noise on -1..1, smoothed by a Gaussian of `ELASTIC_SIGMA`
    pixels, times alpha: nearly normal, of standard deviation alpha / sqrt(3) / (2 sqrt(pi) sigma) pixels.
    It is drawn directly on the coarser grid with the same spread and the same width of its ripples.

    Args:
        height: Rows wanted.
        width: Columns wanted.
        scale: Grid pixels per image pixel along x and along y.
        alpha: Strength, see above.
        rng: Source of the noise.

    Returns:
        Displacement along x and along y, float32 [height, width], in grid pixels.
    """
    noise = np.frombuffer(rng.bytes(2 * height * width), np.uint8).reshape(2, height, width)
    kernel_x, kernel_y = (_gaussian(ELASTIC_SIGMA * per_pixel) for per_pixel in scale)
    spread = alpha / (2.0 * np.sqrt(np.pi) * ELASTIC_SIGMA)
    # Bytes stand for -1..1: 2/255 of their distance from 127.5.
    gain = 2.0 / 255.0 * spread / float(np.sqrt((kernel_x**2).sum() * (kernel_y**2).sum()))
    along_x, along_y = (
        cv2.sepFilter2D(
            field, cv2.CV_32F, kernel_x * (gain * per_pixel), kernel_y, delta=-127.5 * gain * per_pixel
        )
        for field, per_pixel in zip(noise, scale, strict=True)
    )
    return np.asarray(along_x, np.float32), np.asarray(along_y, np.float32)


def _gaussian(sigma: float) -> NDArray[np.float64]:
    side = 2 * max(1, round(3 * sigma)) + 1
    return np.asarray(cv2.getGaussianKernel(side, sigma), np.float64)


def _erode(mask: NDArray[np.uint8], kernel: int) -> NDArray[np.uint8]:
    """1 where the whole kernel square lies inside the shape, else 0; smaller kernels if none does."""
    inside = (mask == 255).astype(np.uint8)
    while kernel > 1:
        kept = cv2.erode(inside, np.ones((kernel, kernel), np.uint8))
        if kept.any():
            return np.asarray(kept, np.uint8)
        kernel = (kernel // 2) | 1
    if not inside.any():
        inside = ((mask == mask.max()) & (mask > 0)).astype(np.uint8)
    return np.asarray(inside, np.uint8)


def _blur_as_bytes(mask: NDArray[np.uint8], kernel: int) -> NDArray[np.uint8]:
    """The first blur on a mask of bytes 0 and 1: half and above rounds up to 1, the rest is lost."""
    ones = (mask >= 128).astype(np.uint8)
    blurred = np.asarray(cv2.GaussianBlur(ones, (kernel, kernel), 0), np.uint8)
    return blurred if blurred.any() else np.asarray(ones, np.uint8)
