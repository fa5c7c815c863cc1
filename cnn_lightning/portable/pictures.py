"""Pictures and their labels, for a network: from files, from folders of classes, or from arrays."""

import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import ordinary
from cnn_lightning.ops.types import Array
from cnn_lightning.portable.plan import Plan

ARRAYS = ".npz"


def normalised(images: Array, plan: Plan) -> Array:
    """uint8 (N, C, H, W) as float32 ``(pixels / 255 - mean) / std``, bit-equal to the training's."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (plan.mean, plan.std))
    return (images.astype(np.float32) * np.float32(1 / 255) - mean) / std


def find(paths: list[str]) -> list[Path]:
    """The picture files; of a folder all pictures in it, sorted.

    Raises:
        UserError: There is no such file or folder, or no picture in a folder.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"picture: expected a file or a folder, found none at {str(path)!r}")
        files = _pictures_in(path) if path.is_dir() else [path]
        if not files:
            raise UserError(f"picture: expected pictures in the folder {str(path)!r}, found none")
        found += files
    return found


def read(files: list[Path], plan: Plan) -> Array:
    """Picture files as uint8 (N, C, H, W): upright, on white, resized as in the training.

    Raises:
        UserError: A file that is no picture, is damaged or too large; or Pillow is missing.
    """
    if plan.in_channels not in (1, 3):
        raise UserError(
            f"picture: expected a {ARRAYS} file for a network of {plan.in_channels} channels, got a picture"
        )
    pillow = _pillow()
    from cnn_lightning.data.decoding import decoded

    fit: Any = plan.fit
    images = np.empty((len(files), plan.in_channels, plan.image_size, plan.image_size), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pillow.DecompressionBombWarning)  # `decoded` refuses what it warns of
        for index, path in enumerate(files):
            images[index], _ = decoded(path, plan.image_size, plan.in_channels == 1, plan.value_range, fit)
    return images


def labelled(path: str, plan: Plan) -> tuple[Array, Array]:
    """Pictures uint8 (N, C, H, W) and their classes (N,), from a folder of class folders or a ``.npz`` file.

    Raises:
        UserError: There are none, or they don't fit the network.
    """
    place = Path(path)
    if place.suffix.lower() == ARRAYS:
        images, labels = arrays(place, plan)
        if labels is None:
            raise UserError(f"{path}: expected the arrays images and labels, found no labels")
        return images, labels
    if not place.is_dir():
        raise UserError(f"data: expected a folder with a folder for each class, or a {ARRAYS} file, got {path!r}")
    folders = [each for each in sorted(place.iterdir()) if each.is_dir() and not each.name.startswith(".")]
    if not folders:
        raise UserError(f"data: expected a folder for each class in {path!r}, found none")
    unknown = [each.name for each in folders if each.name not in plan.class_names]
    if unknown:
        known = ", ".join(plan.class_names[:8]) + (", ..." if len(plan.class_names) > 8 else "")
        raise UserError(f"data: expected folders with the names of classes ({known}), got {unknown[0]!r}")
    found = [(file, plan.class_names.index(each.name)) for each in folders for file in _pictures_in(each)]
    if not found:
        raise UserError(f"data: expected pictures in the class folders of {path!r}, found none")
    return read([file for file, _ in found], plan), np.array([label for _, label in found], np.int64)


def arrays(path: Path, plan: Plan) -> tuple[Array, Array | None]:
    """The arrays ``images`` and, if it is there, ``labels`` of a ``.npz`` file.

    Raises:
        UserError: The file can't be read, or the arrays don't fit the network.
    """
    try:
        with np.load(ordinary(path), allow_pickle=False) as file:
            found = {name: file[name] for name in ("images", "labels") if name in file}
    except FileNotFoundError:
        raise UserError(f"{path}: expected a file, found none") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected a {ARRAYS} file of arrays, but {one_line(error)}") from None
    images, labels = found.get("images"), found.get("labels")
    if images is None:
        raise UserError(f"{path}: expected the arrays images and labels, found no images")
    images = images[:, None] if images.ndim == 3 and plan.in_channels == 1 else images
    shape = (plan.in_channels, plan.image_size, plan.image_size)
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        wanted = ", ".join(map(str, shape))
        raise UserError(f"{path}: images: expected uint8 (N, {wanted}), got {images.dtype} {images.shape}")
    if labels is None:
        return images, None
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: labels: expected {len(images)} integers, got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= len(plan.class_names):
        worst = labels.min() if labels.min() < 0 else labels.max()
        raise UserError(f"{path}: labels: expected classes from 0 to {len(plan.class_names) - 1}, got {worst}")
    return images, labels.astype(np.int64)


def _pictures_in(folder: Path) -> list[Path]:
    """All files of a folder and its subfolders with the suffix of a picture, sorted, without hidden ones."""
    endings = _pillow().registered_extensions()
    files = (path for path in sorted(folder.rglob("*")) if not path.name.startswith(".") and path.is_file())
    return [path for path in files if path.suffix.lower() in endings]


def _pillow() -> Any:
    """Pillow's module ``Image``."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError("Pillow: expected it, to read pictures, found none; pip install pillow") from None
    return Image
