"""Image sets as arrays, read without torch.

The error of a reader names, in one line, the file that is missing or damaged, what was expected and what came.
"""

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnn_lightning.data.sides import NOTHING, SIDES, Keys, Sides, array_keys, divide
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import ordinary

DIGITS_MEAN, DIGITS_STD = (0.3056,), (0.3764,)
"""Of the digits' training split, computed by this project: ``images.mean() / 255`` and ``images.std() / 255``."""
MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
"""Of MNIST's 60,000 training images; the numbers of PyTorch's own MNIST example."""
FASHION_MEAN, FASHION_STD = (0.2860,), (0.3530,)
"""Of Fashion-MNIST's 60,000 training images, as commonly used with it."""

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""As named by the set's authors, https://github.com/zalandoresearch/fashion-mnist."""


class Split(NamedTuple):
    """Images uint8 (N, C, H, W), or an object that gives them by indices, labels int64 (N,), and `sides.Keys`."""

    images: Any
    labels: NDArray[np.int64]
    keys: Keys | None = None


class ImageSet(NamedTuple):
    """Three splits, the names of the classes, and mean and standard deviation of each channel, for values 0 to 1.

    The range is that of pictures with more than 8 bits a value; None if there are none, or if it is unknown.
    """

    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float] | None = None


def read_digits(seed: int = 0, known: Sides = NOTHING) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8x8, values 0 to 16 scaled to 0 to 255; divided 70 : 10 : 20.

    Pictures whose side is ``known`` keep it.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = found.target.astype(np.int64)
    splits = cut(Split(images, labels, array_keys("digits", len(labels))), (0.7, 0.1, 0.2), seed, known)
    return ImageSet(splits["train"], splits["val"], splits["test"], tuple("0123456789"), DIGITS_MEAN, DIGITS_STD)


def read_mnist(root: str | Path, name: str = "MNIST", seed: int = 0, known: Sides = NOTHING) -> ImageSet:
    """MNIST or FashionMNIST from IDX files in torchvision's layout, ``root/name/raw``.

    5,000 of the 60,000 training images, the same fraction of each class, are for validation. Pictures whose side is
    ``known`` keep it.

    Raises:
        UserError: A file that is missing, truncated or no IDX file.
    """
    folder = Path(root) / name / "raw"
    if not folder.is_dir():
        raise UserError(f"data.root: expected a folder that holds {name}/raw, got {str(root)!r}")
    whole = _read_pair(folder, "train")
    test = _read_pair(folder, "t10k")
    n = len(whole.labels)
    whole, test = (
        split._replace(keys=array_keys(f"{name}/{file}", len(split.labels)))
        for split, file in ((whole, "train"), (test, "t10k"))
    )
    splits = cut(whole, (1 - 1 / 12, 1 / 12), seed, known)
    if not len(splits["train"].labels) or not len(test.labels):
        raise UserError(f"{folder}: expected images to train and test with, got {n} and {len(test.labels)}")
    fashion = name == "FashionMNIST"
    names = FASHION_CLASSES if fashion else tuple("0123456789")
    mean, std = (FASHION_MEAN, FASHION_STD) if fashion else (MNIST_MEAN, MNIST_STD)
    return ImageSet(splits["train"], splits["val"], test, names, mean, std)


def cut(whole: Split, fractions: tuple[float, ...], seed: int, known: Sides = NOTHING) -> dict[str, Split]:
    """Divide one set with keys into ``train``, ``val`` and, with three fractions, ``test``."""
    assert whole.keys is not None
    sides = divide(whole.labels, dict(zip(SIDES, fractions, strict=False)), seed, whole.keys, known)
    return {name: Split(whole.images[each], whole.labels[each], whole.keys[each]) for name, each in sides.items()}


def _read_pair(folder: Path, prefix: str) -> Split:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte", axes=3)
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte", axes=1)
    if len(images) != len(labels):
        raise UserError(f"{folder}: expected as many {prefix} labels as images, got {len(labels)} for {len(images)}")
    if images.shape[1:] != (28, 28):
        raise UserError(f"{folder}: expected {prefix} images of 28x28 pixels, got {images.shape[1]}x{images.shape[2]}")
    if labels.size and labels.max() > 9:
        raise UserError(f"{folder}: expected {prefix} labels from 0 to 9, got {labels.max()}")
    return Split(images[:, None], labels.astype(np.int64))


def read_idx(path: Path, *, axes: int) -> NDArray[np.uint8]:
    """An IDX file of bytes: the magic number 0x0800 + axes, the length of each axis, all big-endian, then the values.

    The format: Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits.
    """
    try:
        content = ordinary(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: expected an IDX file, found none") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {one_line(error)}") from None
    header = 4 + 4 * axes
    if len(content) < header:
        raise UserError(f"{path}: expected an IDX header of {header} bytes, got a file of {len(content)}")
    magic, *shape = struct.unpack(f">{1 + axes}I", content[:header])
    if magic != 0x0800 + axes:
        raise UserError(f"{path}: expected the magic number {0x0800 + axes} of an IDX file, got {magic}")
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise UserError(f"{path}: expected {expected} bytes for shape {tuple(shape)}, got {len(content)}: damaged?")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
