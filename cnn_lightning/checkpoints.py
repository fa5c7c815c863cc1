"""Checkpoint files: written whole, read without running code in them, found in the newest run."""

import io
import pickle
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from packaging.version import InvalidVersion, Version

from cnn_lightning import digest, filetypes
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import write_or_warn
from cnn_lightning.notices import tell

FOR_TRAINER = {"pytorch-lightning_version": str}
"""What Lightning needs to test a checkpoint, besides weights and hyper-parameters."""
RETURNED = ".temp.ckpt"
"""Lightning's name of the file by which a spawned or forked process returns the weights to the one that started it."""
FOR_FIT = {
    **FOR_TRAINER,
    "global_step": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}
"""What it needs to resume a training from a checkpoint."""


class Unreadable(ValueError):
    """A file is no usable checkpoint; the text, which follows the file's name, says why."""


def read_checkpoint(path: str | Path, needed: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Read a checkpoint of `Classifier`: plain values and tensors only (``weights_only``), all bytes checked.

    `classifier.hyper_parameters` checks its hyper-parameters.

    Args:
        path: The file.
        needed: The entries that it must have besides weights, and their types, such as `FOR_FIT`.

    Raises:
        UserError: No such file, a damaged one, one with code (which is not run), or one of another program.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"ckpt_path: expected a checkpoint, found none at {str(path)!r}")
    try:
        return _checkpoint(path, needed or {})
    except Unreadable as error:
        raise UserError(f"ckpt_path: {path} {error}{_newest_good(path, needed or {})}") from None


