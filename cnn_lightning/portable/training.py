"""Training: batches, the loss of all heads, backward by the formulas, and a step of the optimizer."""

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from cnn_lightning.data.order import permutation
from cnn_lightning.errors import UserError
from cnn_lightning.ops import loss
from cnn_lightning.ops.types import Array
from cnn_lightning.portable.network import Network
from cnn_lightning.portable.pictures import normalised
from cnn_lightning.portable.plan import Plan

EVALUATED = 64
"""Pictures in a batch of an evaluation."""


class Optimizer(Protocol):
    """What changes the weights."""

    def step(self, arrays: dict[str, Array], gradients: dict[str, Array]) -> None:
        """Change the arrays that have a gradient, in place."""


def step(network: Network, optimizer: Optimizer, pictures: Array, labels: Array, random: np.random.Generator) -> float:
    """One step with normalised pictures (N, C, H, W) and classes (N,).

    Args:
        network: It is changed in place.
        optimizer: Makes the step.
        pictures: Normalised.
        labels: The classes.
        random: Draws what dropout drops.

    Returns:
        The loss before the step.
    """
    plan = network.plan
    total, upstream = 0.0, []
    counts = mass(plan, labels) > 0
    for factor, logits in zip(plan.weights, network.outputs(pictures, random), strict=True):
        if not counts:
            upstream.append(np.zeros_like(logits))
            continue
        weight = None if plan.class_weights is None else np.asarray(plan.class_weights, logits.dtype)
        mean = loss.cross_entropy(logits, labels, weight, label_smoothing=plan.label_smoothing)
        grad = np.full_like(mean, factor)
        total += factor * float(mean)
        upstream.append(loss.cross_entropy_backward(grad, logits, labels, weight, label_smoothing=plan.label_smoothing))
    optimizer.step(network.arrays, network.gradients(upstream))
    return total


def mass(plan: Plan, labels: Array) -> float:
    """What the mean loss of pictures divides by: their number, or the sum of the weights of their classes."""
    return float(len(labels) if plan.class_weights is None else np.asarray(plan.class_weights)[labels].sum())


def epochs(
    network: Network,
    optimizer: Optimizer,
    images: Array,
    labels: Array,
    *,
    batch_size: int,
    seed: int,
    count: int,
    each_step: Callable[[int, int, int], None] = lambda epoch, step, steps: None,
) -> Iterator[float]:
    """Train, and give the mean loss after each epoch. The order of the pictures is that of the project's DataModules.

    Args:
        network: It is changed in place.
        optimizer: Makes the steps.
        images: uint8 (N, C, H, W).
        labels: The classes (N,).
        batch_size: Pictures in a step; the last batch of an epoch may be smaller.
        seed: Of the order and of dropout.
        count: Number of epochs.
        each_step: Is called before each step with the epoch, the step and the steps of an epoch, from 1 on.

    Raises:
        UserError: The loss is not finite.
    """
    steps = -(-len(labels) // batch_size)
    for epoch in range(count):
        order, total = permutation(len(labels), seed, epoch), 0.0
        random = np.random.default_rng([seed, epoch, 2])
        for number in range(steps):
            each_step(epoch + 1, number + 1, steps)
            batch = order[number * batch_size : (number + 1) * batch_size]
            value = step(network, optimizer, normalised(images[batch], network.plan), labels[batch], random)
            if not math.isfinite(value):
                raise UserError(
                    f"--lr: expected a rate with which the loss stays finite, got {value} in step {number + 1} of "
                    f"epoch {epoch + 1}; a smaller one may help"
                )
            total += value * mass(network.plan, labels[batch])
        yield total / (mass(network.plan, labels) or 1)


def logits(network: Network, images: Array) -> Array:
    """The logits (N, classes) of uint8 images (N, C, H, W), some at a time."""
    parts = [
        network.logits(normalised(images[start : start + EVALUATED], network.plan))
        for start in range(0, len(images), EVALUATED)
    ]
    return np.concatenate(parts)


def accuracy(network: Network, images: Array, labels: Array) -> float:
    """The fraction of images whose largest logit is at the true class."""
    return float((logits(network, images).argmax(1) == labels).mean())
