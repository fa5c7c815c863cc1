"""Pooling against torch: random windows, ties, what is not a number, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cnn_lightning import layers
from cnn_lightning.layers import catalog
from cnn_lightning.ops import pool
from cnn_lightning.ops.fast import blocks
from cnn_lightning.ops.fast import pool as fast_pool
from cnn_lightning.ops.fast.memory import batch_last, is_batch_last
from cnn_lightning.ops.fast.tuning import tuned
from tests.test_layers import assert_equal, run
from tests.tiers import both_tiers

tier = both_tiers(__name__, "pool")

EXAMPLES = settings(max_examples=80)

PAIRS = {entry.layer: native for native, entry in catalog.entries().items() if entry.formulas == "pool"}
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)


def agree(layer: type[nn.Module], x: Tensor, **options: Any) -> None:
    """Equal values, indices and gradients, or a refusal of the same kind."""
    try:
        expected = run(PAIRS[layer](**options), (x,))
    except REFUSALS as error:
        with pytest.raises(type(error)):
            run(layer(**options), (x,))
        return
    assert_equal(run(layer(**options), (x,)), expected, 1e-10 if x.dtype == torch.float64 else 1e-5)


def laid_out(x: Tensor, how: int) -> Tensor:
    """The same numbers in another order in memory."""
    if how == 0 or not x.numel():
        return x
    if how == 1:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if how == 2:
        return torch.stack([x, x], -1)[..., 0]
    return x.movedim(-3, -1).contiguous().movedim(-1, -3) if x.dim() > 2 else x


SPECIAL = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0]


@st.composite
def images(draw: st.DrawFn, axes: int, ties: bool = True, least: int = 0) -> Tensor:
    """A batch or a single image; normal numbers, many ties, or numbers that aren't finite among them."""
    batch = draw(st.sampled_from([(), (0,), (1,), (2,), (3,)]))
    shape = (*batch, draw(st.integers(least, 4)), *draw(st.tuples(*[st.integers(least, 9)] * axes)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    kind = draw(st.sampled_from(["normal", "ties", "special"] if ties else ["normal", "special"]))
    if kind == "ties":
        x = torch.randint(3, shape, generator=generator).double()
    else:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "special" and x.numel():
        places = torch.randint(x.numel(), (draw(st.integers(1, 6)),), generator=generator)
        x.view(-1)[places] = torch.tensor([SPECIAL[draw(st.integers(0, 4))] for _ in places], dtype=torch.float64)
    x = x.to(draw(st.sampled_from([torch.float64, torch.float32])))
    return laid_out(x, draw(st.integers(0, 3)))


def window(data: st.DataObject, axes: int, dilation: bool) -> dict[str, Any]:
    """Options of a window: one number or one per axis; paddings that are too large are drawn now and then."""

    def size(low: int, high: int, name: str) -> Any:
        return data.draw(st.integers(low, high) | st.tuples(*[st.integers(low, high)] * axes), name)

    options = {"kernel_size": size(1, 4, "kernel"), "padding": size(0, 2, "padding")}
    options["stride"] = size(1, 3, "stride") if data.draw(st.booleans()) else None
    options["ceil_mode"] = data.draw(st.booleans(), "ceil")
    if dilation:
        options["dilation"] = size(1, 2, "dilation")
    return options


@EXAMPLES
@given(st.data(), st.sampled_from([1, 2, 3]))
def test_max_pooling_with_random_options(data: st.DataObject, axes: int) -> None:
    options = window(data, axes, dilation=True)
    options["return_indices"] = data.draw(st.booleans(), "indices")
    layer = (layers.MaxPool1d, layers.MaxPool2d, layers.MaxPool3d)[axes - 1]
    x = data.draw(images(axes), "x")
    # A dilated window that steps over the only pixel has no winner, and torch's place for it is no pixel.
    assume(options["dilation"] == 1 or 1 not in x.shape[-axes:])
    agree(layer, x, **options)


@EXAMPLES
@given(st.data(), st.sampled_from([1, 2, 3]))
def test_average_pooling_with_random_options(data: st.DataObject, axes: int) -> None:
    options = window(data, axes, dilation=False)
    options["count_include_pad"] = data.draw(st.booleans(), "with padding")
    if axes > 1:
        options["divisor_override"] = data.draw(st.sampled_from([None, None, 1, 5, -2, 0]), "divisor")
    layer = (layers.AvgPool1d, layers.AvgPool2d, layers.AvgPool3d)[axes - 1]
    agree(layer, data.draw(images(axes), "x"), **options)


@EXAMPLES
@given(st.data())
def test_adaptive_pooling_with_random_sizes(data: st.DataObject) -> None:
    size = st.integers(1, 6) | st.none()
    both = data.draw(st.tuples(size, size) | st.integers(1, 6), "size")
    x = data.draw(images(2, least=1), "x")
    agree(layers.AdaptiveAvgPool2d, x, output_size=both)
    agree(layers.AdaptiveMaxPool2d, x, output_size=both, return_indices=data.draw(st.booleans(), "indices"))
    agree(
        layers.AdaptiveAvgPool1d,
        data.draw(images(1, least=1), "signal"),
        output_size=data.draw(st.integers(1, 6), "length"),
    )


@EXAMPLES
@given(st.data())
def test_adaptive_pooling_of_volumes_and_signals_with_random_sizes(data: st.DataObject) -> None:
    size = st.integers(1, 5) | st.none()
    both = data.draw(st.tuples(size, size, size) | st.integers(1, 5), "size")
    x, with_indices = data.draw(images(3, least=1), "x"), data.draw(st.booleans(), "indices")
    agree(layers.AdaptiveAvgPool3d, x, output_size=both)
    agree(layers.AdaptiveMaxPool3d, x, output_size=both, return_indices=with_indices)
    signal, length = data.draw(images(1, least=1), "signal"), data.draw(st.integers(1, 6), "length")
    agree(layers.AdaptiveMaxPool1d, signal, output_size=length, return_indices=with_indices)


# ---- what random numbers seldom hit


@pytest.mark.parametrize("value", [1.0, float("-inf"), float("inf"), float("nan")])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_image_has_one_winner_per_window(value: float, padding: int) -> None:
    x = torch.full((2, 2, 6, 5), value)
    agree(layers.MaxPool2d, x, kernel_size=3, stride=2, padding=padding, return_indices=True)
    agree(layers.AdaptiveMaxPool2d, x, output_size=(2, 3), return_indices=True)
    y, places = layers.MaxPool2d(2, return_indices=True)(torch.zeros(1, 1, 2, 2))
    assert (y.item(), places.item()) == (0, 0)


@pytest.mark.parametrize("value", [1.0, float("-inf"), float("inf"), float("nan")])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_volume_has_one_winner_per_window(value: float, padding: int) -> None:
    x = torch.full((2, 2, 4, 6, 5), value)
    agree(layers.MaxPool3d, x, kernel_size=3, stride=2, padding=padding, return_indices=True)
    agree(layers.AdaptiveMaxPool3d, x, output_size=(3, 2, 3), return_indices=True)


def test_max_pooling_keeps_the_memory_format_of_volumes() -> None:
    x = torch.randn(2, 3, 4, 6, 5).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    found, expected = (layer(2, return_indices=True)(x) for layer in (layers.MaxPool3d, nn.MaxPool3d))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    gradients = [torch.autograd.grad(y, x, torch.ones_like(y))[0] for y, _ in (found, expected)]
    assert gradients[0].stride() == gradients[1].stride()


def test_an_infinite_gradient_goes_to_the_winner_alone() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4).requires_grad_()
    upstream = torch.tensor([[[[float("inf"), 1.0], [float("nan"), -2.0]]]])
    (found,) = torch.autograd.grad(layers.MaxPool2d(2)(x), x, upstream)
    (expected,) = torch.autograd.grad(nn.MaxPool2d(2)(x), x, upstream)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=0, atol=0)


