"""The base of all layers of a plan."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cnn_lightning.ops.types import Array


class Layer:
    """One node of a plan.

    A forward keeps in ``saved`` what its backward needs; the network drops it unless it trains.

    Args:
        options: The keyword arguments of the formula.
        parameters: The weights and buffers by their role, such as ``weight``. Optimizers change them in place.
    """

    forward: Callable[..., Array]
    """The output, for the inputs one by one."""
    backward: Callable[[Array], tuple[Array, ...]]
    """The gradient of each input, for that of the output; those of the parameters stay in ``gradients``, by role."""

    def __init__(self, options: Mapping[str, Any], parameters: Mapping[str, Array]) -> None:
        self.options, self.parameters = dict(options), parameters
        self.training = False
        self.random = np.random.default_rng(0)
        self.saved: Any = None
        self.gradients: dict[str, Array | None] = {}

    @property
    def weight(self) -> Any:
        """The weight, or None."""
        return self.parameters.get("weight")

    @property
    def bias(self) -> Any:
        """The bias, or None."""
        return self.parameters.get("bias")
