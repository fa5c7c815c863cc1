"""Exercise 11: the whole SimpleCNN."""

from types import ModuleType
from typing import Any

import numpy as np

from cnn_lightning.ops import activation, conv, linear, loss, pool
from cnn_lightning.tools.learn.course.exercise import Array, Case, Exercise, Suspect, Task, random

KEYS = tuple(f"{name}.{kind}" for name in ("linear2", "linear1", "conv2", "conv1") for kind in ("weight", "bias"))
"""The weights, in the order in which the backward meets them."""

_Weights = dict[str, Array]
_SHAPES = {
    "conv1": (2, 1, 3, 3),
    "conv2": (3, 2, 3, 3),
    "linear1": (5, 12),
    "linear2": (4, 5),
}


def gradients(x: Array, target: Array, *weights: Array, without: str = "") -> tuple[Array, ...]:
    """The gradients of all weights, in the order of `KEYS`: forward, loss, and backward from last to first.

    Args:
        x: Images (N, C, H, W), H and W multiples of 4.
        target: (N,).
        weights: In the order of `KEYS`.
        without: The name of a ReLU whose backward is left out.
    """
    w = dict(zip(KEYS, weights, strict=True))
    y1 = conv.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=1)
    a1 = activation.relu(y1)
    p1 = pool.max_pool2d(a1, kernel_size=2)
    y2 = conv.conv2d(p1, w["conv2.weight"], w["conv2.bias"], padding=1)
    a2 = activation.relu(y2)
    p2 = pool.max_pool2d(a2, kernel_size=2)
    flat = p2.reshape(len(x), -1)
    y3 = linear.linear(flat, w["linear1.weight"], w["linear1.bias"])
    a3 = activation.relu(y3)
    scores = linear.linear(a3, w["linear2.weight"], w["linear2.bias"])

    def relu_backward(name: str, grad: Array, y: Array) -> Array:
        return grad if name == without else activation.relu_backward(grad, y)

    found: _Weights = {}
    grad = loss.cross_entropy_backward(np.ones_like(scores, shape=()), scores, target)
    grad, *of_linear2 = linear.linear_backward(grad, a3, w["linear2.weight"])
    grad = relu_backward("relu3", grad, y3)
    grad, *of_linear1 = linear.linear_backward(grad, flat, w["linear1.weight"])
    grad = pool.max_pool2d_backward(grad.reshape(p2.shape), a2, kernel_size=2)
    grad = relu_backward("relu2", grad, y2)
    grad, *of_conv2 = conv.conv2d_backward(grad, p1, w["conv2.weight"], padding=1)
    grad = pool.max_pool2d_backward(grad, a1, kernel_size=2)
    grad = relu_backward("relu1", grad, y1)
    _, *of_conv1 = conv.conv2d_backward(grad, x, w["conv1.weight"], padding=1)
    for name, pair in (("linear2", of_linear2), ("linear1", of_linear1), ("conv2", of_conv2), ("conv1", of_conv1)):
        found[f"{name}.weight"], found[f"{name}.bias"] = pair
    return tuple(found[key] for key in KEYS)


def sgd_step(weight: Array, bias: Array, grad_weight: Array, grad_bias: Array, lr: float) -> tuple[Array, Array]:
    """Each parameter, moved against its gradient: ``weight - lr * gradient``."""
    return weight - lr * grad_weight, bias - lr * grad_bias


def _call_backward(module: ModuleType, x: Array, target: Array, *weights: Array) -> tuple[Array | None, ...]:
    w = dict(zip(KEYS, weights, strict=True))
    scores, inputs = module.forward(x, w)
    grad_scores = module.cross_entropy_backward(np.ones_like(scores, shape=()), scores, target)
    found = module.backward(grad_scores, inputs, w)
    return tuple(found.get(key) for key in KEYS) if isinstance(found, dict) else (None,) * len(KEYS)


def _call_step(
    module: ModuleType, weight: Array, bias: Array, grad_weight: Array, grad_bias: Array, lr: float
) -> tuple[Array | None, ...]:
    names = "linear2.weight", "linear2.bias"
    given = (dict(zip(names, pair, strict=True)) for pair in ((weight, bias), (grad_weight, grad_bias)))
    found = module.sgd_step(*given, lr)
    return tuple(found.get(name) for name in names) if isinstance(found, dict) else (None, None)


def _images(seed: int, n: int) -> Case:
    point: dict[str, Any] = {"x": random(seed, n, 1, 8, 8), "target": np.random.default_rng(seed).integers(0, 4, n)}
    for index, key in enumerate(KEYS):
        name, kind = key.split(".")
        shape = _SHAPES[name]
        point[key] = 0.4 * random(seed + index + 1, *(shape if kind == "weight" else shape[:1]))
    return Case(point, label=f"{n} images")


def _without(relu: str, key: str) -> Suspect:
    layer = key.split(".")[0]
    return Suspect(
        KEYS.index(key),
        f"lacks the mask of {relu}: relu_backward is left out between {layer} and the layer after it",
        f"before {layer}'s backward, call relu_backward with the input of {relu}",
        lambda *arguments: gradients(*arguments, without=relu)[KEYS.index(key)],
    )


def _step(seed: int) -> Case:
    names = "weight", "bias", "grad_weight", "grad_bias"
    return Case({name: random(seed + i, *((3, 2), (3,))[i % 2]) for i, name in enumerate(names)}, {"lr": 0.1})


SIMPLE_CNN = Exercise(
    number=11,
    stem="ex11_simple_cnn",
    title="SimpleCNN: from the last layer to the first",
    write=("backward", "sgd_step"),
    tasks=(
        Task(
            "backward",
            gradients,
            tuple(f"the gradient of parameter {key!r}" for key in KEYS),
            (_images(200, 4), _images(220, 3)),
            tuple(
                _without(relu, f"{layer}.{kind}")
                for relu, layer in (("relu3", "linear1"), ("relu2", "conv2"), ("relu1", "conv1"))
                for kind in ("weight", "bias")
            ),
            call=_call_backward,
            is_chain=True,
        ),
        Task(
            "sgd_step",
            sgd_step,
            ("the new weight", "the new bias"),
            (_step(240),),
            (
                Suspect(
                    0,
                    "has the wrong sign of the step: it goes uphill",
                    "the loss falls against the gradient: weight - lr * gradient",
                    lambda weight, bias, grad_weight, grad_bias, lr: weight + lr * grad_weight,
                ),
                Suspect(
                    0,
                    "lacks the factor lr",
                    "weight - lr * gradient",
                    lambda weight, bias, grad_weight, grad_bias, lr: weight - grad_weight,
                ),
                Suspect(
                    0,
                    "is the step alone, without the old weight",
                    "weight - lr * gradient",
                    lambda weight, bias, grad_weight, grad_bias, lr: -lr * grad_weight,
                ),
            ),
            call=_call_step,
            is_chain=True,
        ),
    ),
    hints=(
        "Write the layers of the forward in reverse, one line each. inputs has what each backward needs.",
        "grad, weights' gradients = linear_backward(grad_scores, inputs['linear2'], ...); then relu_backward(grad, "
        "inputs['relu3']), linear1, a reshape to the output of pool2, pool2, relu2, conv2, pool1, relu1, conv1.",
        "The output of pool2 has the shape inputs['flatten'].shape. sgd_step is {name: "
        "weights[name] - lr * gradients[name] for name in weights}.",
    ),
    uses=(1, 3, 4, 5, 8),
)
