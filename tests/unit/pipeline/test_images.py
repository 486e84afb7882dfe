from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.images import read_image, save_image

WIDTH, HEIGHT = 48, 32


def picture() -> NDArray[np.uint8]:
    """A smooth colour picture without symmetry, which JPEG keeps well."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x * 5, y * 7, 255 - x * 2 - y * 3], axis=2).astype(np.uint8)


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [30, 75, 98])
@pytest.mark.parametrize("progressive", [False, True])
def test_plain_jpeg_has_pillows_pixels(subsampling: int, quality: int, progressive: bool) -> None:
    noise = np.random.default_rng(quality).integers(0, 256, (67, 53, 3), dtype=np.uint8)
    smooth = cv2.resize(picture(), (53, 67))
    for content in (noise, smooth):
        data = encoded(
            Image.fromarray(content),
            "JPEG",
            quality=quality,
            subsampling=subsampling,
            progressive=progressive,
        )
        np.testing.assert_array_equal(read_image(data), by_pillow(data))


def test_path_and_bytes_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.fromarray(picture()), "JPEG"))
    np.testing.assert_array_equal(read_image(path), read_image(path.read_bytes()))


@pytest.mark.parametrize("format_name", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_exactly(format_name: str) -> None:
    image = read_image(encoded(Image.fromarray(picture()), format_name))
    np.testing.assert_array_equal(image, picture())
    assert image.flags.c_contiguous
    assert image.dtype == np.uint8


def test_webp_and_gif_are_read() -> None:
    np.testing.assert_array_equal(
        read_image(encoded(Image.fromarray(picture()), "WEBP", lossless=True)), picture()
    )
    assert read_image(encoded(Image.fromarray(picture()), "GIF")).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
def test_grey_becomes_three_equal_channels(format_name: str) -> None:
    data = encoded(Image.fromarray(picture()[:, :, 0]), format_name)
    image = read_image(data)
    assert image.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(image, by_pillow(data))
    np.testing.assert_array_equal(image[:, :, 0], image[:, :, 2])


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 42).astype(np.uint16)
    _, data = cv2.imencode(".png", deep)
    np.testing.assert_array_equal(read_image(data.tobytes())[:, :, 1], deep >> 8)


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    deep = picture().astype(np.uint16) * 257
    _, data = cv2.imencode(".png", deep[:, :, ::-1])
    np.testing.assert_array_equal(read_image(data.tobytes()), picture())


def test_one_bit_and_float_pictures() -> None:
    bits = Image.fromarray(picture()[:, :, 0] > 100)
    np.testing.assert_array_equal(
        read_image(encoded(bits, "PNG"))[:, :, 0], np.where(picture()[:, :, 0] > 100, 255, 0)
    )
    floats = Image.fromarray(picture()[:, :, 0].astype(np.float32) / 255)
    with pytest.raises(InputError, match="no known range"):
        read_image(encoded(floats, "TIFF"))


def test_transparency_shows_white() -> None:
    layer = np.dstack([picture(), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    layer[:4, :, 3] = 0
    layer[4:8, :, 3] = 128
    image = read_image(encoded(Image.fromarray(layer), "PNG"))
    assert (image[:4] == 255).all()
    expected = picture()[4:8].astype(float) * 128 / 255 + 255 * 127 / 255
    np.testing.assert_allclose(image[4:8], expected, atol=1.0)
    np.testing.assert_array_equal(image[8:], picture()[8:])


def test_palette_with_a_transparent_colour() -> None:
    indexed = Image.new("P", (4, 2))
    indexed.putpalette([10, 20, 30, 200, 100, 50])
    indexed.putdata([0, 1, 0, 1, 1, 0, 1, 0])
    plain = read_image(encoded(indexed, "PNG"))
    assert plain[0].tolist() == [[10, 20, 30], [200, 100, 50], [10, 20, 30], [200, 100, 50]]
    see_through = read_image(encoded(indexed, "PNG", transparency=0))
    assert see_through[0].tolist() == [[255, 255, 255], [200, 100, 50], [255, 255, 255], [200, 100, 50]]


def test_cmyk_jpeg_is_converted() -> None:
    cmyk = Image.fromarray(picture()).convert("CMYK")
    image = read_image(encoded(cmyk, "JPEG", quality=98))
    np.testing.assert_allclose(image.astype(int), picture().astype(int), atol=12)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda image: image),
        (2, lambda image: image[:, ::-1]),
        (3, lambda image: image[::-1, ::-1]),
        (4, lambda image: image[::-1]),
        (5, lambda image: image.transpose(1, 0, 2)),
        (6, lambda image: np.rot90(image, -1)),
        (7, lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
        (8, lambda image: np.rot90(image, 1)),
    ],
)
@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(format_name: str, orientation: int, turned: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(picture()), format_name, exif=exif)
    unturned = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    image = read_image(data)
    np.testing.assert_array_equal(image, turned(unturned))  # type: ignore[operator]
    assert image.flags.c_contiguous


def test_of_a_phones_stereo_jpeg_the_first_picture_is_taken() -> None:
    other = Image.fromarray(255 - picture())
    data = encoded(Image.fromarray(picture()), "MPO", save_all=True, append_images=[other], quality=98)
    np.testing.assert_array_equal(read_image(data), by_pillow(data))


def test_truncated_jpeg_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cut\.jpg cannot be read as a picture"):
        read_image(path)


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "BMP", "TIFF"])
def test_other_truncated_pictures_are_refused(format_name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), format_name)
    with pytest.raises(InputError):
        read_image(data[: len(data) // 2])


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(InputError, match=r"empty\.png is empty \(0 bytes\)"):
        read_image(path)


def test_text_named_jpg(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("hello")
    with pytest.raises(InputError, match=r"notes\.jpg cannot be read as a picture"):
        read_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match="is not a file"):
        read_image(tmp_path)


def test_formats_that_run_other_programs_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be read as a picture"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")


def test_size_is_checked_against_the_header() -> None:
    data = encoded(Image.fromarray(picture()), "PNG")
    with pytest.raises(InputError, match=r"48x32 = 1,536 pixels; the limit is 1,000"):
        read_image(data, max_pixels=1000)
    assert read_image(data, max_pixels=1536).shape == (HEIGHT, WIDTH, 3)


def test_a_bomb_is_refused_without_decoding() -> None:
    """A header that promises 4 gigapixels, far beyond even Pillow's own limit, and no data behind it."""
    data = bytearray(encoded(Image.fromarray(picture()), "BMP"))
    data[18:26] = (65535).to_bytes(4, "little") + (65535).to_bytes(4, "little")
    with pytest.raises(InputError, match="limit"):
        read_image(bytes(data))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow comments on the damage
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_a_picture_or_an_input_error(data: st.DataObject) -> None:
    format_name = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]))
    content = bytearray(encoded(Image.fromarray(picture()), format_name))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = read_image(bytes(content), max_pixels=100_000)
    except InputError:
        return
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.shape[0] * image.shape[1] <= 100_000


def test_saved_png_is_exact_and_jpeg_keeps_its_colour_resolution(tmp_path: Path) -> None:
    image = picture()
    image[:, ::2] = (255, 0, 0)
    image[:, 1::2] = (0, 0, 255)
    save_image(tmp_path / "new folder" / "a.png", image, store="png")
    np.testing.assert_array_equal(read_image(tmp_path / "new folder" / "a.png"), image)
    save_image(tmp_path / "a.jpg", image, store="jpeg", quality=98)
    # Columns that alternate in colour only would blur into purple at a lower colour resolution.
    error = np.abs(read_image(tmp_path / "a.jpg").astype(int) - image.astype(int))
    assert error.mean() < 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "new folder"]


def test_lower_quality_makes_a_smaller_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save_image(tmp_path / "high.jpg", noise, quality=95)
    save_image(tmp_path / "low.jpg", noise, quality=30)
    assert (tmp_path / "low.jpg").stat().st_size < (tmp_path / "high.jpg").stat().st_size / 2
