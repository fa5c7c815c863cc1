"""Exercise 10: batch normalisation."""

import numpy as np

from cnn_lightning.ops import norm
from cnn_lightning.tools.learn.course.exercise import (
    BIAS,
    WEIGHT,
    Array,
    Case,
    Exercise,
    Suspect,
    Task,
    Training,
    X,
    random,
)

EPS = 1e-5


def running_statistics(
    running_mean: Array, running_var: Array, mean: Array, var: Array, count: int, momentum: float
) -> tuple[Array, Array]:
    """The averages over batches that evaluation uses: ``(1 - momentum) average + momentum statistic``."""
    unbiased = var * count / (count - 1)
    new_mean = (1 - momentum) * running_mean + momentum * mean
    return new_mean, (1 - momentum) * running_var + momentum * unbiased


def _point(seed: int, n: int) -> dict[str, Array]:
    return {
        "x": 2 * random(seed, n, 3, 2, 2) + random(seed + 1, 1, 3, 1, 1),
        "weight": random(seed + 2, 3),
        "bias": random(seed + 3, 3),
    }


_BATCH = Case(_point(140, 4), label="a batch of 4"), Case(_point(150, 2), label="a batch of 2")
_GIVEN = Case(
    _point(170, 4) | {"mean": random(174, 3), "var": random(175, 3) ** 2 + 0.5},
    rule="evaluation",
    label="with mean and var given",
)
_AVERAGES = tuple(
    Case(
        {
            "running_mean": random(seed, 3),
            "running_var": random(seed + 1, 3) ** 2 + 0.5,
            "mean": random(seed + 2, 3),
            "var": random(seed + 3, 3) ** 2 + 0.5,
        },
        {"count": count, "momentum": momentum},
        label=f"count {count}, momentum {momentum}",
    )
    for seed, count, momentum in ((180, 16, 0.1), (190, 6, 0.3))
)


def _channels(values: Array) -> Array:
    return values[:, None, None]


def _mean(x: Array) -> Array:
    return np.asarray(x.mean((0, 2, 3)))


def _normalised(x: Array, mean: Array, divisor: Array, weight: Array, bias: Array) -> Array:
    return (x - _channels(mean)) / _channels(divisor) * _channels(weight) + _channels(bias)


def _by_batch(x: Array, weight: Array, bias: Array, divisor: str) -> Array:
    var = x.var((0, 2, 3))
    unbiased = x.var((0, 2, 3), ddof=1)
    divisors = {
        "unbiased": np.sqrt(unbiased + EPS),
        "eps outside": np.sqrt(var) + EPS,
        "no eps": np.sqrt(var),
        "variance": var + EPS,
    }
    return _normalised(x, _mean(x), divisors[divisor], weight, bias)


def _gradient(
    grad_y: Array, x: Array, weight: Array, mean: Array, var: Array, *, by_mean: float = 1, by_var: float = 1
) -> Array:
    invstd = 1 / np.sqrt(var + EPS)
    xhat, g = (x - _channels(mean)) * _channels(invstd), grad_y * _channels(weight)
    through = by_mean * _channels(_mean(g)) + by_var * xhat * _channels(_mean(g * xhat))
    return _channels(invstd) * (g - through)


_BOTH = "grad_x = 1 / sqrt(var + eps) * (g - mean(g) - xhat * mean(g * xhat)), with means over N, H and W"

