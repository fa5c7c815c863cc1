"""Let torch's counter of multiplications and additions count NumPy layers.

``torch.utils.flop_counter.FlopCounterMode`` sees each call of `bridge.call` as one operator. The formula registered
here counts what that operator computes. Lightning's model summary and throughput monitor use the same counter.
"""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cnn_lightning.layers import catalog


@cache
def _counted() -> dict[str, catalog.Flops]:
    """How to count a layer, by the formula that it calls; formulas have the names of torch's functions."""
    return {name: entry.flops for entry in catalog.entries().values() if entry.flops for name in entry.functions}


@register_flop_formula(torch.ops.cnn_lightning.call, get_raw=True)
def _count(op: str, tensors: Sequence[Tensor | None], text: str, *, out_val: Any, **others: Any) -> int:
    """The number that torch counts for its own layers.

    The gradient of the input counts as many as the forward. That of the weight counts as many times the number of
    groups, as in torch. That of the bias counts 0.
    """
    module, _, name = op.partition(":")
    forward = name.removesuffix("_backward")
    count = _counted().get(forward)
    if count is None or not module.startswith("cnn_lightning.ops."):
        return 0
    shapes = [() if tensor is None else tuple(tensor.shape) for tensor in tensors]
    if name == forward:
        x, weight, *_ = shapes
        return count(x, weight, tuple(out_val[0].shape))
    y, x, weight, *_ = shapes
    options = json.loads(text)["options"]
    of_x, of_weight, *_ = options.get("needs", (True, True))
    return int(of_x + of_weight * options.get("groups", 1)) * count(x, weight, y)
