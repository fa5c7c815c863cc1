"""NumPy layers in torch's counter of multiplications and additions, and in whatever asks that counter.

``torch.utils.flop_counter.FlopCounterMode`` sees each call of `bridge.call` as one operator. Here it learns what the
operator stands for; Lightning's model summary and throughput monitor count by it.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cnn_lightning.layers import catalog

_counted = {name: entry.flops for entry in catalog.entries().values() if entry.flops for name in entry.functions}
"""The layers whose products are counted, by the formulas that they call: those bear the names of torch's functions."""


@register_flop_formula(torch.ops.cnn_lightning.call, get_raw=True)
def _count(op: str, tensors: Sequence[Tensor | None], text: str, *, out_val: Any, **others: Any) -> int:
    """As torch counts its own layers.

    The input's gradient takes as many as the forward, the weight's too (torch multiplies that by the groups), and the
    bias's none.
    """
    module, _, name = op.partition(":")
    forward = name.removesuffix("_backward")
    count = _counted.get(forward)
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
