"""Upsampling against torch: places on borders, what is not finite, and gradients that torch misses."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from cnn_lightning import layers
from cnn_lightning.ops import upsample

MODES = {
    "nearest": (1, 2, 3),
    "nearest-exact": (1, 2, 3),
    "linear": (1,),
    "bilinear": (2,),
    "trilinear": (3,),
    "bicubic": (2,),
}
WEIGHTED = ["linear", "bilinear", "trilinear", "bicubic"]


def images(mode: str, size: int = 5, seed: int = 0) -> Tensor:
    shape = (2, 3, *range(size, size + MODES[mode][-1]))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=150)
@given(st.data())
def test_any_size_and_any_scale(data: st.DataObject) -> None:
    """The forward is torch's, and the backward its adjoint: ``<forward(x), g> = <x, backward(g)>``."""
    mode = data.draw(st.sampled_from(list(MODES)))
    shape = [data.draw(st.integers(1, 40)) for _ in range(data.draw(st.sampled_from(MODES[mode])))]
    options: dict[str, Any] = {"mode": mode}
    if mode in WEIGHTED:
        options["align_corners"] = data.draw(st.booleans())
    if data.draw(st.booleans(), "by size"):
        options["size"] = tuple(data.draw(st.integers(1, 50)) for _ in shape)
    else:
        scale = st.floats(0.3, 4) | st.sampled_from([1 / 3, 2 / 3, 0.7, 1, 1.1, 1.3, 2, 2.1, 3])
        options["scale_factor"] = tuple(data.draw(scale) for _ in shape)
        assume(all(n * s >= 1 for n, s in zip(shape, options["scale_factor"], strict=True)))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    x = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype, requires_grad=True)
    y, expected = layers.Upsample(**options)(x), nn.Upsample(**options)(x)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=10 * tolerance)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    (grad_x,) = torch.autograd.grad(y, x, upstream)
    products = (y.double() * upstream).sum(), (x.double() * grad_x).sum()
    torch.testing.assert_close(*products, rtol=0, atol=tolerance * y.numel())


@pytest.mark.parametrize("mode", MODES)
def test_large_images(mode: str) -> None:
    x = torch.randn(1, 2, *(130, 3, 2)[: MODES[mode][-1]], generator=torch.Generator().manual_seed(0))
    for size in ((97, 5, 3), (260, 6, 4), (129, 9, 2)):
        given = size[: x.dim() - 2]
        torch.testing.assert_close(layers.Upsample(given, mode=mode)(x), nn.Upsample(given, mode=mode)(x))


@pytest.mark.parametrize("size", [(2, 82), (3, 123), (47, 6), (41, 82), (7, 49)])
def test_a_place_on_a_border_in_single_precision(size: tuple[int, int]) -> None:
    """``u n / m`` is a whole number, and rounding may give less."""
    n, m = size
    for dtype, axes in ((torch.float32, 1), (torch.float64, 1), (torch.float32, 2), (torch.float64, 2)):
        x = torch.arange(float(n), dtype=dtype).expand(1, 1, *[1] * (axes - 1), n)
        wanted = (*[1] * (axes - 1), m)
        assert torch.equal(layers.Upsample(wanted)(x), nn.Upsample(wanted)(x))


WRONG_IN_TORCH: list[tuple[str, tuple[int, ...], float]] = [
    ("nearest", (5,), 1.1),
    ("nearest", (3, 4, 5), 1.1),
    ("nearest", (6,), 2.1),
    ("bicubic", (5, 6), 1.1),
]


@pytest.mark.parametrize(("mode", "shape", "scale"), WRONG_IN_TORCH)
def test_the_gradient_is_that_of_the_forward_where_torchs_is_not(
    mode: str, shape: tuple[int, ...], scale: float
) -> None:
    """Where the size stays the same or doubles, torch's backward copies whatever the scale is; its forward does not."""
    x = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.equal(layers.Upsample(None, scale, mode)(x), nn.Upsample(None, scale, mode)(x)) or mode == "bicubic"
    assert torch.autograd.gradcheck(layers.Upsample(scale_factor=scale, mode=mode), x)
    assert not torch.autograd.gradcheck(nn.Upsample(scale_factor=scale, mode=mode), x, raise_exception=False)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", WEIGHTED)
