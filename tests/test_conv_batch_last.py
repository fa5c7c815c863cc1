"""Convolution in batch-last memory equals its formula: any geometry, each way to compute it, any number of threads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_lightning.ops import conv as formulas
from cnn_lightning.ops.fast import blocks, chooser, conv, conv_pixels, depthwise, memory, tuning
from cnn_lightning.ops.types import Array


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = blocks.get_num_threads()
    yield
    blocks.set_num_threads(before)


def drawn(seed: int, *shapes: tuple[int, ...], dtype: Any = np.float64) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def assert_equal(x: Array, weight: Array, bias: Array | None, tolerance: float = 1e-11, **options: Any) -> None:
    """Output and gradients of the fast functions equal those of the formulas, NaN and infinities included."""
    x = memory.batch_last(x)
    with np.errstate(all="ignore"):
        y = formulas.conv2d(x, weight, bias, **options)
        grad_y = memory.batch_last(drawn(1, y.shape, dtype=x.dtype)[0])
        expected = y, *formulas.conv2d_backward(grad_y, x, weight, **options)
    found = conv.conv2d(x, weight, bias, **options), *conv.conv2d_backward(grad_y, x, weight, **options)
    for a, b in zip(found, expected, strict=True):
        assert a is not None
        scale = np.abs(b[np.isfinite(b)]).max(initial=1)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)
    if memory.is_batch_last(x):  # images of one value have both layouts: their results are contiguous
        assert all(image is not None and memory.pixels(image).flags.c_contiguous for image in found[:2])


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Shapes of x and weight, and options; a third of them depthwise."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inside, outside = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    if draw(st.integers(0, 2)) == 0:
        groups, inside, outside = draw(st.integers(2, 5)), 1, 1
    kernel = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding: Any = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    if draw(st.integers(0, 4)) == 0:
        stride, padding = (1, 1), "same"
    least = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [draw(st.integers(n, n + 9)) for n in least]
    shapes = (draw(st.integers(2, 5)), groups * inside, *size), (groups * outside, inside, *kernel)
    return (*shapes, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups})


@given(geometry=geometries(), seed=st.integers(0, 99))
def test_any_geometry(geometry: Any, seed: int) -> None:
    shape, of_weight, options = geometry
    x, weight, bias = drawn(seed, shape, of_weight, of_weight[:1])
    assert_equal(x, weight, bias, **options)


@given(geometry=geometries(), seed=st.integers(0, 99))
def test_any_geometry_by_many_blocks(geometry: Any, seed: int) -> None:
    shape, of_weight, options = geometry
    small = {"conv_column_bytes": 512, "conv_strip": 4, "product_threads": 1, "block_bytes": 256}
    with tuning.tuned(**small, depthwise_toeplitz=30, depthwise_bands=2, product_multiplications=4):
        x, weight, bias = drawn(seed, shape, of_weight, of_weight[:1])
        assert_equal(x, weight, bias, **options)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("way", ["toeplitz", "bands", "runs"])
def test_each_way_of_a_depthwise_convolution(way: str, stride: int) -> None:
    limits = {
        "toeplitz": {"depthwise_toeplitz": 10**9},
        "bands": {"depthwise_toeplitz": 0, "depthwise_bands": 99},
        "runs": {"depthwise_toeplitz": 0, "depthwise_bands": 0},
    }
    with tuning.tuned(**limits[way]):
        for kernel, padding in ((3, 1), (5, 1), (4, 2), (7, 3), (3, 0)):
            x, weight, bias = drawn(0, (3, 6, 8, 9), (6, 1, kernel, kernel), (6,))
            assert_equal(x, weight, bias, padding=padding, stride=stride, groups=6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("target", ["x", "weight"])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("stride", [1, 2])
def test_infinity_and_nan_stay_where_they_are(value: float, target: str, groups: int, stride: int) -> None:
    """Zeros of padding and of band matrices meet them in the fast ways only."""
    for toeplitz in (0, 10**9):
        x, weight, bias = drawn(0, (3, 6, 8, 8), (6, 6 // groups, 3, 3), (6,))
        (x if target == "x" else weight)[1, 0, 0, 2] = value
        with tuning.tuned(depthwise_toeplitz=toeplitz):
            assert_equal(x, weight, bias, padding=1, stride=stride, groups=groups)


def test_the_flipped_kernel_is_used_and_left_where_the_border_is_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    done, flipped = [], conv_pixels._backward_flipped

    def seen(*arguments: Any) -> bool:
        done.append(flipped(*arguments))
        return done[-1]

    monkeypatch.setattr(conv_pixels, "_backward_flipped", seen)
    x, weight, bias = drawn(0, (3, 4, 6, 6), (5, 4, 3, 3), (5,))
    assert_equal(x, weight, bias, padding=1)
    x[0, 0, 0, 0] = np.inf
    assert_equal(x, weight, bias, padding=1)
    assert done == [True, False]


HEAVY = [
    ((8, 64, 16, 16), (64, 64, 3, 3), {"padding": 1}),
    ((8, 64, 16, 16), (128, 64, 3, 3), {"padding": 1, "stride": 2}),
    ((8, 256, 4, 4), (256, 256, 3, 3), {"padding": 1}),
    ((8, 512, 2, 2), (512, 512, 3, 3), {"padding": 1}),
    ((32, 64, 16, 16), (96, 64, 1, 1), {}),
    ((32, 64, 12, 12), (64, 32, 3, 3), {"padding": 1, "groups": 2}),
    ((32, 67, 33, 33), (67, 1, 3, 3), {"padding": 1, "groups": 67}),
]


@pytest.mark.parametrize(("shape", "of_weight", "options"), HEAVY)
def test_bits_do_not_depend_on_the_number_of_threads(shape: Any, of_weight: Any, options: Any) -> None:
    x, weight = drawn(0, shape, of_weight, dtype=np.float32)
    x = memory.batch_last(x)
    results = []
    for threads in (1, 2, 3):
        blocks.set_num_threads(threads)
        y = conv.conv2d(x, weight, None, **options)
        gradients = conv.conv2d_backward(y, x, weight, **options)
        results.append([array.tobytes() for array in (y, *gradients) if array is not None])
    assert results[1] == results[0] == results[2]


@pytest.mark.parametrize(("shape", "of_weight", "options"), HEAVY)
def test_large_convolutions_in_float32(shape: Any, of_weight: Any, options: Any) -> None:
    x, weight, bias = drawn(0, shape, of_weight, of_weight[:1], dtype=np.float32)
    assert_equal(x, weight, bias, 3e-5, **options)


def test_options_that_are_equal_but_of_another_type_are_checked_each_time() -> None:
    x, weight = drawn(0, (2, 3, 6, 6), (4, 3, 3, 3))
    with chooser.fast():
        conv.conv2d(x, weight, None, stride=(1, 1))
        with pytest.raises(TypeError, match=r"conv2d: stride: expected integers, got \(1.0, 1.0\)"):
            conv.conv2d(x, weight, None, stride=(1.0, 1.0))  # type: ignore[arg-type]


def test_the_ways_are_named_by_the_size_of_the_image() -> None:
    def way(size: int, stride: int = 1) -> Any:
        x, weight = drawn(0, (2, 3, size, size), (3, 1, 3, 3))
        g = conv._geometry(x, weight, None, stride, 1, 1, 3)
        return depthwise._way(g)

    assert way(4) is depthwise._Toeplitz
    assert way(8, stride=2) is depthwise._Toeplitz
    assert way(8) is depthwise._Bands
    assert way(33) is way(16, stride=2) is depthwise._Runs
