"""Random cases of every layer against torch: options, shapes, memory orders, dtypes and values, wrong ones too.

Results are equal, or both implementations raise the same type of exception. ``pytest -m slow`` runs the 10,000.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import convnext

from cnn_lightning import layers, swap

# ---- a case: everything that it is made of, so that the text Hypothesis prints repeats it


@dataclass(frozen=True)
class Trial:
    """A layer's options and what it is given. ``shape`` is the input's; ``values`` to ``upstream`` name rows below."""

    native: type[nn.Module]
    options: dict[str, Any]
    shape: tuple[int, ...]
    arguments: tuple[Any, ...] = ()
    """After the input: numbers, or `Target`."""
    dtype: torch.dtype = torch.float64
    parameters: torch.dtype | None = None
    """Their dtype where it is another."""
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


HUGE = {torch.float64: 1e150, torch.float32: 1e30, torch.bfloat16: 1e30, torch.float16: 1e4}
TINY = {torch.float64: 1e-300, torch.float32: 1e-38, torch.bfloat16: 1e-38, torch.float16: 1e-6}
KINKS = torch.tensor([0.0, -0.0, 1, -1, 3, -3, 6, 20, -20], dtype=torch.float64)
SPECIAL = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0], dtype=torch.float64)


def some_of(pool: Tensor, share: float, x: Tensor, generator: torch.Generator) -> Tensor:
    """``x`` with a share of it replaced by numbers of ``pool``."""
    chosen = pool[torch.randint(len(pool), x.shape, generator=generator)]
    return torch.where(torch.rand(x.shape, generator=generator) < share, chosen, x)


VALUES: dict[str, Callable[[Tensor, torch.dtype, torch.Generator], Tensor]] = {
    "normal": lambda x, dtype, generator: x,
    "ties": lambda x, dtype, generator: x.mul(1.5).round(),
    "kinks": lambda x, dtype, generator: some_of(KINKS, 0.5, x, generator),
    "wide": lambda x, dtype, generator: x * 10 ** torch.randint(-3, 4, x.shape, generator=generator),
    "tiny": lambda x, dtype, generator: x * TINY[dtype],
    "huge": lambda x, dtype, generator: some_of(HUGE[dtype] * KINKS[2:6], 0.3, x, generator),
    "special": lambda x, dtype, generator: some_of(SPECIAL, 0.2, x, generator),
    "infinite": lambda x, dtype, generator: some_of(SPECIAL[1:], 0.2, x, generator),
    "all nan": lambda x, dtype, generator: x * math.nan,
    "zero": lambda x, dtype, generator: x * 0.0,
}


def by_axes(order: Callable[[int], Sequence[int]]) -> Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]:
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


def expanded(axis: int) -> Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """The first of an axis, repeated without memory."""

    def layout(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        if x.dim() <= axis or not x.numel():
            return x, lambda leaf: leaf
        return x.narrow(axis, 0, 1).clone(), lambda leaf: leaf.expand(x.shape)

    return layout


LAYOUTS: dict[str, Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]] = {
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

# ---- a case, run


@dataclass
class Outcome:
    """What came of it, by name, or the exception."""

    tensors: dict[str, Tensor | None] = field(default_factory=dict)
    error: Exception | None = None


def run(layer: type[nn.Module], trial: Trial, wide: bool = False, absolute: bool = False) -> Outcome:
    """Outputs, gradients and buffers of a layer.

    ``wide``: of the same numbers, in float64. ``absolute``: of their absolute values, where finite.
    """
    generator = torch.Generator().manual_seed(trial.seed)

    def numbers(shape: Sequence[int], dtype: torch.dtype, values: str = "normal") -> Tensor:
        x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
        x = VALUES[values](x, dtype, generator).to(dtype)
        x = x.abs().nan_to_num(0, 0, 0) if absolute else x
        return x.double() if wide else x

    def argument(value: Any) -> Any:
        if not isinstance(value, Target):
            return value
        if value.kind == "indices":
            target = torch.randint(max(1, value.classes), value.shape, generator=generator)
            return target if value.ignored is None else torch.where(target == 0, value.ignored, target)
        target = numbers(value.shape, trial.dtype)
        if value.kind == "probabilities" and target.dim():
            target = target.softmax(min(1, target.dim() - 1))
        return target.requires_grad_(value.needs)

    outcome = Outcome()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = dict(trial.options)
            if isinstance(options.get("weight"), list):
                options["weight"] = torch.tensor(options["weight"]).to(torch.float64 if wide else trial.dtype)
            module = layer(**options).train(trial.train)
            given_dtype = trial.parameters or trial.dtype
            module.to(torch.float64 if wide else given_dtype)
            for name, tensor in module.named_parameters():
                tensor.requires_grad_(trial.needs[1])
                tensor.detach().copy_(numbers(tensor.shape, given_dtype))
                outcome.tensors[f"gradient of {name}"] = None
            for name, buffer in module.named_buffers():
                if buffer.is_floating_point() and "running" in name:
                    buffer.copy_(numbers(buffer.shape, given_dtype).abs() + ("var" in name))
            leaf, view = LAYOUTS[trial.layout](numbers(trial.shape, trial.dtype, trial.values))
            leaf.requires_grad_(trial.needs[0])
            arguments = [argument(value) for value in trial.arguments]
            torch.manual_seed(trial.seed)
            results = module(view(leaf if trial.leaf else leaf * 1), *arguments)
            outputs = list(results) if isinstance(results, tuple) else [results]
            leaves = {"input": leaf, **dict(module.named_parameters())}
            leaves |= {f"argument {i}": value for i, value in enumerate(arguments) if isinstance(value, Tensor)}
            leaves = {name: tensor for name, tensor in leaves.items() if tensor.requires_grad}
            floats = [output for output in outputs if output.requires_grad]
            kept = [output.detach().clone() for output in outputs]
            if floats and leaves:
                upstream = [
                    UPSTREAM[trial.upstream](numbers(y.shape, trial.dtype).to(y.dtype), generator) for y in floats
                ]
                found = torch.autograd.grad(floats, list(leaves.values()), upstream, allow_unused=True)
                outcome.tensors |= {f"gradient of {name}": g for name, g in zip(leaves, found, strict=True)}
            outcome.tensors |= {f"output {index}": output for index, output in enumerate(kept)}
            outcome.tensors |= {f"buffer {name}": buffer for name, buffer in module.named_buffers()}
            outcome.tensors["requires grad"] = torch.tensor([output.requires_grad for output in outputs])
    except Exception as error:
        outcome.error = error
    return outcome


UPSTREAM: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "normal": lambda grad, generator: grad,
    "one number": lambda grad, generator: grad.new_ones(()).expand(grad.shape),
    "reversed": lambda grad, generator: (
        grad.permute(*range(grad.dim() - 1, -1, -1)).contiguous().permute(*range(grad.dim() - 1, -1, -1))
    ),
    "zeros": lambda grad, generator: torch.zeros_like(grad),
    "special gradient": lambda grad, generator: some_of(SPECIAL.to(grad.dtype), 0.2, grad, generator),
}

# ---- two outcomes, compared

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
SUMS = [
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "Linear",
    "AvgPool1d",
    "AvgPool2d",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
]
"""Sums of products: their rounding is relative to the same sum of absolute values."""
WHOLE = ["BatchNorm1d", "BatchNorm2d", "GroupNorm", "LayerNorm", "LayerNorm2d", "Softmax", "LogSoftmax"]
"""Each number depends on many: their rounding is relative to the largest. That of all other layers, to each number."""


UNDECIDED = "|".join(
    [
        " not implemented for ",
        r"Calculated output size per channel: \((0 x|\d+ x 0\))",
        "Only zero batch or zero channel inputs",
        "grad_input must be contiguous",
    ]
)
"""Errors of some of torch's kernels where others compute: dtypes, results of no pixels, orders of axes."""


