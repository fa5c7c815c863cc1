"""Normalisation against torch: distances from the truth, random options, running statistics."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cnn_lightning import layers
from cnn_lightning.layers import catalog
from cnn_lightning.ops import norm
from cnn_lightning.ops.fast import blocks
from tests.test_layers import assert_equal, run
from tests.tiers import both_tiers

tier = both_tiers(__name__, "norm")

EXAMPLES = settings(max_examples=50)

PAIRS = {entry.layer: native for native, entry in catalog.entries().items() if entry.formulas == "norm"}


def pair(layer: type[nn.Module], dtype: torch.dtype, *args: Any, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Our layer and the native one with equal weights that are neither 0 nor 1."""
    native = PAIRS[layer](*args, **options).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    ours = layer(*args, **options).to(dtype)
    ours.load_state_dict(native.state_dict())
    return ours, native


# ---- distance from the truth

OFFSETS: dict[str, Callable[[Tensor], Tensor]] = {
    "around 0": lambda x: x,
    "around 5": lambda x: x + 5,
    "around 100": lambda x: x + 100,
    "nearly constant": lambda x: 1 + 1e-6 * x,
    "large": lambda x: 1e4 * x,
    "not negative": torch.relu,
}


def distances(module: nn.Module, x: Tensor, truth: nn.Module, layout: Any) -> list[tuple[str, float, float]]:
    """How far each result is from the float64 one, and how large that is."""

    def results(of: nn.Module, values: Tensor) -> dict[str, Tensor]:
        leaf = values.clone(memory_format=layout).requires_grad_()
        upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(values.dtype)
        y = of(leaf)
        y.backward(upstream)
        assert leaf.grad is not None
        found = {"y": y, "gradient of x": leaf.grad, **dict(of.named_buffers())}
        for name, parameter in of.named_parameters():
            assert parameter.grad is not None
            found[f"gradient of {name}"] = parameter.grad
        return {name: value.detach().double() for name, value in found.items()}

    expected = results(truth, x.double())
    return [
        (name, (value - expected[name]).abs().max().item(), expected[name].abs().max().item())
        for name, value in results(module, x).items()
    ]


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("layer", "args", "shape"),
    [
        (layers.BatchNorm2d, (16,), (8, 16, 32, 32)),
        (layers.BatchNorm2d, (4,), (64, 4, 28, 28)),
        (layers.BatchNorm2d, (64,), (2, 64, 4, 4)),
        (layers.BatchNorm2d, (3,), (2, 3, 101, 60)),
        (layers.BatchNorm1d, (30,), (64, 30)),
        (layers.LayerNorm, (96,), (4, 49, 96)),
        (layers.LayerNorm, ((5, 7),), (3, 5, 7)),
        (layers.GroupNorm, (4, 32), (2, 32, 8, 8)),
        (layers.GroupNorm, (1, 4), (3, 4, 40, 40)),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_float32_is_as_near_to_the_truth_as_torch(
    layer: type[nn.Module], args: tuple[Any, ...], shape: tuple[int, ...], train: bool, offset: str
) -> None:
    x = OFFSETS[offset](torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    options = {"eps": 1e-12} if offset == "nearly constant" else {}
    layouts = [torch.contiguous_format] + [torch.channels_last] * (layer is layers.BatchNorm2d)
    for layout in layouts:
        ours, native = (module.train(train) for module in pair(layer, torch.float32, *args, **options))
        truth = pair(layer, torch.float64, *args, **options)[1].train(train)
        theirs = {name: distance for name, distance, _ in distances(native, x, truth, layout)}
        truth = pair(layer, torch.float64, *args, **options)[1].train(train)
        for name, distance, scale in distances(ours, x, truth, layout):
            # A result that is rounded just once can't be blamed for being further off than one that was lucky.
            assert distance <= max(1.5 * theirs[name], 2**-24 * scale), f"{name}: {distance} for {theirs[name]}"


# ---- random options

SIZES = st.integers(1, 5)


def _layouts(x: Tensor) -> Iterator[Tensor]:
    yield x
    yield x.transpose(1, -1).contiguous().transpose(1, -1)
    yield x.expand(2, *x.shape)[1]
    yield torch.cat([x, x], 1)[:, ::2] if x.shape[1] == 1 else torch.cat([x, x], 0)[::2]


@st.composite
def inputs(draw: st.DrawFn, shape: tuple[int, ...], special: bool = False) -> Tensor:
    """Normal numbers in one of several memory layouts; perhaps with some that aren't finite, in one channel."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * draw(st.sampled_from([1.0, 1e-3, 1e3]))
    if special and x.numel():
        values = [float("nan"), float("inf"), float("-inf")]
        x[0, -1].view(-1)[0] = draw(st.sampled_from(values))
        x[-1, -1].view(-1)[-1] = draw(st.sampled_from(values))
    x = x.to(draw(st.sampled_from([torch.float64, torch.float32])))
    return list(_layouts(x))[draw(st.integers(0, 3))] if x.numel() else x


def agree(layer: type[nn.Module], x: Tensor, train: bool, *args: Any, **options: Any) -> None:
    """Two steps with equal values, gradients and buffers, or a refusal of the same kind."""
    ours, native = (module.train(train) for module in pair(layer, x.dtype, *args, **options))
    for step in range(2):
        try:
            # Contiguous: torch's backward of one image whose strides also fit channels_last is wrong.
            expected = run(native, ((x + step).contiguous(),))
        except (ValueError, RuntimeError) as error:
            with pytest.raises(type(error)):
                run(ours, (x + step,))
            return
        assert_equal(run(ours, (x + step,)), expected, 1e-9 if x.dtype == torch.float64 else 2e-3)


@EXAMPLES
@given(st.data())
def test_batch_norm_with_random_options(data: st.DataObject) -> None:
    axes = data.draw(st.integers(0, 2), "axes")
    shape = (data.draw(st.integers(0, 5)), data.draw(SIZES), *data.draw(st.tuples(*[SIZES] * axes)))
    layer = layers.BatchNorm2d if axes == 2 else layers.BatchNorm1d
    options = {
        "eps": data.draw(st.sampled_from([1e-5, 1e-2]), "eps"),
        "momentum": data.draw(st.sampled_from([0.1, 0.7, 1.0, 0.0, None]), "momentum"),
        "affine": data.draw(st.booleans(), "affine"),
        "track_running_stats": data.draw(st.booleans(), "track"),
    }
    x = data.draw(inputs(shape, special=data.draw(st.booleans())), "x")
    agree(layer, x, data.draw(st.booleans(), "train"), shape[1], **options)


@EXAMPLES
@given(st.data())
def test_layer_and_group_norm_with_random_options(data: st.DataObject) -> None:
    groups, each = data.draw(SIZES, "groups"), data.draw(SIZES, "channels of a group")
    shape = (data.draw(st.integers(0, 4)), groups * each, *data.draw(st.lists(SIZES, max_size=3)))
    x = data.draw(inputs(shape, special=data.draw(st.booleans())), "x")
    affine, eps = data.draw(st.booleans(), "affine"), data.draw(st.sampled_from([1e-5, 1e-2]), "eps")
    agree(layers.GroupNorm, x, True, groups, groups * each, affine=affine, eps=eps)
    inner = shape[data.draw(st.integers(1, len(shape) - 1), "from axis") :]
    bias = data.draw(st.booleans(), "bias")
    agree(layers.LayerNorm, x, True, inner, elementwise_affine=affine, eps=eps, bias=bias)


@pytest.mark.parametrize("momentum", [None, 0.3])
def test_running_statistics_are_the_average_of_the_batches(momentum: float | None) -> None:
    module = layers.BatchNorm1d(2, momentum=momentum).double()
    batches = torch.randn(5, 7, 2, dtype=torch.float64)
    mean, var = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for index, batch in enumerate(batches):
        module(batch)
        factor = 1 / (index + 1) if momentum is None else momentum
        mean, var = ((1 - factor) * old + factor * new for old, new in ((mean, batch.mean(0)), (var, batch.var(0))))
    torch.testing.assert_close(module.running_mean, mean)
    torch.testing.assert_close(module.running_var, var)
    assert module.num_batches_tracked == 5
    module.eval()(batches[0])
    assert module.num_batches_tracked == 5
    torch.testing.assert_close(module.running_mean, mean)


def test_results_are_bit_equal_for_any_number_of_threads() -> None:
    before = blocks.get_num_threads()
    x, g = np.random.default_rng(0).standard_normal((2, 16, 96, 28, 28), dtype=np.float32)
    weight = np.ones(96, np.float32)

    def everything(n: int) -> list[Any]:
        blocks.set_num_threads(n)
        found: list[Any] = []
        ops: list[tuple[Any, Any, dict[str, int]]] = [
            (norm.batch_norm, norm.batch_norm_backward, {}),
            (norm.group_norm, norm.group_norm_backward, {"groups": 8}),
        ]
        for forward, backward, options in ops:
            y, *statistics = forward(x, weight, weight, **options)
            gradients = backward(g, x, weight, *statistics, **options)
            found += [y.copy(), *statistics, *(gradient.copy() for gradient in gradients)]
        return found

    try:
        alone = everything(1)
        for a, b in zip(everything(3), alone, strict=True):
            assert np.array_equal(a, b)
    finally:
        blocks.set_num_threads(before)


@pytest.mark.parametrize(
    ("op", "options", "name"),
    [
        (norm.batch_norm, {"weight": np.ones(4), "bias": None}, "weight"),
        (norm.batch_norm, {"weight": None, "bias": np.ones(2)}, "bias"),
        (norm.batch_norm, {"weight": None, "bias": None, "mean": np.ones(4), "var": np.ones(3)}, "mean"),
        (norm.layer_norm, {"weight": np.ones(3), "bias": None}, "weight"),
        (norm.group_norm, {"weight": np.ones(2), "bias": None, "groups": 3}, "weight"),
        (norm.group_norm, {"weight": None, "bias": None, "groups": 2}, "x"),
        (norm.group_norm, {"weight": None, "bias": None, "groups": 0}, "x"),
    ],
)
def test_operations_name_the_argument_that_does_not_fit(op: Any, options: dict[str, Any], name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"{name}: expected .*, got "):
        op(np.ones((2, 3, 5)), **options)


def test_group_norm_keeps_channels_last() -> None:
    x = torch.randn(2, 4, 6, 8).to(memory_format=torch.channels_last)
    assert layers.GroupNorm(2, 4)(x).stride() == nn.GroupNorm(2, 4)(x).stride() == x.stride()
