"""Every layer of a CNN twice, hand-written NumPy and native PyTorch, in one Lightning Trainer.

The names below are loaded when they are first used, so that ``cnn_lightning.ops`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn_lightning import layers as layers
    from cnn_lightning import ops as ops
    from cnn_lightning.aten import numpy_ops as numpy_ops
    from cnn_lightning.classifier import Classifier as Classifier
    from cnn_lightning.layers.memory import batch_last as batch_last
    from cnn_lightning.model import SimpleCNN as SimpleCNN
    from cnn_lightning.model import build_net as build_net
    from cnn_lightning.ops.fast.chooser import fast as fast
    from cnn_lightning.swap import swap_layers as swap_layers
    from cnn_lightning.tools import parity as parity
    from cnn_lightning.tools.check import check_layer as check_layer

_HOMES = {
    "Classifier": "classifier",
    "SimpleCNN": "model",
    "batch_last": "layers.memory",
    "build_net": "model",
    "check_layer": "tools.check",
    "fast": "ops.fast.chooser",
    "numpy_ops": "aten",
    "swap_layers": "swap",
}

__all__ = [
    "Classifier",
    "SimpleCNN",
    "batch_last",
    "build_net",
    "check_layer",
    "fast",
    "layers",
    "numpy_ops",
    "ops",
    "parity",
    "swap_layers",
]


def __getattr__(name: str) -> Any:
    if name in ("layers", "ops"):
        return import_module(f"{__name__}.{name}")
    if name == "parity":
        return import_module(f"{__name__}.tools.parity")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