def check(trial: Trial) -> bool:
    """Ours and torch's: equal to within rounding, or nearer to the truth than torch is; or the same type of error.

    False where torch is undecided.
    """
    expected, found = run(trial.native, trial), run(swap.LAYERS[trial.native], trial)
    if expected.error is not None or found.error is not None:
        if re.search(UNDECIDED, str(expected.error)):
            return False
        assert type(found.error) is type(expected.error), f"{found.error!r} in place of {expected.error!r}"
        assert str(found.error).strip()
        assert "\n" not in str(found.error) or str(found.error) == str(expected.error), str(found.error)
        return True
    truth = run(trial.native, trial, wide=True)
    sizes = run(trial.native, trial, wide=True, absolute=True) if trial.native.__name__ in SUMS else truth
    assert found.tensors.keys() == expected.tensors.keys()
    for name, theirs in expected.tensors.items():
        ours, true, size = (outcome.tensors.get(name) for outcome in (found, truth, sizes))
        assert (ours is None) == (theirs is None), name
        if ours is None or theirs is None:
            continue
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        true, size = (theirs if tensor is None else tensor for tensor in (true, size))
        good = close(ours, theirs, size, trial) | close(ours, true.to(theirs.dtype), size, trial)
        if trial.dtype != torch.float64 and theirs.is_floating_point() and theirs.numel():
            good |= (ours.double() - true).abs() <= (theirs.double() - true).abs().nan_to_num(0, 0, 0).max()
        assert good.all(), f"{name}: {ours[~good]} in place of {theirs[~good]}, truly {true[~good]}"
    return True