OPTIONS: list[dict[str, Any]] = [{"kernel_size": 2}, {"kernel_size": 3, "padding": 1, "return_indices": True}]


def test_whole_numbers_are_max_pooled_as_torch_does() -> None:
    x = torch.randint(-5, 5, (2, 3, 6, 6))
    for options in OPTIONS:
        for a, b in zip(layers.MaxPool2d(**options)(x), nn.MaxPool2d(**options)(x), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(64, 32, 28, 28), (8, 64, 32, 32), (3, 5, 33, 47)])
def test_large_images_in_several_blocks(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=layout)
        agree(layers.MaxPool2d, given, kernel_size=3, stride=2, padding=1, return_indices=True)
        agree(layers.AvgPool2d, given, kernel_size=2, ceil_mode=True, count_include_pad=False)
        agree(layers.AdaptiveAvgPool2d, given, output_size=(1, 1))


@pytest.mark.parametrize("op", ["avg_pool2d", "adaptive_avg_pool2d"])
def test_the_mean_of_a_window_is_as_near_to_the_truth_as_torchs(op: str) -> None:
    x = torch.randn(4, 8, 56, 56, generator=torch.Generator().manual_seed(0)) + 100
    if op == "avg_pool2d":
        found = pool.avg_pool2d(x.numpy(), kernel_size=56)
        theirs, truth = (nn.functional.avg_pool2d(given, 56) for given in (x, x.double()))
    else:
        found = pool.adaptive_avg_pool2d(x.numpy(), output_size=(1, 1))
        theirs, truth = (nn.functional.adaptive_avg_pool2d(given, 1) for given in (x, x.double()))
    distance = (torch.from_numpy(found).double() - truth).abs().max().item()
    assert distance <= max(1.5 * (theirs.double() - truth).abs().max().item(), 2**-24 * 100)


