"""Pictures of arrays: one palette on which 0 is white, and what its colours mean in words."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from cnn_lightning import draw


def decoded(picture: draw.Picture) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))


def rgba(picture: draw.Picture) -> np.ndarray:
    return np.asarray(decoded(picture).convert("RGBA")).astype(int)


def lightness(color: str) -> float:
    """L* of CIELAB, from 0 to 100."""
    values = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance


def test_the_palette_is_white_at_0_and_darkens_equally_on_both_sides() -> None:
    palette = draw.palette()
    light = np.array([lightness(color) for color in palette])
    assert len(palette) == draw.GAP == 2 * draw.ZERO + 1
    assert light[draw.ZERO] == light.max() > 96
    assert (np.diff(light[: draw.ZERO + 1]) > 0).all()
    assert (np.diff(light[draw.ZERO :]) < 0).all()
    assert abs(light[: draw.ZERO] - light[: draw.ZERO : -1]).max() < 6
    red, _, blue = (int(palette[0][place : place + 2], 16) for place in (1, 3, 5))
    assert blue > 2 * red
    red, _, blue = (int(palette[-1][place : place + 2], 16) for place in (1, 3, 5))
    assert red > 2 * blue


def test_negative_is_blue_0_is_white_positive_is_red() -> None:
    values = np.zeros((2, 8, 8), np.float32)
    values[0, 0, 0], values[1, 7, 7], values[1, 0, 0] = -2, 2, 1
    picture = draw.grid(values, "maps")
    pixels = rgba(picture)
    assert pixels.shape == (8, 17, 4)
    assert pixels[0, 0, 2] > 2 * pixels[0, 0, 0]
    assert pixels[7, 16, 0] > 2 * pixels[7, 16, 2]
    assert min(pixels[1, 1, :3]) > 240
    assert pixels[0, 9, 0] > pixels[0, 9, 2] > pixels[7, 16, 2]
    assert (pixels[:, 8, 3] == 0).all()  # the gap
    assert "2 maps of 8×8, values from −2 to 2" in picture.alt
    assert picture.scale == draw.Scale(-2, 2, False)
    assert picture.scale.words == "blue −2, white 0, red 2"


def test_values_without_a_sign_have_the_same_reds() -> None:
    values = np.arange(4.0).reshape(1, 2, 2)
    picture, signed = draw.grid(values, "maps"), draw.grid(np.stack([values[0], -values[0]]), "maps")
    assert picture.scale is not None
    assert picture.scale.words.startswith("white 0, red ")
    np.testing.assert_array_equal(rgba(picture)[:8, :8], rgba(signed)[:8, :8])


def test_one_large_value_does_not_make_all_others_white() -> None:
    values = np.ones((1, 30, 30))
    values[0, 0, 0] = 1000
    scale = draw.scale_of(values)
    assert scale.high == pytest.approx(1)
    assert scale.beyond
    assert scale.words.endswith(" and beyond")


def test_numbers_that_are_not_finite_and_no_numbers_are_drawn() -> None:
    assert draw.scale_of(np.full((1, 2, 2), np.nan)) == draw.Scale(0, 1, False)
    assert draw.scale_of(np.zeros(0)) == draw.Scale(0, 1, False)
    assert "nan" not in draw.scale_of(np.array([np.nan, -1])).words


def test_kernels_of_three_channels_are_coloured_tiles() -> None:
    kernels = np.zeros((2, 3, 4, 4), np.float32)
    kernels[1, 0] = 1  # red
    kernels[0, 2, 0, 0] = -1  # less blue
    pixels = rgba(draw.colors(kernels, "filters"))
    assert pixels.shape == (8, 17, 4)
    assert tuple(pixels[4, 4]) == (128, 128, 128, 255)
    assert tuple(pixels[4, 12]) == (255, 128, 128, 255)
    assert tuple(pixels[0, 0]) == (128, 128, 1, 255)
    assert (pixels[:, 8] == (255, 255, 255, 0)).all()


def test_heat_is_clear_at_0() -> None:
    pixels = rgba(draw.heat(np.array([[0, 1], [2, 4.0]]), "map"))
    assert pixels[..., 3].tolist() == [[0, 64], [128, 255]]
    assert not rgba(draw.heat(np.zeros((2, 2)), "map"))[..., 3].any()