def close(ours: Tensor, theirs: Tensor, size: Tensor, trial: Trial) -> Tensor:
    """Where two tensors are equal to within the rounding of numbers of ``size``."""
    if not theirs.is_floating_point():
        return ours == theirs
    a, b, size = ours.double(), theirs.double(), size.double().abs().nan_to_num(0, 0, 0)
    if trial.native.__name__ in WHOLE and size.numel():
        size = size.max()
    tolerance = TOLERANCE[max((trial.dtype, theirs.dtype), key=TOLERANCE.__getitem__)]
    equal = (a == b) | (a.isnan() & b.isnan())
    if trial.upstream == "special gradient" and trial.native.__name__ in WHOLE:
        equal |= ~a.isfinite() & ~b.isfinite()  # infinities cancel or not, as the sums are ordered
    return equal | ((a - b).abs() <= tolerance * size.clamp(min=1.0))


# ---- strategies: mostly valid, now and then not

Draw = Callable[[st.SearchStrategy[Any]], Any]


def one(draw: Draw, *values: Any) -> Any:
    return draw(st.sampled_from(values))


def rarely(draw: Draw, usual: Any, odd: Any) -> Any:
    return odd if draw(st.integers(0, 29)) == 17 else usual  # not at an end, which Hypothesis likes to try


def sizes(draw: Draw, low: int, high: int, axes: int, odd: int | None = None) -> Any:
    """A number, or one for each axis; now and then with a wrong one in it, or too many."""
    found = [draw(st.integers(low, high)) for _ in range(axes)]
    if odd is not None:
        found[-1] = rarely(draw, found[-1], odd)
    found = rarely(draw, found, [*found, low]) if odd is not None else found
    return found[0] if draw(st.booleans()) and len(set(found)) == 1 else tuple(found)


def unless_empty(shape: Sequence[int]) -> Callable[[int], int | None]:
    """A wrong option, but not for an empty input: torch's layers check little then."""
    return lambda odd: None if 0 in shape else odd


def shaped(draw: Draw, channels: int, axes: int, most: int = 9, batched: bool | None = None) -> tuple[int, ...]:
    """A batch, none or one alone, of images or signals; now and then with an empty axis, or one too many."""
    space = [draw(st.integers(1, most)) for _ in range(axes)]
    space = rarely(draw, space, [0] * axes)
    if 0 in space:
        return (one(draw, 1, 3), channels, *space)
    shape = [rarely(draw, channels, channels + 1), *space]
    if batched or (batched is None and draw(st.integers(0, 4))):
        shape = [one(draw, 1, 2, 3, 5, 0 if shape[0] == channels else 1), *shape]
    return tuple(rarely(draw, shape, rarely(draw, shape[1:], [1, *shape])))


