"""Reads any picture a user may hand in into RGB uint8, its size checked before decoding, and stores crops."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import InputError
from pipeline.storage import write_whole

MAX_PIXELS = 40_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Formats that are opened; others (some of Pillow's run outside programs) are refused."""

_ORIENTATION_TAG = 0x0112
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error)
"""What Pillow's decoders raise on damaged files."""
_JPEG_END = b"\xff\xd9"


def read_image(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a picture as RGB.

    The EXIF orientation is applied. Grey becomes three equal channels; transparent pixels show white, as in
    most viewers; CMYK is converted; 16-bit values keep their high byte; of an animation the first picture
    is taken. Colour profiles are not applied.

    Args:
        source: Path of the file, or its bytes.
        max_pixels: Largest width times height accepted, checked against the header before decoding.

    Returns:
        RGB uint8 [H, W, 3], contiguous.

    Raises:
        InputError: The file is missing, empty, truncated, no picture in one of `FORMATS`, or too large.
    """
    name = str(source) if isinstance(source, Path) else f"the picture of {len(source)} bytes"
    data = _read_bytes(source) if isinstance(source, Path) else source
    if not data:
        raise InputError(f"{name} is empty (0 bytes): expected a picture.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            _check_size(name, header.size, max_pixels)
            if _is_plain(header, data):
                pixels = _decode_plain(data)
                if pixels is not None and pixels.shape[1::-1] == header.size:
                    return pixels
            return _decode_any(header)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {error} The limit is {max_pixels:,} pixels.") from error
    except _DECODE_ERRORS as error:
        raise InputError(
            f"{name} cannot be read as a picture ({error}): expected an undamaged {', '.join(FORMATS)} file."
        ) from error


def save_image(
    path: Path, image: NDArray[np.uint8], *, store: Literal["jpeg", "png"] = "jpeg", quality: int = 98
) -> None:
    """Write a picture so that others see the whole file or none.

    Args:
        path: Where to; its folder is made if needed.
        image: RGB uint8 [H, W, 3].
        store: "jpeg" (4:4:4, so that colour keeps its resolution) or "png" (lossless).
        quality: JPEG quality 1..100; without effect on PNG.

    Raises:
        InputError: The folder cannot be written, for instance because the disk is full.
    """
    if store == "jpeg":
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    else:
        options = [cv2.IMWRITE_PNG_COMPRESSION, 3]
    _, encoded = cv2.imencode(f".{store}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    write_whole(path, encoded.tobytes())


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path} is not a file: expected a picture.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name} has no pixels ({width}x{height}).")
    if width * height > max_pixels:
        raise InputError(
            f"{name} is {width}x{height} = {width * height:,} pixels; the limit is "
            f"{max_pixels:,}. Scale it down."
        )


def _is_plain(header: Image.Image, data: bytes) -> bool:
    """Whether OpenCV, which is faster, decodes this file to the same pixels as Pillow.

    OpenCV fills the rest of a truncated JPEG with grey, so only a JPEG that ends as it should goes there.
    """
    if header.format != "JPEG" or header.mode not in ("RGB", "L") or data[-2:] != _JPEG_END:
        return False
    return int(header.getexif().get(_ORIENTATION_TAG, 1)) == 1


def _decode_plain(data: bytes) -> NDArray[np.uint8] | None:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    decoded: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if decoded is None else np.asarray(decoded, dtype=np.uint8)


def _decode_any(picture: Image.Image) -> NDArray[np.uint8]:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("I", "F") or upright.mode.startswith("I;"):
        return _from_deep_grey(upright)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, layer)
    return np.array(upright.convert("RGB"), dtype=np.uint8)


def _from_deep_grey(picture: Image.Image) -> NDArray[np.uint8]:
    """Grey of more than 8 bits: Pillow would clip it at 255 instead of scaling."""
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"grey values of mode {picture.mode} beyond 16 bits have no known range")
    grey = (values.astype(np.uint16) >> 8).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
