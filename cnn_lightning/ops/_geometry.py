"""What a convolution's shapes must be, and where its window lies."""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal, NamedTuple

from cnn_lightning.ops._types import Array

Pair = int | Sequence[int]
Padding = Pair | Literal["same", "valid"]


class Geometry(NamedTuple):
    """Sizes of a convolution: input (n, c, h, w), output (n, o, oh, ow), and how its window moves."""

    n: int
    c: int
    h: int
    w: int
    o: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[tuple[int, int], tuple[int, int]]
    oh: int
    ow: int


def integers(value: Pair | str, name: str, count: int) -> tuple[int, ...]:
    """An option as ``count`` integers, of which one may stand for all.

    Raises:
        TypeError: Anything but integers.
        RuntimeError: Another number of them.
    """
    if isinstance(value, int):
        return (value,) * count
    numbers = (value,) if isinstance(value, Integral) else value
    if not isinstance(numbers, Sequence) or not all(isinstance(number, Integral) for number in numbers):
        raise TypeError(f"{name}: expected integers, got {value!r}")
    if len(numbers) not in (1, count):
        raise RuntimeError(f"{name}: expected {count} {'number' if count == 1 else 'numbers'}, got {value}")
    return tuple(int(number) for number in numbers) * (count // len(numbers))


def pair(value: Pair, name: str) -> tuple[int, int]:
    """`integers` for rows and columns."""
    rows, columns = integers(value, name, 2)
    return rows, columns


def geometry(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Geometry:
    """The sizes, or a RuntimeError whose one line names the argument, what was expected and what came.

    Options that are no integers are a TypeError.
    """
    if x.ndim != 4 or weight.ndim != 4:
        name, array = ("x", x) if x.ndim != 4 else ("weight", weight)
        raise RuntimeError(f"conv2d: {name}: expected 4 axes, got shape {tuple(array.shape)}")
    for name, given in (("x", x), ("weight", weight), ("bias", bias)):
        if given is not None and (given.dtype.kind != "f" or given.dtype != x.dtype):
            wanted = "a floating dtype" if given.dtype.kind != "f" else f"x's dtype {x.dtype}"
            raise RuntimeError(f"conv2d: {name}: expected {wanted}, got {given.dtype}")
    (n, c, h, w), (o, per_group, *kernel) = x.shape, weight.shape
    if groups < 1 or o % groups:
        raise RuntimeError(f"conv2d: groups: expected a positive divisor of {o} output channels, got {groups}")
    if c != per_group * groups:
        raise RuntimeError(f"conv2d: x: expected {per_group * groups} channels, got {c} in shape {tuple(x.shape)}")
    if bias is not None and bias.shape != (o,):
        raise RuntimeError(f"conv2d: bias: expected shape ({o},), got {tuple(bias.shape)}")
    steps, spread = pair(stride, "conv2d: stride"), pair(dilation, "conv2d: dilation")
    if min(steps) < 1 or min(spread) < 1:
        raise RuntimeError(f"conv2d: stride and dilation: expected at least 1, got {stride} and {dilation}")
    if o < 1:
        raise RuntimeError(f"conv2d: weight: expected at least 1 output channel, got shape {tuple(weight.shape)}")
    reach = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise RuntimeError(f"conv2d: padding: expected 'same', 'valid' or numbers, got {padding!r}")
        if padding == "same" and steps != (1, 1):
            raise RuntimeError(f"conv2d: padding: 'same' expects stride 1, got {stride}")
        total = reach if padding == "same" else [0, 0]
        pad = [(p // 2, p - p // 2) for p in total]
    else:
        pad = [(p, p) for p in pair(padding, "conv2d: padding")]
    if min(p for both in pad for p in both) < 0:
        raise RuntimeError(f"conv2d: padding: expected at least 0, got {padding}")
    size = [h + sum(pad[0]), w + sum(pad[1])]
    if min(kernel) < 1 or any(s <= r for s, r in zip(size, reach, strict=True)):
        raise RuntimeError(
            f"conv2d: x: expected a padded image of at least {reach[0] + 1}x{reach[1] + 1} for the kernel "
            f"{kernel[0]}x{kernel[1]}, got {size[0]}x{size[1]}"
        )
    oh, ow = ((s - r - 1) // step + 1 for s, r, step in zip(size, reach, steps, strict=True))
    return Geometry(n, c, h, w, o, groups, (kernel[0], kernel[1]), steps, spread, (pad[0], pad[1]), oh, ow)
