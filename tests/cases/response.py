"""Local response normalisation."""

import torch
from hypothesis import strategies as st
from torch import nn

from cnn_lightning.layers import response
from tests.cases import Bad, Case, Sample
from tests.trials import Draw, Trial, one, shaped, trial

IMAGE = (2, 7, 4, 3)


def normalised(draw: Draw, case: Case) -> Trial:
    options = {
        "size": draw(st.integers(1, 6)),
        "alpha": one(draw, 1e-4, 0.5, 2),
        "beta": one(draw, 0.75, 0.5, 1, 2.5, 0),
        "k": one(draw, 1.0, 2, 0.5),
    }
    # Of infinity and of squares beyond the range, torch's gradient is NaN or not as its steps are ordered.
    without = "special,infinite,all nan,huge,special gradient"
    return trial(draw, case.native, options, shaped(draw, draw(st.integers(1, 8)), one(draw, 1, 2)), without=without)


CASES = [
    Case(
        response.LocalResponseNorm,
        nn.LocalResponseNorm,
        trial=normalised,
        rounding="largest",
        samples=[
            Sample(IMAGE, {"size": 2}),
            Sample(IMAGE, {"size": 5, "alpha": 0.5, "beta": 0.6, "k": 2.0}),
            Sample(IMAGE, {"size": 20, "alpha": 1, "beta": 2, "k": 0.5}),
            Sample(IMAGE[:3], {"size": 3, "alpha": 0.5}),
            Sample((2, 3, 2, 4, 3), {"size": 4, "alpha": 0.5}),
            Sample(IMAGE, {"size": 1, "alpha": 0.5, "beta": 0.0}),
        ],
        bad=[
            Bad({"size": 2}, (3, 4)),
            Bad({"size": 0}),
            Bad({"size": 1.5}),
            Bad({"size": 2}, dtype=torch.int32),
            Bad({"size": 2}, dtype=torch.bool),
        ],
    ),
]