def load(path: Path) -> Any:
    """Read what `torch.save` wrote: plain values and tensors only, all bytes checked first.

    Raises:
        Unreadable: The file has anything else.
    """
    if path.is_dir():
        raise Unreadable("is a folder, no checkpoint")
    if not path.is_file():
        raise Unreadable("is no file")
    try:
        with path.open("rb") as file:
            _check(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable(f"can't be read: {one_line(error)}") from None
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|REDUCE call on (\S+)|got <class '(\S+)'>", str(error))
        name = next(filter(None, found.groups()), "") if found else ""
        named = f" ({name[:80]})" if name else ""
        raise Unreadable(f"holds code besides weights{named}; it was refused and not run") from None
    except Exception as error:
        # A pickle that torch.save did not write raises many types of errors.
        raise Unreadable(f"can't be read ({one_line(error, 80)})") from None


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it when it is whole.

    If the process is killed during the write, the previous checkpoint stays. It also stays if the disk is full or the
    folder is read-only; then there is a warning, and the training continues.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``path``."""
        content = io.BytesIO()  # torch.save to a full disk raises a RuntimeError without the reason
        torch.save(checkpoint, content)
        digest.seal(content)
        write_or_warn(path, lambda place: place.write_bytes(content.getbuffer()))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read ``path`` as `read_checkpoint` does, to the CPU."""
        if Path(path).name == RETURNED:
            weights: dict[str, Any] = load(Path(path))
            return weights
        return read_checkpoint(path, FOR_TRAINER)


def newest(root: Path, data: str | None = None) -> Path:
    """The ``last.ckpt``, or if it is unreadable the ``best.ckpt``, of the newest run with a readable one.

    A notice names each unreadable file.

    Args:
        root: The folder of all runs.
        data: The name of the folder of the runs on one data set; None for all runs.

    Raises:
        UserError: There is none.
    """
    for folder in sorted(root.glob(f"{data or '*'}/*/checkpoints"), key=_age, reverse=True):
        for path in (folder / "last.ckpt", folder / "best.ckpt"):
            if path.is_file():
                try:
                    _checkpoint(path, {})
                except Unreadable as error:
                    tell(f"{path} {error}; passed over")
                else:
                    return path
    where = str(root / data) if data else str(root)
    raise UserError(f"ckpt_path: expected a run to go on with in {where!r}, found no readable checkpoint")


def how_to_resume(run: Path) -> str:
    """The end of a message: the command that resumes the run in this folder."""
    return f"to go on: cnn-lightning fit --config {shlex.quote(shown(run / 'config.yaml'))} --ckpt_path last"


def shown(path: str | Path) -> str:
    """A path for messages: relative to the current folder if it is inside, otherwise absolute."""
    absolute = Path(path).resolve()
    try:
        return str(absolute.relative_to(Path.cwd()))
    except ValueError:
        return str(absolute)


def _age(folder: Path) -> float:
    """The time when the newest of a run's checkpoints was written."""
    return max((path.stat().st_mtime for path in folder.glob("*.ckpt")), default=0.0)


def _check(file: IO[bytes]) -> None:
    """Raise `Unreadable` unless the file is an undamaged archive of `torch.save`."""
    try:
        names = digest.check(file)
    except digest.Foreign as error:
        raise Unreadable(f"is no checkpoint but {error}") from None
    except digest.Damaged as error:
        raise Unreadable(f"is damaged ({error})") from None
    if not any(name.endswith("/data.pkl") for name in names):
        raise Unreadable(f"is no checkpoint but {filetypes.of_archive(names)}")
    if any(name.endswith("/constants.pkl") for name in names):
        raise Unreadable("is no checkpoint but a program written by torch.jit; it was not run")


def _checkpoint(path: Path, needed: Mapping[str, type]) -> dict[str, Any]:
    """The content of a file, if it has the form of a checkpoint of this package.

    Raises:
        Unreadable: It has another form.
    """
    found = load(path)
    if isinstance(found, dict) and found and all(isinstance(value, torch.Tensor) for value in found.values()):
        raise Unreadable("holds weights alone (a state_dict), no checkpoint of cnn-lightning")
    if not isinstance(found, dict) or "net" not in _mapping(found, "hyper_parameters"):
        raise Unreadable("is no checkpoint of cnn-lightning")
    weights = found.get("state_dict")
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise Unreadable("is no checkpoint of cnn-lightning: expected state_dict to hold tensors by name")
    missing = [name for name in needed if name not in found]
    if "optimizer_states" in missing:
        raise Unreadable(
            f"holds weights without the state of their training ({', '.join(missing)}); fit can't go on from it, "
            "test, predict and export can use it"
        )
    if missing:
        raise Unreadable(f"lacks {', '.join(missing)}")
    for name, kind in needed.items():
        if not isinstance(found[name], kind):
            raise Unreadable(f"is no sound checkpoint: expected {name} to be a {kind.__name__}")
    if "pytorch-lightning_version" in needed and not _is_version(found["pytorch-lightning_version"]):
        raise Unreadable("is no sound checkpoint: expected pytorch-lightning_version to be 2.0 or later")
    if "data" in found:
        _check_data(_mapping(found, "data"))
    return found


def _is_version(text: str) -> bool:
    """Whether a text is a version of Lightning from 2.0 on; Lightning would convert older checkpoints."""
    try:
        return Version(text) >= Version("2.0")
    except InvalidVersion:
        return False


def _mapping(found: dict[str, Any], name: str) -> dict[str, Any]:
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def _check_data(data: dict[str, Any]) -> None:
    """Check the part of the record of the data that every command uses."""
    for name, kinds, words in (
        ("class_names", str, "names"),
        ("mean", int | float, "numbers"),
        ("std", int | float, "numbers"),
    ):
        values = data.get(name)
        if not isinstance(values, list | tuple) or not all(isinstance(value, kinds) for value in values):
            raise Unreadable(f"is no sound checkpoint: expected data.{name} to be {words}")


def _newest_good(path: Path, needed: Mapping[str, type]) -> str:
    folder = path if path.is_dir() else path.parent
    found = [*folder.glob("*.ckpt"), *folder.glob("checkpoints/*.ckpt")]
    others = [other for other in found if other != path and other.is_file()]
    for other in sorted(others, key=lambda other: other.stat().st_mtime, reverse=True):
        try:
            _checkpoint(other, needed)
        except Unreadable:
            continue
        return f"; {other} is whole"
    return ""
