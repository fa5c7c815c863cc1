"""Checkpoint files: written whole, read without running what they hold, found in the newest run."""

import io
import pickle
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from cnn_lightning.errors import UserError
from cnn_lightning.files import write_or_warn


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of `Classifier`, with plain values and tensors only (``weights_only``).

    Raises:
        UserError: No such file, a damaged one, one that holds code (which is not run), or one of another program.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"ckpt_path: expected a checkpoint, found none at {str(path)!r}")
    fault, found = _load(path)
    if fault:
        raise UserError(f"ckpt_path: {path} {fault}{_newest_good(path)}")
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
        content = io.BytesIO()  # torch.save to a full disk raises a RuntimeError without the reason
        torch.save(checkpoint, content)
        write_or_warn(path, lambda place: place.write_bytes(content.getbuffer()))


def newest(root: Path, data: str | None = None) -> Path:
    """The ``last.ckpt`` of the newest run that holds a readable one, otherwise its ``best.ckpt``; others are told.

    Args:
        root: The folder of all runs.
        data: The data whose runs are meant, as their folder is named; None for any.

    Raises:
        UserError: There is none.
    """
    for folder in sorted(root.glob(f"{data or '*'}/*/checkpoints"), key=_age, reverse=True):
        for path in (folder / "last.ckpt", folder / "best.ckpt"):
            if path.is_file():
                fault, _ = _load(path)
                if not fault:
                    return path
                _tell(f"{path} {fault}; passed over")
    where = str(root / data) if data else str(root)
    raise UserError(f"ckpt_path: expected a run to go on with in {where!r}, found no readable checkpoint")


def go_on(run: Path) -> str:
    """How to go on with the run in this folder."""
    return f"to go on: cnn-lightning fit --config {shlex.quote(shown(run / 'config.yaml'))} --ckpt_path last"


def shown(path: str | Path) -> str:
    """A path as short as it can be told from here."""
    absolute = Path(path).resolve()
    try:
        return str(absolute.relative_to(Path.cwd()))
    except ValueError:
        return str(absolute)


@rank_zero_only
def _tell(text: str) -> None:
    print(f"cnn-lightning: {text}", file=sys.stderr)


def _age(folder: Path) -> float:
    """When the newest of a run's checkpoints was written."""
    return max((path.stat().st_mtime for path in folder.glob("*.ckpt")), default=0.0)


def _load(path: Path) -> tuple[str, Any]:
    """What is wrong with a checkpoint, or nothing and its content."""
    try:
        return "", torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if "Unsupported" in text or "GLOBAL" in text or "allowed" in text:
            return "holds code besides weights; it was refused and not run", None
        return "is damaged", None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        return f"is damaged ({' '.join(str(error).split())[:80]})", None


def _newest_good(path: Path) -> str:
    others = [other for other in path.parent.glob("*.ckpt") if other != path and not _load(other)[0]]
    if not others:
        return ""
    return f"; {max(others, key=lambda other: other.stat().st_mtime)} is whole"