BATCH_NORM = Exercise(
    number=10,
    stem="ex10_batch_norm",
    title="Batch normalisation: the mean depends on every value",
    write=("batch_norm", "running_statistics", "batch_norm_backward"),
    tasks=(
        Task(
            "batch_norm",
            norm.batch_norm,
            ("the output", "the mean", "the variance"),
            (*_BATCH, _GIVEN),
            (
                Suspect(
                    0,
                    "is divided by the variance: the root is missing",
                    "divide by sqrt(var + eps)",
                    lambda x, weight, bias, *_: _by_batch(x, weight, bias, "variance"),
                ),
                Suspect(
                    0,
                    "uses the unbiased variance, with M - 1: here it is divided by M",
                    "the unbiased variance is for the running average alone",
                    lambda x, weight, bias, *_: _by_batch(x, weight, bias, "unbiased"),
                ),
                Suspect(
                    0,
                    "has eps outside of the root: sqrt(var) + eps",
                    "divide by sqrt(var + eps)",
                    lambda x, weight, bias, *_: _by_batch(x, weight, bias, "eps outside"),
                ),
                Suspect(
                    0,
                    "lacks eps: a variance of 0 would give 0 / 0",
                    "divide by sqrt(var + eps)",
                    lambda x, weight, bias, *_: _by_batch(x, weight, bias, "no eps"),
                ),
                Suspect(
                    0,
                    "uses the statistics of x, though mean and var are given",
                    "if mean and var are not None, use them: this is evaluation",
                    lambda x, weight, bias, *_: norm.batch_norm(x, weight, bias)[0],
                ),
                Suspect(
                    0,
                    "has the statistics of all channels together",
                    "each channel has its own: axis=(0, 2, 3)",
                    lambda x, weight, bias, *_: _normalised(
                        x, np.full(3, x.mean()), np.full(3, np.sqrt(x.var() + EPS)), weight, bias
                    ),
                ),
                Suspect(
                    0,
                    "has statistics for each image: the batch shares them",
                    "mean and variance are over the batch and the image: axis=(0, 2, 3)",
                    lambda x, weight, bias, *_: (
                        (x - x.mean((2, 3), keepdims=True))
                        / np.sqrt(x.var((2, 3), keepdims=True) + EPS)
                        * _channels(weight)
                        + _channels(bias)
                    ),
                ),
                Suspect(
                    0,
                    "lacks the bias",
                    "y = weight * xhat + bias",
                    lambda x, weight, bias, *given: norm.batch_norm(x, weight, None, *given)[0],
                ),
                Suspect(
                    0,
                    "lacks the weight",
                    "y = weight * xhat + bias",
                    lambda x, weight, bias, *given: norm.batch_norm(x, None, bias, *given)[0],
                ),
                Suspect(
                    2,
                    "is the unbiased one, with M - 1: here it is divided by M",
                    "the unbiased variance is for the running average alone",
                    lambda x, weight, bias, *_: x.var((0, 2, 3), ddof=1),
                ),
            ),
        ),
        Task(
            "running_statistics",
            running_statistics,
            ("the running mean", "the running variance"),
            _AVERAGES,
            (
                Suspect(
                    0,
                    "has the momentum swapped: momentum is the part of the new statistic",
                    "(1 - momentum) * average + momentum * statistic",
                    lambda running_mean, running_var, mean, var, count, momentum: (
                        momentum * running_mean + (1 - momentum) * mean
                    ),
                ),
                Suspect(
                    1,
                    "has the momentum swapped: momentum is the part of the new statistic",
                    "(1 - momentum) * average + momentum * statistic",
                    lambda running_mean, running_var, mean, var, count, momentum: (
                        momentum * running_var + (1 - momentum) * var * count / (count - 1)
                    ),
                ),
                Suspect(
                    1,
                    "uses the biased variance: here it is the unbiased one, var * M / (M - 1)",
                    "multiply var by count / (count - 1)",
                    lambda running_mean, running_var, mean, var, count, momentum: (
                        (1 - momentum) * running_var + momentum * var
                    ),
                ),
                Suspect(
                    1,
                    "has the factor of the unbiased variance upside down",
                    "multiply var by count / (count - 1)",
                    lambda running_mean, running_var, mean, var, count, momentum: (
                        (1 - momentum) * running_var + momentum * var * (count - 1) / count
                    ),
                ),
                Suspect(
                    0,
                    "lacks the factor 1 - momentum of the old average",
                    "(1 - momentum) * average + momentum * statistic",
                    lambda running_mean, running_var, mean, var, count, momentum: running_mean + momentum * mean,
                ),
            ),
        ),
        Task(
            "batch_norm_backward",
            norm.batch_norm_backward,
            (X, WEIGHT, BIAS),
            _BATCH,
            (
                Suspect(
                    0,
                    "lacks the terms through the mean and the variance: it is that of constants",
                    _BOTH,
                    lambda *arguments, **_: _gradient(*arguments, by_mean=0, by_var=0),
                ),
                Suspect(
                    0,
                    "lacks the term through the variance, xhat * mean(g * xhat)",
                    _BOTH,
                    lambda *arguments, **_: _gradient(*arguments, by_var=0),
                ),
                Suspect(
                    0,
                    "lacks the term through the mean, mean(g)",
                    _BOTH,
                    lambda *arguments, **_: _gradient(*arguments, by_mean=0),
                ),
                Suspect(
                    0,
                    "lacks the factor 1/M of the two means: they are sums",
                    _BOTH,
                    lambda grad_y, x, *arguments, **_: _gradient(
                        grad_y, x, *arguments, by_mean=x[:, 0].size, by_var=x[:, 0].size
                    ),
                ),
                Suspect(
                    0,
                    "lacks the factor 1/M of mean(g * xhat): it is a sum",
                    _BOTH,
                    lambda grad_y, x, *arguments, **_: _gradient(grad_y, x, *arguments, by_var=x[:, 0].size),
                ),
                Suspect(
                    0,
                    "lacks the factor 1/M of mean(g): it is a sum",
                    _BOTH,
                    lambda grad_y, x, *arguments, **_: _gradient(grad_y, x, *arguments, by_mean=x[:, 0].size),
                ),
                Suspect(
                    0,
                    "is divided by the variance: the root is missing",
                    _BOTH,
                    lambda grad_y, x, weight, mean, var, **_: (
                        _gradient(grad_y, x, weight, mean, var) / _channels(np.sqrt(var + EPS))
                    ),
                ),
                Suspect(
                    0,
                    "lacks the weight",
                    "g = grad_y * weight",
                    lambda grad_y, x, weight, *arguments, **_: _gradient(grad_y, x, 0 * weight + 1, *arguments),
                ),
                Suspect(
                    1,
                    "has g in place of grad_y: it is multiplied by the weight",
                    "the weight multiplies xhat: sum grad_y * xhat",
                    lambda grad_y, x, weight, mean, var, **_: (
                        grad_y * _channels(weight) * (x - _channels(mean)) / _channels(np.sqrt(var + EPS))
                    ).sum((0, 2, 3)),
                ),
                Suspect(
                    1,
                    "has x in place of xhat",
                    "the weight multiplies xhat: sum grad_y * xhat",
                    lambda grad_y, x, *arguments, **_: (grad_y * x).sum((0, 2, 3)),
                ),
                Suspect(
                    1,
                    "has x - mean in place of xhat: it is not divided by the root",
                    "the weight multiplies xhat: sum grad_y * xhat",
                    lambda grad_y, x, weight, mean, var, **_: (grad_y * (x - _channels(mean))).sum((0, 2, 3)),
                ),
                Suspect(
                    2,
                    "is a mean, and must be the sum over batch and positions",
                    "sum over axis=(0, 2, 3), and divide by nothing",
                    lambda grad_y, *arguments, **_: _mean(grad_y),
                ),
            ),
            forward="batch_norm",
            forward_formula=norm.batch_norm,
            saved=("x", "weight", "mean", "var"),
        ),
    ),
    hints=(
        "Begin with weight and bias: y = weight * xhat + bias. For x, there are three ways: straight, through the "
        "mean, through the variance.",
        "With g = grad_y * weight: straight gives g, the mean gives - mean(g), the variance gives - xhat * mean(g * "
        "xhat); all of it times 1 / sqrt(var + eps). Means are over N, H and W.",
        "mean = x.mean(axis=(0, 2, 3)), var = x.var(axis=(0, 2, 3)); mean[:, None, None] has the shape that meets x. "
        "grad_weight = (grad_y * xhat).sum(axis=(0, 2, 3)).",
    ),
    training=Training(
        {"bn1": "BatchNorm2d", "*.bn?": "BatchNorm2d", "*.downsample.1": "BatchNorm2d"},
        ("--model.net", "resnet18"),
        "--options num_features=3",
    ),
)
