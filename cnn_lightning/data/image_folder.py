"""The user's own pictures, with a folder for each class."""

import filecmp
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnn_lightning.data.base import InMemory, channel_statistics
from cnn_lightning.data.folders import find_layout, visible_folders
from cnn_lightning.data.loader import Augment, Sampler
from cnn_lightning.data.pictures import (
    checked_fit,
    count_not_square,
    find_pictures,
    find_value_range,
    fit_in_memory,
    load_pictures,
)
from cnn_lightning.data.readers import ImageSet, Split
from cnn_lightning.data.sides import Keys, divide, file_keys, trained
from cnn_lightning.data.values import Range, checked_range
from cnn_lightning.errors import UserError
from cnn_lightning.notices import tell
from cnn_lightning.processes import is_first

SAMPLE = 2000
"""The number of random training pictures from which the normalisation is computed."""


class _Listed(NamedTuple):
    """Files with their labels and keys."""

    files: list[Path]
    labels: NDArray[np.int64]
    keys: Keys

    def subset(self, indices: NDArray[np.int64]) -> "_Listed":
        return _Listed([self.files[index] for index in indices], self.labels[indices], self.keys[indices])


class ImageFolder(InMemory):
    """Pictures in class folders: ``root/train/CLASS/*`` with ``val`` and ``test`` beside it, or one ``root/CLASS/*``.

    Splits may have other usual names, in upper or lower case (``Training``, ``valid``, ``test_set``); names that allow
    two interpretations are refused. Without a folder for validation or test, a fixed fraction of every class is kept
    for it. Pictures are turned upright (EXIF), put on white if they are transparent, resized, and kept in memory. If
    they need more than 2 GiB, worker processes read them for each batch.

    Args:
        root: The folder.
        batch_size: Pictures in a batch of one process.
        seed: Seed of the order of samples, the split and the augmentation.
        augment: Shift training pictures by up to two pixels, and mirror half of them, both at random. "rand" and
            "trivial" change them also by torchvision's RandAugment and TrivialAugmentWide.
        image_size: Height and width to which pictures are resized.
        grey: One channel instead of three.
        num_workers: Processes that read pictures which don't fit into memory.
        val_fraction: Fraction of each class for validation, if there is no ``val`` folder.
        test_fraction: Fraction of each class for the test, if there is no ``test`` folder.
        predict_dir: A folder of unlabelled pictures for ``predict``, instead of the test split.
        value_range: The values that become black and white in pictures with more than 8 bits a value; by default the
            least and the greatest value of the training pictures, which a checkpoint keeps.
        fit: What is done with pictures that are not square: "squeeze" changes their shape, "pad" keeps it and puts
            white beside them; by default as in the checkpoint, and without one "squeeze", of which a notice tells.
        sampler: "shuffled" trains with each picture once an epoch, "balanced" with as many that are drawn with
            replacement, every class equally likely.
        mixup: The alpha of mixup, such as 0.2; with ``cutmix`` too, each batch takes one of them.
        cutmix: The alpha of cutmix, such as 1.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 32,
        seed: int = 0,
        augment: bool | Augment = True,
        image_size: int = 64,
        grey: bool = False,
        num_workers: int = 2,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        predict_dir: str | None = None,
        value_range: tuple[float, float] | None = None,
        fit: Literal["squeeze", "pad"] | None = None,
        sampler: Sampler = "shuffled",
        mixup: float | None = None,
        cutmix: float | None = None,
    ) -> None:
        super().__init__(
            batch_size, seed, augment, flip=True, predict_dir=predict_dir, sampler=sampler, mixup=mixup, cutmix=cutmix
        )
        if image_size < 1:
            raise UserError(f"data.image_size: expected at least 1, got {image_size}")
        if min(val_fraction, test_fraction) <= 0 or val_fraction + test_fraction >= 1:
            raise UserError(
                "data.val_fraction, data.test_fraction: expected positive shares that leave some to train with, got "
                f"{val_fraction} and {test_fraction}"
            )
        try:
            self.given_range = checked_range(value_range)
        except (TypeError, ValueError):
            raise UserError(
                f"data.value_range: expected two numbers, the lower one first, got {value_range!r}"
            ) from None
        try:
            self.given_fit = checked_fit(fit)
        except ValueError as error:
            raise UserError(f"data.fit: {error}") from None
        self.root, self.image_size, self.grey = Path(root), image_size, grey
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.num_workers = num_workers
        self.in_channels = 1 if grey else 3
        self.mean = self.std = (0.5,) * self.in_channels
        if not self.root.is_dir():
            raise UserError(f"data.root: expected a folder of class folders, got {root!r}")
        self._train, self._own_folders = find_layout(self.root, self.predict_dir)
        self.class_names = tuple(path.name for path in visible_folders(self._train))
        if not self.class_names:
            raise UserError(f"data.root: expected a folder for each class in {self._train}, found none")
        for name in self.class_names:
            if not name.isprintable():  # no encoding, or a line break: no file or screen shows such a name
                raise UserError(
                    f"data.root: expected class folders with printable names in {self._train}, got {name!r}"
                )
        if len(self.class_names) == 1:
            raise UserError(
                f"data.root: expected folders of at least two classes in {self._train}, found only "
                f"{self.class_names[0]!r}"
            )
        self.num_classes = len(self.class_names)

    def read(self) -> ImageSet:
        """All pictures, or their files."""
        train = self._list(self._train)
        listed = {name: self._list(folder) for name, folder in self._own_folders.items()}
        fractions = {"val": self.val_fraction, "test": self.test_fraction}
        missing = {name: fraction for name, fraction in fractions.items() if name not in listed}
        divided = divide(
            train.labels, {"train": 1 - sum(missing.values()), **missing}, self.seed, train.keys, self.known
        )
        sides = {name: train.subset(indices) for name, indices in divided.items()}
        for name in self.needed:
            if name in sides and not len(sides[name].labels):
                new = " beside those that the checkpoint was trained with" if self.known else ""
                raise UserError(
                    f"data.root: expected enough pictures in {self._train} to keep some for {name}{new}, "
                    f"found {len(train.labels)}"
                )
        sides |= {name: self._without_trained(name, side, train) for name, side in listed.items()}
        if self._stage == "fit" and self.given_fit is None and self.earlier.fit is None and is_first():
            _tell_of_squeezed([file for side in sides.values() for file in side.files], self.image_size)
        value_range = self._range(sides["train"].files)
        splits = {
            name: Split(
                load_pictures(side.files, self.image_size, self.grey, value_range, self.fit), side.labels, side.keys
            )
            for name, side in sides.items()
        }
        seen = splits["train"].images[np.random.default_rng(0).permutation(len(splits["train"].labels))[:SAMPLE]]
        mean, std = channel_statistics(seen)
        std = [value or 1.0 for value in std]  # equal pictures have a deviation of 0, which can't be a divisor
        return ImageSet(
            **splits, class_names=self.class_names, mean=tuple(mean), std=tuple(std), value_range=value_range
        )

    def _range(self, files: list[Path]) -> Range | None:
        """The range that the user gave, or that the earlier run used, or that the pictures have."""
        if self.given_range is not None or self.earlier.mean:
            return self.given_range or self.earlier.value_range
        if not fit_in_memory(len(files), self.image_size, self.grey):
            some = np.random.default_rng(0).permutation(len(files))[:SAMPLE]
            if find_value_range([files[index] for index in some]) is None:
                return None  # a sample has 8 bits a value; to read all pictures would take too long
        return find_value_range(files)

    def _without_trained(self, name: str, side: _Listed, train: _Listed) -> _Listed:
        """A folder's pictures without those that the checkpoint was trained with; a notice counts these."""
        there = dict(zip(train.keys.tolist(), train.files, strict=True))
        out = trained(side.keys, name, self.known)
        for index in np.flatnonzero(out):
            same = there.get(int(side.keys[index]))
            # Both folders can have numbered pictures of equal sizes: compare the contents.
            out[index] = same is None or filecmp.cmp(same, side.files[index], shallow=False)
        if not out.any():
            return side
        if out.all() and name in self.needed:
            raise UserError(f"{self._own_folders[name]}: expected pictures that were not trained with, found none")
        tell(f"{out.sum()} of {len(out)} pictures in {self._own_folders[name]} are left out: they were trained with")
        return side.subset(np.flatnonzero(~out))

    def _list(self, folder: Path) -> _Listed:
        files: list[Path] = []
        labels: list[int] = []
        for path in visible_folders(folder):
            if path.name not in self.class_names:
                raise UserError(f"{path}: expected one of the classes {', '.join(self.class_names)}")
        for label, name in enumerate(self.class_names):
            found = find_pictures(folder / name) if (folder / name).is_dir() else []
            if not found:
                raise UserError(f"{folder / name}: expected at least one picture of this class, found none")
            files += found
            labels += [label] * len(found)
        return _Listed(files, np.array(labels, np.int64), file_keys(files, folder))


def _tell_of_squeezed(files: list[Path], side: int) -> None:
    """Print how many of the pictures, or of some of many, are not square."""
    some = [files[index] for index in np.random.default_rng(0).permutation(len(files))[:SAMPLE]]
    n = count_not_square(some)
    if n:
        of = f"{len(some)} pictures" if len(some) == len(files) else f"{len(some)} random pictures"
        tell(f"{n} of {of} are not square and are squeezed to {side}x{side}; data.fit pad keeps their shape")
