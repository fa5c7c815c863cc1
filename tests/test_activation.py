"""Activations and softmax at every kink, far from zero, in any layout, on device arrays and any number of threads."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cnn_lightning.layers import activation as layers
from cnn_lightning.layers import softmax as softmax_layers
from cnn_lightning.layers.bridge import layout
from cnn_lightning.ops import activation, softmax
from cnn_lightning.ops import activation as formula_activation
from cnn_lightning.ops import softmax as formula_softmax
from cnn_lightning.ops.fast import activation as fast_activation
from cnn_lightning.ops.fast import blocks
from cnn_lightning.ops.fast.memory import batch_last
from cnn_lightning.ops.fast.special import normal
from cnn_lightning.ops.fast.tuning import tuned
from tests.cases import load
from tests.cases.activation import Elementwise
from tests.duck import Duck
from tests.tiers import both_tiers

tier = both_tiers(__name__, "activation", "softmax")

NAN, INF = float("nan"), float("inf")
CASES = [case for case in load() if isinstance(case, Elementwise)]
KINKS = (0.0, -0.0, *sorted({float(kink) for case in CASES for kink in case.kinks if kink}))
SPECIAL = np.array(
    [NAN, INF, -INF, *KINKS]
    + [np.nextafter(np.float32(kink), np.float32(side)) for kink in KINKS for side in (-INF, INF)]
    + [1, -1, 21, 100, -100, 88, 89, -88, -104, 300, 1e4, -1e4, 1e-30, -1e-30, 1e18, -1e18]
)


def forward(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(activation, name)
    return function


def backward(name: str) -> Callable[..., Any]:
    return forward(f"{name}_backward")


def takes_output(case: Elementwise) -> bool:
    """Whether the second argument of its backward is the output, which is called y."""
    return "y" in inspect.signature(backward(case.op)).parameters


def waves(x: np.ndarray) -> np.ndarray:
    """An upstream gradient for ``x``."""
    return np.asarray(np.cos(np.arange(x.size).reshape(x.shape)), dtype=x.dtype)


Native = Callable[..., torch.Tensor]
PAIRS = [
    pytest.param(case.op, case.function, options, by_output, id=f"{case.op}-{options}-{'y' if by_output else 'x'}")
    for case in CASES
    for options, by_output in [(row, takes_output(case)) for row in case.formula_options]
    + [(row, True) for row in case.from_output]
]
"""Each formula, torch's function, options, and whether backward is given the output in place of the input."""
TOLERANCE = {np.float64: 1e-12, np.float32: 2e-6}


def gradient(leaf: torch.Tensor) -> np.ndarray:
    assert leaf.grad is not None
    return leaf.grad.numpy()


