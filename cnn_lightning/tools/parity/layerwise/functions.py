"""The functions that the containers of a network call themselves (``+``, `torch.matmul`), recorded as layers are."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from cnn_lightning.swap.functional import InNumPy
from cnn_lightning.swap.observe import arithmetic

_PLAIN = {"add", "sub", "mul", "div", "truediv"}
"""``+``, ``-``, ``*`` and ``/``, as the methods are called without underscores, ``i`` and ``r``."""


class FunctionCall(nn.Module):
    """A call of a function of torch as a layer without parameters: its tensors are the arguments of the forward."""

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        super().__init__()
        given, self.structure = _pytree.tree_flatten((args, kwargs))
        self.function = function
        self.places = [place for place, value in enumerate(given) if isinstance(value, Tensor)]
        self.given = [None if isinstance(value, Tensor) else value for value in given]
        self.inplace = _writes(function, kwargs)

    def forward(self, *tensors: Tensor) -> Any:
        """The function with these tensors in the places of those that it was called with."""
        given = list(self.given)
        for place, tensor in zip(self.places, tensors, strict=True):
            given[place] = tensor
        args, kwargs = _pytree.tree_unflatten(given, self.structure)
        return self.function(*args, **kwargs)


class InNumPyCall(FunctionCall):
    """The same computed by the NumPy layer of this function, where there is one."""

    def forward(self, *tensors: Tensor) -> Any:
        """The function by `InNumPy`."""
        with InNumPy(None):
            return super().forward(*tensors)


class Functions(TorchFunctionMode):
    """Passes each function that computes with a tensor that has a gradient to ``recorded``, as a `FunctionCall`.

    Args:
        recorded: Is called with the name of the function, the call, and its tensors; it returns the result.
        asked: Whether calls are to be recorded now.
        kind: The class of the calls.
    """

    def __init__(
        self, recorded: Callable[[str, FunctionCall, list[Tensor]], Any], asked: Callable[[], bool], kind: type
    ) -> None:
        super().__init__()
        self.recorded, self.asked, self.kind = recorded, asked, kind

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function, recorded where it computes."""
        kwargs = kwargs or {}
        name = _name(function)
        if not name or not self.asked():
            return function(*args, **kwargs)
        tensors = [value for value in _pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if not any(value.requires_grad and value.is_floating_point() for value in tensors):
            return function(*args, **kwargs)
        return self.recorded(name, self.kind(function, args, kwargs), tensors)


def _name(function: Any) -> str:
    """The name of a function that computes; empty for those that move data or ask for a property."""
    written = getattr(function, "__name__", "").strip("_")
    plain = written if written in _PLAIN else written[1:] if written[:1] in ("i", "r") else ""
    return plain if plain in _PLAIN else arithmetic(function)


def _writes(function: Any, kwargs: Any) -> bool:
    """Whether the function writes into its first tensor."""
    name = getattr(function, "__name__", "")
    in_place = name.startswith("__i") if name.startswith("__") else name.endswith("_")
    return in_place or bool(kwargs.get("inplace")) or kwargs.get("out") is not None
