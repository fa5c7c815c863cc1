r"""The one list of layers: a decorator on each class has all that the package needs to know of the layer.

For example::

    @layer(
        native=torch.nn.ReLU,
        formulas="activation",
        functions=("relu", "relu_"),
        kinks=(0,),
        choices=None,
        page=(r"y = \max(x, 0)", r"\d{x} = g \text{ where } x > 0 \text{, else } 0"),
        memory=same_order(relu=0, relu_backward=1),
        flops=None,
    )
    class ReLU(Layer, torch.nn.ReLU): ...

The swap, parity, the explain page, `layout` and counters of operations read it. No field has a default: a missing field
is an error when the layer is imported.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

from torch import Tensor, nn

from cnn_lightning.layers.bridge.layout import MEMORY, Memory

Choices = Callable[[Any, Tensor], Tensor]
"""From a native module and its input: the pixel that each output is, for layers that choose one."""
Flops = Callable[[Sequence[int], Sequence[int], Sequence[int]], int]
"""From the shapes of input, weight and output: multiplications and additions of the forward."""


@dataclass(frozen=True)
class Entry:
    """A layer.

    Attributes:
        layer: Its class.
        native: The class of torch, or of torchvision, that it computes in NumPy.
        formulas: The file of `cnn_lightning.ops` that it calls; empty if it calls none.
        functions: Names of the functions of ``torch``, ``torch.nn.functional`` and tensors that compute the same.
        kinks: Inputs at which its gradient jumps: numbers, or names of the layer's own attributes.
        choices: The input that each output is chosen from; None if the layer chooses nothing.
        page: Its formulas, forward and backward, as `cnn_lightning.tools.explain.formulas` reads them.
        memory: The memory layout of the results of its formulas, by formula; contiguous for those not named.
        flops: Counts its multiplications and additions as torch's counter does; None if that does not count the layer.
    """

    layer: type[nn.Module]
    native: type[nn.Module]
    formulas: str
    functions: tuple[str, ...]
    kinks: tuple[float | str, ...]
    choices: Choices | None
    page: tuple[str, str]
    memory: Mapping[str, Memory]
    flops: Flops | None

    def kinks_of(self, module: nn.Module) -> list[float]:
        """The inputs at which the gradient of one layer jumps."""
        return [float(getattr(module, kink)) if isinstance(kink, str) else kink for kink in self.kinks]


_entries: dict[type[nn.Module], Entry] = {}
_Class = TypeVar("_Class", bound=type[nn.Module])


def layer(
    *,
    native: type[nn.Module],
    formulas: str,
    functions: tuple[str, ...],
    kinks: tuple[float | str, ...],
    choices: Choices | None,
    page: tuple[str, str],
    memory: Mapping[str, Memory],
    flops: Flops | None,
) -> Callable[[_Class], _Class]:
    """Add a class to the list; the arguments are those of `Entry`.

    Raises:
        TypeError: The class is not a subclass of ``native``, or ``native`` has a layer already.
    """

    def enter(cls: _Class) -> _Class:
        if not issubclass(cls, native):
            raise TypeError(f"{cls.__name__}: native: expected a base of the class, got {native.__name__}")
        if native in _entries:
            raise TypeError(f"{cls.__name__}: native: {native.__name__} has {_entries[native].layer.__name__} already")
        _entries[native] = Entry(cls, native, formulas, functions, kinks, choices, page, memory, flops)
        MEMORY.update(memory)
        return cls

    return enter


def entries() -> dict[type[nn.Module], Entry]:
    """Every layer, by its native class."""
    return _entries


# ---- values of fields for several layers


def same_order(**arguments: int) -> dict[str, Memory]:
    """`Entry.memory` of elementwise formulas: for each, the number of the argument whose order of axes is kept."""
    return {name: Memory(argument, same_order=True) for name, argument in arguments.items()}


def channels_last(*, image_by_image: bool = False, results: int = 1, **arguments: int) -> dict[str, Memory]:
    """`Entry.memory` of formulas on images: for each, the number of the argument that is channels_last or not."""
    return {name: Memory(argument, False, image_by_image, results) for name, argument in arguments.items()}


def places(pool: Callable[..., Any]) -> Choices:
    """`Entry.choices` of a max-pooling, by the function of torch that computes it."""

    def found(module: Any, x: Tensor) -> Tensor:
        options = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        indices: Tensor = pool(x, *options, return_indices=True)[1]
        return indices

    return found


def adaptive_places(pool: Callable[..., Any]) -> Choices:
    """`places` for an adaptive max-pooling."""

    def found(module: Any, x: Tensor) -> Tensor:
        indices: Tensor = pool(x, module.output_size, return_indices=True)[1]
        return indices

    return found


def products(x: Sequence[int], weight: Sequence[int], y: Sequence[int]) -> int:
    """`Entry.flops` of a layer that uses each weight once for every pixel of its output."""
    channels = len(y) - max(1, len(weight) - 2) if len(weight) > 2 else len(y)
    places_of_y = prod(y[: channels - 1]) * prod(y[channels:])
    return 2 * prod(weight) * places_of_y


def products_of_input(x: Sequence[int], weight: Sequence[int], y: Sequence[int]) -> int:
    """`products` for a layer that uses each weight once for every pixel of its input."""
    return products(y, weight, x)
