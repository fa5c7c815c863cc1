"""Linear layers."""

from typing import Any

import torch

from cnn_lightning.layers.linear import Linear
from tests.cases import Bad, Case, Sample


def _options(features: int, out: int, **more: Any) -> dict[str, Any]:
    return {"in_features": features, "out_features": out, **more}


CASES = [
    Case(
        Linear,
        torch.nn.Linear,
        samples=[
            Sample((4, 5), _options(5, 3)),
            Sample((5,), _options(5, 3)),
            Sample((2, 3, 4, 5), _options(5, 3)),
            Sample((2, 0, 5), _options(5, 3)),
            Sample((4, 5), _options(5, 3, bias=False)),
            Sample((1, 1), _options(1, 1)),
            Sample((5,), _options(5, 3, bias=False)),
        ],
        bad=[
            Bad(_options(5, 3), (4, 6)),
            Bad(_options(5, 3), (6,)),
            Bad(_options(5, 3), ()),
            Bad(_options(1, 3), ()),
            Bad(_options(5, 3), (4, 5), torch.int64),
            Bad(_options(5, 3), (4, 5), torch.bool),
            Bad(_options(5, 3), (4, 5), torch.float64),
            Bad(_options(5, 3), (4, 5), torch.float16),
            Bad(_options(-5, 3), (4, 5)),
            Bad(_options(5.0, 3), (4, 5)),
            Bad(_options(5, 3), make=lambda generator, dtype: (torch.ones(4, 5).numpy(),)),
        ],
    )
]
