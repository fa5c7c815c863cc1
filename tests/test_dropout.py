"""Dropout's masks are torch's own, for the same state of its generator."""

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cnn_lightning.layers import dropout as layers
from tests.duck import Duck
from tests.tiers import both_tiers

tier = both_tiers(__name__)

PAIRS = [(layers.Dropout, nn.Dropout), (layers.Dropout1d, nn.Dropout1d), (layers.Dropout2d, nn.Dropout2d)]


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(0, 6), min_size=0, max_size=5),
    p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    inplace=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equal_seeds_give_bit_equal_results(
    shape: list[int], p: float, dtype: torch.dtype, inplace: bool, seed: int
) -> None:
    kinds = [PAIRS[0]] + ([PAIRS[1]] if len(shape) in (2, 3) else []) + ([PAIRS[2]] if len(shape) == 4 else [])
    for ours, native in kinds:
        results = []
        for layer in (ours, native):
            torch.manual_seed(seed)
            x = torch.linspace(-3, 3, int(np.prod(shape))).reshape(shape).to(dtype).requires_grad_()
            y = layer(p, inplace)(x * 1)
            after = torch.rand(3)
            (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
            results.append((y.detach(), gradient, after))
        for found, expected in zip(*results, strict=True):
            if dtype == torch.bfloat16:
                torch.testing.assert_close(found, expected)
            else:
                assert torch.equal(found, expected)


@pytest.mark.parametrize(("ours", "native"), [PAIRS[0], PAIRS[2]])
def test_masks_in_channels_last(ours: Any, native: Any) -> None:
    x = torch.randn(4, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    results = []
    for layer in (ours, native):
        torch.manual_seed(0)
        results.append(layer(0.3)(x))
    assert torch.equal(*results)
    assert results[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4), (2, 3, 4, 5, 6)])
def test_dropout2d_of_other_ranks_warns_as_torch(shape: tuple[int, ...]) -> None:
    results = []
    for layer in (layers.Dropout2d, nn.Dropout2d):
        torch.manual_seed(0)
        with pytest.warns(UserWarning, match="dropout2d"):
            results.append(layer(0.5)(torch.ones(shape)))
    assert torch.equal(*results)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_dropout2d_needs_channels(shape: tuple[int, ...]) -> None:
    with pytest.warns(UserWarning, match="dropout2d"), pytest.raises(RuntimeError, match="at least two dimensions"):
        layers.Dropout2d()(torch.ones(shape))


@pytest.mark.parametrize(("ours", "native"), PAIRS)
def test_without_anything_to_drop_the_input_comes_back(ours: Any, native: Any) -> None:
    x = torch.randn(2, 3, 4) if ours is layers.Dropout1d else torch.randn(2, 3, 4, 5)
    state = torch.get_rng_state()
    for layer in (ours(0.0), ours(0.5).eval()):
        assert layer(x) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("ours", "native"), PAIRS)
def test_infinity_and_nan_are_multiplied(ours: Any, native: Any) -> None:
    x = torch.tensor([[[float("inf"), float("nan"), 1.0]]] * 40)
    x = x if ours is not layers.Dropout2d else x[..., None]
    for p in (0.5, 1.0):
        results = []
        for layer in (ours, native):
            torch.manual_seed(0)
            results.append(layer(p)(x))
        torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)


def test_inplace_refuses_a_leaf_before_it_writes() -> None:
    leaf = torch.ones(100).requires_grad_()
    with pytest.raises(RuntimeError, match="leaf"):
        layers.Dropout(inplace=True)(leaf)
    assert torch.equal(leaf, torch.ones(100))


def test_on_a_device_array() -> None:
    dropout = import_module("cnn_lightning.ops.dropout")  # the formulas, which devices run

    x, keep = np.ones((2, 3, 4)), np.array([1.0, 0, 1]).reshape(1, 3, 1)
    found = dropout.dropout(Duck(x), Duck(keep), p=0.5)
    np.testing.assert_array_equal(found.array, dropout.dropout(x, keep, p=0.5))
    np.testing.assert_array_equal(found.array, 2 * x * keep)
    assert isinstance(dropout.dropout_backward(Duck(x), Duck(keep), p=1.0), Duck)
