"""Convolution, its transpose, padding and linear against torch: random options, adjoints, what is not a number."""

import warnings
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cnn_lightning.layers.bridge import layout
from cnn_lightning.layers.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from cnn_lightning.layers.linear import Linear
from cnn_lightning.ops import conv, conv_transpose, padding
from cnn_lightning.ops.fast import blocks, chooser
from tests.duck import Duck
from tests.test_layers import assert_equal, run
from tests.tiers import both_tiers

tier = both_tiers(__name__, "conv", "padding")

CONVOLUTIONS: dict[Any, int] = {Conv1d: 1, Conv2d: 2, Conv3d: 3}
TRANSPOSED: dict[Any, int] = {ConvTranspose1d: 1, ConvTranspose2d: 2, ConvTranspose3d: 3}
"""Layers and the number of their axes."""
EXAMPLES = settings(max_examples=60)


def agree(layer: type[torch.nn.Module], options: dict[str, Any], x: torch.Tensor, *more: Any) -> None:
    """The same values, gradients and shapes as the native layer, or the same refusal."""
    torch.manual_seed(0)
    native = getattr(torch.nn, layer.__name__)(**options, dtype=x.dtype)
    ours = layer(**options, dtype=x.dtype)
    ours.load_state_dict(native.state_dict())
    with warnings.catch_warnings():
        # torch says once that 'same' with an even kernel may cost it a copy.
        warnings.filterwarnings("ignore", message="Using padding='same'")
        try:
            expected = run(native, (x, *more))
        except (RuntimeError, ValueError) as error:
            with pytest.raises(type(error)):
                run(ours, (x, *more))
            return
    assert_equal(run(ours, (x, *more)), expected, 1e-10)


def options_of(data: st.DataObject, axes: int, transposed: bool) -> dict[str, Any]:
    groups = data.draw(st.integers(1, 3), "groups")
    each = st.tuples(*[st.integers(1, 3)] * axes)
    stride = data.draw(each, "stride")
    options = {
        "in_channels": groups * data.draw(st.integers(1, 3), "in"),
        "out_channels": groups * data.draw(st.integers(1, 3), "out"),
        "kernel_size": data.draw(st.tuples(*[st.integers(1, 4)] * axes), "kernel"),
        "stride": stride,
        "dilation": data.draw(each, "dilation"),
        "groups": groups,
        "bias": data.draw(st.booleans(), "bias"),
        "padding": data.draw(st.tuples(*[st.integers(0, 4)] * axes), "padding"),
    }
    if transposed:
        return options | {"output_padding": data.draw(st.tuples(*[st.integers(0, 2)] * axes), "output_padding")}
    options["padding_mode"] = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]), "mode")
    text = data.draw(st.sampled_from([None, None, "same", "valid"]), "text")
    if text is not None:
        options |= {"padding": text, "stride": 1 if text == "same" else stride}
    return options


def has_fitting_output_padding(options: dict[str, Any]) -> bool:
    rows = zip(options["output_padding"], options["stride"], options["dilation"], strict=True)
    return all(more < max(stride, dilation) for more, stride, dilation in rows)


def has_pixels(options: dict[str, Any], x: torch.Tensor) -> bool:
    names = ("stride", "padding", "dilation", "kernel_size", "output_padding")
    sizes = zip(x.shape[-len(options["stride"]) :], *(options[name] for name in names), strict=True)
    return all((n - 1) * s - 2 * p + d * (k - 1) + more + 1 != 0 for n, s, p, d, k, more in sizes)


