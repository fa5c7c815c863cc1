"""The kind of mistake that explains a wrong gradient: sentences that need neither torch nor the layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DIFFERS = "differs from numerical differences"
"""What is said of a gradient that no usual mistake explains."""


def diagnosis(
    what: str, gradient: Array, directions: Sequence[Array], slopes: Sequence[float], batch: int
) -> tuple[str, str]:
    """The kind of mistake that explains the numerical slopes, and the advice.

    Args:
        what: The name of the gradient in the sentence: ``the gradient of input 'x'``.
        gradient: The wrong gradient, in float64.
        directions: Directions, each shaped as the gradient.
        slopes: The numerical slope along each direction.
        batch: The size of the batch.
    """

    def explains(candidate: Array) -> bool:
        return all(
            abs(float((candidate * u).sum()) - n) <= 1e-4 * max(map(abs, slopes))
            for u, n in zip(directions, slopes, strict=True)
        )

    given = [float((gradient * u).sum()) for u in directions]
    factor = sum(a * n for a, n in zip(given, slopes, strict=True)) / max(sum(n * n for n in slopes), 1e-300)
    if not gradient.any():
        return (
            f"{what} is missing (None or zeros)",
            "backward returns a gradient for each argument of the forward, in their order; that of a bias is the sum "
            "of grad over all axes but the bias's own",
        )
    if factor and explains(gradient / factor):
        if abs(factor + 1) < 1e-4:
            return f"{what} has the wrong sign", "change the sign of this gradient"
        mend = "look for a factor that the forward has and the backward forgot (or has twice)"
        if batch > 1 and min(abs(factor - batch), abs(factor * batch - 1)) < 1e-4 * factor:
            mend += (
                f"; or, as {batch} is the batch size, for a mean over the batch that should be a sum, or a sum twice"
            )
        return f"{what} is {factor:.6g} times the right one", mend
    if gradient.ndim > 1 and gradient.shape[-1] == gradient.shape[-2] and explains(gradient.swapaxes(-1, -2)):
        return f"{what} is transposed", "swap the two factors of the matrix product, or transpose it"
    if gradient.ndim > 1 and explains(np.flip(gradient, (-1, -2))):
        return (
            f"{what} is upside down in its last two axes",
            "correlation and convolution are confused: only one of forward and backward flips the kernel",
        )
    return (
        f"{what} {DIFFERS}",
        "derive it again for one element; look for a term, a border or a branch that the backward lacks",
    )
