"""The file with which a step that was not finite runs again: its batch, weights and random state, all plain values."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnn_lightning import digest
from cnn_lightning.checkpoints import Unreadable, load
from cnn_lightning.errors import UserError
from cnn_lightning.files import whole

MARK = "cnn-lightning nonfinite 1"
"""In every file: what it is, and the version of its form."""


@dataclass(frozen=True)
class Saved:
    """What a step needs to run again.

    Attributes:
        step: The number of optimizer steps before it.
        module: The class of the LightningModule, for messages.
        batch: Tensors and plain values, in lists, tuples and dictionaries.
        state_dict: The weights and buffers.
        hyper_parameters: The options of a `Classifier`; empty for another module.
        layers: The NumPy layers by name, each with "numpy"; empty if torch ran all.
        functions: What computed torch's own operators: "torch" or "numpy".
        fast: Whether fast functions ran.
        memory_format: Of the batch.
        precision: As the Trainer's option.
        device: The type of device.
        random_state: Of the CPU, and of the GPU if that was the device.
        found: What was found when it was saved.
    """

    step: int
    module: str
    batch: Any
    state_dict: dict[str, Tensor]
    hyper_parameters: dict[str, Any]
    layers: dict[str, str]
    functions: str
    fast: bool
    memory_format: str
    precision: str
    device: str
    random_state: list[Tensor]
    found: str


def write(path: Path, saved: Saved) -> None:
    """Write a file, whole.

    Raises:
        OSError: It can't be written; the one before stays.
    """
    content = io.BytesIO()
    torch.save({"nonfinite": MARK} | _plain({name: getattr(saved, name) for name in _KINDS}), content)
    digest.seal(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def read(path: str | Path) -> Saved:
    """Read a file that `write` wrote, without running code in it; all bytes are checked.

    Raises:
        UserError: No such file, a damaged one, one with code, or another file.
    """
    place = Path(path)
    if not place.exists():
        raise UserError(f"file: expected a nonfinite.pt of a run that stopped, found none at {str(path)!r}")
    try:
        found = load(place)
    except Unreadable as error:
        raise UserError(f"file: {path} {str(error).replace('no checkpoint', 'no nonfinite.pt')}") from None
    if not isinstance(found, dict) or found.get("nonfinite") != MARK:
        raise UserError(f"file: expected a nonfinite.pt of a run that stopped, got {path}, which is another file")
    wrong = next((name for name, kind in _KINDS.items() if not isinstance(found.get(name), kind)), None)
    if wrong is not None or not _is_sound(found):
        raise UserError(f"file: {path} is no sound nonfinite.pt: expected {wrong or 'state_dict'} as it is saved")
    return Saved(**{name: found[name] for name in _KINDS})


_KINDS: dict[str, type] = {
    "step": int,
    "module": str,
    "batch": object,
    "state_dict": dict,
    "hyper_parameters": dict,
    "layers": dict,
    "functions": str,
    "fast": bool,
    "memory_format": str,
    "precision": str,
    "device": str,
    "random_state": list,
    "found": str,
}


def _is_sound(found: Mapping[str, Any]) -> bool:
    """Whether dictionaries and lists hold what they should, so that nothing in them can name code."""
    return (
        all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found["state_dict"].items())
        and all(isinstance(name, str) and value == "numpy" for name, value in found["layers"].items())
        and all(isinstance(state, Tensor) and state.dtype is torch.uint8 for state in found["random_state"])
        and bool(found["random_state"])
    )


def _plain(value: Any) -> Any:
    """The same with tensors on the CPU, and without what is neither a tensor nor plain."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, int | float | str | None) else None
