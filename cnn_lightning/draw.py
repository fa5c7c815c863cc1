"""Arrays as pictures for a page: grids of maps, histograms and curves, which can be read by brightness alone."""

import base64
import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating]

GAP = 255
"""The transparent entry of the palette; the other entries are values from the lowest to the highest."""
TAIL = 99.5
"""The percentile of magnitudes at which the scale ends, so that one large value does not make all others black."""
LEAST_TILE = 8
"""The least width of a map in the file, in pixels; the page enlarges it further."""


@dataclass(frozen=True)
class Picture:
    """An image for the page.

    Args:
        uri: The PNG as a data URI.
        width: In CSS pixels.
        height: In CSS pixels.
        alt: A description of what it shows.
        scale: The values of dark and bright; empty if the picture needs none.
    """

    uri: str
    width: int
    height: int
    alt: str
    scale: str = ""


def photograph(image: Floats, alt: str, width: int = 224) -> Picture:
    """An image (C, H, W) with values from 0 to 1: grey, red-green-blue, or for other C its first channel."""
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    shown = Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0])
    return Picture(_uri(shown), width, round(width * shown.height / shown.width), alt)


def grid(values: Floats, what: str, *, columns: int = 8, most: int = 64, side: int = 64, tile: int = 44) -> Picture:
    """Maps (n, h, w) on one scale, row by row.

    If no value is negative, the scale runs from black at 0 to white, otherwise from dark blue over a medium grey at 0
    to bright yellow. Both scales grow brighter everywhere, so that they can be read without colours.

    Args:
        values: The maps.
        what: Their name, for the description of the picture.
        columns: Maps in a row.
        most: The most maps to show; the description counts all.
        side: The most pixels of a map's longer side; larger maps are averaged.
        tile: The approximate width of a map, in CSS pixels.
    """
    n = len(values)
    image, tile_width, scale = sheet(values[:most], columns=columns, side=side)
    zoom = max(1.0, round(tile / tile_width))
    height, width = values.shape[1:]
    kind = f"value{'s' * (n != 1)}" if height == width == 1 else f"map{'s' * (n != 1)} of {height}×{width}"
    count = f"{n} {kind}" if n <= most else f"the first {most} of {n} {kind}"
    alt = f"{what}: {count}, values from {short(values.min())} to {short(values.max())}"
    return Picture(_uri(image), round(image.width * zoom), round(image.height * zoom), alt, f"{count}; {scale}")


