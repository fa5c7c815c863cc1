"""Two implementations of a network in lock-step: which of them is wrong, and in which layer.

The names below are loaded when they are first used, so that `cnn_lightning.tools.parity.arguments` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn_lightning.tools.parity.candidates import Candidate as Candidate
    from cnn_lightning.tools.parity.candidates import compiled as compiled
    from cnn_lightning.tools.parity.lockstep import compare as compare

_HOMES = {"Candidate": "candidates", "compare": "lockstep", "compiled": "candidates"}

__all__ = ["Candidate", "compare", "compiled"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
