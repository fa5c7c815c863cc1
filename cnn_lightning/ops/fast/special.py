"""Functions that NumPy lacks, or has in float32 with half of torch's accuracy."""

import math

import numpy as np

from cnn_lightning.ops.fast import blocks
from cnn_lightning.ops.types import Array


def precise(function: np.ufunc, x: Array, out: Array | None = None) -> Array:
    """``function(x)`` in the dtype of ``x``, computed in float64: half a unit in the last place off, not two or three.

    NumPy casts piece by piece, so that no float64 array comes to be.
    """
    out = blocks.empty_like(x) if out is None else out
    function(x, out=out, dtype=np.float64, casting="same_kind")
    return out


# After M. M. Shepherd and J. G. Laframboise, "Chebyshev Approximation of (1 + 2x) exp(x^2) erfc x in 0 <= x < inf.",
# Math. Comp. 36 (1981), 249-253. In terms of the distribution P, F(a) = (1 + sqrt(2) a) exp(a^2 / 2) P(-a) is smooth in
# t = (a - K) / (a + K), so that one polynomial serves every a >= 0, without a branch. F(0) = 1/2; these are the
# coefficients of (F - 1/2) / w with w = a / (a + K) = (1 + t) / 2, in powers of t, for float32 and float64 (by item
# size). They interpolate it at Chebyshev nodes of 0 <= a <= 14 and 0 <= a <= 38, where P(-a) leaves the dtype's range.
_K = 4.0
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
    8: (
        0.25695575749662525,
        -0.389312401298556,
        0.3258701990109447,
        -0.1855717922608258,
        0.06893331459640964,
        -0.011167287720267116,
        -0.0034020537089650216,
        0.002064978764780073,
        5.555502840005643e-05,
        -0.0002849045953650382,
        1.268839649856548e-05,
        4.357692841897869e-05,
        -1.4807375089020342e-06,
        -7.53677210306928e-06,
        -3.7453923217505655e-07,
        1.347791164389536e-06,
        2.5089299995388294e-07,
        -2.1092531497541375e-07,
        -7.32953064485427e-08,
        2.028762745474248e-08,
        1.0199153029852857e-08,
    ),
}


def normal(x: Array) -> tuple[Array, Array]:
    """The standard normal distribution ``P(x) = erfc(-x / sqrt 2) / 2`` and its density ``P'(x)``, both in float64.

    float32 or float64, any shape. The polynomial is computed in the dtype of ``x``: it is so small a part of the sum
    that the relative error of ``P`` is 3 float32 ulp at most for float32, below 0 too, where ``1 + erf`` loses all
    digits. For float64 it is 6 + 2 x^2 ulp below 0, and 4 ulp above.
    """
    a = np.abs(x)
    np.minimum(a, 1000, out=a)  # infinity / infinity would be NaN
    w = a + _K
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
