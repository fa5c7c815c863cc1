"""Picture files as arrays: any format, size and mode that Pillow reads; an error of one line for other files."""

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, SupportsIndex, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cnn_lightning.data.decoding import Fit as Fit
from cnn_lightning.data.decoding import decoded, opened
from cnn_lightning.data.values import Note, Range, is_wide, numbers, range_of
from cnn_lightning.notices import tell

ENDINGS = frozenset(Image.registered_extensions())
MEMORY = 2 * 2**30
"""The most bytes of resized pictures to keep in memory; a larger set is read again for each batch."""


class PictureFiles:
    """Pictures that are decoded when they are indexed.

    Notices about their values come once, whichever process reads them.

    Args:
        files: One picture each.
        image_size: Height and width to which they are resized.
        grey: One channel instead of three.
        value_range: Of pictures with more than 8 bits a value; None for the whole range of 16 bits.
        fit: What is done with pictures that are not square.
    """

    def __init__(
        self, files: list[Path], image_size: int, grey: bool, value_range: Range | None = None, fit: Fit = "squeeze"
    ) -> None:
        self.files, self.image_size, self.grey, self.value_range = files, image_size, grey, value_range
        self.fit: Fit = fit
        self._noticed = torch.zeros(2, dtype=torch.bool)
        self._noticed.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: Iterable[SupportsIndex]) -> NDArray[np.uint8]:
        """uint8 (n, C, image_size, image_size), in the order of the indices."""
        files = [self.files[index] for index in indices]
        return read_pictures(files, self.image_size, self.grey, self.value_range, self._noticed, self.fit)


def checked_fit(given: Any) -> Fit | None:
    """The value if it is one of `Fit` or None.

    Raises:
        ValueError: Anything else.
    """
    if given is not None and given not in get_args(Fit):
        raise ValueError(f"expected {' or '.join(get_args(Fit))}, got {given!r}")
    return cast(Fit | None, given)


def find_pictures(folder: Path) -> list[Path]:
    """All files of a folder and its subfolders with the suffix of a picture, without hidden ones."""
    return sorted(path for path in folder.rglob("*") if is_picture(path))


def is_picture(path: Path) -> bool:
    """Whether the path is a file with the suffix of a picture, not hidden; pipes and devices are no files."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


def fit_in_memory(n: int, image_size: int, grey: bool) -> bool:
    """Whether ``n`` pictures take at most `MEMORY`."""
    return n * (1 if grey else 3) * image_size**2 <= MEMORY


def load_pictures(
    files: list[Path], image_size: int, grey: bool, value_range: Range | None = None, fit: Fit = "squeeze"
) -> NDArray[np.uint8] | PictureFiles:
    """All pictures in memory if they fit, otherwise `PictureFiles`."""
    pictures = PictureFiles(files, image_size, grey, value_range, fit)
    return pictures[range(len(files))] if fit_in_memory(len(files), image_size, grey) else pictures


def read_pictures(
    files: list[Path],
    image_size: int,
    grey: bool,
    value_range: Range | None = None,
    noticed: Tensor | None = None,
    fit: Fit = "squeeze",
) -> NDArray[np.uint8]:
    """Pictures as uint8 (N, C, image_size, image_size).

    A notice counts pictures with values outside the range, another those with many values that become one or two.

    Args:
        files: One picture each.
        image_size: Height and width to which they are resized.
        grey: One channel instead of three.
        value_range: Of pictures with more than 8 bits a value; None for the whole range of 16 bits.
        noticed: Which of the two notices were printed; changed in place.
        fit: What is done with pictures that are not square.

    Raises:
        UserError: A file that is no picture, is damaged or too large.
    """
    channels = 1 if grey else 3
    images = np.empty((len(files), channels, image_size, image_size), np.uint8)
    notes: list[Note | None] = [None] * len(files)

    def fill(index: int) -> None:
        images[index], notes[index] = decoded(files[index], image_size, grey, value_range, fit)

    _for_each(fill, len(files))
    _print_notices(files, notes, torch.zeros(2, dtype=torch.bool) if noticed is None else noticed)
    return images


def read_picture(
    path: Path, image_size: int, grey: bool, value_range: Range | None = None, fit: Fit = "squeeze"
) -> NDArray[np.uint8]:
    """One picture as uint8 (C, image_size, image_size): upright, on white, resized."""
    return decoded(path, image_size, grey, value_range, fit)[0]


def count_not_square(files: list[Path]) -> int:
    """The number of pictures whose width and height differ; only the beginnings of the files are read.

    Raises:
        UserError: A file that is no picture or is too large.
    """
    differ = np.zeros(len(files), bool)

    def look(index: int) -> None:
        with opened(files[index]) as file:
            differ[index] = file.width != file.height

    _for_each(look, len(files))
    return int(differ.sum())


def find_value_range(files: list[Path]) -> Range | None:
    """The least and the greatest value of pictures with more than 8 bits a value; None if there is no such picture.

    Raises:
        UserError: A file that is no picture, is damaged or too large.
    """
    found: list[Range | None] = [None] * len(files)

    def look(index: int) -> None:
        with opened(files[index]) as file:
            if is_wide(file):
                with opened(files[index]) as again:
                    found[index] = range_of(numbers(file, again).values)

    _for_each(look, len(files))
    ranges = [each for each in found if each is not None]
    return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None


def _for_each(work: Callable[[int], None], n: int) -> None:
    """Call ``work`` with 0 to n - 1, in threads."""
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        # Outside the threads, because warning filters belong to the process. `opened` refuses what this warns of.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        list(pool.map(work, range(n)))


def _print_notices(files: list[Path], notes: list[Note | None], noticed: Tensor) -> None:
    noted = [(path, note) for path, note in zip(files, notes, strict=True) if note is not None]
    clipped = [(path, note) for path, note in noted if note.outside]
    if clipped and not noticed[0]:
        noticed[0] = True
        low, high = min(note.low for _, note in clipped), max(note.high for _, note in clipped)
        tell(
            f"{len(clipped)} of {len(files)} pictures have values outside the range {clipped[0][1].range[0]:g} to "
            f"{clipped[0][1].range[1]:g}, which are clipped: from {low:g} to {high:g}, the first in {clipped[0][0]}"
        )
    few = [(path, note) for path, note in noted if note.few]
    if few and not noticed[1]:
        noticed[1] = True
        low, high = few[0][1].range
        tell(
            f"{len(few)} of {len(files)} pictures have many values that come out as one or two in the range {low:g} to "
            f"{high:g}, the first {few[0][0]}; data.value_range gives another range"
        )
