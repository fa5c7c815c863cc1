"""A user's own pictures, in one folder a class."""

import filecmp
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnn_lightning.data.base import InMemory, channel_statistics
from cnn_lightning.data.folders import find_layout, visible_folders
from cnn_lightning.data.pictures import find_pictures, find_value_range, fit_in_memory, load_pictures
from cnn_lightning.data.readers import ImageSet, Split
from cnn_lightning.data.sides import Keys, divide, file_keys, trained
from cnn_lightning.data.values import Range, checked_range
from cnn_lightning.errors import UserError
from cnn_lightning.notices import tell

SAMPLE = 2000
"""Training pictures that the normalisation is computed from, drawn at random."""


class _Listed(NamedTuple):
    """Files with their labels and keys."""

    files: list[Path]
    labels: NDArray[np.int64]
    keys: Keys

    def part(self, indices: NDArray[np.int64]) -> "_Listed":
        return _Listed([self.files[index] for index in indices], self.labels[indices], self.keys[indices])


class ImageFolder(InMemory):
    """Pictures in class folders: ``root/train/CLASS/*`` with ``val`` and ``test`` beside it, or one ``root/CLASS/*``.

    Splits are known in any case and under other usual names (``Training``, ``valid``, ``test_set``); what looks like
    splits but can be read in two ways is refused. Where there is no folder for validation or test, a fixed share of
    every class is kept for it. Pictures are turned upright (EXIF), laid on white where they are transparent, resized,
    and held in memory; where they take more than 2 GiB, worker processes read them as they are needed.

    Args:
        root: The folder.
        batch_size: Pictures in a batch of one process.
        seed: Of the order of samples, the split and the augmentation.
        augment: Shift training pictures by up to two pixels and mirror every second one.
        image_size: Height and width that pictures are resized to.
        grey: One channel instead of three.
        num_workers: Processes that read pictures where they don't fit into memory.
        val_fraction: Share kept for validation where there is no ``val`` folder.
        test_fraction: Share kept for the test where there is no ``test`` folder.
        predict_dir: A folder of unlabelled pictures for ``predict``, instead of the test split.
        value_range: The values that become black and white in pictures with more than 8 bits a value; by default the
            least and the greatest of the training pictures, which a checkpoint keeps.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 32,
        seed: int = 0,
        augment: bool = True,
        image_size: int = 64,
        grey: bool = False,
        num_workers: int = 2,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        predict_dir: str | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(batch_size, seed, augment, flip=True, predict_dir=predict_dir)
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
            if not name.isprintable():  # in no encoding, or with a line break: no file or screen could show it
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
        """Every picture, or where to find it."""
        train = self._list(self._train)
        listed = {name: self._list(folder) for name, folder in self._own_folders.items()}
        shares = {"val": self.val_fraction, "test": self.test_fraction}
        missing = {name: share for name, share in shares.items() if name not in listed}
        cut = divide(train.labels, {"train": 1 - sum(missing.values()), **missing}, self.seed, train.keys, self.known)
        parts = {name: train.part(indices) for name, indices in cut.items()}
        for name in self.needed:
            if name in parts and not len(parts[name].labels):
                new = " beside those that the checkpoint was trained with" if self.known else ""
                raise UserError(
                    f"data.root: expected enough pictures in {self._train} to keep some for {name}{new}, "
                    f"found {len(train.labels)}"
                )
        parts |= {name: self._without_trained(name, part, train) for name, part in listed.items()}
        value_range = self._range(parts["train"].files)
        splits = {
            name: Split(load_pictures(part.files, self.image_size, self.grey, value_range), part.labels, part.keys)
            for name, part in parts.items()
        }
        seen = splits["train"].images[np.random.default_rng(0).permutation(len(splits["train"].labels))[:SAMPLE]]
        mean, std = channel_statistics(seen)
        std = [value or 1.0 for value in std]  # pictures that are all alike have no deviation to divide by
        return ImageSet(
            **splits, class_names=self.class_names, mean=tuple(mean), std=tuple(std), value_range=value_range
        )

    def _range(self, files: list[Path]) -> Range | None:
        """The range that is given, or is known from the run that is gone on from, or is found."""
        if self.given_range is not None or self.earlier.mean:
            return self.given_range or self.earlier.value_range
        if not fit_in_memory(len(files), self.image_size, self.grey):
            some = np.random.default_rng(0).permutation(len(files))[:SAMPLE]
            if find_value_range([files[index] for index in some]) is None:
                return None  # all pictures have 8 bits a value, as far as can be told without reading them
        return find_value_range(files)

    def _without_trained(self, name: str, part: _Listed, train: _Listed) -> _Listed:
        """A folder's pictures without those that the checkpoint was trained with, of which the user is told."""
        there = dict(zip(train.keys.tolist(), train.files, strict=True))
        out = trained(part.keys, name, self.known)
        for index in np.flatnonzero(out):
            same = there.get(int(part.keys[index]))
            # Numbered pictures of one size can stand in both folders: they are different ones.
            out[index] = same is None or filecmp.cmp(same, part.files[index], shallow=False)
        if not out.any():
            return part
        if out.all() and name in self.needed:
            raise UserError(f"{self._own_folders[name]}: expected pictures that were not trained with, found none")
        tell(f"{out.sum()} of {len(out)} pictures in {self._own_folders[name]} are left out: they were trained with")
        return part.part(np.flatnonzero(~out))

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
