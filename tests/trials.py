"""A random trial of a layer: what it consists of, and the helpers by which the rows of ``tests/cases`` draw it.

Most of what is drawn is valid. About one draw in thirty of an option or a size is not.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn


@dataclass(frozen=True)
class Trial:
    """A layer's options and inputs, in full, so that the text Hypothesis prints repeats the trial.

    ``shape`` is the input's; ``values``, ``layout`` and ``upstream`` are keys of the tables below.
    """

    native: type[nn.Module]
    options: dict[str, Any]
    shape: tuple[int, ...]
    arguments: tuple[Any, ...] = ()
    """After the input: numbers, or `Target`."""
    dtype: torch.dtype = torch.float64
    parameters: torch.dtype | None = None
    """The dtype of the parameters; None is that of the input."""
    values: str = "normal"
    layout: str = "plain"
    upstream: str = "normal"
    train: bool = True
    leaf: bool = True
    """Whether the input is a leaf of the graph, which an in-place layer may not write to."""
    needs: tuple[bool, bool] = (True, True)
    """Whether input and parameters require a gradient."""
    seed: int = 0


@dataclass(frozen=True)
class Target:
    """A loss's second argument: "indices" below ``classes``, "probabilities" or "values"."""

    kind: str
    shape: tuple[int, ...]
    classes: int = 1
    ignored: int | None = None
    needs: bool = False


# ---- values of the input, its order in memory, and the upstream gradient

HUGE = {torch.float64: 1e150, torch.float32: 1e30, torch.bfloat16: 1e30, torch.float16: 1e4}
TINY = {torch.float64: 1e-300, torch.float32: 1e-38, torch.bfloat16: 1e-38, torch.float16: 1e-6}
KINKS = torch.tensor([0.0, -0.0, 1, -1, 3, -3, 6, 20, -20], dtype=torch.float64)
SPECIAL = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0], dtype=torch.float64)


def mixed(pool: Tensor, fraction: float, x: Tensor, generator: torch.Generator) -> Tensor:
    """``x`` with that fraction of its elements replaced by numbers of ``pool``."""
    chosen = pool[torch.randint(len(pool), x.shape, generator=generator)]
    return torch.where(torch.rand(x.shape, generator=generator) < fraction, chosen, x)


VALUES: dict[str, Callable[[Tensor, torch.dtype, torch.Generator], Tensor]] = {
    "normal": lambda x, dtype, generator: x,
    "ties": lambda x, dtype, generator: x.mul(1.5).round(),
    "kinks": lambda x, dtype, generator: mixed(KINKS, 0.5, x, generator),
    "wide": lambda x, dtype, generator: x * 10 ** torch.randint(-3, 4, x.shape, generator=generator),
    "tiny": lambda x, dtype, generator: x * TINY[dtype],
    "huge": lambda x, dtype, generator: mixed(HUGE[dtype] * KINKS[2:6], 0.3, x, generator),
    "special": lambda x, dtype, generator: mixed(SPECIAL, 0.2, x, generator),
    "infinite": lambda x, dtype, generator: mixed(SPECIAL[1:], 0.2, x, generator),
    "all nan": lambda x, dtype, generator: x * math.nan,
    "zero": lambda x, dtype, generator: x * 0.0,
}

Layout = Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]
"""Of numbers: a tensor that stores them, and the view of it that has their shape."""


