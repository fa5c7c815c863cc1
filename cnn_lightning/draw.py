"""Arrays as pictures for a page: grids of maps in one palette, photographs, histograms and curves."""

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

PALETTE = "RdBu_r"
"""ColorBrewer's red and blue: its lightness falls equally on both sides of 0, and colour-blind people can read it."""
ZERO = 127
"""The entry of the palette for 0: white. Entry 0 is the darkest blue, entry 254 the darkest red."""
GAP = 255
"""The transparent entry of the palette, between two maps."""
HEAT = (214, 24, 31)
"""The red of `heat`."""
TAIL = 99.5
"""The percentile of magnitudes at which the scale ends, so that one large value does not make all others white."""
LEAST_TILE = 8
"""The least width of a map in the file, in pixels; the page enlarges it further."""


@dataclass(frozen=True)
class Scale:
    """The values of the colours: from ``low``, which is 0 or ``-high``, to ``high``; white is 0.

    Args:
        low: The value of the first colour.
        high: The value of the last colour.
        beyond: Whether some values lie outside; they have the first or the last colour.
    """

    low: float
    high: float
    beyond: bool

    @property
    def words(self) -> str:
        """The same for who does not see colours."""
        blue = f"blue {short(self.low)}, " if self.low < 0 else ""
        return f"{blue}white 0, red {short(self.high)}{' and beyond' if self.beyond else ''}"


@dataclass(frozen=True)
class Picture:
    """An image for the page.

    Args:
        uri: The PNG as a data URI.
        width: In CSS pixels.
        height: In CSS pixels.
        alt: A description of what it shows.
        count: How many maps it shows; empty for a photograph or a plot.
        scale: The values of its colours; None if it needs none.
    """

    uri: str
    width: int
    height: int
    alt: str
    count: str = ""
    scale: Scale | None = None


def photograph(image: Floats, alt: str, width: int = 224) -> Picture:
    """An image (C, H, W) with values from 0 to 1: grey, red-green-blue, or for other C its first channel."""
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    shown = Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0])
    return Picture(_uri(shown), width, round(width * shown.height / shown.width), alt)