def test_the_mean_in_batch_last_memory_is_as_near_to_the_truth() -> None:
    x = np.random.default_rng(0).standard_normal((16, 8, 57, 56), dtype=np.float32) + 100
    truth = x.mean((2, 3), dtype=np.float64, keepdims=True)
    found = fast_pool.adaptive_avg_pool2d(batch_last(x), output_size=(1, 1))
    assert np.abs(found - truth).max() <= 2 * np.spacing(np.float32(100))


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_the_gradient_has_the_mass_of_the_windows(kind: str) -> None:
    """The gradient of each window is distributed once and completely, for any overlap."""
    random = np.random.default_rng(0)
    x, options = random.standard_normal((2, 3, 9, 8)), {"kernel_size": 3, "stride": 2, "padding": 1}
    forward, backward = (getattr(pool, f"{kind}_pool2d{end}") for end in ("", "_backward"))
    more = {"count_include_pad": False} if kind == "avg" else {}
    upstream = random.standard_normal(forward(x, **options, **more).shape)
    gradient = backward(upstream, x, **options, **more)
    np.testing.assert_allclose(gradient.sum((2, 3)), upstream.sum((2, 3)), rtol=1e-12)


WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("max_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("max_pool2d", {"kernel_size": 2}),
    ("max_pool2d", {"kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0), "dilation": (2, 1)}),
    ("max_pool2d", {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    ("avg_pool2d", {"kernel_size": 2}),
    ("avg_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    ("adaptive_avg_pool2d", {"output_size": (1, 1)}),
    ("adaptive_avg_pool2d", {"output_size": (4, 3)}),
]


@pytest.mark.parametrize("values", ["normal", "ties", "special"])
@pytest.mark.parametrize(("op", "options"), WINDOWS)
def test_images_in_batch_last_memory_give_results_in_it(op: str, options: dict[str, Any], values: str) -> None:
    """The same numbers as in contiguous memory, whatever the memory of the upstream gradient."""
    random = np.random.default_rng(0)
    x = (
        random.integers(0, 3, (6, 5, 9, 11)).astype(float)
        if values == "ties"
        else random.standard_normal((6, 5, 9, 11))
    )
    if values == "special":
        x[random.random(x.shape) < 0.3] = np.nan
        x[random.random(x.shape) < 0.3] = -np.inf
    function, backward = fast(op), fast(f"{op}_backward")
    expected = function(x, **options)
    y = function(batch_last(x), **options)
    assert y.shape[2:] == (1, 1) or is_batch_last(y)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    upstream = random.standard_normal(y.shape)
    expected = backward(upstream, x, **options)
    for grad_y in (upstream, batch_last(upstream), upstream.transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2)):
        gradient = backward(grad_y, batch_last(x), **options)
        assert is_batch_last(gradient)
        np.testing.assert_array_equal(gradient, expected)
        np.testing.assert_array_equal(backward(grad_y, x, **options), expected)


def fast(name: str) -> Any:
    return getattr(fast_pool, name)


@pytest.mark.parametrize("memory", [np.array, batch_last])
def test_of_equal_pixels_the_first_takes_the_gradient_and_of_several_nan_the_last(memory: Any) -> None:
    x = np.zeros((2, 3, 4, 4))
    x[1, :, 1, :] = np.nan
    options: dict[str, Any] = {"kernel_size": 2}
    for function in (pool.max_pool2d_backward, fast_pool.max_pool2d_backward):
        gradient = function(np.full((2, 3, 2, 2), 7.0), memory(x), **options)
        first, nan = np.zeros((4, 4)), np.zeros((4, 4))
        first[::2, ::2] = 7
        nan[1, 1::2], nan[2, ::2] = 7, 7
        np.testing.assert_array_equal(gradient, np.stack([[first] * 3, [nan] * 3]))


@pytest.mark.parametrize("memory", [np.array, batch_last])
def test_pooling_is_bit_equal_for_any_number_of_threads(memory: Any) -> None:
    x, before, found = np.random.default_rng(0).standard_normal((4, 7, 9, 11)), blocks.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            blocks.set_num_threads(threads)
            with tuned(pool_block_bytes=4096, pool_threads_bytes=1):
                for op, options in WINDOWS:
                    y = fast(op)(memory(x), **options)
                    found.append((y, fast(f"{op}_backward")(y, memory(x), **options)))
    finally:
        blocks.set_num_threads(before)
    for index, pair in enumerate(found):
        for array, alone in zip(pair, found[index % len(WINDOWS)], strict=True):
            assert array.tobytes() == alone.tobytes()


# ---- what is refused


@pytest.mark.parametrize(
    ("layer", "options", "shape"),
    [
        (layers.MaxPool2d, {"kernel_size": 0}, (1, 1, 4, 4)),
        (layers.MaxPool2d, {"kernel_size": 2, "stride": 0}, (1, 1, 4, 4)),
        (layers.MaxPool2d, {"kernel_size": 2, "dilation": 0}, (1, 1, 4, 4)),
        (layers.MaxPool2d, {"kernel_size": 2, "padding": -1}, (1, 1, 4, 4)),
        (layers.MaxPool2d, {"kernel_size": (2, 2, 2)}, (1, 1, 4, 4)),
        (layers.MaxPool2d, {"kernel_size": 2.5}, (1, 1, 4, 4)),
        (layers.MaxPool2d, {"kernel_size": 2}, (2, 1, 1, 4, 4)),
        (layers.MaxPool2d, {"kernel_size": 5}, (1, 1, 4, 4)),
        (layers.MaxPool1d, {"kernel_size": 2}, (4,)),
        (layers.AvgPool2d, {"kernel_size": 0}, (1, 1, 4, 4)),
        (layers.AvgPool2d, {"kernel_size": 2, "padding": 2}, (1, 1, 4, 4)),
        (layers.AvgPool2d, {"kernel_size": 2, "divisor_override": 0}, (1, 1, 4, 4)),
        (layers.AvgPool1d, {"kernel_size": 2, "padding": 2}, (1, 1, 4)),
        (layers.AdaptiveAvgPool2d, {"output_size": -1}, (1, 1, 4, 4)),
        (layers.AdaptiveAvgPool2d, {"output_size": (1, 2, 3)}, (1, 1, 4, 4)),
        (layers.AdaptiveAvgPool1d, {"output_size": -1}, (1, 1, 4)),
        (layers.AdaptiveMaxPool2d, {"output_size": -1}, (1, 1, 4, 4)),
        (layers.AdaptiveMaxPool2d, {"output_size": 2}, (4, 4)),
    ],
)
def test_refuses_what_torch_refuses(layer: type[nn.Module], options: dict[str, Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(REFUSALS) as theirs:
        PAIRS[layer](**options)(torch.ones(shape))
    with pytest.raises(theirs.type) as ours:
        layer(**options)(torch.ones(shape))
    assert "\n" not in str(ours.value)
    assert "expected" in str(ours.value)


@pytest.mark.parametrize(
    ("op", "options", "name"),
    [
        (pool.max_pool2d, {"kernel_size": 0}, "kernel_size"),
        (pool.max_pool2d, {"kernel_size": 2, "padding": 2}, "padding"),
        (pool.max_pool2d, {"kernel_size": 9}, "x"),
        (pool.avg_pool2d, {"kernel_size": 2, "stride": 0}, "stride"),
        (pool.avg_pool2d, {"kernel_size": 2, "divisor_override": 0}, "divisor_override"),
    ],
)
def test_operations_name_what_does_not_fit(op: Any, options: dict[str, Any], name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"{name}.*: expected .*, got "):
        op(np.ones((1, 1, 4, 4)), **options)


@pytest.mark.parametrize("name", ["AvgPool2d", "MaxPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d"])
def test_an_image_without_batch_axis_has_torchs_memory_layout(name: str) -> None:
    x = torch.randn(6, 8, 3).permute(2, 0, 1)
    assert getattr(layers, name)(2)(x).stride() == getattr(nn, name)(2)(x).stride()


@pytest.mark.parametrize("name", ["AdaptiveAvgPool2d", "AdaptiveMaxPool2d"])
def test_an_image_without_batch_axis_may_have_no_channels(name: str) -> None:
    x = torch.zeros(0, 6, 8, requires_grad=True)
    y = getattr(layers, name)(2)(x)
    y.sum().backward()
    assert y.shape == getattr(nn, name)(2)(x).shape
    assert x.grad is not None
    assert x.grad.shape == x.shape
