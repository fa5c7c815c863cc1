"""One picture file as an array: any format, size and mode that Pillow reads. Without torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from cnn_lightning.data.values import Note, Range, eight_bits, hides_values, is_wide, numbers
from cnn_lightning.errors import UserError
from cnn_lightning.files import NoFile, ordinary

Fit = Literal["squeeze", "pad"]
"""How a picture that is not square becomes square: its shape changes, or white is put at both sides of it."""


@contextmanager
def opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The picture, whose pixels are not read yet.

    Raises:
        UserError: The file is no picture, is damaged or too large.
    """
    try:
        with Image.open(ordinary(path)) as file:
            if Image.MAX_IMAGE_PIXELS is not None and file.width * file.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            yield file
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{path}: expected a picture of fewer than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: expected a picture, but it is none that can be read") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        found = error.strerror if isinstance(error, NoFile) else f"it is damaged: {error}"
        raise UserError(f"{path}: expected a picture, but {found}") from None


def decoded(
    path: Path, image_size: int, grey: bool, value_range: Range | None, fit: Fit
) -> tuple[NDArray[np.uint8], Note | None]:
    """One picture as uint8 (C, image_size, image_size), upright, on white, resized; and a note of its values.

    Raises:
        UserError: As `opened`.
    """
    note = None
    with opened(path) as file:
        if is_wide(file):
            with opened(path) as again:
                found = numbers(file, again)
            values, note = eight_bits(found.values, value_range)
            picture = Image.fromarray(values).convert("RGBA")
            if found.opacity is not None:
                picture.putalpha(Image.fromarray(found.opacity))
        else:
            if hides_values(file):
                raise UserError(f"{path}: expected 16 bits a value in grey or RGB, or 8, got 16 in {file.mode}")
            picture = ImageOps.exif_transpose(file).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("L" if grey else "RGB")
    resized = np.asarray(_square(flat, image_size, fit))
    return (resized[None] if grey else resized.transpose(2, 0, 1)), note


def _square(picture: Image.Image, side: int, fit: Fit) -> Image.Image:
    """The picture with this width and height."""
    longer = max(picture.size) if fit == "pad" else 0
    width, height = (max(1, round(side * each / longer)) if longer else side for each in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    if (width, height) == (side, side):
        return resized
    square = Image.new(picture.mode, (side, side), "white")
    square.paste(resized, ((side - width) // 2, (side - height) // 2))
    return square
