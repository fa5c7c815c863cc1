"""Local response normalisation against torch, where values are not finite or the divisor is 0."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cnn_lightning import layers
from cnn_lightning.ops import response

SPECIAL = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, -0.0], dtype=torch.float64)


@pytest.mark.parametrize("options", [{"size": 3}, {"size": 2, "k": 0.0}, {"size": 4, "alpha": 2.0, "beta": -0.5}])
def test_what_is_not_finite_reaches_the_neighbour_channels_alone(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 9, 2, 2, generator=generator, dtype=torch.float64)
    for image, value in zip(x, SPECIAL, strict=True):
        image[3:5, 0, 0] = value
    found, expected = (layer(**options)(x) for layer in (layers.LocalResponseNorm, nn.LocalResponseNorm))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    numbers = ~expected.isnan()
    assert torch.equal(torch.signbit(found[numbers]), torch.signbit(expected[numbers]))


def test_an_empty_batch_is_the_input_itself() -> None:
    x = torch.zeros(0, 3, 2)
    assert layers.LocalResponseNorm(2)(x) is x


def test_large_values_do_not_overflow() -> None:
    """Squares are in float64: torch's overflow in single precision."""
    x = np.full((1, 2, 1, 1), 1e25, np.float32)
    found = response.local_response_norm(x, size=2)
    np.testing.assert_allclose(found[0, :, 0, 0], 1e25 / (1 + 1e-4 * np.array([0.5, 1]) * 1e50) ** 0.75, rtol=1e-6)
    assert found.dtype == np.float32