def trial(
    draw: Draw, native: type[nn.Module], options: dict[str, Any], shape: Sequence[int], without: str = "", **rest: Any
) -> Trial:
    """The case, given its options and shape: the rest of it at random, but for the values that ``without`` names."""
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


INFINITE_SUMS = "special gradient"
"""Infinity times a pixel of the padding is NaN, or left out."""
LANES = "special,all nan,special gradient"
"""At NaN, torch's gradient of these hangs on whether the element is in a whole vector (tests/test_activation.py)."""


@st.composite
def convolutions(draw: Draw) -> Trial:
    native = one(draw, nn.Conv1d, nn.Conv2d, nn.Conv2d)
    axes = 1 if native is nn.Conv1d else 2
    groups = one(draw, 1, 1, 2, 3)
    inner = groups * draw(st.integers(1, 3))
    shape = shaped(draw, inner, axes)
    mode = one(draw, "zeros", "zeros", "zeros", "reflect", "replicate", "circular")
    # With another padding mode, what torch says of wrong numbers hangs on what its padding makes of them first.
    wrong = unless_empty(shape if mode == "zeros" else (0,))
    options = {
        "in_channels": inner,
        "out_channels": rarely(draw, groups * draw(st.integers(1, 3)), 5),
        "kernel_size": sizes(draw, 1, 3, axes, wrong(0)),
        "stride": sizes(draw, 1, 3, axes, wrong(0)),
        "padding": one(draw, sizes(draw, 0, 2, axes, wrong(-1)), sizes(draw, 0, 2, axes), "same", "valid"),
        "dilation": sizes(draw, 1, 3, axes, wrong(0)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": mode,
    }
    if options["padding"] == "same":
        options["stride"] = rarely(draw, 1, options["stride"])
    found = trial(draw, native, options, shape, without=INFINITE_SUMS)
    if options["padding"] == "same" and found.dtype == torch.bfloat16:  # a gradient that torch 2.15 may die of
        found = dataclasses.replace(found, dtype=torch.float16)
    return found


@st.composite
def transposed_convolutions(draw: Draw) -> Trial:
    groups = one(draw, 1, 1, 2, 3)
    inner = groups * draw(st.integers(1, 3))
    shape = shaped(draw, inner, 2, most=5)
    wrong = unless_empty(shape)
    options = {
        "in_channels": inner,
        "out_channels": rarely(draw, groups * draw(st.integers(1, 3)), 5),
        "kernel_size": sizes(draw, 1, 3, 2, wrong(0)),
        "stride": sizes(draw, 1, 3, 2, wrong(0)),
        "padding": sizes(draw, 0, 2, 2, wrong(-1)),
        "output_padding": one(draw, 0, 0, sizes(draw, 0, 2, 2, wrong(-1))) if wrong(0) is not None else 0,
        "dilation": sizes(draw, 1, 3, 2),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    wanted = rarely(draw, (), ([draw(st.integers(1, 9)), draw(st.integers(1, 9))],))
    without = INFINITE_SUMS + ",special,infinite,all nan"
    return trial(draw, nn.ConvTranspose2d, options, shape, arguments=wanted, without=without)


@st.composite
def linears(draw: Draw) -> Trial:
    features = draw(st.integers(0, 6))
    options = {"in_features": features, "out_features": draw(st.integers(0, 5)), "bias": draw(st.booleans())}
    shape = [draw(st.integers(0, 4)) for _ in range(draw(st.integers(0, 3)))]
    return trial(draw, nn.Linear, options, [*shape, rarely(draw, features, features + 1)])


@st.composite
def pools(draw: Draw) -> Trial:
    native = one(draw, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)
    axes = 1 if "1d" in native.__name__ else 2
    options = {
        "kernel_size": sizes(draw, 1, 4, axes, odd=0),
        "stride": one(draw, None, sizes(draw, 1, 3, axes, odd=0)),
        "padding": 0,
        "ceil_mode": draw(st.booleans()),
    }
    if options["kernel_size"] != 1 and draw(st.booleans()):
        options["padding"] = sizes(draw, 0, 1, axes, odd=one(draw, 2, -1))
    if "Max" in native.__name__:
        options |= {"dilation": sizes(draw, 1, 2, axes, odd=0), "return_indices": draw(st.booleans())}
    else:
        options["count_include_pad"] = draw(st.booleans())
        if axes == 2:
            options["divisor_override"] = one(draw, None, None, 1, 3, -2, 0)
    shape = shaped(draw, draw(st.integers(1, 3)), axes)
    if "dilation" in options and 1 in shape[-axes:]:
        options["dilation"] = 1  # a window may hold padding alone: torch's gradient goes to a pixel outside the image
    return trial(draw, native, options, shape)


@st.composite
def adaptive_pools(draw: Draw) -> Trial:
    native = one(draw, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    axes = 1 if "1d" in native.__name__ else 2
    size = sizes(draw, 0, 5, axes, odd=-1)
    if axes == 2 and isinstance(size, tuple):
        size = one(draw, size, (None, *size[1:]), (*size[:-1], None))
    options = {"output_size": size}
    if native is nn.AdaptiveMaxPool2d:
        options["return_indices"] = draw(st.booleans())
    return trial(draw, native, options, shaped(draw, draw(st.integers(1, 3)), axes))


EPS = (1e-3, 0.1, 0.5)
"""None so small that what rounding leaves of equal numbers becomes large (tests/test_norm.py has such)."""


@st.composite
def batch_norms(draw: Draw) -> Trial:
    native = one(draw, nn.BatchNorm1d, nn.BatchNorm2d)
    channels = draw(st.integers(1, 4))
    options = {
        "num_features": channels,
        "eps": rarely(draw, one(draw, *EPS), one(draw, 0.0, -1.0)),
        "momentum": one(draw, 0.1, None, 0.0, 1.0),
        "affine": draw(st.booleans()),
        "track_running_stats": draw(st.booleans()),
    }
    axes = 2 if native is nn.BatchNorm2d else draw(st.integers(0, 1))
    # Where an axis has one element, torch takes some orders of axes for others and gives the gradients of other pixels.
    return trial(draw, native, options, shaped(draw, channels, axes, batched=True), without="reversed,huge")


@st.composite
def other_norms(draw: Draw) -> Trial:
    native = one(draw, nn.LayerNorm, nn.GroupNorm, convnext.LayerNorm2d)
    eps = one(draw, *EPS)
    if native is nn.GroupNorm:
        groups = draw(st.integers(1, 3))
        channels = rarely(draw, groups * draw(st.integers(1, 3)), 5)
        options = {"num_groups": groups, "num_channels": channels, "eps": eps, "affine": draw(st.booleans())}
        shape: Sequence[int] = shaped(draw, channels, draw(st.integers(0, 2)), batched=True)
        return trial(draw, native, options, shape, without="huge")
    options = {"eps": eps, "elementwise_affine": draw(st.booleans()), "bias": draw(st.booleans())}
    if native is nn.LayerNorm:
        shape = [draw(st.integers(0, 5)) for _ in range(draw(st.integers(1, 4)))]
        last = shape[draw(st.integers(0, len(shape) - 1)) :]
        options["normalized_shape"] = rarely(draw, one(draw, last, tuple(last)), shape[-1])
        return trial(draw, native, options, shape, without="huge")
    channels = draw(st.integers(1, 5))
    shape = shaped(draw, channels, 2, batched=True)
    return trial(draw, native, options | {"normalized_shape": channels}, shape, without="huge")


def anything(draw: Draw) -> list[int]:
    """A shape of any number of axes."""
    return [rarely(draw, draw(st.integers(1, 5)), 0) for _ in range(draw(st.integers(0, 4)))]


ACTIVATIONS: dict[type[nn.Module], dict[str, tuple[Any, ...]]] = {
    nn.ReLU: {"inplace": (False, True)},
    nn.ReLU6: {"inplace": (False, True)},
    nn.LeakyReLU: {"negative_slope": (0.01, 0.0, 1.0, 2.0, -0.5), "inplace": (False, True)},
    nn.PReLU: {"num_parameters": (1, 2, 3)},
    nn.ELU: {"alpha": (1.0, 0.5, 0.0, -1.0), "inplace": (False, True)},
    nn.GELU: {"approximate": ("none", "tanh", "none", "tanh", "erf")},
    nn.SiLU: {"inplace": (False, True)},
    nn.Mish: {"inplace": (False, True)},
    nn.Softplus: {"beta": (1.0, 2.5, -1.0), "threshold": (20.0, 1.0, 0.0)},
    nn.Hardswish: {"inplace": (False, True)},
    nn.Hardsigmoid: {"inplace": (False, True)},
    nn.Sigmoid: {},
    nn.Tanh: {},
}


@st.composite
def activations(draw: Draw) -> Trial:
    native = one(draw, *ACTIVATIONS)
    options = {name: one(draw, *values) for name, values in ACTIVATIONS[native].items()}
    shape = anything(draw)
    if native is nn.PReLU and len(shape) > 1:
        shape[1] = rarely(draw, options["num_parameters"], 4)
    return trial(draw, native, options, shape, without=LANES if native in (nn.ELU, nn.ReLU6, nn.Hardswish) else "")


@st.composite
def softmaxes(draw: Draw) -> Trial:
    shape = anything(draw)
    last = max(1, len(shape))
    dim = rarely(draw, draw(st.integers(-last, last - 1)), one(draw, None, len(shape), -9))
    return trial(draw, one(draw, nn.Softmax, nn.LogSoftmax), {"dim": dim}, shape)


@st.composite
def dropouts(draw: Draw) -> Trial:
    native = one(draw, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
    options = {"p": rarely(draw, one(draw, 0.5, 0.1, 0.0, 1.0), one(draw, -0.1, 1.5)), "inplace": draw(st.booleans())}
    shape = anything(draw)
    if native is nn.Dropout1d:
        shape = rarely(draw, [one(draw, 1, 3, 0), *[draw(st.integers(1, 5))] * draw(st.integers(1, 2))], shape)
    return trial(draw, native, options, shape)


@st.composite
def views(draw: Draw) -> Trial:
    if not draw(st.integers(0, 3)):
        return trial(draw, nn.Identity, {}, anything(draw))
    shape = anything(draw)
    first = draw(st.integers(0, max(0, len(shape) - 1)))
    last = draw(st.integers(first, max(0, len(shape) - 1)))
    options = {
        "start_dim": rarely(draw, first, 4),
        "end_dim": rarely(draw, one(draw, last, last - len(shape)), first - 1),
    }
    return trial(draw, nn.Flatten, one(draw, {}, options, options), shape)


@st.composite
def classifying_losses(draw: Draw) -> Trial:
    native = one(draw, nn.CrossEntropyLoss, nn.CrossEntropyLoss, nn.NLLLoss)
    classes = draw(st.integers(1, 4))
    shape = list(shaped(draw, classes, draw(st.integers(0, 2)), most=3))
    options: dict[str, Any] = {"reduction": rarely(draw, one(draw, "mean", "sum", "none"), "average")}
    if draw(st.booleans()) and options["reduction"] != "average":
        weights = [draw(st.integers(0, 8)) / 4 for _ in range(classes)]
        options["weight"] = rarely(draw, weights, [*weights, 1.0])
    options["ignore_index"] = ignored = one(draw, -100, -100, 0, -1, 1)
    if native is nn.CrossEntropyLoss:
        options["label_smoothing"] = rarely(draw, one(draw, 0.0, 0.0, 0.1, 0.9), 1.5)
    places = shape[:1] + shape[2:] if len(shape) > 1 else []
    target = Target("indices", tuple(places), rarely(draw, classes, classes + 3), one(draw, None, ignored))
    if draw(st.integers(0, 3)) == 0:
        target = Target("probabilities", tuple(shape), needs=draw(st.booleans()))
    target = rarely(draw, target, dataclasses.replace(target, shape=(*target.shape, 2)))
    without = "huge" if native is nn.NLLLoss else ""  # of which little but rounding is left where they cancel
    return trial(draw, native, options, shape, arguments=(target,), without=without)


@st.composite
def mean_squared_errors(draw: Draw) -> Trial:
    shape = anything(draw)
    other = rarely(draw, tuple(shape), one(draw, tuple(shape[1:]), (*shape, 1), (7,)))
    target = Target("values", other, needs=draw(st.booleans()))
    options = {"reduction": rarely(draw, one(draw, "mean", "sum", "none"), "average")}
    return trial(draw, nn.MSELoss, options, shape, arguments=(target,))


FAMILIES: dict[str, tuple[st.SearchStrategy[Trial], int]] = {
    "convolutions": (convolutions(), 2000),
    "transposed convolutions": (transposed_convolutions(), 1000),
    "linear": (linears(), 500),
    "pools": (pools(), 1500),
    "adaptive pools": (adaptive_pools(), 700),
    "batch norms": (batch_norms(), 900),
    "other norms": (other_norms(), 900),
    "activations": (activations(), 1500),
    "softmaxes": (softmaxes(), 400),
    "dropout": (dropouts(), 500),
    "views": (views(), 200),
    "classifying losses": (classifying_losses(), 1000),
    "mean squared error": (mean_squared_errors(), 300),
}
"""A strategy for each kind of layer, and its share of the 10,000."""


def case(native: type[nn.Module], shape: Sequence[int], **options: Any) -> Trial:
    return Trial(native, options, tuple(shape))


ONCE_WRONG = [
    case(nn.AdaptiveAvgPool2d, (1, 1, 3, 3), output_size=0),
    case(nn.AdaptiveMaxPool2d, (1, 1, 3, 3), output_size=(2, 0)),
    case(nn.AdaptiveAvgPool1d, (2, 3, 0), output_size=1),
    case(nn.AdaptiveAvgPool2d, (2, 3, 0, 2), output_size=1),
    case(nn.AdaptiveAvgPool2d, (2, 8, 3), output_size=(None, 2, 0)),
    case(nn.GroupNorm, (5, 4), num_groups=1, num_channels=3, affine=False),
    case(nn.GroupNorm, (2, 1, 1), num_groups=2, num_channels=2, affine=False),
    case(convnext.LayerNorm2d, (1, 4, 4, 1), normalized_shape=3, elementwise_affine=False),
    dataclasses.replace(
        case(nn.BatchNorm1d, (2, 4), num_features=4, affine=False), parameters=torch.float32, train=False
    ),
    dataclasses.replace(case(nn.BatchNorm1d, (1, 5), num_features=4), parameters=torch.float32),
    dataclasses.replace(case(nn.NLLLoss, (4,)), arguments=(Target("values", (4,)),)),
    case(nn.Dropout1d, (4, 1), p=0.0, inplace=True),
    dataclasses.replace(case(nn.Dropout1d, (1, 3), p=1.0, inplace=True), layout="transposed", train=False),
    case(nn.Dropout2d, (2,), p=1.0),
    dataclasses.replace(
        case(nn.CrossEntropyLoss, (2, 3), label_smoothing=0.5, ignore_index=0),
        arguments=(Target("indices", (2,), classes=1),),
    ),
]


@pytest.mark.parametrize("trial", ONCE_WRONG, ids=lambda trial: trial.native.__name__)
def test_what_was_once_wrong(trial: Trial) -> None:
    assert check(trial)


def try_out(strategy: st.SearchStrategy[Trial], count: int, derandomize: bool) -> None:
    tried = 0

    @settings(max_examples=count, derandomize=derandomize, suppress_health_check=[*HealthCheck])
    @given(strategy)
    def cases(trial: Trial) -> None:
        nonlocal tried
        assume(check(trial))
        tried += 1

    cases()
    assert tried >= count


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_random_cases(family: str) -> None:
    try_out(FAMILIES[family][0], 12, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_thousand_random_cases(family: str) -> None:
    try_out(*FAMILIES[family], derandomize=False)


def test_every_layer_has_its_share_of_ten_thousand() -> None:
    assert sum(count for _, count in FAMILIES.values()) >= 10_000
    given = {native.__name__ for native in swap.LAYERS} | {"Dropout1d"}
    text = Path(__file__).read_text()
    assert not [name for name in layers.__all__ if name not in ("bridge", "Sequential", *given)]
    assert not [name for name in given if f"nn.{name}" not in text and f"convnext.{name}" not in text]