def test_what_is_not_finite_goes_where_torch_lets_it_go(mode: str, align_corners: bool) -> None:
    """A weight of 0 times infinity is NaN, and only the pixels of the taps count."""
    for seed, scale in enumerate((2, 1.5, 1, 0.5, 2.3)):
        x = images(mode, seed=seed)
        x.view(-1)[torch.randperm(x.numel(), generator=torch.Generator().manual_seed(seed))[:4]] = torch.tensor(
            [float("inf"), float("-inf"), float("nan"), -0.0], dtype=torch.float64
        )
        options: dict[str, Any] = {"scale_factor": scale, "mode": mode, "align_corners": align_corners}
        torch.testing.assert_close(
            layers.Upsample(**options)(x), nn.Upsample(**options)(x), rtol=1e-12, atol=1e-12, equal_nan=True
        )


def test_nearest_copies_bits_and_whole_numbers() -> None:
    x = torch.tensor([[[-0.0, float("nan"), float("inf")]]])
    torch.testing.assert_close(layers.Upsample(7)(x), nn.Upsample(7)(x), rtol=0, atol=0, equal_nan=True)
    assert torch.signbit(layers.Upsample(7)(x))[0, 0, 0]
    pixels = torch.randint(256, (1, 3, 4, 5), dtype=torch.uint8)
    assert torch.equal(layers.Upsample(scale_factor=1.5)(pixels), nn.Upsample(scale_factor=1.5)(pixels))
    with pytest.raises(NotImplementedError, match=r"^upsample_linear: x: expected a floating dtype, got uint8$"):
        layers.UpsamplingBilinear2d(scale_factor=2)(pixels)


def test_an_infinite_gradient_goes_to_its_own_pixels() -> None:
    upstream = torch.zeros(1, 1, 6, dtype=torch.float64)
    upstream[0, 0, 2] = float("inf")
    for mode in ("nearest", "linear"):
        x = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(layers.Upsample(6, mode=mode)(x), x, upstream)
        (expected,) = torch.autograd.grad(nn.Upsample(6, mode=mode)(x), x, upstream)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mode", MODES)
def test_one_pixel_becomes_a_constant_and_back(mode: str) -> None:
    size = (6, 5, 4)[: MODES[mode][-1]]
    ones = torch.ones(2, 3, *[1] * len(size), dtype=torch.float64)
    found = layers.Upsample(size, mode=mode)(ones)
    torch.testing.assert_close(found, torch.ones(2, 3, *size, dtype=torch.float64), rtol=1e-12, atol=0)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for align_corners in (None, True) if mode in WEIGHTED else (None,):
        given: dict[str, Any] = {"size": 1, "mode": mode, "align_corners": align_corners}
        torch.testing.assert_close(layers.Upsample(**given)(x), nn.Upsample(**given)(x), rtol=1e-12, atol=1e-12)


def test_a_formula_takes_the_arguments_of_torchs_operators() -> None:
    """A scale that is None or not positive counts as none."""
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 6))
    tensor = torch.from_numpy(x)
    for scales in ((None, None), (1.5, None), (-1.0, 2.0)):
        expected = torch.ops.aten.upsample_bilinear2d(tensor, [7, 12], False, *scales)
        np.testing.assert_allclose(upsample.upsample_linear(x, size=(7, 12), scales=scales), expected, atol=1e-12)
        expected = torch.ops.aten.upsample_bicubic2d(tensor, [7, 12], False, *scales)
        np.testing.assert_allclose(upsample.upsample_cubic(x, size=(7, 12), scales=scales), expected, atol=1e-12)
        expected = torch.ops.aten.upsample_nearest2d(tensor, [7, 13], *scales)
        np.testing.assert_array_equal(upsample.upsample_nearest(x, size=(7, 13), scales=scales), expected)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 1, 1, 1, 1), (1, 0, 3), (1, 2, 0)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match=r"^upsample_nearest: x: expected 3 or 4 or 5 axes, none empty"):
        upsample.upsample_nearest(np.zeros(shape), size=(2,) * (len(shape) - 2))
    with pytest.raises(RuntimeError, match=r"^upsample_cubic: x: expected 4 axes"):
        upsample.upsample_cubic(np.zeros((1, 1, 3)), size=(2,))


def test_the_functions_that_compute_the_same() -> None:
    x = images("bilinear")
    found = layers.UpsamplingBilinear2d(scale_factor=2)(x)
    torch.testing.assert_close(found, functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))
    assert torch.equal(layers.UpsamplingNearest2d(size=9)(x), functional.interpolate(x, size=9))
