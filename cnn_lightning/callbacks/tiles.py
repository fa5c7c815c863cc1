"""Pictures of a data set side by side, each with lines of text below it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnn_lightning.callbacks.lettering import EDGE, wrapped, write

TILE = 96
"""Width and height of a picture, in pixels."""
LINE, GAP, SIZE = 15, 12, 11
"""The height of a line of text, the space between tiles, and the size of the font, in pixels."""

Normalisation = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel, for values from 0 to 1; empty if there is none."""


def pixels(picture: NDArray[np.floating], normalisation: Normalisation) -> Image.Image:
    """A picture (C, H, W) without its normalisation: in colours for three channels, else its first channel in grey."""
    mean, std = (np.array(values)[:, None, None] for values in normalisation)
    plain = picture * std + mean if len(mean) == len(picture) else picture
    levels = (np.nan_to_num(plain).clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(levels.transpose(1, 2, 0) if len(levels) == 3 else levels[0])


def is_class(name: str) -> list[str]:
    """The true class in lines for a tile."""
    return wrapped("is", name, "", TILE, SIZE)


def says(name: str, probability: float) -> list[str]:
    """The prediction in lines for a tile."""
    return wrapped("says", name, f"({percent(probability)})", TILE, SIZE)


def percent(probability: float) -> str:
    """A whole number of per cent, such as ``62 %``."""
    return f"{probability * 100:.0f} %"


def tiles(entries: Sequence[tuple[Image.Image, Sequence[str]]], columns: int, empty: str) -> Image.Image:
    """Draw pictures with the lines below each.

    Args:
        entries: A picture, and lines that are no wider than `TILE`.
        columns: Pictures in a row.
        empty: The sentence of a drawing without pictures.
    """
    if not entries:
        image = Image.new("L", (320, 34), "white")
        write(image, (8, 8, 312, 26), empty)
        return image
    height = TILE + 4 + LINE * max(len(lines) for _, lines in entries) + GAP
    rows, across = -(-len(entries) // columns), min(len(entries), columns)
    mode = "RGB" if any(picture.mode == "RGB" for picture, _ in entries) else "L"
    image = Image.new(mode, (across * (TILE + GAP) + GAP, rows * height + GAP), "white")
    for index, (picture, lines) in enumerate(entries):
        x, y = GAP + index % columns * (TILE + GAP), GAP + index // columns * height
        image.paste(picture.resize((TILE, TILE), _method(picture)), (x, y))
        for number, line in enumerate(lines):
            below = y + TILE + 4 + number * LINE
            write(image, (x - EDGE, below, x + TILE + EDGE, below + LINE), line, size=SIZE)
    return image


def _method(picture: Image.Image) -> Image.Resampling:
    """Few pixels stay squares; many are averaged."""
    return Image.Resampling.NEAREST if max(picture.size) < TILE else Image.Resampling.BOX
