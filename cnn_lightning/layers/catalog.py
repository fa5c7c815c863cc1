r"""The one list of layers: what the package has to know of each stands beside its class, in a decorator.

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

The swap, parity, the explain page and counters of operations read it. Nothing has a default: a field that is forgotten
is an error when the layer is imported.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn import functional

Choices = Callable[[Any, Tensor], Tensor]
"""Of a native module and its input: which pixel each output is, for layers that choose."""
Flops = Callable[[Sequence[int], Sequence[int], Sequence[int]], int]
"""Of the shapes of input, weight and output: multiplications and additions of the forward."""


class Memory(NamedTuple):
    """The memory layout of a formula's results, as torch's own layers give it.

    Attributes:
        argument: The positional argument whose layout they take.
        same_order: True: the axes of a result have the same order in memory as those of the argument. False: a result
            is channels_last if the argument is, and contiguous otherwise.
        image_by_image: The argument counts as channels_last only if its images follow one another in memory.
        results: How many results, from the first, have this layout; the others are contiguous.
    """

    argument: int
    same_order: bool
    image_by_image: bool = False
    results: int = 1


@dataclass(frozen=True)
class Entry:
    """A layer.

    Attributes:
        layer: Its class.
        native: The class of torch, or of torchvision, that it computes in NumPy.
        formulas: The file of `cnn_lightning.ops` that it calls; empty where it calls none.
        functions: Names of the functions of ``torch``, ``torch.nn.functional`` and tensors that compute the same.
        kinks: Inputs at which its gradient jumps: numbers, or names of the layer's own attributes.
        choices: Which input each output was chosen from; None where it chooses nothing.
        page: Its formulas, forward and backward, as `cnn_lightning.tools.explain.formulas` reads them.
        memory: The memory layout of the results of its formulas, by formula; contiguous for those not named.
        flops: Counts its multiplications and additions as torch's counter does; None for those it doesn't count.
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
_memory: dict[str, Memory] = {}
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
    """Enter a class into the list; arguments are those of `Entry`.

    Raises:
        TypeError: A class that is no subclass of ``native``, or a second one for it.
    """

    def enter(cls: _Class) -> _Class:
        if not issubclass(cls, native):
            raise TypeError(f"{cls.__name__}: native: expected a base of the class, got {native.__name__}")
        if native in _entries:
            raise TypeError(f"{cls.__name__}: native: {native.__name__} has {_entries[native].layer.__name__} already")
        _entries[native] = Entry(cls, native, formulas, functions, kinks, choices, page, memory, flops)
        _memory.update(memory)
        return cls

    return enter


def entries() -> dict[type[nn.Module], Entry]:
    """Every layer, by its native class."""
    return _entries


def memory_of(formula: str) -> Memory | None:
    """The memory layout of the results of the formula of this name; None if they are contiguous."""
    return _memory.get(formula)


# ---- fields that several layers have


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


def adaptive_places(module: Any, x: Tensor) -> Tensor:
    """`Entry.choices` of an adaptive max-pooling."""
    indices: Tensor = functional.adaptive_max_pool2d(x, module.output_size, return_indices=True)[1]
    return indices


def products(x: Sequence[int], weight: Sequence[int], y: Sequence[int]) -> int:
    """`Entry.flops` of a layer that multiplies each weight once for every place of its output."""
    channels = len(y) - max(1, len(weight) - 2) if len(weight) > 2 else len(y)
    places_of_y = prod(y[: channels - 1]) * prod(y[channels:])
    return 2 * prod(weight) * places_of_y


def products_of_input(x: Sequence[int], weight: Sequence[int], y: Sequence[int]) -> int:
    """`products` where each weight is multiplied once for every place of the input."""
    return products(y, weight, x)
