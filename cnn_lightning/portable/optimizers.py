"""Optimizers that change arrays in place, by the same steps as those of ``torch.optim``."""

from collections.abc import Mapping

import numpy as np

from cnn_lightning.ops.types import Array


class SGD:
    """Gradient descent with momentum: ``v = momentum v + g + weight_decay w``, ``w = w - lr v``.

    Args:
        lr: The size of a step.
        weight_decay: Pulls the weights towards 0.
        momentum: The part of the last step that is made again.
    """

    def __init__(self, lr: float, weight_decay: float, momentum: float) -> None:
        self.lr, self.weight_decay, self.momentum = lr, weight_decay, momentum
        self.velocity: dict[str, Array] = {}

    def step(self, arrays: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
        """Change the arrays that have a gradient."""
        for name, gradient in gradients.items():
            weight = arrays[name]
            gradient = gradient + self.weight_decay * weight if self.weight_decay else gradient
            before = self.velocity.get(name)
            self.velocity[name] = gradient if before is None else self.momentum * before + gradient
            weight -= self.lr * self.velocity[name]


class Adam:
    """Steps of about ``lr``, whatever the size of the gradient (Kingma and Ba, https://arxiv.org/abs/1412.6980).

    Args:
        lr: The size of a step.
        weight_decay: Pulls the weights towards 0.
        decoupled: Whether the weights shrink beside the step, as in AdamW (Loshchilov and Hutter,
            https://arxiv.org/abs/1711.05101), and not by an addition to the gradient.
    """

    BETAS, EPS = (0.9, 0.999), 1e-8

    def __init__(self, lr: float, weight_decay: float, *, decoupled: bool) -> None:
        self.lr, self.weight_decay, self.decoupled, self.steps = lr, weight_decay, decoupled, 0
        self.mean: dict[str, Array] = {}
        self.square: dict[str, Array] = {}

    def step(self, arrays: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
        """``w = w - lr mean / (sqrt(square) + eps)``, both corrected for their start at zero."""
        self.steps += 1
        a, b = self.BETAS
        for name, gradient in gradients.items():
            weight = arrays[name]
            if self.decoupled:
                weight *= 1 - self.lr * self.weight_decay
            elif self.weight_decay:
                gradient = gradient + self.weight_decay * weight
            mean = self.mean.setdefault(name, np.zeros_like(weight))
            square = self.square.setdefault(name, np.zeros_like(weight))
            mean += (1 - a) * (gradient - mean)
            square *= b
            square += (1 - b) * gradient * gradient
            root = np.sqrt(square) / (1 - b**self.steps) ** 0.5 + self.EPS
            weight -= self.lr / (1 - a**self.steps) * mean / root