def by_axes(order: Callable[[int], Sequence[int]]) -> Layout:
    """The axes kept in memory in another order."""

    def layout(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        axes = list(order(x.dim()))
        inverse = sorted(range(x.dim()), key=axes.__getitem__)
        return x.permute(axes).contiguous(), lambda leaf: leaf.permute(inverse)

    return layout


def stepped(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Every second number of a wider tensor."""
    if not x.dim():
        return x, lambda leaf: leaf
    return x.repeat_interleave(2, -1), lambda leaf: leaf[..., ::2]


def expanded(axis: int) -> Layout:
    """The first of an axis, repeated without memory."""

    def layout(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        if x.dim() <= axis or not x.numel():
            return x, lambda leaf: leaf
        return x.narrow(axis, 0, 1).clone(), lambda leaf: leaf.expand(x.shape)

    return layout


LAYOUTS: dict[str, Layout] = {
    "plain": lambda x: (x, lambda leaf: leaf),
    "channels last": by_axes(lambda n: [0, *range(2, n), 1] if n > 2 else range(n)),
    "transposed": by_axes(lambda n: [*range(n - 2), n - 1, n - 2] if n > 1 else range(n)),
    "reversed": by_axes(lambda n: range(n - 1, -1, -1)),
    "batch second": by_axes(lambda n: [1, 0, *range(2, n)] if n > 1 else range(n)),
    "stepped": stepped,
    "part": lambda x: (torch.cat([x, x]) if x.dim() else x, lambda leaf: leaf[len(x) :] if x.dim() else leaf),
    "one sample": expanded(0),
    "one channel": expanded(1),
    "one column": expanded(3),
}

UPSTREAM: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "normal": lambda grad, generator: grad,
    "one number": lambda grad, generator: grad.new_ones(()).expand(grad.shape),
    "reversed": lambda grad, generator: (
        grad.permute(*range(grad.dim() - 1, -1, -1)).contiguous().permute(*range(grad.dim() - 1, -1, -1))
    ),
    "zeros": lambda grad, generator: torch.zeros_like(grad),
    "special gradient": lambda grad, generator: mixed(SPECIAL.to(grad.dtype), 0.2, grad, generator),
}

# ---- drawing

Draw = Callable[[st.SearchStrategy[Any]], Any]


def one(draw: Draw, *values: Any) -> Any:
    return draw(st.sampled_from(values))


def rarely(draw: Draw, usual: Any, odd: Any) -> Any:
    return odd if draw(st.integers(0, 29)) == 17 else usual  # not at an end, which Hypothesis likes to try


def sizes(draw: Draw, low: int, high: int, axes: int, odd: int | None = None) -> Any:
    """A number, or one for each axis; rarely with a wrong one in it, or too many."""
    found = [draw(st.integers(low, high)) for _ in range(axes)]
    if odd is not None:
        found[-1] = rarely(draw, found[-1], odd)
    found = rarely(draw, found, [*found, low]) if odd is not None else found
    return found[0] if draw(st.booleans()) and len(set(found)) == 1 else tuple(found)


def unless_empty(shape: Sequence[int]) -> Callable[[int], int | None]:
    """A wrong option, but None for an empty input: torch's layers check little then."""
    return lambda odd: None if 0 in shape else odd


def shaped(draw: Draw, channels: int, axes: int, most: int = 9, batched: bool | None = None) -> tuple[int, ...]:
    """A batch of images or signals, or one without a batch axis; rarely with an empty axis, or one too many."""
    space = [draw(st.integers(1, most)) for _ in range(axes)]
    space = rarely(draw, space, [0] * axes)
    if 0 in space:
        return (one(draw, 1, 3), channels, *space)
    shape = [rarely(draw, channels, channels + 1), *space]
    if batched or (batched is None and draw(st.integers(0, 4))):
        shape = [one(draw, 1, 2, 3, 5, 0 if shape[0] == channels else 1), *shape]
    return tuple(rarely(draw, shape, rarely(draw, shape[1:], [1, *shape])))


def anything(draw: Draw) -> list[int]:
    """A shape of any number of axes."""
    return [rarely(draw, draw(st.integers(1, 5)), 0) for _ in range(draw(st.integers(0, 4)))]


def trial(
    draw: Draw, native: type[nn.Module], options: dict[str, Any], shape: Sequence[int], without: str = "", **rest: Any
) -> Trial:
    """A trial with these options and this shape, and ``rest``; all other fields are random.

    ``without`` names keys of `VALUES`, `LAYOUTS` and `UPSTREAM` that are not drawn, separated by commas.
    """
    dtype = one(draw, *[torch.float64] * 3, *[torch.float32] * 3, torch.bfloat16, torch.float16)
    half = dtype in (torch.bfloat16, torch.float16)  # in which the gradient of a repeated tensor is added up roughly
    layouts = [name for name in LAYOUTS if not (half and name.startswith("one "))]
    layouts = [name for name in layouts if name not in without.split(",")]
    names = [name for name in VALUES if name not in without.split(",")]
    upstream = [name for name in UPSTREAM if name not in without.split(",")]
    rest = {
        "dtype": dtype,
        "parameters": None if 0 in shape else rarely(draw, None, one(draw, torch.float32, torch.float64)),
        "values": one(draw, *["normal"] * 3, *names),
        "layout": one(draw, *["plain"] * 4, *layouts),
        "upstream": one(draw, *["normal"] * 4, *upstream),
        "train": draw(st.integers(0, 3)) > 0,
        "leaf": draw(st.booleans()),
        "needs": one(draw, *[(True, True)] * 3, (True, False), (False, True), (False, False)),
        "seed": draw(st.integers(0, 2**31)),
    } | rest
    return Trial(native, options, tuple(shape), **rest)
