"""What a NumPy layer says to tools that know torch's layers by their exact type.

To such a tool a subclass is a stranger: it compiles it and fails at some line of NumPy, or passes over it unsaid.
"""

import warnings
from collections.abc import Callable
from typing import Any, Self

import torch

_WITH_WEIGHTS = {"Conv1d", "Conv2d", "ConvTranspose2d", "Linear"}
_NON_LINEAR = {"ReLU", "LeakyReLU", "ELU", "Softplus", "Sigmoid", "Tanh", "Softmax", "MaxPool1d", "MaxPool2d"}
_VISITORS = {
    "captum.attr._core.deep_lift": (_NON_LINEAR, "captum's DeepLift takes it for linear, which makes it wrong"),
    "thop.profile": (_WITH_WEIGHTS, "thop counts no operations for it"),
}
"""Tools that visit each layer by ``net.apply(function)``: the function's module, the layers they would know by their
native type, and what they do to a stranger."""


class Layer(torch.nn.Module):
    """The base, before the native class, of each layer that computes something in NumPy."""

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """Called by ``torch.jit.script`` before it compiles the layer.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            f"{type(self).__name__}: torch.jit.script can't compile NumPy layers; expected native ones: "
            "swap_layers(net, 'torch') first, or torch.export, which keeps NumPy"
        )

    def apply(self, fn: Callable[[torch.nn.Module], None]) -> Self:
        """`torch.nn.Module.apply`, with a warning where ``fn`` belongs to a tool that looks for native layers."""
        known, consequence = _VISITORS.get(getattr(fn, "__module__", None) or "", (set(), ""))
        self._warn(known, consequence)
        return super().apply(fn)

    def __setattr__(self, name: str, value: Any) -> None:
        """`torch.nn.Module.__setattr__`, with a warning where torch's quantisers leave their mark."""
        if name == "qconfig":
            self._warn(_WITH_WEIGHTS, "torch.ao.quantization leaves it as it is")
        super().__setattr__(name, value)

    def _warn(self, known: set[str], consequence: str) -> None:
        if type(self).__name__ in known:
            warnings.warn(
                f"{type(self).__name__}: this layer runs in NumPy, and {consequence}; swap_layers(net, 'torch') first",
                stacklevel=3,
            )
