"""Memory formats of images: torch's contiguous and channels_last, and batch-last beside them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cnn_lightning.layers.bridge.checks import no_tensor

MemoryFormat = Literal["auto", "contiguous", "channels_last", "batch_last"]


def batch_last(x: Tensor) -> Tensor:
    """``x`` (N, C, H, W) with equal values and shape, and in memory (C, H, W, N), the format fastest for NumPy layers.

    The results of NumPy layers keep the format of their input, as they keep channels_last. Where ``x`` is in this
    format already, it is returned itself. Gradients pass through. While ``torch.compile`` or ``torch.export`` trace,
    ``x`` is returned as it is, because strides are theirs to choose.

    Raises:
        TypeError: ``x`` is not a tensor.
        RuntimeError: ``x`` has not 4 axes.
    """
    if not isinstance(x, Tensor):
        raise TypeError(no_tensor("batch_last: x", x))
    if x.dim() != 4:
        raise RuntimeError(f"batch_last: x: expected 4 axes (N, C, H, W), got shape {tuple(x.shape)}")
    if torch.compiler.is_compiling():
        return x
    pixels = x.permute(1, 2, 3, 0)
    return x if pixels.is_contiguous() else pixels.contiguous().permute(3, 0, 1, 2)


@dataclass(frozen=True)
class Memory:
    """A memory format, and why it was chosen in place of batch-last."""

    format: MemoryFormat
    reason: str = ""

    def __str__(self) -> str:
        return f"memory: {self.format}" + (f" ({self.reason})" if self.reason else "")


def arranged(images: Tensor, wanted: MemoryFormat) -> Tensor:
    """The images in a memory format, themselves if they are in it; ``auto`` is contiguous until it is decided."""
    if wanted == "batch_last":
        return batch_last(images)
    kept = torch.channels_last if wanted == "channels_last" else torch.contiguous_format
    return images.contiguous(memory_format=kept)