def image_of(data: st.DataObject, channels: int, axes: int) -> torch.Tensor:
    size = data.draw(st.tuples(*[st.integers(1, 9 if axes < 3 else 5)] * axes), "size")
    batch = data.draw(st.sampled_from([(), (0,), (1,), (3,)]), "batch")
    x = torch.randn(*batch, channels, *size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if data.draw(st.booleans(), "strided"):
        x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    return x


@pytest.mark.parametrize(("layer", "axes"), (CONVOLUTIONS | TRANSPOSED).items())
@given(data=st.data())
@EXAMPLES
def test_random_options_equal_torch(layer: type[torch.nn.Module], axes: int, data: st.DataObject) -> None:
    transposed = layer in TRANSPOSED
    options = options_of(data, axes, transposed)
    x = image_of(data, options["in_channels"], axes)
    # torch checks the output padding only where there is an image to compute.
    assume(not transposed or x.numel() or has_fitting_output_padding(options))
    # A result without pixels is refused by torch's kernel for float64, and returned by the one for float32.
    assume(not transposed or has_pixels(options, x))
    agree(layer, options, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(data=st.data())
@settings(EXAMPLES, max_examples=40)
def test_random_linear_equals_torch(dtype: torch.dtype, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
    features, outputs = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    torch.manual_seed(0)
    native = torch.nn.Linear(features, outputs, bias=data.draw(st.booleans()), dtype=dtype)
    ours = Linear(features, outputs, bias=native.bias is not None, dtype=dtype)
    ours.load_state_dict(native.state_dict())
    x = torch.randn(*shape, features, generator=torch.Generator().manual_seed(3), dtype=dtype)
    assert_equal(run(ours, (x,)), run(native, (x,)), 1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(("kernel", "dilation"), [((2, 4), 1), ((4, 3), (1, 3)), ((2, 2), 3)])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_same_padding_puts_the_odd_pixel_where_torch_does(kernel: Any, dilation: Any, mode: str) -> None:
    options = {"padding": "same", "dilation": dilation, "padding_mode": mode}
    agree(
        Conv2d, {"in_channels": 2, "out_channels": 3, "kernel_size": kernel, **options}, torch.rand(2, 2, 7, 8).double()
    )


@pytest.mark.parametrize(("kernel", "dilation"), [((2, 4, 3), 1), ((3, 4, 2), (1, 3, 1)), ((2, 2, 2), 3)])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_same_padding_puts_the_odd_frame_where_torch_does(kernel: Any, dilation: Any, mode: str) -> None:
    options = {"kernel_size": kernel, "padding": "same", "dilation": dilation, "padding_mode": mode}
    x = torch.rand(2, 2, 5, 4, 6, generator=torch.Generator().manual_seed(0)).double()
    agree(Conv3d, {"in_channels": 2, "out_channels": 3, **options}, x)


@pytest.mark.parametrize("layer", [Conv3d, ConvTranspose3d])
def test_volumes_of_one_frame_are_images(layer: Any) -> None:
    """In torch, too: a kernel of one frame on volumes of one frame."""
    volumes = layer(3, 4, (1, 3, 2), padding=(0, 1, 0), dtype=torch.float64)
    images = {Conv3d: Conv2d, ConvTranspose3d: ConvTranspose2d}[layer](
        3, 4, (3, 2), padding=(1, 0), dtype=torch.float64
    )
    images.load_state_dict({"weight": volumes.weight[:, :, 0], "bias": volumes.bias})
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(volumes(x[:, :, None])[:, :, 0], images(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 3])
def test_without_channels_there_is_only_the_bias(size: int) -> None:
    """torch itself then says (2, 0, 6, 6)."""
    x, weight, bias = torch.zeros(2, 0, 6, 6).numpy(), torch.zeros(4, 0, size, size).numpy(), torch.randn(4).numpy()
    y = conv.conv2d(x, weight, bias, padding="same")
    assert np.array_equal(y, np.broadcast_to(bias[:, None, None], (2, 4, 6, 6)))
    gradients = conv.conv2d_backward(np.ones_like(y), x, weight, padding="same")
    wanted = [x, weight, np.full(4, 2 * 6 * 6)]
    assert all(np.array_equal(*both) for both in zip(gradients, wanted, strict=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("weight", "bias")])
@pytest.mark.parametrize("layer", [Conv2d, Conv3d, ConvTranspose2d, ConvTranspose3d])
def test_frozen_parameters_get_no_gradient(layer: Any, frozen: tuple[str, ...], bias: bool) -> None:
    module = layer(3, 4, 3, bias=bias)
    x = torch.randn(2, 3, *(6, 5, 4)[: module.weight.dim() - 2])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    y = module(x)
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert y.requires_grad is bool(wanted)
    if wanted:
        y.sum().backward()
    for parameter in module.parameters():
        assert (parameter.grad is not None) is parameter.requires_grad


@pytest.mark.parametrize("stride", [1, 2])
def test_few_images_and_a_large_kernel_give_each_gradient_a_thread(
    monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    options = {"in_channels": 128, "out_channels": 192, "kernel_size": 3, "stride": stride, "padding": 1}
    x = torch.randn(2, 128, 8, 8, dtype=torch.float64)
    sizes, run_each = [], blocks.run_each

    def counted(functions: Any, parts: Any, **given: Any) -> Any:
        sizes.append((len(functions), len(parts)))
        return run_each(functions, parts, **given)

    monkeypatch.setattr(blocks, "run_each", counted)
    with chooser.fast():
        agree(Conv2d, options, x)
    assert (2, 1) in sizes


def test_the_first_convolution_never_computes_the_images_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(*arrays: Any, needs: Any, **options: Any) -> Any:
        asked.append(needs)
        return original(*arrays, **options)

    formulas = import_module("cnn_lightning.ops.conv")
    original = formulas.conv2d_backward
    monkeypatch.setattr(formulas, "conv2d_backward", spy)
    Conv2d(1, 2, 3)(torch.randn(2, 1, 6, 6)).sum().backward()
    assert asked == [(False, True, True)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layer", [Conv2d, Conv3d, ConvTranspose2d, ConvTranspose3d])
def test_what_is_not_a_number_stays_so(layer: Any, value: float) -> None:
    x = torch.randn(2, 3, *[6] * (CONVOLUTIONS | TRANSPOSED)[layer], dtype=torch.float64)
    x[1, 2, 3, 3] = value
    torch.manual_seed(0)
    ours = layer(3, 4, 3, dtype=torch.float64)
    torch.manual_seed(0)
    native = getattr(torch.nn, layer.__name__)(3, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(ours(x), native(x), equal_nan=True, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_stays_where_it_is_in_a_depthwise_convolution(value: float) -> None:
    """The matrix of its fast function has zeros around the kernel, and zero times infinity is NaN."""
    torch.manual_seed(0)
    native: Any = torch.nn.Conv2d(3, 3, 3, padding=1, groups=3, dtype=torch.float64)
    ours: Any = Conv2d(3, 3, 3, padding=1, groups=3, dtype=torch.float64)
    ours.load_state_dict(native.state_dict())
    x, upstream = torch.randn(2, 3, 9, 9, dtype=torch.float64), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    x[1, 2, 3, 3] = upstream[0, 1, 7, 5] = value
    for layer in (ours, native):
        layer.x = x.clone().requires_grad_()
        layer.y = layer(layer.x)
        layer.y.backward(upstream)
    assert int(ours.y.isfinite().logical_not().sum()) == 9
    for found, expected in (ours.y, native.y), (ours.x.grad, native.x.grad), (ours.weight.grad, native.weight.grad):
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axes", [1, 2, 3])
@given(data=st.data())
@EXAMPLES
def test_backward_is_the_adjoint(axes: int, data: st.DataObject) -> None:
    """<conv(x), g> = <x, grad_x(g)>, and the same for the weight and for the transpose."""
    options = options_of(data, axes, True)
    del options["bias"], options["kernel_size"]
    c, o, groups = options.pop("in_channels"), options.pop("out_channels"), options["groups"]
    size = data.draw(st.tuples(*[st.integers(4, 8 if axes < 3 else 5)] * axes))
    kernel = data.draw(st.tuples(*[st.integers(1, 3)] * axes))
    random = np.random.default_rng(0)
    x = random.standard_normal((2, c, *size))
    assume(has_fitting_output_padding(options))

    def hold(home: Any, name: str, weight: Any, options: dict[str, Any]) -> None:
        forward, backward = getattr(home, f"{name}{axes}d"), getattr(home, f"{name}{axes}d_backward")
        try:
            y = forward(x, weight, **options)
        except RuntimeError:
            assume(False)
        g = random.standard_normal(y.shape)
        grad_x, grad_weight, grad_bias = backward(g, x, weight, **options)
        np.testing.assert_allclose((grad_x * x).sum(), (y * g).sum(), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose((grad_weight * weight).sum(), (y * g).sum(), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(grad_bias, g.sum((0, *range(2, g.ndim))), rtol=1e-9, atol=1e-9)

    weight = random.standard_normal((c, o // groups, *kernel))
    hold(conv_transpose, "conv_transpose", weight, options)
    del options["output_padding"]
    weight = random.standard_normal((o, c // groups, *kernel))
    hold(conv, "conv", weight, options)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@given(data=st.data())
@settings(EXAMPLES, max_examples=40)
def test_padding_equals_torch(mode: Any, data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 2))
    pad = data.draw(st.lists(st.integers(0, 6), min_size=2 * axes, max_size=2 * axes))
    shape = (data.draw(st.integers(0, 2)), 2, *data.draw(st.lists(st.integers(1, 7), min_size=axes, max_size=axes)))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    try:
        y = F.pad(x, pad, mode)
    except RuntimeError:
        with pytest.raises(RuntimeError, match="pad: expected widths"):
            padding.pad(x.detach().numpy(), pad=pad, mode=mode)
        return
    g = torch.randn(y.shape, dtype=torch.float64)
    (expected,) = torch.autograd.grad(y, x, g)
    array = x.detach().numpy()
    np.testing.assert_array_equal(padding.pad(array, pad=pad, mode=mode), y.detach().numpy())
    found = padding.pad_backward(g.numpy(), array, pad=pad, mode=mode)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_keeps_the_memory_format_and_its_inputs(mode: Any) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 6)).transpose(0, 3, 1, 2)
    g = np.random.default_rng(1).standard_normal((2, 6, 7, 9))
    before = x.copy(), g.copy()
    results = padding.pad(x, pad=(2, 2, 2, 2), mode=mode), padding.pad_backward(g, x, pad=(2, 2, 2, 2), mode=mode)
    for name, arrays, result in zip(("pad", "pad_backward"), ((x,), (g, x)), results, strict=True):
        # What the bridge does for formulas makes no difference to fast functions.
        assert layout.as_torch(name, result, arrays).transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(g, before[1])


def test_padding_refuses_what_it_does_not_know() -> None:
    x = np.ones((1, 1, 4, 4))
    with pytest.raises(ValueError, match="mode: expected"):
        padding.pad(x, pad=(1, 1), mode="mirror")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="two widths"):
        padding.pad(x, pad=(1, 1, 1), mode="reflect")


def test_a_device_array_never_comes_to_the_host() -> None:
    names = ("conv_transpose", "linear", "padding")  # the formulas, which devices run
    conv_transpose, linear, padding = (import_module(f"cnn_lightning.ops.{name}") for name in names)
    random = np.random.default_rng(0)
    x, weight, bias = (Duck(random.standard_normal(shape)) for shape in [(2, 3, 5, 5), (3, 2, 3, 3), (2,)])
    options: Any = {"stride": 2, "padding": 1, "dilation": 3, "output_padding": 2}
    y = conv_transpose.conv_transpose2d(x, weight, bias, **options)
    grads = conv_transpose.conv_transpose2d_backward(y, x, weight, **options)
    padded = padding.pad(x, pad=(1, 2, 3, 4), mode="reflect")
    rows = linear.linear(x, Duck(random.standard_normal((4, 5))))
    results = [y, *grads, padded, padding.pad_backward(padded, x, pad=(1, 2, 3, 4), mode="reflect"), rows]
    assert all(isinstance(result, Duck) for result in results)


@pytest.mark.parametrize(
    ("layer", "options", "shape", "message"),
    [
        (Conv2d, (4, 2, 3), (2, 3, 8, 8), r"expected 4 channels, got 3"),
        (Conv2d, (3, 2, 9), (2, 3, 8, 8), r"at least 9x9 .* got 8x8"),
        (Conv2d, (3, 2, 3), (3, 8), r"input: expected 4 axes .* got shape \(3, 8\)"),
        (ConvTranspose2d, (4, 2, 3), (2, 3, 8, 8), r"expected 4 channels, got 3"),
        (ConvTranspose2d, (3, 2, 3, 1, 9), (2, 3, 8, 8), r"padding: expected to leave an image, got \(9, 9\)"),
        (Linear, (5, 3), (2, 4), r"expected 5 features, got shape \(2, 4\)"),
    ],
)
def test_one_line_says_what_was_expected_and_what_came(layer: Any, options: Any, shape: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message) as caught:
        layer(*options)(torch.ones(shape))
    assert "\n" not in str(caught.value)


def test_an_image_without_batch_axis_has_torchs_memory_layout() -> None:
    x = torch.randn(6, 8, 3).permute(2, 0, 1)
    assert Conv2d(3, 4, 3)(x).stride() == torch.nn.Conv2d(3, 4, 3)(x).stride()
