"""The one list of layers: what a plan may name, and nothing else runs."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from cnn_lightning.ops.types import Array
from cnn_lightning.portable.layers.base import Layer

LAYERS = {
    "conv2d": ("conv", "Conv2d"),
    "linear": ("linear", "Linear"),
    "max_pool2d": ("pool", "MaxPool2d"),
    "avg_pool2d": ("pool", "AvgPool2d"),
    "adaptive_avg_pool2d": ("pool", "AdaptiveAvgPool2d"),
    "activation": ("activation", "Activation"),
    "batch_norm": ("norm", "BatchNorm"),
    "layer_norm": ("norm", "LayerNorm"),
    "dropout": ("dropout", "Dropout"),
    "softmax": ("softmax", "Softmax"),
    "self_attention": ("attention", "SelfAttention"),
    "parameter": ("shape", "Parameter"),
    "add": ("shape", "Add"),
    "multiply": ("shape", "Multiply"),
    "concatenate": ("shape", "Concatenate"),
    "reshape": ("shape", "Reshape"),
    "permute": ("shape", "Permute"),
    "expand": ("shape", "Expand"),
    "mean": ("shape", "Mean"),
    "part": ("shape", "Part"),
    "product": ("shape", "Product"),
    "pad": ("shape", "Pad"),
    "roll": ("shape", "Roll"),
    "gather": ("shape", "Gather"),
}
"""The file and the class of each operation. A file is loaded when a plan names one of its operations."""


def module_of(operation: str) -> str:
    """The import path of an operation's file."""
    return f"{__name__.rpartition('.')[0]}.{LAYERS[operation][0]}"


def make(operation: str, options: Mapping[str, Any], parameters: Mapping[str, Array]) -> Layer:
    """The layer of a node."""
    layer: Layer = getattr(import_module(module_of(operation)), LAYERS[operation][1])(options, parameters)
    return layer
