"""Text in pictures: written into a box, wrapped and shortened so that it stays inside."""

from bisect import bisect_right
from functools import cache
from typing import Any, Literal

from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""
CUT = "…"
EDGE = 1
"""By how many pixels ink may reach beyond a letter's width; so much of a box stays empty at either end of a line."""
TOGETHER = "\N{NO-BREAK SPACE}"
"""A space between words that stay in one line; the font has no sign for it."""


@cache
def font_of(size: int) -> Any:
    """The font that comes with Pillow."""
    return ImageFont.load_default(size)


def width_of(text: str, size: int) -> float:
    """The width of a line as `write` writes it, in pixels."""
    width: float = font_of(size).getlength(_spaced(text))
    return width


def _spaced(text: str) -> str:
    """The text with wider spaces: those of the font are so narrow that ``8 (62 %)`` reads as one number."""
    return text.replace(" ", "  ")


def shortened(text: str, width: float, size: int) -> str:
    """The text, or its beginning and an ellipsis if it is wider than ``width`` pixels."""
    if width_of(text, size) <= width:
        return text
    kept = _longest(text, width - width_of(CUT, size), size)
    return text[:kept].rstrip() + CUT


def wrapped(before: str, name: str, after: str, width: float, size: int, lines: int = 2) -> list[str]:
    """``before name after`` in at most ``lines`` lines; if that is too long, the name is cut, and not what follows it.

    Args:
        before: A short word.
        name: Of any length.
        after: A few short words, which stay in one line; may be empty.
        width: Of a line, in pixels.
        size: Of the font.
        lines: The most lines.
    """

    def with_first(kept: int) -> list[str]:
        shown = name if kept >= len(name) else name[:kept].rstrip() + CUT
        return _wrap(f"{before} {shown} {after.replace(' ', TOGETHER)}".strip(" "), width, size)

    if len(with_first(len(name))) <= lines:
        return with_first(len(name))
    fits = bisect_right(range(len(name) + 1), 0, key=lambda kept: len(with_first(kept)) > lines)
    return [shortened(line, width, size) for line in with_first(max(0, fits - 1))[:lines]]


def _wrap(text: str, width: float, size: int) -> list[str]:
    """Lines no wider than ``width``, cut between words, or inside a word that is wider itself."""
    found = []
    while text:
        kept = max(1, _longest(text, width, size))
        if kept < len(text):
            space = text.rfind(" ", 0, kept + 1)
            is_near = space * 2 > kept or TOGETHER in text[space + 1 : kept + 1]
            kept = space if space > 0 and is_near else kept
        found.append(text[:kept].rstrip().replace(TOGETHER, " "))
        text = text[kept:].lstrip()
    return found


def _longest(text: str, width: float, size: int) -> int:
    """The number of letters of the longest beginning that is no wider than ``width``."""
    return bisect_right(range(len(text)), width, key=lambda n: width_of(text[: n + 1], size))


def write(
    image: Image.Image,
    box: Box,
    text: str,
    *,
    size: int = 11,
    color: str = "black",
    align: Literal["left", "center", "right"] = "left",
    turned: bool = False,
) -> Box:
    """Write a line into a box of a picture, in the middle between top and bottom; it is shortened if it is too wide.

    Args:
        image: The picture, which is changed.
        box: The box.
        text: The line.
        size: Of the font.
        color: Of the letters.
        align: The side of the box at which the line is.
        turned: Whether the text runs from bottom to top.

    Returns:
        The smallest box around what was written.
    """
    left, top, right, bottom = (round(side) for side in box)
    width, height = (bottom - top, right - left) if turned else (right - left, bottom - top)
    mask = Image.new("L", (max(1, width), max(1, height)))
    x, anchor = {"left": (EDGE, "lm"), "center": (width / 2, "mm"), "right": (width - EDGE, "rm")}[align]
    line = _spaced(shortened(text, width - 2 * EDGE, size))
    ImageDraw.Draw(mask).text((x, height / 2), line, 255, font_of(size), anchor=anchor)
    if turned:
        mask = mask.transpose(Image.Transpose.ROTATE_90)
    image.paste(Image.new(image.mode, mask.size, color), (left, top), mask)
    ink = mask.getbbox() or (0, 0, 0, 0)
    return left + ink[0], top + ink[1], left + ink[2], top + ink[3]
