"""Functions that NumPy does not have, or that are less accurate than torch's in its float32."""

import math

import numpy as np

from cnn_lightning.ops.fast import blocks
from cnn_lightning.ops.special import COEFFICIENTS, K
from cnn_lightning.ops.types import Array


def precise(function: np.ufunc, x: Array, out: Array | None = None) -> Array:
    """``function(x)`` in the dtype of ``x``, computed in float64: half a unit in the last place off, not two or three.

    NumPy casts piece by piece, without a float64 array of all values.
    """
    out = blocks.empty_like(x) if out is None else out
    function(x, out=out, dtype=np.float64, casting="same_kind")
    return out


BITS = {size: np.dtype(f"i{size}") for size in (1, 2, 4, 8)}
"""The integers of each size, to see the bits of other numbers."""


def keep_where(where: Array, x: Array, *, out: Array) -> None:
    """``out = x where where else 0``, by the bits of ``x``: an integer times 0 is 0, infinity times 0 is not."""
    bits = BITS[out.itemsize]
    np.multiply(x.view(bits), where.view(np.int8), out=out.view(bits), dtype=bits)


# By item size. For float32 a shorter polynomial than that of `ops.special` is enough: interpolated in the same way, but
# on 0 <= a <= 14; for a larger a, P(-a) is below the range of float32.
_COEFFICIENTS = {
    4: (
        0.2569558024406433,
        -0.3893131911754608,
        0.32586702704429626,
        -0.18555480241775513,
        0.06898172944784164,
        -0.011248426511883736,
        -0.0036564550828188658,
        0.0020930871833115816,
        0.0004865473019890487,
    ),
    8: COEFFICIENTS,
}


def normal(x: Array) -> tuple[Array, Array]:
    """The standard normal distribution ``P(x) = erfc(-x / sqrt 2) / 2`` and its density ``P'(x)``, both in float64.

    ``x`` is float32 or float64, of any shape. The polynomial is computed in the dtype of ``x``. It is a small summand,
    so that the relative error of ``P`` is at most 3 float32 ulp for float32, also below 0, where ``1 + erf`` loses all
    digits. For float64 it is 6 + 2 x^2 ulp below 0, and 4 ulp above.
    """
    a = np.abs(x)
    np.minimum(a, 1000, out=a)  # infinity / infinity would be NaN
    w = a + K
    np.divide(a, w, out=w)
    t = 2 * w
    t -= 1
    first, *others = reversed(_COEFFICIENTS[x.itemsize])
    polynomial = t * first
    for coefficient in others[:-1]:
        polynomial += coefficient
        polynomial *= t
    polynomial += others[-1]
    polynomial *= w
    tail = polynomial.astype(np.float64, copy=False)
    tail += 0.5
    wide = a.astype(np.float64, copy=False)
    density = np.square(wide)
    density *= -0.5
    np.exp(density, out=density)
    tail *= density
    wide *= math.sqrt(2)
    wide += 1
    tail /= wide
    # P(-a), or 1 - P(-a) above 0
    np.copysign(tail, -x, out=tail)
    tail += ~np.signbit(x)
    density *= 1 / math.sqrt(2 * math.pi)
    return tail, density