def grid(values: Floats, what: str, *, columns: int = 8, most: int = 64, side: int = 64, tile: int = 44) -> Picture:
    """Maps (n, h, w) on one scale, row by row.

    Negative values are blue, 0 is white, positive values are red, and the larger the magnitude the darker.

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
    zoom = max(1, int(tile / tile_width + 0.5))
    height, width = values.shape[1:]
    kind = f"value{'s' * (n != 1)}" if height == width == 1 else f"map{'s' * (n != 1)} of {height}×{width}"
    count = f"{n} {kind}" if n <= most else f"the first {most} of {n} {kind}"
    alt = f"{what}: {count}, values from {short(values.min())} to {short(values.max())}"
    return Picture(_uri(image), image.width * zoom, image.height * zoom, alt, count, scale)


def sheet(values: Floats, *, columns: int, side: int) -> tuple[Image.Image, int, Scale]:
    """The maps in one image, the width of a map in it, and the values of the colours."""
    shown = np.stack([smaller(each.astype(np.float64), side) for each in values])
    scale = scale_of(shown)
    levels = _levels(shown, scale.high)
    grow = max(1, LEAST_TILE // max(levels.shape[1:]))
    levels = levels.repeat(grow, 1).repeat(grow, 2)
    return _indexed(_tiled(levels, min(columns, len(levels)))), levels.shape[2], scale


def colors(kernels: Floats, what: str, *, columns: int = 8, most: int = 64, tile: int = 36) -> Picture:
    """Kernels (n, 3, h, w) of red, green and blue as coloured tiles on one scale: grey is 0, brighter is larger."""
    n = len(kernels)
    image, width, _ = color_sheet(kernels[:most], columns=columns)
    zoom = max(1, int(tile / width + 0.5))
    count = f"{n} kernels" if n <= most else f"the first {most} of {n} kernels"
    alt = f"{what} in colour: {count}, grey is 0, values from {short(kernels.min())} to {short(kernels.max())}"
    return Picture(_uri(image), image.width * zoom, image.height * zoom, alt, f"{count}; grey is 0")


def color_sheet(kernels: Floats, *, columns: int) -> tuple[Image.Image, int, Scale]:
    """Kernels (n, 3, h, w) in one image, the width of one in it, and the scale: white is `high`, black `-high`."""
    values = np.nan_to_num(kernels.astype(np.float64))
    scale = scale_of(values)
    levels = np.floor((values / scale.high).clip(-1, 1) * ZERO + (ZERO + 1.5)).astype(np.uint8)
    grow = max(1, LEAST_TILE // max(levels.shape[2:]))
    levels = levels.repeat(grow, 2).repeat(grow, 3)
    columns = min(columns, len(levels))
    opaque = _tiled(np.full_like(levels[:, 0], 255), columns, gap=0)
    sheets = [_tiled(levels[:, color], columns) for color in range(3)]
    return Image.fromarray(np.stack([*sheets, opaque], 2)), levels.shape[3], scale


def heat(values: Floats, what: str, width: int = 224) -> Picture:
    """A map (h, w) to lay over a photograph: the larger a value, the less transparent is its red; 0 is clear."""
    opaque = np.floor(values.clip(0) / max(float(values.max()), 1e-30) * 255 + 0.5).astype(np.uint8)
    image = np.full((*values.shape, 4), [*HEAT, 0], np.uint8)
    image[..., 3] = opaque
    height = round(width * values.shape[0] / values.shape[1])
    return Picture(_uri(Image.fromarray(image)), width, height, f"{what}: the redder, the more it speaks for the class")


def smaller(one: Floats, side: int) -> Floats:
    """The map, or if it is larger than ``side``, the means of squares of its pixels."""
    step = -(-max(one.shape) // side)
    if step == 1:
        return one
    height, width = (-(-size // step) * step for size in one.shape)
    wide = np.pad(one, ((0, height - one.shape[0]), (0, width - one.shape[1])), "edge")
    means: Floats = wide.reshape(height // step, step, width // step, step).mean((1, 3))
    return means


def scale_of(values: Floats) -> Scale:
    """The scale of values on which 0 is white: symmetric, or from 0 on if no value is negative."""
    values = np.nan_to_num(values)
    magnitude = np.abs(values)
    high = float(np.percentile(magnitude[magnitude > 0], TAIL)) if magnitude.any() else 1.0
    beyond = bool(magnitude.max(initial=0.0) > high * 1.001)
    return Scale(-high if values.min(initial=0.0) < 0 else 0.0, high, beyond)


def palette() -> list[str]:
    """The colours of all entries as ``#rrggbb``, from the most negative value to the most positive."""
    entries = _entries()
    return ["#{:02x}{:02x}{:02x}".format(*entries[3 * index : 3 * index + 3]) for index in range(GAP)]


@cache
def _entries() -> list[int]:
    """Red, green and blue of each entry of the palette."""
    found = colormaps[PALETTE](np.linspace(0, 1, GAP))[:, :3]
    entries: list[int] = (found * 255).round().astype(int).ravel().tolist()
    return [*entries, 255, 255, 255]


def _levels(values: Floats, limit: float) -> NDArray[np.uint8]:
    """The entry of each value. Halves are rounded up, as JavaScript does."""
    return (np.floor((np.nan_to_num(values) / limit).clip(-1, 1) * ZERO + 0.5) + ZERO).astype(np.uint8)


def _tiled(levels: NDArray[np.uint8], columns: int, gap: int = GAP) -> NDArray[np.uint8]:
    n, height, width = levels.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), gap, np.uint8)
    for index, level in enumerate(levels):
        row, column = divmod(index, columns)
        y, x = row * (height + 1), column * (width + 1)
        sheet[y : y + height, x : x + width] = level
    return sheet


def _indexed(levels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(levels)
    image.putpalette(_entries())  # makes it an image of palette entries
    return image


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


def as_uri(image: Image.Image) -> str:
    """A PNG as a data URI."""
    return _uri(image)
