"""The confusion matrix of a split as a picture and in words: one style for ``fit`` and ``test``."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cnn_lightning.callbacks.lettering import shortened, width_of, write

Counts = NDArray[np.int64]
"""(classes, classes): rows are the true classes, columns the predicted ones."""

RIGHT, WRONG = (31, 78, 140), (190, 72, 16)
"""Blue and orange: to be told apart by all eyes; at their darkest both are dark enough for white numbers."""
LARGEST_CELL, SMALLEST_NAMED, SMALLEST_NUMBERED = 34, 10, 20
"""Widths of a cell in pixels: at most, at least to have names beside the rows, and at least to hold a number."""
MATRIX = 1000
"""The most pixels of the matrix's side, up to as many classes."""
LONGEST_NAME, PAIRS, PAIRS_WIDTH = 150, 12, 300
"""The most pixels of a name at the matrix; the most pairs in the list beside it, and its width in pixels."""
IN_ORDER = 20
"""Up to so many classes keep their order; more are put in an order that brings confused ones together."""


class Pair(NamedTuple):
    """``wrong`` of ``total`` pictures of the class ``true`` were taken for ``guess``."""

    true: int
    guess: int
    wrong: int
    total: int


def accuracy(counts: Counts) -> str:
    """Percentage and counts, in words."""
    total, right = int(counts.sum()), int(np.trace(counts))
    return f"accuracy {right / total:.1%} ({right:,} of {total:,} right)" if total else "no pictures"


def most_confused(counts: Counts, most: int = PAIRS) -> list[Pair]:
    """The pairs of classes with the most mistakes; of equal ones first that with the larger share of its class."""
    wrong = counts - np.diag(np.diag(counts))
    totals = counts.sum(1)
    pairs = [
        Pair(int(row), int(column), int(counts[row, column]), int(totals[row]))
        for row, column in zip(*np.nonzero(wrong), strict=True)
    ]
    return sorted(pairs, key=lambda pair: (-pair.wrong, pair.total, pair.true, pair.guess))[:most]


def in_words(pair: Pair, names: Sequence[str]) -> str:
    """Such as ``8 taken for 1: 3 of 36``."""
    return f"{names[pair.true]} taken for {names[pair.guess]}: {pair.wrong:,} of {pair.total:,}"


def order_by_confusion(counts: Counts) -> list[int]:
    """An order of the classes in which those that are taken for each other stand together.

    From the most to the least confused pair, the two chains of classes that hold the pair are joined, each turned so
    that the two classes of the pair come as near as can be.
    """
    n = len(counts)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    both = np.triu(shares + shares.T, 1)
    chains = {index: [index] for index in range(n)}
    rows, columns = np.nonzero(both)
    for pair in np.argsort(-both[rows, columns], kind="stable"):
        one, other = int(rows[pair]), int(columns[pair])
        first, second = chains[one], chains[other]
        if first is second:
            continue
        if first.index(one) < len(first) - 1 - first.index(one):
            first = first[::-1]
        if second.index(other) > len(second) - 1 - second.index(other):
            second = second[::-1]
        joined = first + second
        chains |= dict.fromkeys(joined, joined)
        if len(joined) == n:
            return joined
    different = {id(chain): chain for chain in chains.values()}
    return [index for chain in different.values() for index in chain]


