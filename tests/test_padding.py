"""Padding against torch where borders are negative, images are empty, and values are odd."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnn_lightning import layers
from tests.tiers import both_tiers

tier = both_tiers(__name__)

KINDS = ("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad")


def outcome(kind: type[nn.Module], options: dict[str, Any], x: Tensor) -> tuple[Any, ...]:
    leaf = x.clone().requires_grad_()
    try:
        y = kind(**options)(leaf)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return (type(error),)
    (gradient,) = torch.autograd.grad(y, leaf, torch.arange(float(y.numel()), dtype=y.dtype).reshape(y.shape))
    return y.detach(), gradient


def both(name: str, x: Tensor, **options: Any) -> None:
    options |= {"value": -1.5} if name.startswith("Constant") else {}
    found, expected = (outcome(getattr(home, name), options, x) for home in (layers, nn))
    if isinstance(expected[0], type):
        assert found == expected, options
    else:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0, equal_nan=True, msg=f"{name} {options}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_width_of_a_row(kind: str) -> None:
    """From borders that are too wide to ones that cut all pixels off."""
    x = torch.randn(1, 2, 4, dtype=torch.float64)
    for left, right in itertools.product(range(-6, 7), repeat=2):
        if kind == "CircularPad" and 4 + left + right >= 0 and max(left, right) > 4 + min(left, 0) + min(right, 0):
            continue  # torch copies memory that was not written; ours refuses
        both(f"{kind}1d", x, padding=(left, right))


def test_circular_padding_of_more_pixels_than_a_negative_border_leaves_is_refused() -> None:
    with pytest.raises(RuntimeError, match="expected widths of at most 2"):
        layers.CircularPad1d((-3, 4))(torch.zeros(2, 3, 5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", [2, 3])
def test_widths_of_several_axes(axes: int, kind: str) -> None:
    x = torch.randn(2, 2, *(3, 4, 3)[:axes], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        padding = tuple(torch.randint(-1, 3, (2 * axes,), generator=generator).tolist())
        both(f"{kind}{axes}d", x, padding=padding)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0), (0, 4, 4), (3, 0, 4), (0, 0, 0, 0)]
)
def test_empty_images(shape: tuple[int, ...], kind: str) -> None:
    for padding in (0, 1, (1, 0, 0, 1), (0, -1, 0, 0)):
        both(f"{kind}2d", torch.randn(shape, dtype=torch.float64), padding=padding)


@pytest.mark.parametrize("kind", KINDS)
def test_special_values_are_copied_to_the_bit(kind: str) -> None:
    x = torch.tensor([[-0.0, float("nan"), float("inf"), -float("inf"), 5e-324]], dtype=torch.float64)
    options: dict[str, Any] = {"value": -0.0} if kind == "ConstantPad" else {}
    found, expected = (getattr(home, f"{kind}1d")(padding=(2, 3), **options)(x) for home in (layers, nn))
    assert torch.equal(found.view(torch.int64), expected.view(torch.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_no_widths_give_a_new_tensor(kind: str) -> None:
    options: dict[str, Any] = {"value": 1.0} if kind == "ConstantPad" else {}
    x = torch.ones(2, 3, 4)
    y = getattr(layers, f"{kind}1d")(0, **options)(x)
    assert torch.equal(y, x)
    assert y.data_ptr() != x.data_ptr()
