"""Checkpoint files: read without running what they hold, refused in one line, found in the newest run."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cnn_lightning.errors import UserError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of `Classifier`, with plain values and tensors only (``weights_only``).

    Raises:
        UserError: No such file, a damaged one, one that holds code (which is not run), or one of another program.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"ckpt_path: expected a checkpoint, found none at {str(path)!r}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if "Unsupported" in text or "GLOBAL" in text or "allowed" in text:
            raise UserError(f"ckpt_path: {path} holds code besides weights; it was refused and not run") from None
        raise UserError(f"ckpt_path: {path} is damaged{_newest_good(path)}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"ckpt_path: {path} is damaged ({reason}){_newest_good(path)}") from None
    if not isinstance(found, dict) or "state_dict" not in found or "net" not in found.get("hyper_parameters", {}):
        raise UserError(f"ckpt_path: {path} is no checkpoint of cnn-lightning")
    return found


def newest(root: Path) -> Path:
    """The ``last.ckpt`` of the newest run under ``root`` that holds a readable one.

    Raises:
        UserError: There is none.
    """
    for path in _by_age(root):
        if _is_readable(path):
            return path
    raise UserError(f"ckpt_path: expected a run to go on with in {str(root)!r}, found no readable checkpoint")


def _by_age(root: Path) -> Iterator[Path]:
    yield from sorted(root.glob("*/*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)


def _is_readable(path: Path) -> bool:
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError):
        return False
    return True


def _newest_good(path: Path) -> str:
    others = [other for other in path.parent.glob("*.ckpt") if other != path and _is_readable(other)]
    if not others:
        return ""
    return f"; {max(others, key=lambda other: other.stat().st_mtime)} is whole"
