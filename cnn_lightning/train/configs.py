"""Config files: where they are, and the shape that they must have."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from cnn_lightning.errors import UserError
from cnn_lightning.train.suggestions import did_you_mean

SECTIONS = ("trainer", "model", "data")
SWEEP = "sweep"
"""The section that says what ``cnn-lightning sweep`` searches."""


def config_file(name: str) -> Path:
    """The file of that path, or the shipped config of that name, from a checkout or from the wheel.

    A named pipe is a file here: ``--config <(command)`` works.

    Raises:
        UserError: Neither exists.
    """
    path = Path(name)
    if path.is_file() or path.is_fifo():
        return path
    known = shipped()
    if name in known:
        return known[name]
    raise UserError(f"config: expected a file or one of {', '.join(known)}, got {name!r}{did_you_mean(name, known)}")


def shipped() -> dict[str, Path]:
    """The shipped configs: each name and its file, in the order of the alphabet."""
    package = Path(str(files("cnn_lightning")))
    folders = (package.parent / "configs", package / "configs")
    found = {path.stem: path for folder in folders for path in folder.glob("*.yaml")}
    return dict(sorted(found.items()))


def checked(config: Any, path: str) -> dict[str, Any]:
    """The content of a config file without its empty sections.

    Args:
        config: What YAML reads from the file.
        path: The file, for messages.

    Raises:
        UserError: The file, or a section in it, is no mapping, or the file describes a sweep.
    """
    if not isinstance(config or {}, dict):
        raise UserError(f"config: expected a mapping in {path}, got {_kind(config)}")
    if SWEEP in (config or {}):
        raise UserError(f"config: {path} describes a sweep: cnn-lightning sweep --config {path} runs it")
    found = {str(key): value for key, value in (config or {}).items() if value is not None or key not in SECTIONS}
    for section in ("trainer", "model"):
        if not isinstance(found.get(section, {}), dict):
            raise UserError(f"{section}: expected a mapping of options in {path}, got {_kind(found[section])}")
    for key, value in _init_args(found):
        if not isinstance(value or {}, dict):
            raise UserError(f"{key}.init_args: expected a mapping of options in {path}, got {_kind(value)}")
    return found


def _init_args(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The options of every class in a config, each with the option that takes the class."""
    if isinstance(value, list):
        for each in value:
            yield from _init_args(each, key)
    elif isinstance(value, dict):
        if "class_path" in value:
            yield key, value.get("init_args")
        for name, each in value.items():
            yield from _init_args(each, key if name == "init_args" else f"{key}.{name}".lstrip("."))


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)
