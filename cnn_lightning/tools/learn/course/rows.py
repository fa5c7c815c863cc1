"""Exercises 3 and 4: rows of features and of scores."""

from functools import partial

import numpy as np

from cnn_lightning.ops import linear, loss, softmax
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
    mean_over_batch,
    random,
)


def _features(seed: int, n: int, i: int, o: int, label: str) -> Case:
    return Case({"x": random(seed, n, i), "weight": random(seed + 1, o, i), "bias": random(seed + 2, o)}, label=label)


_FEATURES = (_features(10, 4, 3, 5, "3 features to 5"), _features(20, 6, 4, 4, "4 features to 4"))

LINEAR = Exercise(
    number=3,
    stem="ex03_linear",
    title="Linear: where do the transposes go?",
    write=("linear_backward",),
    tasks=(
        Task("linear", linear.linear, ("the output",), _FEATURES),
        Task(
            "linear_backward",
            linear.linear_backward,
            (X, WEIGHT, BIAS),
            _FEATURES,
            (
                Suspect(
                    0,
                    "is grad_y times the transposed weight: the weight must not be transposed here",
                    "the forward multiplies by weight^T, so the backward multiplies by weight: "
                    "grad_x[n, i] = sum_o grad_y[n, o] weight[o, i]",
                    lambda grad_y, x, weight: grad_y @ weight.T,
                ),
                Suspect(
                    1,
                    "is transposed: x^T times grad_y instead of grad_y^T times x",
                    "grad_weight[o, i] = sum_n grad_y[n, o] x[n, i]: o comes first, as in the weight",
                    lambda grad_y, x, weight: x.T @ grad_y,
                ),
                mean_over_batch(1, lambda grad_y, x, weight: grad_y.T @ x / len(x)),
                Suspect(
                    1,
                    "lacks the sum over the batch: there is a matrix for each sample",
                    "grad_weight[o, i] = sum_n grad_y[n, o] x[n, i]",
                    lambda grad_y, x, weight: grad_y[:, :, None] * x[:, None, :],
                ),
                Suspect(
                    2,
                    "lacks the sum over the batch: it is grad_y itself",
                    "each sample adds grad_y[n, o] to the bias: sum over axis 0",
                    lambda grad_y, x, weight: grad_y,
                ),
                mean_over_batch(2, lambda grad_y, x, weight: grad_y.mean(0)),
                Suspect(
                    2,
                    "is summed over the wrong axis: over the outputs, not over the batch",
                    "each sample adds grad_y[n, o] to bias[o]: sum over axis 0",
                    lambda grad_y, x, weight: grad_y.sum(1),
                ),
                Suspect(
                    2,
                    "is summed over both axes: one number for all outputs",
                    "each output has a bias of its own: sum over axis 0 alone",
                    lambda grad_y, x, weight: grad_y.sum(),
                ),
            ),
            forward="linear",
            forward_formula=linear.linear,
            saved=("x", "weight"),
        ),
    ),
    hints=(
        "Look at the shapes first: which product of two of (N, O), (N, I), (O, I) has the shape of each gradient?",
        "grad_x[n, i] = sum_o grad_y[n, o] weight[o, i]; grad_weight[o, i] = sum_n grad_y[n, o] x[n, i]; "
        "grad_bias[o] = sum_n grad_y[n, o].",
        "A sum over the middle index is a product of matrices: grad_y @ weight, grad_y.T @ x, grad_y.sum(axis=0).",
    ),
    training=Training({"linear*": "Linear"}, check="--shape 4,3 --options in_features=3 out_features=2"),
)


def _scores(seed: int, n: int, c: int) -> Case:
    target = np.random.default_rng(seed).integers(0, c, n)
    return Case({"logits": 2 * random(seed, n, c), "target": target}, label=f"{n} rows of {c} scores")


_LOGITS = (Case({"logits": 2 * random(30, 5, 4)}), Case({"logits": 2 * random(31, 3, 3)}))
_LARGE = Case(
    {"logits": np.array([[1000.0, 999.0, -1000.0], [-1000.0, -1001.0, -1002.0]])},
    rule="large numbers",
    label="for logits of 1000 and -1000",
)
_SCORES = (_scores(32, 5, 4), _scores(33, 3, 3))


def _p(logits: Array) -> Array:
    return softmax.softmax(logits, dim=1)


def _shifted(logits: Array, axis: int) -> Array:
    """Exponentials after the maximum along an axis is subtracted."""
    return np.asarray(np.exp(logits - logits.max(axis, keepdims=True)))


def _onehot(logits: Array, target: Array) -> Array:
    return np.eye(logits.shape[1])[target]


