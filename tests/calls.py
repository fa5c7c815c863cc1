"""Every formula, and the arguments that the layers of the table of cases call it with."""

from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from cnn_lightning.layers import bridge
from cnn_lightning.ops.fast import chooser
from tests.cases import load
from tests.test_layers import build, run

Operation = Callable[..., Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]

OPERATIONS: list[Operation] = [op for functions in chooser.formulas().values() for op in functions.values()]


def name_of(op: Operation) -> str:
    return f"{op.__module__.rpartition('.')[2]}.{op.__name__}"


def direct() -> dict[str, list[Call]]:
    """Arguments of operations that no layer of the table calls."""
    random = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return random.standard_normal(shape)

    x, target = array(2, 3, 6, 6), random.integers(0, 3, (4,))
    probabilities, logits = array(4, 3), array(4, 3)
    return {
        "conv.bias_gradient": [((x,), {})],
        "activation.elu_backward_from_output": [((x, x), {"alpha": 0.5})],
        "loss.cross_entropy_backward_target": [((np.array(1.0), logits, probabilities, array(3)), {})],
        "norm.batch_statistics": [((x,), {})],
        "norm.batch_norm_backward_part": [((x, 2 * x, array(3), *array(4, 3) ** 2), {"count": 100})],
        "loss.nll_loss": [((logits, target, array(3)), {})],
        "pool.add_at": [((array(2, 3, 2, 3), x, random.integers(0, 36, (2, 3, 2, 3))), {})],
        "product.product": [((array(4, 3), array(3, 5)), {}), ((array(2, 4, 3), array(2, 3, 5)), {})],
        "product.add_product": [
            ((array(5), array(4, 3), array(3, 5)), {"beta": 0.5, "alpha": -2.0}),
            ((np.full((4, 5), np.nan), array(4, 3), array(3, 5)), {"beta": 0}),
            ((array(2, 4, 5), array(2, 4, 3), array(2, 3, 5)), {}),
        ],
    }


class Record(bridge.Listener):
    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = defaultdict(list, direct())

    def enter(self, op: Operation, arrays: Any, options: dict[str, Any]) -> None:
        copies = tuple(None if array is None else array.copy("K") for array in arrays)
        self.calls[name_of(op)].append((copies, options))


@cache
def recorded() -> dict[str, list[Call]]:
    """What every operation was called with while every layer of the table ran, forward and backward."""
    with bridge.watch(Record()) as record:
        for case in load():
            for sample in case.samples:
                for dtype in (torch.float64, torch.float32):
                    run(build(case, sample, dtype)[0], sample.inputs(dtype))
    return record.calls


def results(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value]
