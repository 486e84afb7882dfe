"""Colour, sharpness and compression changes for self-blending: drawn once, applied to real and fake alike.

Every change is a recipe (a frozen record of what was drawn) and a function that applies it, so that real and
fake get the very same change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]

RGB_LIMIT = 20
HSV_QUIRK_LIMIT = 0.3
HUE_LIMIT_DEGREES = 3.0
SATURATION_LIMIT = 0.05
VALUE_LIMIT = 3.0
"""Why these three: the method's settings say ±0.3 for hue, saturation and value, but the library behind them
read that as 8-bit steps, where ±0.3 does nothing or, truncated, takes 1 away; the published detectors were
trained so. Taken as ±30 % it would turn faces green and make every fake obvious. So: changes that exist, but
stay below what the other two (brightness ±0.1, RGB ±20) do, for a fake must not be told by its colour alone.
"""


@dataclass(frozen=True, slots=True)
class Tone:
    """One draw of colour changes, applied in this order.

    Attributes:
        rgb: Added to red, green, blue; levels, -20..20.
        hsv: Hue, saturation, value; units as in `apply_tone`. None where not drawn.
        brightness: Added, as a share of 255.
        contrast: Factor minus 1.
    """

    rgb: tuple[int, int, int] = (0, 0, 0)
    hsv: tuple[float, float, float] | None = None
    brightness: float = 0.0
    contrast: float = 0.0


@dataclass(frozen=True, slots=True)
class SourceRecipe:
    """What makes the source differ from the target before blending.

    Attributes:
        tone: Colour change.
        downscale: 2 or 4: every second or fourth pixel kept, then enlarged; None where sharpening was drawn.
        sharpen: Alpha and lightness of the sharpening; None where downscaling was drawn.
    """

    tone: Tone
    downscale: int | None
    sharpen: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class PhotometricRecipe:
    """What real and fake go through together after blending, in training.

    Attributes:
        tone: Colour change.
        jpeg_quality: 40..100, or None for no compression.
    """

    tone: Tone
    jpeg_quality: int | None


def _draw_tone(
    rng: np.random.Generator, *, limit: float, hsv_share: float, share: float, quirks: bool
) -> Tone:
    """Draw every number, then keep it with its probability: the stream does not depend on the outcome."""
    rgb = rng.integers(-RGB_LIMIT, RGB_LIMIT + 1, size=3)
    hsv = rng.uniform(-1.0, 1.0, size=3)
    brightness, contrast = rng.uniform(-limit, limit, size=2)
    keep_rgb, keep_hsv, keep_light = rng.random(3) < (0.3, hsv_share, share)
    limits = (HSV_QUIRK_LIMIT,) * 3 if quirks else (HUE_LIMIT_DEGREES, SATURATION_LIMIT, VALUE_LIMIT)
    hue, saturation, value = (float(v) for v in hsv * limits)
    return Tone(
        rgb=(int(rgb[0]), int(rgb[1]), int(rgb[2])) if keep_rgb else (0, 0, 0),
        hsv=(hue, saturation, value) if keep_hsv else None,
        brightness=float(brightness) if keep_light else 0.0,
        contrast=float(contrast) if keep_light else 0.0,
    )


def draw_source(rng: np.random.Generator, *, reference_quirks: bool = False) -> SourceRecipe:
    """RGB shift with probability 0.3; HSV, brightness and contrast ±0.1 always; downscale or sharpen."""
    tone = _draw_tone(rng, limit=0.1, hsv_share=1.0, share=1.0, quirks=reference_quirks)
    factor = (2, 4)[int(rng.integers(2))]
    alpha, lightness = rng.uniform((0.2, 0.5), (0.5, 1.0))
    if rng.random() < 0.5:
        return SourceRecipe(tone, downscale=factor, sharpen=None)
    return SourceRecipe(tone, downscale=None, sharpen=(float(alpha), float(lightness)))


def draw_photometric(rng: np.random.Generator, *, reference_quirks: bool = False) -> PhotometricRecipe:
    """RGB shift, HSV shift, brightness and contrast ±0.3 with probability 0.3 each; JPEG with 0.5."""
    tone = _draw_tone(rng, limit=0.3, hsv_share=0.3, share=0.3, quirks=reference_quirks)
    quality = int(rng.integers(40, 101))
    return PhotometricRecipe(tone, jpeg_quality=quality if rng.random() < 0.5 else None)


def apply_source(image: Image, recipe: SourceRecipe, *, reference_quirks: bool = False) -> Image:
    """Apply a source recipe; a new RGB uint8 image of the same shape."""
    changed = apply_tone(image, recipe.tone, reference_quirks=reference_quirks)
    if recipe.downscale is not None:
        return downscale(changed, recipe.downscale)
    if recipe.sharpen is not None:
        return sharpen(changed, *recipe.sharpen)
    return changed


def apply_photometric(image: Image, recipe: PhotometricRecipe, *, reference_quirks: bool = False) -> Image:
    """Apply a photometric recipe; RGB uint8 of the same shape (the image itself if nothing was drawn)."""
    changed = apply_tone(image, recipe.tone, reference_quirks=reference_quirks)
    return changed if recipe.jpeg_quality is None else jpeg(changed, recipe.jpeg_quality)


def apply_tone(image: Image, tone: Tone, *, reference_quirks: bool = False) -> Image:
    """Apply a colour change, rounding and clipping to 8 bits after the colour and after the light.

    Normally RGB and HSV shift are one affine map of colour: hue turns it around the grey axis (degrees),
    saturation scales its distance from that axis (factor minus 1), value is added (levels). With
    `reference_quirks` hue, saturation and value are added in OpenCV's 8-bit HSV steps and truncated.

    Args:
        image: RGB uint8 [H, W, 3].
        tone: What was drawn.
        reference_quirks: See above.

    Returns:
        RGB uint8 [H, W, 3]; the image itself if the tone changes nothing.
    """
    changed = image
    if tone.hsv is not None and not reference_quirks:
        # Contiguous, because OpenCV takes three times as long for a window of a larger image.
        pixels = np.ascontiguousarray(changed)
        changed = np.asarray(cv2.transform(pixels, colour_map(tone.rgb, tone.hsv)), np.uint8)
    else:
        changed = _shift_rgb(changed, tone.rgb)
        changed = changed if tone.hsv is None else _shift_hsv_steps(changed, tone.hsv)
    if tone.contrast or tone.brightness:
        lit = cv2.addWeighted(changed, 1.0 + tone.contrast, changed, 0.0, 255.0 * tone.brightness)
        changed = np.asarray(lit, np.uint8)
    return changed


def colour_map(rgb: tuple[int, int, int], hsv: tuple[float, float, float]) -> NDArray[np.float32]:
    """The map float32 [3, 4] of a colour change: new = matrix[:, :3] @ colour + matrix[:, 3], in levels."""
    hue, saturation, value = hsv
    linear = (1 + saturation) * _hue_rotation(np.deg2rad(hue)) - saturation / 3.0
    return np.column_stack([linear, linear @ np.array(rgb, np.float64) + value]).astype(np.float32)


def _hue_rotation(angle: float) -> NDArray[np.float64]:
    """Rotation about (1, 1, 1) (Rodrigues): greys stay, hues turn from red towards green."""
    cosine, sine = np.cos(angle), np.sin(angle) / np.sqrt(3.0)
    cross = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    rotation: NDArray[np.float64] = cosine * np.eye(3) + sine * cross + (1 - cosine) / 3.0
    return rotation


def _shift_rgb(image: Image, rgb: tuple[int, int, int]) -> Image:
    if not any(rgb):
        return image
    # Four numbers: OpenCV takes them as one per channel.
    return np.asarray(cv2.add(image, np.array([*rgb, 0], np.float64)), np.uint8)


def _shift_hsv_steps(image: Image, shift: tuple[float, float, float]) -> Image:
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), _truncated_hsv_table(shift))
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)


def _truncated_hsv_table(shift: tuple[float, float, float]) -> NDArray[np.uint8]:
    """Lookup table [1, 256, 3]: the cast to bytes drops the fraction, so +0.3 is nothing and -0.3 is -1."""
    levels = np.arange(256.0)
    hue = np.mod(levels + shift[0], 180).astype(np.uint8)
    rest = [np.clip(levels + s, 0, 255).astype(np.uint8) for s in shift[1:]]
    return np.stack([hue, *rest], axis=-1)[None]


def downscale(image: Image, factor: int) -> Image:
    """Keep every `factor`-th pixel of every `factor`-th row, then enlarge bilinearly to the old size."""
    height, width = image.shape[:2]
    small = np.ascontiguousarray(image[::factor, ::factor])
    full = (small.shape[1] * factor, small.shape[0] * factor)
    return np.asarray(cv2.resize(small, full, interpolation=cv2.INTER_LINEAR)[:height, :width], np.uint8)


def sharpen(image: Image, alpha: float, lightness: float) -> Image:
    """Mix with an edge-enhanced copy: (1-alpha) image + alpha (8+lightness) image - alpha (its 8 neighbours).

    Args:
        image: RGB uint8 [H, W, 3].
        alpha: Share of the sharpened copy, 0.2..0.5.
        lightness: Gain of flat areas in the sharpened copy, 0.5..1 (1 keeps them).

    Returns:
        RGB uint8, same shape.
    """
    kernel = np.full((3, 3), -alpha, np.float32)
    kernel[1, 1] = (1 - alpha) + alpha * (8 + lightness)
    return np.asarray(cv2.filter2D(image, -1, kernel), np.uint8)


def jpeg(image: Image, quality: int) -> Image:
    """Compress and decompress (4:2:0), RGB uint8 of the same shape.

    Raises:
        RuntimeError: OpenCV was built without a JPEG codec.
    """
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if done else None
    if decoded is None:
        raise RuntimeError("OpenCV could not encode or decode JPEG: install opencv-python-headless.")
    return np.asarray(decoded, np.uint8)