CROSS_ENTROPY = Exercise(
    number=4,
    stem="ex04_cross_entropy",
    title="Softmax and cross-entropy: probabilities minus truth",
    write=("softmax", "cross_entropy_backward"),
    tasks=(
        Task(
            "softmax",
            partial(softmax.softmax, dim=1),
            ("the output",),
            (*_LOGITS, _LARGE),
            (
                Suspect(
                    0,
                    "is over the wrong axis: the columns have the sum 1, not the rows",
                    "a row has the scores of one sample: sum over axis 1, with keepdims=True",
                    lambda logits: softmax.softmax(logits, dim=0),
                ),
                Suspect(
                    0,
                    "is divided by the sum over all rows together: it lacks the axis of the sum",
                    "each row has the sum 1: sum over axis 1, with keepdims=True",
                    lambda logits: np.exp(logits) / np.exp(logits).sum(),
                ),
                Suspect(
                    0,
                    "is divided by the sum over all rows together, after each maximum: it lacks the axis of the sum",
                    "each row has the sum 1: sum over axis 1, with keepdims=True",
                    lambda logits: _shifted(logits, 1) / _shifted(logits, 1).sum(),
                ),
                Suspect(
                    0,
                    "has the maximum of each column subtracted: that does not cancel in a row",
                    "subtract the maximum of each row: max over axis 1, with keepdims=True",
                    lambda logits: _shifted(logits, 0) / _shifted(logits, 0).sum(1, keepdims=True),
                ),
                Suspect(
                    0,
                    "is not divided by the sum: the rows don't have the sum 1",
                    "divide by the sum of the exponentials of the row",
                    np.exp,
                ),
                Suspect(
                    0,
                    "is the logarithm of the softmax",
                    "give the probabilities: exp and a quotient, no logarithm",
                    partial(softmax.log_softmax, dim=1),
                ),
                Suspect(
                    0,
                    "is NaN: exp overflows, as the maximum of the row is not subtracted",
                    "subtract the maximum of each row first: it cancels in the quotient",
                    lambda logits: np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
                ),
                Suspect(
                    0,
                    "is NaN: the maximum of all rows is subtracted, and a row far below it becomes 0 / 0",
                    "subtract the maximum of each row: max over axis 1, with keepdims=True",
                    lambda logits: np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum(1, keepdims=True),
                ),
            ),
        ),
        Task("cross_entropy", loss.cross_entropy, ("the loss",), _SCORES),
        Task(
            "cross_entropy_backward",
            loss.cross_entropy_backward,
            ("the gradient of input 'logits'",),
            _SCORES,
            (
                Suspect(
                    0,
                    "lacks the factor 1/N: the loss is a mean over the batch",
                    "divide by the number of rows",
                    lambda grad_y, logits, target: grad_y * (_p(logits) - _onehot(logits, target)),
                ),
                Suspect(
                    0,
                    "is divided by N twice",
                    "the mean of the loss has one factor 1/N",
                    lambda grad_y, logits, target: grad_y * (_p(logits) - _onehot(logits, target)) / len(logits) ** 2,
                ),
                Suspect(
                    0,
                    "is divided by the number of classes, not by N",
                    "the loss is a mean over the rows",
                    lambda grad_y, logits, target: grad_y * (_p(logits) - _onehot(logits, target)) / logits.shape[1],
                ),
                Suspect(
                    0,
                    "has the wrong sign: it is truth minus probability",
                    "it is probability minus truth: a score that is too low must grow, so its gradient is negative",
                    lambda grad_y, logits, target: grad_y * (_onehot(logits, target) - _p(logits)) / len(logits),
                ),
                Suspect(
                    0,
                    "lacks the - 1 at the target: it is p alone",
                    "subtract 1 from p at the class that is true",
                    lambda grad_y, logits, target: grad_y * _p(logits) / len(logits),
                ),
                Suspect(
                    0,
                    "has 1 subtracted in whole columns: p[:, target] is every row at the classes of all targets",
                    "one place in each row: p[np.arange(N), target] -= 1",
                    lambda grad_y, logits, target: grad_y * (_p(logits) - _onehot(logits, target).max(0)) / len(logits),
                ),
                Suspect(
                    0,
                    "is the gradient by p, - 1 / p at the target, not by the logits",
                    "go on from p to the logits, through the softmax: what comes out is short",
                    lambda grad_y, logits, target: -grad_y / _p(logits) * _onehot(logits, target) / len(logits),
                ),
                Suspect(
                    0,
                    "is not 0 for the sum of a row: it lacks p at the classes that are not true",
                    "every logit is in the sum of the softmax, so every one has a gradient",
                    lambda grad_y, logits, target: grad_y * (_p(logits) - 1) * _onehot(logits, target) / len(logits),
                ),
                Suspect(
                    0,
                    "lacks the factor grad_y",
                    "grad_y is the gradient of the loss: 1, unless the loss goes on into something else",
                    lambda grad_y, logits, target: (_p(logits) - _onehot(logits, target)) / len(logits),
                ),
                Suspect(
                    0,
                    "takes the logits for probabilities: it is logits minus truth",
                    "use softmax(logits)",
                    lambda grad_y, logits, target: grad_y * (logits - _onehot(logits, target)) / len(logits),
                ),
            ),
            forward="cross_entropy",
            forward_formula=loss.cross_entropy,
            saved=("logits", "target"),
        ),
    ),
    hints=(
        "For one row, the loss is -logits[target] + log sum_k exp(logits[k]). Derive each term by logits[c].",
        "The first term gives -1 at the target, the second gives p[c]. The mean over the rows gives 1/N.",
        "p = softmax(logits); p[np.arange(N), target] -= 1; the gradient is grad_y * p / N. For softmax, subtract "
        "logits.max(axis=1, keepdims=True) before np.exp.",
    ),
    training=Training({"loss": "CrossEntropyLoss"}),
)
