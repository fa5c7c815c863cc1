"""The base of the DataModules: image sets in memory, split, normalised and batched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor

from cnn_lightning.data.loader import Augment, Batches, Sampler, checked_augment
from cnn_lightning.data.mixing import Mixing
from cnn_lightning.data.pictures import Fit, PictureFiles, find_pictures, read_pictures
from cnn_lightning.data.readers import ImageSet, Split
from cnn_lightning.data.record import DataRecord
from cnn_lightning.data.sides import SIDES, Sides, are_kept, merged
from cnn_lightning.data.values import Range
from cnn_lightning.errors import EverywhereError, UserError
from cnn_lightning.processes import from_all


class InMemory(LightningDataModule):
    """Splits as uint8 tensors, from which loaders make normalised batches.

    A subclass defines how to `read` its set. Each process takes batches of ``batch_size``, so that the global batch is
    ``batch_size`` times the number of processes.

    Args:
        batch_size: Pictures in a batch of one process.
        seed: Seed of the order of samples and of the augmentation.
        augment: True or "shift" shifts training pictures by up to two pixels; "rand" and "trivial" change them also by
            torchvision's RandAugment and TrivialAugmentWide.
        flip: Also mirror training pictures at random.
        predict_dir: A folder of unlabelled pictures for ``predict``, instead of the test split.
        sampler: "shuffled" trains with each picture once an epoch, "balanced" with as many that are drawn with
            replacement, every class equally likely.
        mixup: The alpha of mixup; with ``cutmix`` too, each batch takes one of them. See `Mixing`.
        cutmix: The alpha of cutmix.
    """

    num_classes: int
    in_channels: int
    image_size: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        batch_size: int,
        seed: int,
        augment: bool | Augment,
        flip: bool = False,
        predict_dir: str | None = None,
        sampler: Sampler = "shuffled",
        mixup: float | None = None,
        cutmix: float | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size: expected at least 1, got {batch_size}")
        if seed < 0:
            raise UserError(f"data.seed: expected at least 0, got {seed}")
        if sampler not in get_args(Sampler):
            raise UserError(f"data.sampler: expected {' or '.join(get_args(Sampler))}, got {sampler!r}")
        self.batch_size, self.seed, self.flip = batch_size, seed, flip
        self.augment = checked_augment(augment)
        self.sampler: Sampler = sampler
        self.mixing = Mixing(mixup, cutmix)
        self.predict_dir = None if predict_dir is None else Path(predict_dir)
        if self.predict_dir is not None and not self.predict_dir.is_dir():
            raise UserError(f"data.predict_dir: expected a folder of pictures, got {predict_dir!r}")
        self.num_workers = 0
        self.given_range: Range | None = None
        self.given_fit: Fit | None = None
        self._own_fit: Fit | None = None
        self.value_range: Range | None = None
        self._own_range: Range | Literal["not looked for"] | None = "not looked for"
        self._own: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self.earlier = DataRecord()
        self._is_over = False
        self._now: Sides = {}
        self._stage: str | None = None
        self._splits: dict[str, tuple[Tensor | PictureFiles, Tensor]] = {}
        self._predict_files: list[Path] = []

    @property
    def known(self) -> Sides:
        """The sides that an earlier run knows: the run that is resumed, or whose checkpoint is tested. For `read`."""
        return self.earlier.sides

    @property
    def sides(self) -> Sides:
        """The side of every picture of this set and of the earlier run; empty for sets without keys."""
        return merged(self._now, self.known)

    @property
    def class_counts(self) -> list[int]:
        """The number of training pictures of each class."""
        _, labels = self._splits["train"]
        return torch.bincount(labels, minlength=len(self.class_names)).tolist()

    @property
    def fit(self) -> Fit:
        """What is done with pictures that are not square: as given, or as in the earlier run."""
        return self.given_fit or self.earlier.fit or "squeeze"

    @property
    def needed(self) -> tuple[str, ...]:
        """The sides that must not be empty in the current stage."""
        if self._stage == "predict" and self.predict_dir is not None:
            return ()
        return {"validate": ("val",), "test": ("test",), "predict": ("test",)}.get(self._stage or "", SIDES)

    def read(self) -> ImageSet:
        """The whole set."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the set at the first stage."""
        self._stage = stage
        if not self._splits:
            found, self._own_fit = self.read(), self.fit
            self.class_names, self._own = found.class_names, (found.mean, found.std)
            self._normalise()
            if self.given_range is None and not self.earlier.mean:
                self._own_range = found.value_range
            self.value_range = self.given_range or (self.earlier if self.earlier.mean else found).value_range
            splits = {name: getattr(found, name) for name in SIDES}
            keys = {name: split.keys for name, split in splits.items() if split.keys is not None}
            self._now = keys if keys.keys() == splits.keys() else {}  # keys of some sides alone are no use
            self._splits = {name: _tensors(split) for name, split in splits.items()}

    def go_on_from(self, earlier: DataRecord) -> None:
        """Treat pictures as the earlier run did that trained the network: same sides, same normalisation.

        New pictures are divided into sides among themselves. If ``earlier`` has no normalisation, these pictures'
        normalisation and range of values are used; a range and a ``fit`` that were given stay. If ``earlier`` is empty,
        a record that this run has already got stays, but not one of a run that is over.
        """
        if not earlier.mean and not earlier.sides and not self._is_over:
            return
        self._is_over = False
        before, self.earlier = self.known, earlier
        self._normalise()
        stay = are_kept(self._now, self.known) if self.known else not before
        wanted = self.given_range or (earlier.value_range if earlier.mean else self._own_range)
        if self._splits and (not stay or wanted != self.value_range or self.fit != self._own_fit):
            self._splits = {}
            self.setup(self._stage)

    def teardown(self, stage: str) -> None:
        """Remember that the run is over."""
        self._is_over = True

    def _normalise(self) -> None:
        if self.earlier.mean:
            self.mean, self.std = self.earlier.mean, self.earlier.std
        elif self._own is not None:
            self.mean, self.std = self._own

    def train_dataloader(self) -> Batches:
        """Batches in the order of the sampler, augmented if `augment` is set, and mixed if `mixing` is."""
        options = {"augment": self.augment, "flip": self.flip, "sampler": self.sampler}
        mixing = {"mixing": self.mixing, "num_classes": len(self.class_names)}
        return self._batches("train", seed=self.seed, **options, **mixing)

    def val_dataloader(self) -> Batches:
        """Batches in the order of the set."""
        return self._batches("val")

    def test_dataloader(self) -> Batches:
        """Batches in the order of the set."""
        return self._batches("test")

    def predict_dataloader(self) -> Batches:
        """The pictures of ``predict_dir`` in the order of `predict_files`, or the test split."""
        if self.predict_dir is not None and "predict" not in self._splits:
            files = self.predict_files()
            images = read_pictures(files, self.image_size, self.in_channels == 1, self.value_range, fit=self.fit)
            self._splits["predict"] = _tensors(Split(images, np.full(len(files), -1)))
        return self._batches("test" if self.predict_dir is None else "predict")

    def predict_files(self) -> list[Path]:
        """The files of ``predict_dir``; none without one, when ``predict`` uses the test split.

        The first process lists the folder, once, so that an index means the same file in all processes and at the end.
        A collective call.

        Raises:
            UserError: The folder holds no picture.
        """
        if self.predict_dir is not None and not self._predict_files:
            self._predict_files = from_all(find_pictures(self.predict_dir))[0]
            if not self._predict_files:
                raise EverywhereError(
                    f"data.predict_dir: expected at least one picture in {str(self.predict_dir)!r}, found none"
                )
        return self._predict_files

    def _batches(self, split: str, **options: Any) -> Batches:
        images, labels = self._splits[split]
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Batches(
            images,
            labels,
            batch_size=self.batch_size,
            mean=self.mean,
            std=self.std,
            rank=rank,
            world_size=world_size,
            num_workers=self.num_workers,
            **options,
        )


def _tensors(split: Split) -> tuple[Tensor | PictureFiles, Tensor]:
    # Copies, because torch must not share the read-only memory of a file's content.
    labels = torch.from_numpy(np.array(split.labels, np.int64))
    return split.images if isinstance(split.images, PictureFiles) else torch.from_numpy(np.array(split.images)), labels


def channel_statistics(images: NDArray[np.uint8]) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel of (N, C, H, W), for values from 0 to 1."""
    values = images.astype(np.float64) / 255
    return values.mean((0, 2, 3)).tolist(), values.std((0, 2, 3)).tolist()
