"""Tiny data sets in the real file formats."""

import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_idx_set(root: Path, name: str, n: int = 120) -> None:
    """MNIST's four files with ``n`` random pictures to train and half as many to test with."""
    rng = np.random.default_rng(0)
    for prefix, count in (("train", n), ("t10k", n // 2)):
        folder = root / name / "raw"
        write_idx(folder / f"{prefix}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10)


def write_cifar10(root: Path, n: int = 20) -> None:
    """CIFAR-10's six pickled batches of ``n`` random pictures each."""
    rng = np.random.default_rng(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]:
        batch = {"data": rng.integers(0, 256, (n, 3072)).astype(np.uint8), "labels": [i % 10 for i in range(n)]}
        with (folder / name).open("wb") as file:
            pickle.dump(batch, file, protocol=2)


def write_pictures(root: Path, classes: tuple[str, ...] = ("cat", "dog"), n: int = 10) -> None:
    """Class folders of ``n`` random colour pictures of different sizes."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(n):
            pixels = rng.integers(0, 256, (20 + index, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
