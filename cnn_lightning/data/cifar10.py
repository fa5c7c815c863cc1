"""CIFAR-10: small colour photographs."""

import pickle
from pathlib import Path

import numpy as np
from torchvision import datasets

from cnn_lightning.data.base import InMemory
from cnn_lightning.data.loader import Augment, Sampler
from cnn_lightning.data.mnist import fetch
from cnn_lightning.data.readers import ImageSet, Split, cut
from cnn_lightning.data.sides import array_keys
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import ordinary

FOLDER = "cifar-10-batches-py"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""In the order of the set's ``batches.meta``."""
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Mean and standard deviation of each channel over all pixels of the 50,000 training images."""


class CIFAR10(InMemory):
    """50,000 (5,000 of them for validation) and 10,000 colour pictures of 32x32 pixels in 10 classes.

    Args:
        root: The folder that contains ``cifar-10-batches-py``, which is downloaded if it is missing.
        batch_size: Pictures in a batch of one process.
        seed: Seed of the order of samples and of the augmentation.
        augment: Shift training pictures by up to two pixels, and mirror half of them, both at random. "rand" and
            "trivial" change them also by torchvision's RandAugment and TrivialAugmentWide.
        predict_dir: A folder of unlabelled pictures for ``predict``, instead of the test split.
        sampler: "shuffled" trains with each picture once an epoch, "balanced" with as many that are drawn with
            replacement, every class equally likely.
        mixup: The alpha of mixup, such as 0.2; with ``cutmix`` too, each batch takes one of them.
        cutmix: The alpha of cutmix, such as 1.
    """

    num_classes, in_channels, image_size = 10, 3, 32
    class_names, mean, std = CLASSES, MEAN, STD

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        seed: int = 0,
        augment: bool | Augment = True,
        predict_dir: str | None = None,
        sampler: Sampler = "shuffled",
        mixup: float | None = None,
        cutmix: float | None = None,
    ) -> None:
        super().__init__(
            batch_size, seed, augment, flip=True, predict_dir=predict_dir, sampler=sampler, mixup=mixup, cutmix=cutmix
        )
        self.root = root

    def prepare_data(self) -> None:
        """Download the set if it is missing."""
        if not (Path(self.root) / FOLDER).is_dir():
            fetch(datasets.CIFAR10, self.root, FOLDER)

    def read(self) -> ImageSet:
        """Read the five training batches and the test batch."""
        folder = Path(self.root) / FOLDER
        if not folder.is_dir():
            raise UserError(f"data.root: expected a folder that holds {FOLDER}, got {self.root!r}")
        batches = [_read(folder / f"data_batch_{index}") for index in range(1, 6)]
        images = np.concatenate([batch.images for batch in batches])
        labels = np.concatenate([batch.labels for batch in batches])
        whole = Split(images, labels, array_keys("CIFAR10/data", len(labels)))
        test = _read(folder / "test_batch")
        test = test._replace(keys=array_keys("CIFAR10/test", len(test.labels)))
        splits = cut(whole, (0.9, 0.1), 0, self.known)
        return ImageSet(splits["train"], splits["val"], test, CLASSES, MEAN, STD)


_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")


class _Plain(pickle.Unpickler):
    """Reads arrays, bytes and lists, which these files contain; refuses code."""

    def find_class(self, module: str, name: str) -> object:
        if name in ("_reconstruct", "ndarray", "dtype", "scalar") and module in _NUMPY:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def _read(path: Path) -> Split:
    try:
        with ordinary(path).open("rb") as file:
            found = _Plain(file, encoding="latin1").load()
        data, labels = found["data"], np.asarray(found["labels"])
        kind = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
        if not kind.startswith("uint8 ") or data.shape != (len(data), 3072):
            raise UserError(f"{path}: expected data of uint8 (n, 3072), got {kind}")
        if labels.shape != (len(labels),) or (labels.size and labels.dtype.kind not in "iu"):
            raise UserError(f"{path}: expected labels of whole numbers (n,), got {labels.dtype} {labels.shape}")
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: expected a batch of CIFAR-10, found none") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {one_line(error)}") from None
    except Exception as error:
        # A damaged pickle raises many types of errors.
        raise UserError(f"{path}: expected a batch of CIFAR-10, but it is damaged: {error}") from None
    if len(data) != len(labels) or (labels.size and not 0 <= labels.min() <= labels.max() <= 9):
        raise UserError(f"{path}: expected a label from 0 to 9 for each of {len(data)} images")
    return Split(data.reshape(-1, 3, 32, 32), labels.astype(np.int64))