def sheet(values: Floats, *, columns: int, side: int) -> tuple[Image.Image, int, str]:
    """The maps in one image, the width of a map in it, and the values of dark and bright in words."""
    shown = np.stack([_smaller(each, side) for each in values]).astype(np.float64)
    palette, levels, scale = _levels(shown)
    grow = max(1, LEAST_TILE // max(levels.shape[1:]))
    levels = levels.repeat(grow, 1).repeat(grow, 2)
    return _indexed(_tiled(levels, min(columns, len(levels))), palette), levels.shape[2], scale


def _smaller(one: Floats, side: int) -> Floats:
    """The map, or if it is larger than ``side``, the means of squares of its pixels."""
    step = -(-max(one.shape) // side)
    if step == 1:
        return one
    height, width = (-(-size // step) * step for size in one.shape)
    wide = np.pad(one, ((0, height - one.shape[0]), (0, width - one.shape[1])), "edge")
    smaller: Floats = wide.reshape(height // step, step, width // step, step).mean((1, 3))
    return smaller


def _levels(values: NDArray[np.float64]) -> tuple[str, NDArray[np.uint8], str]:
    """A palette, the entry of each value in it, and the values of dark and bright in words."""
    values = np.nan_to_num(values)
    magnitude = np.abs(values)
    limit = float(np.percentile(magnitude[magnitude > 0], TAIL)) if magnitude.any() else 1.0
    if values.min() >= 0:
        scaled, palette, scale = values / limit, "gray", f"black 0, white {short(limit)}"
    else:
        scaled, palette = (values / limit + 1) / 2, "cividis"
        scale = f"dark {short(-limit)}, grey 0, bright {short(limit)}"
    if magnitude.max() > limit * 1.001:
        scale += " and beyond"
    return palette, (scaled.clip(0, 1) * (GAP - 1)).round().astype(np.uint8), scale


def _tiled(levels: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    n, height, width = levels.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), GAP, np.uint8)
    for index, level in enumerate(levels):
        row, column = divmod(index, columns)
        y, x = row * (height + 1), column * (width + 1)
        sheet[y : y + height, x : x + width] = level
    return sheet


def _indexed(levels: NDArray[np.uint8], palette: str) -> Image.Image:
    image = Image.fromarray(levels)
    image.putpalette(_palette(palette))  # makes it an image of palette entries
    return image


@cache
def _palette(name: str) -> list[int]:
    colors = colormaps[name](np.linspace(0, 1, GAP))[:, :3]
    entries: list[int] = (colors * 255).round().astype(int).ravel().tolist()
    return [*entries, 255, 255, 255]


def _uri(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG", **({"transparency": GAP} if image.mode == "P" else {}))
    return _data(content)


def _data(content: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def histograms(named: dict[str, Floats]) -> Picture:
    """Histograms of the values of each array: two plots a row, black on white."""
    rows, columns = -(-len(named) // 2), min(2, len(named))
    figure = Figure(figsize=(2.4 * columns, 1.5 * rows))
    texts = []
    for index, (name, values) in enumerate(named.items()):
        flat = np.nan_to_num(values.ravel().astype(np.float64))
        row, column = divmod(index, 2)
        _histogram(figure, name, flat, (column / columns, 1 - (row + 1) / rows, 1 / columns, 1 / rows))
        texts.append(f"{name}: {summary(flat)}")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    width, height = (round(float(inches) * 100) for inches in figure.get_size_inches())
    return Picture(_data(_grey(content)), width, height, "Histograms. " + "; ".join(texts))


def _histogram(figure: Figure, name: str, values: Floats, box: tuple[float, float, float, float]) -> None:
    """One plot in a box of the figure. It has no axes, whose ticks take most of the time of a page of many layers."""
    x, y, width, height = box
    left, right, bottom, top = x + 0.05 * width, x + 0.95 * width, y + 0.2 * height, y + 0.82 * height
    counts, edges = np.histogram(values, 40)
    heights = bottom + (top - bottom) * counts / max(1, counts.max())
    places = np.linspace(left, right, len(edges))
    figure.add_artist(StepPatch(heights, places, baseline=bottom, fill=True, color="0.25"))
    figure.add_artist(Line2D([left, right], [bottom, bottom], color="black", linewidth=0.8))
    figure.text(left, y + 0.86 * height, name, fontsize=8)
    figure.text(left, y + 0.06 * height, short(edges[0]), fontsize=8)
    figure.text(right, y + 0.06 * height, short(edges[-1]), fontsize=8, horizontalalignment="right")


def curves(metrics: dict[str, list[tuple[int, float]]], epochs: int) -> Picture:
    """Curves of loss and accuracy up to ``epochs``, on axes for the whole run; black on white."""
    figure = Figure(figsize=(6, 2.2))
    figure.subplots_adjust(left=0.07, right=0.98, top=0.88, bottom=0.2, wspace=0.2)
    texts = []
    for index, (metric, title) in enumerate((("loss", "loss"), ("acc", "accuracy")), 1):
        axes = figure.add_subplot(1, 2, index)
        for stage, name, style in (("train", "training", "-"), ("val", "validation", "--")):
            points = metrics.get(f"{stage}_{metric}", [])
            so_far = [point for point in points if point[0] <= epochs]
            axes.plot(*zip(*points, strict=True), alpha=0) if points else None
            if so_far:
                axes.plot(*zip(*so_far, strict=True), style, color="black", marker="o", markersize=3, label=name)
                texts.append(f"{name} {title} {short(so_far[-1][1])}")
        axes.set_title(title, fontsize=9, loc="left", fontweight="bold")
        axes.tick_params(labelsize=8)
        axes.set_xlabel("epoch", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(left=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    alt = f"Learning curves up to epoch {epochs}: " + (", ".join(texts) or "nothing is known yet")
    return Picture(_data(_grey(content)), 600, 220, alt)


def _grey(content: io.BytesIO) -> io.BytesIO:
    """The drawing in 16 greys, in a much smaller file."""
    smaller = io.BytesIO()
    with Image.open(content) as image:
        image.convert("L").quantize(16).save(smaller, "PNG")
    return smaller


def summary(values: Floats) -> str:
    """Number, range, mean and standard deviation of values in words."""
    if not values.size:
        return "no values"
    zeros = float((values == 0).mean())
    text = (
        f"{values.size:,} value{'s' * (values.size != 1)} from {short(values.min())} to {short(values.max())}, "
        f"mean {short(values.mean())}, deviation {short(values.std())}"
    )
    return text + (f", {zeros:.0%} of them 0" if zeros > 0.005 else "")


def short(value: float) -> str:
    """Three significant digits, with a minus sign instead of a hyphen."""
    return f"{float(value) + 0.0:.3g}".replace("-", "−")
