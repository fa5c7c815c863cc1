"""Checkpoint files: written whole, read without running what they hold, found in the newest run."""

import contextlib
import io
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

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


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint under another name and renames it when it is whole.

    A process killed in between leaves the checkpoint before, and so do a full disk and an unwritable folder; of those
    it warns, and training goes on.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``path``."""
        path = Path(path)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            kept = "; the checkpoint before stays" if path.is_file() else ""
            rank_zero_warn(f"{path}: not written: {error.strerror or error}{kept}")


def newest(root: Path) -> Path:
    """The ``last.ckpt`` of the newest run under ``root`` that holds a readable one; damaged ones are told.

    Raises:
        UserError: There is none.
    """
    for path in _by_age(root):
        if _is_readable(path):
            return path
        print(f"cnn-lightning: {path} is damaged and passed over", file=sys.stderr)
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
