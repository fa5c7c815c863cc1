"""Types of modules that only move data or scale it by a number: there is no formula to write in NumPy for them."""

import fnmatch

from torch import nn

from cnn_lightning.swap.native import path_of

_WITHOUT = [
    "ChannelShuffle",
    "Embedding",
    "PixelShuffle",
    "PixelUnshuffle",
    "Unflatten",
    "Unfold",
    "torchvision.models.maxvit.SwapAxes",
    "torchvision.models.maxvit.WindowDepartition",
    "torchvision.models.maxvit.WindowPartition",
    "torchvision.ops.misc.Permute",
    "torchvision.ops.stochastic_depth.StochasticDepth",
    "timm.layers.drop.DropPath",
    "timm.layers.layer_scale.LayerScale",
    "timm.layers.layer_scale.LayerScale2d",
    "timm.layers.patch_dropout.PatchDropout*",
    "timm.layers.space_to_depth.SpaceToDepth",
    "timm.models.*.LayerScale2d",
    "timm.models.metaformer.Scale",
    "timm.models.selecsls.SelectSeq",
    "transformers.models.*DropPath",
    "transformers.models.*LayerScale",
]
"""Import paths, as patterns, and bare names of `torch.nn`: the packages need not be installed."""


def register_without_arithmetic(kind: type[nn.Module] | str) -> None:
    """Add a type of modules that only move data or scale it by a number, which a report lists as such.

    Args:
        kind: The class, or a pattern of import paths such as ``"my_net.*.DropPath"``.
    """
    _WITHOUT.append(kind if isinstance(kind, str) else path_of(kind))


def is_without_arithmetic(kind: type[nn.Module]) -> bool:
    """Whether modules of this very type only move data or scale it by a number."""
    path = path_of(kind)
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in _WITHOUT)