def confusion(counts: Counts, names: Sequence[str], split: str = "") -> Image.Image:
    """Draw the matrix with a title, and the most confused pairs beside it.

    A cell is darker the larger its share of the row is, blue for right and orange for wrong answers. Up to 50 classes
    have numbers in the cells, up to 100 names at rows and columns. More than 20 classes are put in an order in which
    confused ones stand together, in blocks along the diagonal.

    Args:
        counts: The matrix.
        names: Of the classes.
        split: What the pictures are, for the title.
    """
    n = len(counts)
    pairs = most_confused(counts)
    order = order_by_confusion(counts) if n > IN_ORDER else list(range(n))
    shown, shown_names = counts[np.ix_(order, order)], [names[index] for index in order]
    cell = max(1, min(LARGEST_CELL, MATRIX // n))
    size = 11 if cell >= SMALLEST_NUMBERED else 9
    longest = int(max(width_of(name, size) for name in names)) + 3 if cell >= SMALLEST_NAMED else 0
    margin = min(LONGEST_NAME, longest)
    left, top = 30 + margin, 64 + (margin if longest > cell else 14)
    side = n * cell
    height = max(top + side, 64 + 20 * (len(pairs) + 1)) + 12
    image = Image.new("RGB", (left + side + 28 + PAIRS_WIDTH, height), "white")
    image.paste(Image.fromarray(colors(shown).repeat(cell, 0).repeat(cell, 1)), (left, top))
    ImageDraw.Draw(image).rectangle((left - 1, top - 1, left + side, top + side), outline=(136, 136, 136))
    title = ": ".join(filter(None, (split, accuracy(counts))))
    write(image, (10, 6, image.width - 10, 28), title, size=15)
    write(image, (left, 34, left + side + 20, 54), "predicted", size=12)
    write(image, (6, top, 24, top + side), "true", size=12, turned=True, align="right")
    if margin:
        _write_names(image, (left, top), cell, shown_names, margin, size, turned=longest > cell)
    if cell >= SMALLEST_NUMBERED:
        _write_numbers(image, (left, top), cell, shown)
    _write_pairs(image, (left + side + 28, 34), pairs, names)
    return image


def colors(counts: Counts) -> NDArray[np.uint8]:
    """The colours of the cells, (classes, classes, 3), by the root of a share: few mistakes among many can be seen."""
    shares = np.sqrt(counts / np.maximum(1, counts.sum(1, keepdims=True)))[..., None]
    full = np.where(np.eye(len(counts), dtype=bool)[..., None], RIGHT, WRONG)
    levels: NDArray[np.uint8] = np.rint(255 + (full - 255) * shares).astype(np.uint8)
    return levels


def _write_names(
    image: Image.Image, corner: tuple[int, int], cell: int, names: Sequence[str], room: int, size: int, turned: bool
) -> None:
    """Write the names left of the rows, and above the columns, there from bottom to top if they are long."""
    left, top = corner
    for index, name in enumerate(names):
        x, y = left + index * cell, top + index * cell
        write(image, (left - 4 - room, y, left - 4, y + cell), name, size=size, align="right")
        above = (x, top - 4 - (room if turned else 14), x + cell, top - 4)
        write(image, above, name, size=size, align="left" if turned else "center", turned=turned)


def _write_numbers(image: Image.Image, corner: tuple[int, int], cell: int, counts: Counts) -> None:
    left, top = corner
    totals = counts.sum(1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        dark = counts[row, column] > 0.4 * totals[row]
        x, y = left + column * cell, top + row * cell
        text = _fitting(int(counts[row, column]), cell - 2)
        write(image, (x, y, x + cell, y + cell), text, color="white" if dark else "black", align="center")


def _fitting(count: int, width: float) -> str:
    """The number; in thousands or millions if that is too wide."""
    texts = (f"{count}", f"{count / 1e3:.0f}k", f"{count / 1e6:.0f}M")
    return next((text for text in texts if width_of(text, 11) <= width), texts[-1])


def _write_pairs(image: Image.Image, corner: tuple[int, int], pairs: Sequence[Pair], names: Sequence[str]) -> None:
    """A list: numbers stay whole, long names share what is left of the line."""
    left, top = corner
    right = left + PAIRS_WIDTH - 10
    write(image, (left, top, right, top + 20), "most confused" if pairs else "no mistakes", size=12)
    for line, pair in enumerate(pairs, 1):
        y = top + line * 20
        numbers = f": {pair.wrong:,} of {pair.total:,}"
        most = (PAIRS_WIDTH - 14 - width_of(f" taken for {numbers}", 11)) / 2
        text = f"{shortened(names[pair.true], most, 11)} taken for {shortened(names[pair.guess], most, 11)}{numbers}"
        write(image, (left, y, right, y + 20), text)
