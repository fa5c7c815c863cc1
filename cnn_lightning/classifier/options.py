"""The options that a checkpoint may contain: known names, and plain values of their types."""

import inspect
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cnn_lightning.errors import UserError

NOT_KEPT = ("layers", "fast", "threads", "compile", "memory_format", "functions", "tta")
"""Options of `Classifier` that choose how a network runs or is evaluated, not what it is: no checkpoint has them."""


def checked(kind: type, checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The options of ``kind`` in a checkpoint, once their names and the types of their values are checked.

    Names that begin with an underscore are Lightning's own and are left out.

    Raises:
        UserError: An option that no checkpoint keeps, such as one of a later version, or a value of another type.
    """
    kinds = get_type_hints(kind.__init__)  # type: ignore[misc]
    kept = [name for name in inspect.signature(kind).parameters if name not in NOT_KEPT]
    found = {name: value for name, value in checkpoint["hyper_parameters"].items() if not str(name).startswith("_")}
    others = [str(name)[:40] for name in found if name not in kept]
    if others:
        raise UserError(
            f"ckpt_path: {path} holds options that cnn-lightning {version('cnn-lightning')} doesn't know: "
            f"{', '.join(others)[:200]}"
        )
    for name, value in found.items():
        if not _is_of(kinds[name], value):
            raise UserError(f"ckpt_path: {path}: expected {name} to be {_words(kinds[name])}, got {str(value)[:80]!r}")
    return found


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a value has the type of an option; subclasses of plain types do not count."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return type(value) is str and value in arguments
    if origin in (Union, UnionType):  # | with a Literal makes the first
        return any(_is_of(each, value) for each in arguments)
    if origin is Sequence:
        return type(value) in (list, tuple) and all(_is_of(arguments[0], each) for each in value)
    return type(value) is kind or (kind is float and type(value) is int)


def _words(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else re.sub(r"\b(?:typing|collections\.abc)\.", "", str(kind))
