"""Pictures with values outside 0 to 255: their values, and how a range of values becomes 8 bits.

Pillow returns grey pictures of 16 bits, 32 bits and floats unchanged, but only the high bytes of colours in 16 bits,
which are 0 for small values.
"""

import re
import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

Range = tuple[float, float]
"""The value that becomes black, and the value that becomes white."""

WHOLE_NUMBERS: Range = (0.0, 65535.0)
"""The range of whole numbers with more than 8 bits if the range of the set is unknown: that of 16 bits."""
FLOATS: Range = (0.0, 256.0)
"""The range of floats if the range of the set is unknown: 8 bits with a fraction."""

SAMPLE_FORMAT, BITS_PER_SAMPLE = 339, 258
"""The numbers of two tags of TIFF."""
DEEP = re.compile(r"(RGB|RGBA|RGBX|LA);16[BLN]")
"""Pillow's names of colour formats with 16 bits whose low bytes can be read, too."""
SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


class Numbers(NamedTuple):
    """The values of a picture, (H, W) or (H, W, 3), and its opacity, (H, W), if it has one."""

    values: NDArray[Any]
    opacity: NDArray[np.uint8] | None = None


class Note(NamedTuple):
    """What happened when a picture's values were mapped from a range to 8 bits.

    Args:
        low: The least value.
        high: The greatest value.
        outside: The number of values that were clipped or not finite.
        few: Whether more than two different values became only one or two.
        range: The range.
    """

    low: float
    high: float
    outside: int
    few: bool
    range: Range


def is_wide(file: Image.Image) -> bool:
    """Whether an opened picture has values of more than 8 bits that `numbers` can read."""
    return file.mode.startswith("I") or file.mode == "F" or bool(_deep(file))


def numbers(file: ImageFile.ImageFile, again: ImageFile.ImageFile) -> Numbers:
    """The values of a picture that `is_wide`, upright; ``again`` is the same file, opened a second time."""
    deep = _deep(file)
    if not deep:
        values = np.asarray(ImageOps.exif_transpose(file))
        if file.format == "TIFF" and file.mode == "I" and _tag(file, SAMPLE_FORMAT, 1) == 1:
            values = values.view(np.uint32)  # Pillow reads them as signed
        return Numbers(values)
    grey = deep == "LA"
    # Read with the other byte order, Pillow returns the low bytes; of grey with opacity it returns all four bytes.
    again.tile = [tile._replace(args=_with_raw_mode(tile.args, grey)) for tile in again.tile]
    low = np.asarray(ImageOps.exif_transpose(again))
    if grey:
        return Numbers(low[..., 0].astype(np.uint16) << 8 | low[..., 1], low[..., 2])
    high = np.asarray(ImageOps.exif_transpose(file))
    values = high[..., :3].astype(np.uint16) << 8 | low[..., :3]
    return Numbers(values, high[..., 3] if high.shape[2] == 4 else None)


def hides_values(file: ImageFile.ImageFile) -> bool:
    """Whether Pillow returns high bytes alone of a picture that is not `is_wide`, and they have one or two values."""
    bits = _tag(file, BITS_PER_SAMPLE, 8) if file.format == "TIFF" else 8
    # BGR;16 has 5 or 6 bits a colour.
    of_16 = any(";16" in mode and not mode.startswith("BGR") for mode in _raw_modes(file))
    if bits > 8 or of_16 or any(tile.codec_name == "SGI16" for tile in file.tile):
        return len(np.unique(np.asarray(file))) <= 2
    return False


def checked_range(given: Any) -> Range | None:
    """The range if it is two finite numbers, the lower one first; None for None.

    Raises:
        ValueError: Anything else.
    """
    if given is None:
        return None
    if len(given) != 2 or not np.isfinite(given).all() or not given[0] <= given[1]:
        raise ValueError(f"expected two numbers, the lower one first, got {given}")
    return float(given[0]), float(given[1])


def range_of(values: NDArray[Any]) -> Range | None:
    """The least and the greatest finite value; None if there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def eight_bits(values: NDArray[Any], known: Range | None) -> tuple[NDArray[np.uint8], Note]:
    """Map the range to 0 ... 255; values outside are clipped, and values that are not finite become black.

    Without a range whole numbers become their high bytes, and floats lose their fractions, as in version 0.1.
    """
    low, high = known or (FLOATS if values.dtype.kind == "f" else WHOLE_NUMBERS)
    finite = np.isfinite(values)
    shifted = np.where(finite, values, low).astype(np.float64) - low
    if known is None:
        scaled = np.floor(shifted if values.dtype.kind == "f" else shifted / 256)
    else:
        scaled = np.rint(shifted * 255 / ((high - low) or 1.0))
    result = scaled.clip(0, 255).astype(np.uint8)
    outside = int((~finite).sum() + (shifted < 0).sum() + (shifted > high - low).sum())
    few = bool(np.count_nonzero(np.bincount(result.ravel(), minlength=256)) <= 2 < len(np.unique(values)))
    least, greatest = range_of(values) or (low, high)
    return result, Note(least, greatest, outside, few, (low, high))


def _deep(file: Image.Image) -> str:
    """The colours of a picture with 16 bits whose low bytes can be read; empty for other pictures."""
    found = {match[1] if match else "" for match in map(DEEP.fullmatch, _raw_modes(file))}
    return found.pop() if len(found) == 1 else ""


def _raw_modes(file: Image.Image) -> list[str]:
    tiles = getattr(file, "tile", [])
    return [str(tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args) for tile in tiles]


def _with_raw_mode(args: Any, grey: bool) -> Any:
    mode = str(args[0] if isinstance(args, tuple) else args)
    mode = "RGBA" if grey else mode[:-1] + SWAPPED[mode[-1]]
    return (mode, *args[1:]) if isinstance(args, tuple) else mode


def _tag(file: Any, number: int, default: int) -> int:
    found = file.tag_v2.get(number, default)
    return int(max(found) if isinstance(found, tuple) else found)
