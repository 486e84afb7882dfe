"""Colour, sharpness and compression: drawn within the method's ranges, applied as hand-computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from training.photometric import (
    HUE_LIMIT_DEGREES,
    SATURATION_LIMIT,
    VALUE_LIMIT,
    PhotometricRecipe,
    SourceRecipe,
    Tone,
    apply_photometric,
    apply_source,
    apply_tone,
    colour_map,
    downscale,
    draw_photometric,
    draw_source,
    jpeg,
    sharpen,
)

DRAWS = 4000


def flat(*colour: int) -> NDArray[np.uint8]:
    return np.full((6, 5, 3), colour, np.uint8)


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(40, 216, (9, 8, 3)), np.ones((8, 8, 1)))
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def sources() -> list[SourceRecipe]:
    rng = np.random.default_rng(1)
    return [draw_source(rng) for _ in range(DRAWS)]


@pytest.fixture(scope="module")
def photometrics() -> list[PhotometricRecipe]:
    rng = np.random.default_rng(2)
    return [draw_photometric(rng) for _ in range(DRAWS)]


def share(values: list[bool]) -> float:
    return float(np.mean(values))


def reach(values: list[float], limit: float) -> None:
    """All within the limit, and spread evenly over it."""
    array = np.array(values)
    assert np.abs(array).max() <= limit
    assert array.max() > 0.97 * limit
    assert array.min() < -0.97 * limit
    assert abs(array.mean()) < 0.06 * limit
    assert array.std() == pytest.approx(limit / np.sqrt(3), rel=0.06)


def test_source_changes_keep_to_their_ranges(sources: list[SourceRecipe]) -> None:
    shifted = [recipe.tone.rgb for recipe in sources if recipe.tone.rgb != (0, 0, 0)]
    assert len(shifted) / DRAWS == pytest.approx(0.3, abs=0.03)
    for channel in range(3):
        assert {rgb[channel] for rgb in shifted} == set(range(-20, 21))
    assert all(recipe.tone.hsv is not None for recipe in sources)
    reach([recipe.tone.brightness for recipe in sources], 0.1)
    reach([recipe.tone.contrast for recipe in sources], 0.1)


def test_source_is_either_downscaled_or_sharpened(sources: list[SourceRecipe]) -> None:
    assert all((recipe.downscale is None) != (recipe.sharpen is None) for recipe in sources)
    assert share([recipe.downscale is not None for recipe in sources]) == pytest.approx(0.5, abs=0.03)
    factors = [recipe.downscale for recipe in sources if recipe.downscale is not None]
    assert set(factors) == {2, 4}
    assert share([factor == 2 for factor in factors]) == pytest.approx(0.5, abs=0.04)
    alphas, lights = np.array([recipe.sharpen for recipe in sources if recipe.sharpen is not None]).T
    assert 0.2 <= alphas.min() < 0.21
    assert 0.49 < alphas.max() <= 0.5
    assert 0.5 <= lights.min() < 0.51
    assert 0.99 < lights.max() <= 1.0


def test_photometric_changes_keep_to_their_ranges(photometrics: list[PhotometricRecipe]) -> None:
    tones = [recipe.tone for recipe in photometrics]
    assert share([tone.rgb != (0, 0, 0) for tone in tones]) == pytest.approx(0.3, abs=0.03)
    assert share([tone.hsv is not None for tone in tones]) == pytest.approx(0.3, abs=0.03)
    lit = [tone for tone in tones if tone.brightness or tone.contrast]
    assert len(lit) / DRAWS == pytest.approx(0.3, abs=0.03)
    reach([tone.brightness for tone in lit], 0.3)
    reach([tone.contrast for tone in lit], 0.3)
    qualities = [recipe.jpeg_quality for recipe in photometrics if recipe.jpeg_quality is not None]
    assert len(qualities) / DRAWS == pytest.approx(0.5, abs=0.03)
    assert set(qualities) == set(range(40, 101))


@pytest.mark.parametrize("draw", [draw_source, draw_photometric])
def test_quirks_change_the_hsv_units_only(draw: Callable[..., SourceRecipe | PhotometricRecipe]) -> None:
    for seed in range(50):
        sane = draw(np.random.default_rng(seed))
        quirky = draw(np.random.default_rng(seed), reference_quirks=True)
        sane_hsv, quirky_hsv = sane.tone.hsv, quirky.tone.hsv
        assert (sane_hsv is None) == (quirky_hsv is None)
        if sane_hsv is not None and quirky_hsv is not None:
            assert np.abs(quirky_hsv).max() <= 0.3
            limits = np.array([HUE_LIMIT_DEGREES, SATURATION_LIMIT, VALUE_LIMIT])
            np.testing.assert_allclose(np.array(sane_hsv) / limits, np.array(quirky_hsv) / 0.3, rtol=1e-12)
        without = [
            (recipe.tone.rgb, recipe.tone.brightness, recipe.tone.contrast) for recipe in (sane, quirky)
        ]
        assert without[0] == without[1]


def test_nothing_drawn_is_nothing_done(photo: NDArray[np.uint8]) -> None:
    assert apply_tone(photo, Tone()) is photo
    assert apply_photometric(photo, PhotometricRecipe(Tone(), None)) is photo


@pytest.mark.parametrize("quirks", [False, True])
def test_rgb_shift_adds_and_saturates(quirks: bool) -> None:
    changed = apply_tone(flat(250, 100, 5), Tone(rgb=(10, -20, -7)), reference_quirks=quirks)
    assert changed[0, 0].tolist() == [255, 80, 0]
    assert (changed == changed[0, 0]).all()


@pytest.mark.parametrize("quirks", [False, True])
def test_light_is_gain_and_offset(quirks: bool) -> None:
    # 100 * 1.2 + 0.1 * 255 = 145.5; 20 * 1.2 + 25.5 = 49.5; 240 saturates. Halves may round either way.
    lit = apply_tone(flat(100, 20, 240), Tone(brightness=0.1, contrast=0.2), reference_quirks=quirks)
    np.testing.assert_allclose(lit[0, 0], [145.5, 49.5, 255], atol=0.5)
    dark = apply_tone(flat(100, 20, 240), Tone(brightness=-0.2, contrast=-0.1), reference_quirks=quirks)
    np.testing.assert_allclose(dark[0, 0], [39, 0, 165], atol=0.5)


def test_hue_turns_around_grey_and_keeps_it() -> None:
    turn = colour_map((0, 0, 0), (120.0, 0.0, 0.0))
    # A third of a turn takes red to green, green to blue, blue to red.
    np.testing.assert_allclose(turn[:, :3] @ [200, 10, 30], [30, 200, 10], atol=1e-4)
    small = colour_map((0, 0, 0), (3.0, 0.0, 0.0))
    np.testing.assert_allclose(small[:, :3] @ [90, 90, 90], [90, 90, 90], atol=1e-4)
    red, green, blue = small[:, :3] @ [200.0, 50.0, 50.0]
    assert green > 50 > blue
    assert red < 200
    assert apply_tone(flat(90, 90, 90), Tone(hsv=(3.0, 0.05, 0.0)))[0, 0].tolist() == [90, 90, 90]


def test_saturation_scales_the_distance_from_grey_and_value_adds() -> None:
    # Mean 100: distances +60, 0, -60 become +66, 0, -66; then 3 levels are added.
    changed = apply_tone(flat(160, 100, 40), Tone(hsv=(0.0, 0.1, 3.0)))
    np.testing.assert_allclose(changed[0, 0], [169, 103, 37], atol=0.6)


def test_rgb_shift_comes_before_the_colour_map() -> None:
    both = apply_tone(flat(120, 100, 80), Tone(rgb=(20, 0, -20), hsv=(0.0, 0.1, 0.0)))
    # (140, 100, 60), distances from 100 times 1.1.
    np.testing.assert_allclose(both[0, 0], [144, 100, 56], atol=0.6)


def test_quirky_hsv_does_nothing_or_takes_one_away() -> None:
    up, down = Tone(hsv=(0.3, 0.3, 0.3)), Tone(hsv=(0.0, 0.0, -0.3))
    grey = flat(100, 100, 100)
    assert apply_tone(grey, up, reference_quirks=True)[0, 0].tolist() == [100, 100, 100]
    assert apply_tone(grey, down, reference_quirks=True)[0, 0].tolist() == [99, 99, 99]
    # Green: hue 60 of 180 steps; one step less is 2 degrees towards yellow: red rises by 255/30.
    turned = apply_tone(flat(0, 255, 0), Tone(hsv=(-0.3, 0.0, 0.0)), reference_quirks=True)
    np.testing.assert_allclose(turned[0, 0], [8.5, 255, 0], atol=1)
    # Red: hue 0 wraps round to 179.
    wrapped = apply_tone(flat(255, 0, 0), Tone(hsv=(-0.3, 0.0, 0.0)), reference_quirks=True)
    np.testing.assert_allclose(wrapped[0, 0], [255, 0, 8.5], atol=1)


def test_tone_takes_any_window_of_an_image(photo: NDArray[np.uint8]) -> None:
    tone = Tone(rgb=(5, -9, 12), hsv=(2.0, -0.03, 1.0), brightness=0.05, contrast=-0.2)
    np.testing.assert_array_equal(apply_tone(photo[3:40, 5:33], tone), apply_tone(photo, tone)[3:40, 5:33])


def test_downscale_keeps_every_nth_pixel() -> None:
    ramp = np.zeros((4, 8, 3), np.uint8)
    ramp[..., 0] = np.arange(8) * 10
    changed = downscale(ramp, 4)[0, :, 0]
    # Pixels 0 and 4 (0 and 40) are kept and enlarged 4 times, their centres at 1.5 and 5.5.
    assert changed.tolist() == [0, 0, 5, 15, 25, 35, 40, 40]
    assert downscale(flat(7, 8, 9), 2).tolist() == flat(7, 8, 9).tolist()


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("shape", [(37, 41), (1, 1), (40, 44)])
def test_downscale_keeps_any_size(factor: int, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    changed = downscale(image, factor)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8


def test_sharpen_as_computed_by_hand() -> None:
    # A flat area becomes (1 - alpha) + alpha * lightness of itself.
    assert sharpen(flat(100, 100, 100), 0.5, 0.5)[3, 2].tolist() == [75, 75, 75]
    assert sharpen(flat(100, 40, 0), 0.5, 1.0)[3, 2].tolist() == [100, 40, 0]
    dot = flat(100, 100, 100)
    dot[3, 2] = 110
    sharpened = sharpen(dot, 0.2, 1.0)
    # 0.8 * 110 + 0.2 * (9 * 110 - 8 * 100) = 126; a neighbour: 100 - 0.2 * 10 = 98.
    assert sharpened[3, 2].tolist() == [126, 126, 126]
    assert sharpened[3, 3].tolist() == [98, 98, 98]


def test_jpeg_loses_more_at_lower_quality(photo: NDArray[np.uint8]) -> None:
    def loss(quality: int) -> float:
        decoded = jpeg(photo, quality)
        assert decoded.shape == photo.shape
        return float(np.abs(decoded.astype(int) - photo).mean())

    assert loss(100) < loss(75) < loss(40)
    # Red stays red: the channels are in the order the codec expects.
    np.testing.assert_allclose(
        jpeg(np.full((16, 16, 3), (220, 30, 40), np.uint8), 95)[8, 8], [220, 30, 40], atol=4
    )


@pytest.mark.parametrize("quirks", [False, True])
def test_images_given_stay_as_they_are(photo: NDArray[np.uint8], quirks: bool) -> None:
    before = photo.copy()
    rng = np.random.default_rng(0)
    for _ in range(20):
        apply_source(photo, draw_source(rng, reference_quirks=quirks), reference_quirks=quirks)
        apply_photometric(photo, draw_photometric(rng, reference_quirks=quirks), reference_quirks=quirks)
    np.testing.assert_array_equal(photo, before)
