"""Callbacks for the Trainer: the report of layers, curves, pictures of results, and checkpoints to resume from."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn_lightning.callbacks.nonfinite import StopAtNonFinite as StopAtNonFinite
    from cnn_lightning.callbacks.pictures import Pictures as Pictures
    from cnn_lightning.callbacks.snapshots import Snapshots as Snapshots
    from cnn_lightning.callbacks.statistics import Statistics as Statistics
    from cnn_lightning.callbacks.sync import SyncBatchNorm as SyncBatchNorm

_HOMES = {
    "Pictures": "pictures",
    "Snapshots": "snapshots",
    "Statistics": "statistics",
    "StopAtNonFinite": "nonfinite",
    "SyncBatchNorm": "sync",
}

__all__ = ["Pictures", "Snapshots", "Statistics", "StopAtNonFinite", "SyncBatchNorm"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
