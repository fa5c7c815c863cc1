"""MNIST and Fashion-MNIST, by torchvision where they have to be fetched and by our own reader from then on."""

import os
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torchvision import datasets

from cnn_lightning.data.base import InMemory
from cnn_lightning.data.readers import (
    FASHION_CLASSES,
    FASHION_MEAN,
    FASHION_STD,
    MNIST_MEAN,
    MNIST_STD,
    ImageSet,
    read_mnist,
)
from cnn_lightning.errors import UserError


class MNIST(InMemory):
    """60,000 (5,000 of them for validation) and 10,000 grey pictures of 28x28 pixels in 10 classes.

    Args:
        root: The folder that holds ``MNIST/raw``; the files are downloaded into it where they are missing.
        batch_size: Pictures in a batch of one process.
        seed: Of the order of samples and of the augmentation.
        augment: Shift training pictures by up to two pixels.
        predict_dir: A folder of unlabelled pictures for ``predict``, instead of the test split.
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
        augment: bool = True,
        predict_dir: str | None = None,
    ) -> None:
        super().__init__(batch_size, seed, augment, predict_dir=predict_dir)
        self.root = root

    def prepare_data(self) -> None:
        """Download what is missing."""
        folder = Path(self.root) / self.name / "raw"
        if folder.is_dir():
            return  # damaged files are refused by name when they are read
        fetch(self.source, self.root, f"{self.name}/raw")

    def read(self) -> ImageSet:
        """From the IDX files."""
        return read_mnist(self.root, self.name, known=self.known)


class FashionMNIST(MNIST):
    """Zalando's drop-in for MNIST: clothes instead of digits. Arguments as `MNIST`."""

    class_names, mean, std = FASHION_CLASSES, FASHION_MEAN, FASHION_STD
    name, source = "FashionMNIST", datasets.FashionMNIST


def fetch(source: Any, root: str, files: str) -> None:
    """Download a set of torchvision's, or say in one line what is missing and why it can't be fetched.

    ``files`` appear in ``root`` when all of them are there: a download that is broken off leaves nothing behind that
    the next run would take for the set.
    """
    target = Path(root) / files
    made = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=target.parent) as folder:
            source(folder, download=True)
            os.replace(Path(folder) / files, target)
    except (RuntimeError, OSError, HTTPException, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"data.root: expected a folder that holds {files}, found none in {root!r}; downloading failed: {reason}"
        ) from None
    finally:
        for empty in made:
            with suppress(OSError):  # it is not empty: all went well
                empty.rmdir()
