"""The torch faces of `cnn_lightning.ops`: one ``autograd.Function`` and one ``Module`` per operation.

Each file bears the name of its mathematics: ``layers/conv.py`` is the face of ``ops/conv.py``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn_lightning.layers import bridge as bridge
    from cnn_lightning.layers.activation import ELU as ELU
    from cnn_lightning.layers.activation import GELU as GELU
    from cnn_lightning.layers.activation import Hardsigmoid as Hardsigmoid
    from cnn_lightning.layers.activation import Hardswish as Hardswish
    from cnn_lightning.layers.activation import LeakyReLU as LeakyReLU
    from cnn_lightning.layers.activation import Mish as Mish
    from cnn_lightning.layers.activation import PReLU as PReLU
    from cnn_lightning.layers.activation import ReLU as ReLU
    from cnn_lightning.layers.activation import ReLU6 as ReLU6
    from cnn_lightning.layers.activation import Sigmoid as Sigmoid
    from cnn_lightning.layers.activation import SiLU as SiLU
    from cnn_lightning.layers.activation import Softplus as Softplus
    from cnn_lightning.layers.activation import Tanh as Tanh
    from cnn_lightning.layers.conv import Conv1d as Conv1d
    from cnn_lightning.layers.conv import Conv2d as Conv2d
    from cnn_lightning.layers.conv import ConvTranspose2d as ConvTranspose2d
    from cnn_lightning.layers.dropout import Dropout as Dropout
    from cnn_lightning.layers.dropout import Dropout1d as Dropout1d
    from cnn_lightning.layers.dropout import Dropout2d as Dropout2d
    from cnn_lightning.layers.fused import Sequential as Sequential
    from cnn_lightning.layers.linear import Linear as Linear
    from cnn_lightning.layers.loss import CrossEntropyLoss as CrossEntropyLoss
    from cnn_lightning.layers.loss import MSELoss as MSELoss
    from cnn_lightning.layers.loss import NLLLoss as NLLLoss
    from cnn_lightning.layers.norm import BatchNorm1d as BatchNorm1d
    from cnn_lightning.layers.norm import BatchNorm2d as BatchNorm2d
    from cnn_lightning.layers.norm import GroupNorm as GroupNorm
    from cnn_lightning.layers.norm import LayerNorm as LayerNorm
    from cnn_lightning.layers.norm import LayerNorm2d as LayerNorm2d
    from cnn_lightning.layers.pool import AdaptiveAvgPool1d as AdaptiveAvgPool1d
    from cnn_lightning.layers.pool import AdaptiveAvgPool2d as AdaptiveAvgPool2d
    from cnn_lightning.layers.pool import AdaptiveMaxPool2d as AdaptiveMaxPool2d
    from cnn_lightning.layers.pool import AvgPool1d as AvgPool1d
    from cnn_lightning.layers.pool import AvgPool2d as AvgPool2d
    from cnn_lightning.layers.pool import MaxPool1d as MaxPool1d
    from cnn_lightning.layers.pool import MaxPool2d as MaxPool2d
    from cnn_lightning.layers.shape import Flatten as Flatten
    from cnn_lightning.layers.shape import Identity as Identity
    from cnn_lightning.layers.softmax import LogSoftmax as LogSoftmax
    from cnn_lightning.layers.softmax import Softmax as Softmax

_COLUMNS = {
    "activation": "ELU GELU Hardsigmoid Hardswish LeakyReLU Mish PReLU ReLU ReLU6 SiLU Sigmoid Softplus Tanh",
    "conv": "Conv1d Conv2d ConvTranspose2d",
    "dropout": "Dropout Dropout1d Dropout2d",
    "fused": "Sequential",
    "linear": "Linear",
    "loss": "CrossEntropyLoss MSELoss NLLLoss",
    "norm": "BatchNorm1d BatchNorm2d GroupNorm LayerNorm LayerNorm2d",
    "pool": "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveMaxPool2d AvgPool1d AvgPool2d MaxPool1d MaxPool2d",
    "shape": "Flatten Identity",
    "softmax": "LogSoftmax Softmax",
}
_HOMES = {name: column for column, names in _COLUMNS.items() for name in names.split()}

__all__ = ["bridge", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "bridge" or name in _COLUMNS:
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
