"""The normal distribution, which NumPy does not have."""

import math

import numpy as np

from cnn_lightning.ops.types import Array

# After M. M. Shepherd and J. G. Laframboise, "Chebyshev Approximation of (1 + 2x) exp(x^2) erfc x in 0 <= x < inf.",
# Math. Comp. 36 (1981), 249-253. In terms of the distribution P, F(a) = (1 + sqrt(2) a) exp(a^2 / 2) P(-a) is smooth in
# t = (a - K) / (a + K), so that one polynomial is enough for every a >= 0, without a branch. F(0) = 1/2; these are the
# coefficients of (F - 1/2) / w with w = a / (a + K) = (1 + t) / 2, in powers of t. They interpolate it at Chebyshev
# nodes of 0 <= a <= 38; for a larger a, P(-a) is below the range of float64.
K = 4.0
COEFFICIENTS = (
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
)


def normal(x: Array) -> tuple[Array, Array]:
    """The standard normal distribution ``P(x) = erfc(-x / sqrt 2) / 2`` and its density ``P'(x)``, both in float64.

    The relative error of ``P`` is 6 + 2 x^2 units in the last place below 0, where ``1 + erf`` loses all digits, and 4
    above.
    """
    a = np.minimum(np.abs(x.astype(np.float64)), 1000)  # infinity / infinity would be NaN
    w = a / (a + K)
    polynomial = np.zeros_like(w)
    for coefficient in reversed(COEFFICIENTS):
        polynomial = polynomial * (2 * w - 1) + coefficient
    bell = np.exp(-(a**2) / 2)
    tail = (0.5 + w * polynomial) * bell / (1 + math.sqrt(2) * a)
    return np.where(np.signbit(x), tail, 1 - tail), bell / math.sqrt(2 * math.pi)
