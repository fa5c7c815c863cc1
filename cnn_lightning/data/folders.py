"""Which folders of a set of pictures are splits and which are classes, by their names and contents."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cnn_lightning.data.pictures import is_picture
from cnn_lightning.errors import UserError

SPELLINGS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "validation", "valid", "dev", "development"),
    "test": ("test", "testing", "tst"),
}
"""The names of splits, in upper or lower case, also with a suffix as in ``training_set`` and ``test-images``."""

SUFFIX = "(set|data|split|images|imgs)?"
OTHER_SPLITS = ("trainval", "traintest", "eval", "evaluation", "holdout")
"""Names of splits whose meaning differs between sets."""

ALSO_CLASSES = ("valid", "dev", "development")
"""Spellings that can also name a class, as in valid and invalid parts."""


class Layout(NamedTuple):
    """The folders that contain the class folders.

    Args:
        train: The folder for training.
        own: The folders for validation and test, by side, if they exist.
    """

    train: Path
    own: dict[str, Path]


def find_layout(root: Path, aside: Path | None = None) -> Layout:
    """Find out whether the class folders are in ``root`` itself, or in a folder for each split.

    Args:
        root: The folder of the set.
        aside: A folder of other pictures, which may stand beside the splits.

    Raises:
        UserError: The names look like splits, but allow two interpretations or none.
    """
    folders = visible_folders(root)
    splits: dict[str, list[Path]] = {}
    for path in folders:
        splits.setdefault(_side(path), []).append(path)
    classes = splits.pop("", [])
    train = splits.get("train", [])
    if any(_is_nested(path) for path in train):
        for side, paths in splits.items():
            if len(paths) > 1:
                raise UserError(f"data.root: expected one folder for {side} in {root}, got {_names(paths)}")
        strays = [path for path in classes if next(_pictures(path), None) and not (aside and _holds(path, aside))]
        if strays:
            raise UserError(
                f"data.root: expected pictures only in folders for train, val and test in {root}, got "
                f"{_names(strays)} beside {_names(train)}"
            )
        layout = Layout(train[0], {side: paths[0] for side, paths in splits.items() if side != "train"})
        _refuse_splits_among_classes(layout.train)
        return layout
    if train and not classes:
        raise UserError(f"data.root: expected a folder for each class in {train[0]}, found none")
    named = [path for paths in splits.values() for path in paths]
    if not any(_is_surely_a_split(path) or _is_nested(path) for path in named):
        named = []
    unclear = [path for path in classes if _looks_like_a_split(path.name)]
    if named or any(map(_is_nested, unclear)) or (unclear and unclear == classes):
        raise UserError(
            f"data.root: expected folders for train, val and test in {root}, or folders that are all classes, got "
            f"{_names(folders)}, of which {_names(sorted({*named, *unclear}))} can be a split: rename or move them"
        )
    _refuse_splits_among_classes(root)
    return Layout(root, {})


def visible_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _refuse_splits_among_classes(folder: Path) -> None:
    """Raise if a class folder contains splits: the pictures in its folders all count as that class."""
    for path in visible_folders(folder):
        inner = visible_folders(path)
        looks = next((one for one in (*inner, *([path] if inner else [])) if _is_surely_a_split(one)), None)
        if looks is not None:
            raise UserError(f"data.root: expected a folder for each class in {folder}, but {looks} looks like a split")


def _side(path: Path) -> str:
    """The split of which a folder has a name; empty for another name."""
    name = _bare(path.name)
    return next((side for side, words in SPELLINGS.items() if re.fullmatch(f"({'|'.join(words)}){SUFFIX}", name)), "")


def _is_surely_a_split(path: Path) -> bool:
    return bool(_side(path)) and _bare(path.name) not in ALSO_CLASSES


def _looks_like_a_split(name: str) -> bool:
    words = (*(word for words in SPELLINGS.values() for word in words), *OTHER_SPLITS)
    return any(re.fullmatch(f"({'|'.join(words)}){SUFFIX}", part) for part in re.findall("[a-z]+", name.casefold()))


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _is_nested(path: Path) -> bool:
    return bool(visible_folders(path))


def _holds(folder: Path, other: Path) -> bool:
    return other.resolve().is_relative_to(folder.resolve())


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if is_picture(path))


def _names(paths: list[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
