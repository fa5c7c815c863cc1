"""Normalisation against torch: distances from the truth, random options, running statistics."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnn_lightning import layers
from cnn_lightning.layers import catalog
from cnn_lightning.ops import norm
from cnn_lightning.ops import norm as formulas
from cnn_lightning.ops.fast import blocks
from cnn_lightning.ops.fast import norm as fast_norm
from cnn_lightning.ops.fast.memory import batch_last, pixels
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


def in_memory(x: Any, memory_format: str) -> Any:
    """The array with its values in this order in memory."""
    if memory_format == "channels_last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    return batch_last(x) if memory_format == "batch_last" else x


# ---- distance from the truth

FLOAT32 = {"y": 2.4e-7, "gradient of x": 2.4e-7}
FLOAT32_SUM = 7e-7
"""How far fast batch norm may be off, whose arithmetic on the batch is float32: measured 1.1e-7, and 4.5e-7 for sums of
terms that cancel (few channels)."""

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
        (layers.RMSNorm, (96,), (4, 49, 96)),
        (layers.RMSNorm, ((5, 7),), (3, 5, 7)),
        (layers.BatchNorm3d, (16,), (4, 16, 8, 16, 16)),
        (layers.GroupNorm, (4, 32), (2, 32, 8, 8)),
        (layers.GroupNorm, (1, 4), (3, 4, 40, 40)),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_float32_is_as_near_to_the_truth_as_torch(
    tier: str, layer: type[nn.Module], args: tuple[Any, ...], shape: tuple[int, ...], train: bool, offset: str
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
            once = 2**-24
            if tier == "fast" and issubclass(layer, layers.BatchNorm1d | layers.BatchNorm2d | layers.BatchNorm3d):
                once = FLOAT32.get(name, FLOAT32_SUM)
            assert distance <= max(1.5 * theirs[name], once * scale), f"{name}: {distance} for {theirs[name]}"


@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (100, 1), (1000, 0.01)])
@pytest.mark.parametrize("shape", [(8, 64, 16, 16), (8, 64, 2, 2), (7, 5, 31, 37), (1, 3, 1, 4099), (13, 5)])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last", "batch_last"])
def test_batch_norm_in_float32_loses_no_digits_by_a_large_mean(
    shape: tuple[int, ...], memory_format: str, mean: float, deviation: float
) -> None:
    random = np.random.default_rng(0)
    x: Any = (mean + deviation * random.standard_normal(shape)).astype(np.float32)
    grad_y: Any
    grad_y, (weight, bias) = random.standard_normal(shape), random.uniform(0.5, 1.5, (2, shape[1]))
    grad_y, weight, bias = (array.astype(np.float32) for array in (grad_y, weight, bias))
    x, grad_y = (in_memory(array, memory_format) for array in (x, grad_y))
    y, *statistics = norm.batch_norm(x, weight, bias)
    gradients = norm.batch_norm_backward(grad_y, x, weight, *statistics)
    x, grad_y, weight, bias = (array.astype(np.float64) for array in (x, grad_y, weight, bias))
    exact = formulas.batch_norm(x, weight, bias)
    expected = formulas.batch_norm_backward(grad_y, x, weight, *exact[1:])
    for found, truth in zip((y, gradients[0]), (exact[0], expected[0]), strict=True):
        assert np.abs(found - truth).max() <= 2.4e-7 * np.abs(truth).max()
    assert (np.abs(statistics[0] - exact[1]) <= 1e-7 * np.sqrt(exact[2])).all()
    np.testing.assert_allclose(statistics[1], exact[2], rtol=7e-7)
    for found, truth in zip(gradients[1:], expected[1:], strict=True):
        # A sum of many terms may be near 0, so that the size of the terms counts.
        assert np.abs(found - truth).max() <= 7e-7 * np.sqrt(x.size / x.shape[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (1, 3, 2, 2), (7, 2, 13, 1), (3, 2, 5)])
def test_batch_last_input_gives_batch_last_output_and_gradient(tier: str, dtype: Any, shape: tuple[int, ...]) -> None:
    x, grad_y = np.random.default_rng(0).standard_normal((2, *shape)).astype(dtype)
    weight = np.linspace(0.5, 1.5, shape[1], dtype=dtype)
    ops: list[tuple[Any, Any, dict[str, int]]] = [
        (norm.batch_norm, norm.batch_norm_backward, {}),
        (norm.group_norm, norm.group_norm_backward, {"groups": 1}),
        (norm.instance_norm, norm.instance_norm_backward, {}),
    ]
    for forward, backward, options in ops:
        expected, *statistics = forward(x, weight, weight, **options)
        y, *found = forward(in_memory(x, "batch_last"), weight, weight, **options)
        for a, b in zip((y, *found), (expected, *statistics), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        grad_x, *_ = backward(grad_y, x, weight, *statistics, **options)
        result, *_ = backward(grad_y, in_memory(x, "batch_last"), weight, *statistics, **options)
        np.testing.assert_allclose(result, grad_x, rtol=1e-5, atol=1e-5)
        if tier == "fast":
            assert pixels(y).flags.c_contiguous
            assert pixels(result).flags.c_contiguous


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last", "batch_last"])
@pytest.mark.parametrize("shape", [(4, 3, 20, 20), (4, 3, 2, 2)])
def test_batch_norm_of_values_whose_squares_float32_cannot_hold(shape: tuple[int, ...], memory_format: str) -> None:
    random = np.random.default_rng(0)
    x = in_memory((1e37 * random.standard_normal(shape)).astype(np.float32), memory_format)
    grad_y = in_memory((1e37 * random.standard_normal(shape)).astype(np.float32), memory_format)
    expected = formulas.batch_norm(x, None, None)
    for found, truth in zip(norm.batch_norm(x, None, None), expected, strict=True):
        np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-6)
    truths = formulas.batch_norm_backward(grad_y, x, None, *expected[1:])
    for found, truth in zip(norm.batch_norm_backward(grad_y, x, None, *expected[1:]), truths, strict=True):
        np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-5 * np.abs(truth).max())


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
    axes = data.draw(st.integers(0, 3), "axes")
    shape = (data.draw(st.integers(0, 5)), data.draw(SIZES), *data.draw(st.tuples(*[SIZES] * axes)))
    layer = (layers.BatchNorm1d, layers.BatchNorm1d, layers.BatchNorm2d, layers.BatchNorm3d)[axes]
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
    of_square = data.draw(st.sampled_from([None, eps]), "eps of the root mean square")
    agree(layers.RMSNorm, x, True, inner, elementwise_affine=affine, eps=of_square)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("features", "channels"), [(2, 1), (1, 2), (3, 2)])
def test_batch_norm_without_weights_refuses_other_channels_than_its_statistics(
    features: int, channels: int, train: bool
) -> None:
    module: Any = layers.BatchNorm3d(features, affine=False).train(train)
    with pytest.raises(RuntimeError, match=rf"expected {features} channels, got shape \(4, {channels}, 2, 1, 1\)"):
        module(torch.randn(4, channels, 2, 1, 1))
    assert torch.equal(module.running_mean, torch.zeros(features))
    x = torch.randn(4, channels, 2, 1, 1)
    layers.BatchNorm3d(features, affine=False, track_running_stats=False).train(train)(x)  # as torch


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_without_eps_adds_that_of_the_dtype_in_which_torch_computes(dtype: torch.dtype) -> None:
    x = torch.full((1, 4), 1e-5, dtype=torch.float64).to(dtype)
    assert_equal(run(layers.RMSNorm(4, dtype=dtype), (x,)), run(nn.RMSNorm(4, dtype=dtype), (x,)), 1e-3)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    mean_square = float(x[0, 0].double()) ** 2
    y, rms = norm.rms_norm(x.to(wide).numpy(), None)
    np.testing.assert_allclose(rms, np.sqrt(mean_square + torch.finfo(wide).eps), rtol=1e-9)
    np.testing.assert_allclose(y, x.double().numpy() / rms, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, -0.0, np.nan, np.inf, 1e200, 1e-200])
@pytest.mark.parametrize("eps", [None, 0.0, 1e-3, -1.0])
def test_rms_norm_of_special_values_is_torchs(value: float, eps: float | None) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    x[0], x[1, 2] = value, value
    ours, native = layers.RMSNorm(4, eps, dtype=torch.float64), nn.RMSNorm(4, eps, dtype=torch.float64)
    found, expected = ours(x), native(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0, equal_nan=True)
    assert torch.equal(found[expected == 0].signbit(), expected[expected == 0].signbit())


@pytest.mark.parametrize("weight", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("input", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_rms_norm_takes_a_weight_of_any_floating_dtype(input: torch.dtype, weight: torch.dtype) -> None:
    results = []
    for kind in (layers.RMSNorm, nn.RMSNorm):
        module, x = kind(4, dtype=weight), torch.linspace(-1, 2, 12).reshape(3, 4).to(input).requires_grad_()
        y = module(x)
        y.float().square().sum().backward()
        results.append((y, x.grad, module.weight.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)  # and the dtype


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autograd_is_told_of_new_running_statistics(dtype: torch.dtype) -> None:
    module, x = layers.BatchNorm1d(2).to(dtype), torch.randn(7, 2, dtype=dtype)
    running = [getattr(module, name) for name in ("running_mean", "running_var", "num_batches_tracked")]
    versions = [tensor._version for tensor in running]
    module.eval()(x)
    assert [tensor._version for tensor in running] == versions
    module.train()(x)
    assert all(tensor._version > version for tensor, version in zip(running, versions, strict=True))


def test_running_statistics_are_the_same_when_a_mode_observes_operators() -> None:
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    x = torch.randn(7, 2)
    plain, observed = layers.BatchNorm1d(2), layers.BatchNorm1d(2)
    plain(x)
    with Mode():
        observed(x)
    torch.testing.assert_close(observed.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(16, 96, 28, 28), (512, 96, 4, 4), (31, 7, 101, 61)])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last", "batch_last"])
def test_results_are_bit_equal_for_any_number_of_threads(shape: tuple[int, ...], memory_format: str) -> None:
    before = blocks.get_num_threads()
    arrays = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    x, g = (in_memory(array, memory_format) for array in arrays)
    weight = np.ones(shape[1], np.float32)

    def everything(n: int) -> list[Any]:
        blocks.set_num_threads(n)
        found: list[Any] = []
        ops: list[tuple[Any, Any, dict[str, int]]] = [
            (norm.batch_norm, norm.batch_norm_backward, {}),
            (norm.group_norm, norm.group_norm_backward, {"groups": 8 if shape[1] == 96 else 7}),
        ]
        for forward, backward, options in ops:
            y, *statistics = forward(x, weight, weight, **options)
            gradients = backward(g, x, weight, *statistics, **options)
            found += [y.copy(), *statistics, *(gradient.copy() for gradient in gradients)]
        return found

    try:
        alone = everything(1)
        for n in (2, 3):
            for a, b in zip(everything(n), alone, strict=True):
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


@pytest.mark.parametrize("arranged", [np.ascontiguousarray, batch_last], ids=["contiguous", "batch_last"])
@pytest.mark.parametrize("shape", [(2, 5, 16, 16), (8, 7, 2, 2), (4, 3, 31, 37)])
def test_a_mean_beside_a_large_deviation_keeps_its_digits(shape: tuple[int, ...], arranged: Any) -> None:
    """A convolution of normalised images has means of about 0: what rounding leaves of a sum would be all of them."""
    x = np.random.default_rng(0).standard_normal(shape)
    x = (x - x.mean((0, 2, 3), keepdims=True)).astype(np.float32)
    _, mean, _ = fast_norm.batch_norm(arranged(x), None, None)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean((0, 2, 3)), rtol=1e-9)
