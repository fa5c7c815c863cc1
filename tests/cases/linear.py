"""Linear layers."""

from typing import Any

import torch
from hypothesis import strategies as st

from cnn_lightning.layers.linear import Linear
from tests.cases import Arguments, Bad, Case, Sample
from tests.trials import Draw, Trial, rarely, trial


def _options(features: float, out: int, **more: Any) -> dict[str, Any]:
    return {"in_features": features, "out_features": out, **more}


def linear(draw: Draw, case: Case) -> Trial:
    features = draw(st.integers(0, 6))
    options = {"in_features": features, "out_features": draw(st.integers(0, 5)), "bias": draw(st.booleans())}
    shape = [draw(st.integers(0, 4)) for _ in range(draw(st.integers(0, 3)))]
    return trial(draw, case.native, options, [*shape, rarely(draw, features, features + 1)])


CASES = [
    Case(
        Linear,
        torch.nn.Linear,
        trial=linear,
        trials=500,
        rounding="sum",
        arguments=Arguments(
            ("weight", "bias"),
            parameters=("weight", "bias"),
            sizes=lambda x, arguments: _options(arguments["weight"].shape[-1], len(arguments["weight"])),
            fits=lambda x, arguments: bool(arguments["weight"].dim() == 2),
        ),
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