def one_at_a_time(native: Native, x: np.ndarray, grad_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Torch's value and gradient of each element by its scalar code: the reference where its vector code differs."""
    ys, gradients = np.empty_like(x), np.empty_like(x)
    for index in range(x.size):
        leaf = torch.from_numpy(x[index : index + 1].copy()).requires_grad_()
        y = native(leaf)
        (grad_x,) = torch.autograd.grad(y, leaf, torch.from_numpy(grad_y[index : index + 1]))
        ys[index], gradients[index] = y.item(), grad_x.item()
    return ys, gradients


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("upstream", [1.0, -2.0, NAN, INF])
@pytest.mark.parametrize(("name", "native", "options", "by_output"), PAIRS)
def test_special_values(
    name: str, native: Native, options: dict[str, Any], by_output: bool, upstream: float, dtype: Any
) -> None:
    x = SPECIAL.astype(dtype)
    grad_y = np.full_like(x, upstream)
    expected_y, expected_grad = one_at_a_time(lambda t: native(t, **options), x, grad_y)
    y = forward(name)(x, **options)
    grad_x = backward(name)(grad_y, y if by_output else x, **options)
    assert y.dtype == grad_x.dtype == dtype
    np.testing.assert_allclose(y, expected_y, rtol=TOLERANCE[dtype], atol=1e-13 if dtype == np.float64 else 1e-7)
    if np.isinf(upstream):  # infinity times a number that underflows in one of the two only
        kept = ~(np.abs(x) >= 10)
        x, grad_x, expected_grad = x[kept], grad_x[kept], expected_grad[kept]
    np.testing.assert_allclose(
        grad_x, expected_grad, rtol=TOLERANCE[dtype], atol=1e-13 if dtype == np.float64 else 2e-6, equal_nan=True
    )


def test_elu_by_its_output() -> None:
    x = SPECIAL.copy()
    grad_y = np.full_like(x, 2.0)
    _, expected = one_at_a_time(lambda t: F.elu(t * 1, 1.3, inplace=True), x, grad_y)
    y = activation.elu(x, alpha=1.3)
    np.testing.assert_allclose(
        activation.elu_backward_from_output(grad_y, y, alpha=1.3), expected, rtol=1e-12, atol=1e-13
    )


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Any shape, with or without elements, any order of the axes, steps and reversals."""
    shape = draw(st.lists(st.integers(0, 5), max_size=5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = generator.standard_normal([2 * n for n in shape]) * 4
    x = x.transpose(draw(st.permutations(range(len(shape)))))
    steps = [slice(None, None, draw(st.sampled_from([1, 2, -1, -2]))) for _ in shape]
    return np.asarray(x[tuple(steps)])


@pytest.mark.parametrize(("name", "native", "options", "by_output"), PAIRS)
@settings(max_examples=15)
@given(x=arrays(), single=st.booleans())
def test_any_shape_and_strides(
    name: str, native: Native, options: dict[str, Any], by_output: bool, x: np.ndarray, single: bool
) -> None:
    x = x.astype(np.float32 if single else np.float64, order="K")
    grad_y = waves(x)
    before = x.copy(), grad_y.copy()
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    expected = native(leaf, **options)
    expected.backward(torch.from_numpy(grad_y))
    y = forward(name)(x, **options)
    grad_x = backward(name)(grad_y, y if by_output else x, **options)
    tolerance = 2e-6 if single else 1e-12
    np.testing.assert_allclose(y, expected.detach(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(grad_x, gradient(leaf), rtol=tolerance, atol=2 * tolerance)
    assert y.shape == grad_x.shape == x.shape
    assert y.dtype == grad_x.dtype == x.dtype
    assert not np.may_share_memory(y, x)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(grad_y, before[1])


@settings(max_examples=50)
@given(x=arrays(), channels=st.booleans())
def test_prelu(x: np.ndarray, channels: bool) -> None:
    number = x.shape[1] if channels and x.ndim > 1 and x.shape[1] else 1
    weight = np.linspace(-0.5, 1.5, number)
    grad_y = waves(x)
    leaves = torch.from_numpy(x.copy()).requires_grad_(), torch.from_numpy(weight).requires_grad_()
    expected = F.prelu(*leaves)
    expected.backward(torch.from_numpy(grad_y))
    grad_x, grad_weight = activation.prelu_backward(grad_y, x, weight)
    np.testing.assert_allclose(activation.prelu(x, weight), expected.detach(), rtol=1e-12)
    np.testing.assert_allclose(grad_x, gradient(leaves[0]), rtol=1e-12)
    np.testing.assert_allclose(grad_weight, gradient(leaves[1]), rtol=1e-10, atol=1e-10)
    for needs in ((True, False), (False, True)):
        found = fast_activation.prelu_backward(grad_y, x, weight, needs=needs)
        assert [result is not None for result in found] == list(needs)


def test_prelu_at_special_values() -> None:
    x = SPECIAL.reshape(-1, 1)
    for upstream in (1.0, NAN, INF):
        grad_y = np.full_like(x, upstream)
        leaves = torch.from_numpy(x.copy()).requires_grad_(), torch.tensor([0.25], dtype=torch.float64)
        F.prelu(*leaves).backward(torch.from_numpy(grad_y))
        grad_x, _ = activation.prelu_backward(grad_y, x, leaves[1].numpy())
        np.testing.assert_allclose(grad_x, gradient(leaves[0]), rtol=1e-12)
    # The weight's gradient takes nothing from where x > 0, not even infinity.
    _, grad_weight = activation.prelu_backward(np.array([INF, 1.0]), np.array([2.0, -3.0]), np.array([0.25]))
    np.testing.assert_array_equal(grad_weight, [-3.0])


# ---- accuracy


def test_normal_distribution_in_float64() -> None:
    generator = np.random.default_rng(0)
    x = np.concatenate(
        [generator.uniform(-37.5, 9, 500_000), generator.standard_normal(500_000), [0.0, -0.0, 1e-300, 40.0]]
    )
    reference = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in x])
    found, density = normal(x)
    ulp = np.abs(found - reference) / np.spacing(reference)
    assert (ulp / (8 + 2.1 * x * x))[x < 0].max() <= 1
    assert ulp[x >= 0].max() <= 4
    np.testing.assert_allclose(density, np.exp(-x * x / 2) / math.sqrt(2 * math.pi), rtol=1e-15)
    np.testing.assert_array_equal(normal(np.array([-INF, INF, NAN]))[0], [0, 1, NAN])


def test_normal_distribution_in_float32() -> None:
    x = np.random.default_rng(0).uniform(-12.5, 6, 500_000).astype(np.float32)
    reference = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in x.tolist()])
    found, density = normal(x)
    assert found.dtype == density.dtype == np.float64
    ulp = np.abs(found - reference) / np.spacing(reference.astype(np.float32))
    assert ulp.max() <= 3


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize(("name", "native", "options", "by_output"), PAIRS)
def test_float32_is_as_near_to_the_truth_as_torch(
    name: str, native: Native, options: dict[str, Any], by_output: bool, scale: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(20_000, generator=generator) * scale).requires_grad_()
    grad_y = torch.randn(20_000, generator=generator)

    def run(dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
        leaf = x.detach().to(dtype).requires_grad_()
        y = native(leaf, **options)
        y.backward(grad_y.to(dtype))
        assert leaf.grad is not None
        return y.detach().numpy(), leaf.grad.numpy()

    truth, theirs = run(torch.float64), run(torch.float32)
    y = forward(name)(x.detach().numpy(), **options)
    ours = y, backward(name)(grad_y.numpy(), y if by_output else x.detach().numpy(), **options)
    for true, their, our in zip(truth, theirs, ours, strict=True):
        finite = np.isfinite(true)
        assert np.array_equal(np.isfinite(our), finite)
        distance, of_torch = (np.abs(found - true)[finite].max(initial=0) for found in (our, their))
        assert distance <= 1.5 * of_torch + 1e-8


def test_gelu_keeps_its_digits_in_the_tail() -> None:
    x = np.array([-8.0, -5.0, -20.0])
    expected = [value * math.erfc(-value / math.sqrt(2)) / 2 for value in x]
    np.testing.assert_allclose(activation.gelu(x), expected, rtol=1e-13)
    np.testing.assert_allclose(activation.gelu(x.astype(np.float32))[:2], expected[:2], rtol=1e-5)


def test_softplus_with_a_high_threshold_does_not_overflow() -> None:
    np.testing.assert_array_equal(activation.softplus(np.array([800.0, -800.0]), threshold=1000.0), [800.0, 0.0])


# ---- memory: layout, threads, device arrays, in-place


@pytest.mark.parametrize(("name", "native", "options", "by_output"), PAIRS)
def test_layout_threads_and_device_arrays(name: str, native: Native, options: dict[str, Any], by_output: bool) -> None:
    x = np.random.default_rng(0).standard_normal((9, 8, 6, 7)).astype(np.float32).transpose(0, 3, 1, 2)
    plain = forward(name)(x, **options), backward(name)(x, x, **options)
    for formula, result in zip((name, f"{name}_backward"), plain, strict=True):
        assert result.strides == x.strides or (not layout.MEMORY.get(formula) and result.flags.c_contiguous)
    threads = blocks.get_num_threads()
    try:
        blocks.set_num_threads(3)
        with tuned(elementwise_block_bytes=2048, elementwise_parallel_bytes=2048, elementwise_threads_bytes=1):
            threaded = forward(name)(x, **options), backward(name)(x, x, **options)
    finally:
        blocks.set_num_threads(threads)
    device = Duck(x)
    formulas = getattr(formula_activation, name), getattr(formula_activation, f"{name}_backward")
    ducks = formulas[0](device, **options), formulas[1](device, device, **options)
    hosts = formulas[0](x, **options), formulas[1](x, x, **options)
    for a, b, c, d in zip(plain, threaded, ducks, hosts, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(c.array, d)


def test_prelu_on_a_device_array() -> None:
    x: Any = Duck(np.linspace(-1, 1, 12).reshape(2, 3, 2))
    weight: Any = Duck(np.array([0.1, 0.2, 0.3]))
    assert isinstance(formula_activation.prelu(x, weight), Duck)
    assert all(isinstance(result, Duck) for result in formula_activation.prelu_backward(x, x, weight))


OUT = sorted(
    name
    for name, function in vars(fast_activation).items()
    if inspect.isfunction(function) and not name.startswith("_") and "out" in inspect.signature(function).parameters
)
OUT_OPTIONS = {case.op: row for case in CASES for row in case.formula_options}


@pytest.mark.parametrize("name", [name for name in OUT if name in OUT_OPTIONS])
@pytest.mark.parametrize("values", [SPECIAL, np.linspace(-9, 9, 240)], ids=["special", "many"])
@pytest.mark.parametrize("memory", ["contiguous", "batch_last", "some channels", "no axis"])
def test_an_activation_writes_into_an_array_given_as_out(name: str, values: np.ndarray, memory: str) -> None:
    function, options = getattr(fast_activation, name), OUT_OPTIONS[name]
    for dtype in (np.float32, np.float64):
        x = np.resize(values, (3, 4, 5, 4)).astype(dtype)
        if memory == "batch_last":
            x = batch_last(x)
        elif memory == "some channels":
            x = np.concatenate([x, x], axis=1)[:, 1::2]
        elif memory == "no axis":
            x = x[0, 0, 0, 0, ...]
        expected, other = function(x, **options), np.empty_like(x)
        assert function(x, out=other, **options) is other
        assert function(x, out=x, **options) is x
        for found in (other, x):
            assert found.tobytes() == expected.tobytes()


def test_the_activations_with_inplace_have_out() -> None:
    assert set(OUT) >= {case.op for case in CASES if "inplace" in inspect.signature(case.native).parameters}


@pytest.mark.parametrize(("name", "native", "options", "by_output"), PAIRS)
def test_batch_last_memory(name: str, native: Native, options: dict[str, Any], by_output: bool) -> None:
    """The bits of contiguous memory; the gradient in any order beside any order of the input."""
    function, back = getattr(fast_activation, name), getattr(fast_activation, f"{name}_backward")
    x = np.random.default_rng(0).standard_normal((6, 5, 9, 11)).astype(np.float32)
    y, grad_x = function(x, **options), back(x[::-1].copy(), x, **options)
    with tuned(elementwise_block_bytes=2048):
        for memory in (np.array, batch_last):
            found = function(memory(x), **options)
            assert found.strides == memory(x).strides or not layout.MEMORY.get(name)
            np.testing.assert_array_equal(found, y)
            for of_gradient in (np.array, batch_last, lambda g: g.transpose(1, 0, 2, 3).copy().transpose(1, 0, 2, 3)):
                np.testing.assert_array_equal(back(of_gradient(x[::-1]), memory(x), **options), grad_x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2047, 2048, 5000])
def test_relu_has_the_bits_of_the_formula(dtype: Any, size: int) -> None:
    x = np.resize(SPECIAL.astype(dtype), size)
    for name in ("relu", "relu6"):
        found, formula = getattr(fast_activation, name)(x), getattr(formula_activation, name)(x)
        assert found.tobytes() == formula.tobytes()


INPLACE = [
    pytest.param(*(partial(kind, **case.formula_options[0]) for kind in (case.layer, case.native)), id=case.name)
    for case in CASES
    if "inplace" in inspect.signature(case.native).parameters
]


@pytest.mark.parametrize(("layer", "native"), INPLACE)
def test_inplace_writes_its_input_and_refuses_leaves(layer: Any, native: Any) -> None:
    x = torch.linspace(-5, 5, 11)
    y = layer(inplace=True)(x)
    assert y is x
    torch.testing.assert_close(x, native()(torch.linspace(-5, 5, 11)))
    leaf = torch.linspace(-5, 5, 11).requires_grad_()
    for refused in (leaf, leaf[:3]):
        with pytest.raises(RuntimeError, match="leaf"):
            layer(inplace=True)(refused)
    assert torch.equal(leaf, torch.linspace(-5, 5, 11))
    with torch.no_grad():
        layer(inplace=True)(leaf)
    torch.testing.assert_close(leaf.detach(), native()(torch.linspace(-5, 5, 11)))
    with pytest.raises(RuntimeError):
        layer(inplace=True)(torch.ones(1).expand(3))


@pytest.mark.parametrize(("layer", "native"), INPLACE)
def test_inplace_on_a_view_reaches_the_base(layer: Any, native: Any) -> None:
    gradients = []
    for module in (layer(inplace=True), native(inplace=True)):
        leaf = torch.linspace(-5, 5, 12, dtype=torch.float64).reshape(3, 4).requires_grad_()
        base = leaf * 1
        module(base[1:])
        base.square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(("layer", "native"), INPLACE)
def test_inplace_compiles(layer: Any, native: Any) -> None:
    first = nn.Linear(3, 12)
    compiled, eager = nn.Sequential(first, layer(inplace=True)), nn.Sequential(first, native(inplace=True))
    torch._dynamo.reset()
    compiled.compile(fullgraph=True, backend="aot_eager")
    x = torch.linspace(-9, 9, 6).reshape(2, 3)
    found, expected = compiled(x), eager(x)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y.square().sum(), first.weight)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "layer", [layers.LeakyReLU(-0.5, inplace=True), layers.ELU(-0.5, inplace=True)], ids=["leaky_relu", "elu"]
)
def test_inplace_with_a_negative_slope_has_no_gradient(layer: nn.Module) -> None:
    x = torch.linspace(-1, 1, 5).requires_grad_()
    with pytest.raises(RuntimeError, match="expected none below 0"):
        layer(x * 1).sum().backward()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES if case.integers])
def test_some_give_integers_of_integers(case: Elementwise) -> None:
    layer, native = (kind(**case.formula_options[0]) for kind in (case.layer, case.native))
    for dtype in (torch.int64, torch.int32, torch.uint8):
        x = torch.tensor([0, 3, 7]).to(dtype)
        try:
            expected = native(x)
        except RuntimeError:  # numbers below 0 as an option, and a dtype that has none
            with pytest.raises(RuntimeError):
                layer(x)
            continue
        found = layer(x)
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype


@pytest.mark.parametrize(("layer", "native"), [(layers.Sigmoid, nn.Sigmoid), (layers.Tanh, nn.Tanh)])
def test_sigmoid_and_tanh_make_floats_of_integers(layer: Any, native: Any) -> None:
    for x in (torch.tensor([-2, 3]), torch.tensor([True, False])):
        torch.testing.assert_close(layer()(x), native()(x))


# ---- softmax

ROWS = np.array(
    [
        [1e4, 1e4 - 1, -1e4],
        [-INF, 0, 1],
        [-INF, -INF, -INF],
        [INF, 0, 1],
        [NAN, 0, 1],
        [-1000, -1001, -1002],
        [1e-40, 0, -1e-40],
    ]
)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("name", "native"), [("softmax", torch.softmax), ("log_softmax", torch.log_softmax)])
def test_softmax_of_special_values(name: str, native: Native, dtype: Any) -> None:
    x = ROWS.astype(dtype)
    for upstream in (1.0, INF):
        grad_y = np.array([[upstream, 2, -1]] * len(x), dtype)
        leaf = torch.from_numpy(x).requires_grad_()
        expected = native(leaf, 1)
        expected.backward(torch.from_numpy(grad_y))
        y = getattr(softmax, name)(x, dim=1)
        grad_x = getattr(softmax, f"{name}_backward")(grad_y, y, dim=1)
        np.testing.assert_allclose(y, expected.detach(), rtol=1e-6)
        np.testing.assert_allclose(grad_x, gradient(leaf), rtol=1e-5, atol=1e-6)
        assert y.dtype == grad_x.dtype == dtype


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@settings(max_examples=50)
@given(x=arrays(), data=st.data())
def test_softmax_along_any_dimension(name: str, x: np.ndarray, data: st.DataObject) -> None:
    dim = data.draw(st.integers(-max(1, x.ndim), max(1, x.ndim) - 1))
    grad_y = waves(x)
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    expected = getattr(torch, name)(leaf, dim)
    expected.backward(torch.from_numpy(grad_y))
    y = getattr(softmax, name)(x, dim=dim)
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        getattr(softmax, f"{name}_backward")(grad_y, y, dim=dim), gradient(leaf), rtol=1e-10, atol=1e-14
    )
    assert isinstance(getattr(formula_softmax, name)(Duck(x), dim=dim), Duck)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
def test_softmax_without_dim_chooses_and_warns_as_torch(name: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    with pytest.warns(UserWarning, match="Implicit dimension choice"):
        found = getattr(softmax_layers, name)()(x)
    with pytest.warns(UserWarning, match="Implicit dimension choice"):
        expected = getattr(nn, name)()(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("layer", "native"), INPLACE)
def test_autograd_learns_of_what_is_written_in_place(layer: Any, native: Any) -> None:
    """`exp` saves its output for its backward, which must refuse the overwritten one."""
    for module in (layer(inplace=True), native(inplace=True)):
        y = module(torch.randn(2, 3, 4, 4, requires_grad=True).exp())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize(("layer", "native"), INPLACE)
def test_without_a_graph_the_version_shows_what_is_written_in_place(layer: Any, native: Any) -> None:
    x = torch.randn(2, 3, 4, 4)
    before = x._version
    with torch.no_grad():
        assert layer(inplace=True)(x) is x
    assert x._version > before
