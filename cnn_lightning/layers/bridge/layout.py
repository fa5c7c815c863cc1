"""The memory layout that torch's own layers give to their results, for formulas, which give none.

Each layer names the layouts of its formulas where it enters the list of layers, `layers.catalog`.
"""

from typing import Any, NamedTuple

from cnn_lightning.ops.fast.memory import is_batch_last


class Memory(NamedTuple):
    """The memory layout of a formula's results, as torch's own layers give it.

    Attributes:
        argument: The positional argument whose layout they take.
        same_order: True: the axes of a result have the same order in memory as those of the argument. False: a result
            is channels_last or batch-last if the argument is, and contiguous otherwise.
        image_by_image: The argument counts as channels_last only if its images follow one another in memory.
        results: How many results, from the first, have this layout; the others are contiguous.
    """

    argument: int
    same_order: bool
    image_by_image: bool = False
    results: int = 1


MEMORY: dict[str, Memory] = {}
"""The memory layout of the results of a formula, by its name; those of any other formula are contiguous."""


def as_torch(name: str, results: Any, arrays: Any) -> Any:
    """The results of the formula ``name`` for the arguments ``arrays``, copied if they are not in torch's layout."""
    memory = MEMORY.get(name)
    many = results if isinstance(results, tuple) else (results,)
    arranged = [
        _in_order(result, _order(memory, arrays, result) if memory and index < memory.results else range(result.ndim))
        for index, result in enumerate(many)
    ]
    return tuple(arranged) if isinstance(results, tuple) else arranged[0]


def _order(memory: Memory, arrays: Any, result: Any) -> Any:
    """The axes of the result from the outermost in memory to the innermost."""
    axes, source = range(result.ndim), arrays[memory.argument]
    if memory.same_order:
        if source.ndim == result.ndim > 0:
            return sorted(axes, key=lambda axis: (-abs(source.strides[axis]), axis))
    elif is_channels_last(source, memory.image_by_image):
        return [0, *axes[2:], 1]
    elif is_batch_last(source):
        return [*axes[1:], 0]
    return axes


def is_channels_last(x: Any, image_by_image: bool = False) -> bool:
    """Whether channels of (N, C, ...) are adjacent in memory and, if ``image_by_image``, images follow each other."""
    neighbours = x.ndim > 2 and x.shape[1] > 1 and x.strides[1] == x.itemsize < x.strides[-1]
    return bool(neighbours and (x.ndim < 4 or not image_by_image or x.strides[2] <= x.strides[0]))


def _in_order(result: Any, order: Any) -> Any:
    """``result`` if its axes have this order in memory, otherwise a copy that has it."""
    turned = result.transpose(order)
    if result.ndim == 0 or turned.flags.c_contiguous:
        return result
    places = sorted(range(len(order)), key=list(order).__getitem__)
    return turned.copy(order="C").transpose(places)
