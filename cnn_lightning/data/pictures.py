"""Picture files as arrays: any format, size and mode that Pillow reads, and one line for those it does not."""

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cnn_lightning.errors import UserError
from cnn_lightning.files import NoFile, ordinary

ENDINGS = frozenset(Image.registered_extensions())
MEMORY = 2 * 2**30
"""Bytes of resized pictures that are held in memory at most; more are read again whenever they are asked for."""


class PictureFiles:
    """Pictures that are decoded when they are asked for, by number.

    Args:
        files: One picture each.
        image_size: Height and width that they are resized to.
        grey: One channel instead of three.
    """

    def __init__(self, files: list[Path], image_size: int, grey: bool) -> None:
        self.files, self.image_size, self.grey = files, image_size, grey

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: Iterable[SupportsIndex]) -> NDArray[np.uint8]:
        """uint8 (n, C, image_size, image_size), in the order asked for."""
        return read_pictures([self.files[index] for index in indices], self.image_size, self.grey)


def find_pictures(folder: Path) -> list[Path]:
    """Every file that is named like a picture; hidden files are left alone."""
    return sorted(path for path in folder.rglob("*") if is_picture(path))


def is_picture(path: Path) -> bool:
    """Whether it is a file, not hidden, and named like a picture; pipes and devices are none."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


def load_pictures(files: list[Path], image_size: int, grey: bool) -> NDArray[np.uint8] | PictureFiles:
    """All pictures in memory where they take less than `MEMORY`, or `PictureFiles`."""
    pictures = PictureFiles(files, image_size, grey)
    fit = len(files) * (1 if grey else 3) * image_size**2 <= MEMORY
    return pictures[range(len(files))] if fit else pictures


def read_pictures(files: list[Path], image_size: int, grey: bool) -> NDArray[np.uint8]:
    """Pictures as uint8 (N, C, image_size, image_size).

    Raises:
        UserError: A file that is no picture, is damaged or absurdly large.
    """
    channels = 1 if grey else 3
    images = np.empty((len(files), channels, image_size, image_size), np.uint8)

    def fill(index: int) -> None:
        images[index] = read_picture(files[index], image_size, grey)

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        # Around all threads, as what is done about warnings is the process's. What it warns of is refused below.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        list(pool.map(fill, range(len(files))))
    return images


def read_picture(path: Path, image_size: int, grey: bool) -> NDArray[np.uint8]:
    """One picture as uint8 (C, image_size, image_size): upright, on white, resized."""
    try:
        with Image.open(ordinary(path)) as file:
            if Image.MAX_IMAGE_PIXELS is not None and file.width * file.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            upright = ImageOps.exif_transpose(file)
            picture = _eight_bits(upright).convert("RGBA")
    except Image.DecompressionBombError:
        raise UserError(f"{path}: expected a picture of fewer than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: expected a picture, but it is none that can be read") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        found = error.strerror if isinstance(error, NoFile) else f"it is damaged: {error}"
        raise UserError(f"{path}: expected a picture, but {found}") from None
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("L" if grey else "RGB")
    resized = np.asarray(flat.resize((image_size, image_size), Image.Resampling.BILINEAR))
    return resized[None] if grey else resized.transpose(2, 0, 1)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Pictures of 16 bits a pixel scaled to 8; Pillow's own conversion would clip them."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return picture
