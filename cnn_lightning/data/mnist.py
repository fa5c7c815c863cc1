"""MNIST and Fashion-MNIST: torchvision downloads them, and our own reader reads the files."""

from http.client import HTTPException
from pathlib import Path
from typing import Any

from torchvision import datasets

from cnn_lightning.data.base import InMemory
from cnn_lightning.data.loader import Augment, Sampler
from cnn_lightning.data.readers import (
    FASHION_CLASSES,
    FASHION_MEAN,
    FASHION_STD,
    MNIST_MEAN,
    MNIST_STD,
    ImageSet,
    read_mnist,
)
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import whole_folder


class MNIST(InMemory):
    """60,000 (5,000 of them for validation) and 10,000 grey pictures of 28x28 pixels in 10 classes.

    Args:
        root: The folder that contains ``MNIST/raw``, which is downloaded if it is missing.
        batch_size: Pictures in a batch of one process.
        seed: Seed of the order of samples and of the augmentation.
        augment: Shift training pictures by up to two pixels. "rand" and "trivial" change them also by torchvision's
            RandAugment and TrivialAugmentWide.
        predict_dir: A folder of unlabelled pictures for ``predict``, instead of the test split.
        sampler: "shuffled" trains with each picture once an epoch, "balanced" with as many that are drawn with
            replacement, every class equally likely.
        mixup: The alpha of mixup, such as 0.2; with ``cutmix`` too, each batch takes one of them.
        cutmix: The alpha of cutmix, such as 1.
    """

    num_classes, in_channels, image_size = 10, 1, 28
    class_names: tuple[str, ...] = tuple("0123456789")
    mean: tuple[float, ...] = MNIST_MEAN
    std: tuple[float, ...] = MNIST_STD
    name = "MNIST"
    source: Any = datasets.MNIST

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 256,
        seed: int = 0,
        augment: bool | Augment = True,
        predict_dir: str | None = None,
        sampler: Sampler = "shuffled",
        mixup: float | None = None,
        cutmix: float | None = None,
    ) -> None:
        super().__init__(
            batch_size, seed, augment, predict_dir=predict_dir, sampler=sampler, mixup=mixup, cutmix=cutmix
        )
        self.root = root

    def prepare_data(self) -> None:
        """Download the set if it is missing."""
        folder = Path(self.root) / self.name / "raw"
        if folder.is_dir():
            return  # the reader names damaged files
        fetch(self.source, self.root, f"{self.name}/raw")

    def read(self) -> ImageSet:
        """Read the IDX files."""
        return read_mnist(self.root, self.name, known=self.known)


class FashionMNIST(MNIST):
    """Zalando's replacement of MNIST, with clothes instead of digits. Arguments as `MNIST`."""

    class_names, mean, std = FASHION_CLASSES, FASHION_MEAN, FASHION_STD
    name, source = "FashionMNIST", datasets.FashionMNIST


def fetch(source: Any, root: str, files: str) -> None:
    """Download a set of torchvision's.

    The folder ``files`` appears in ``root`` when it is complete: a download that fails leaves nothing that the next run
    would take for the set.

    Raises:
        UserError: The download failed.
    """
    try:
        with whole_folder(Path(root), files) as folder:
            source(str(folder), download=True)
    except (RuntimeError, OSError, HTTPException, EOFError) as error:
        raise UserError(
            f"data.root: expected a folder that holds {files}, found none in {root!r}; downloading failed: "
            f"{one_line(error, 120)}"
        ) from None
