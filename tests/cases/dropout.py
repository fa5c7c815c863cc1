"""Dropout: the tests seed torch's generator alike for both layers, so that masks must be equal too."""

import torch
from hypothesis import strategies as st
from torch import nn

from cnn_lightning.layers import dropout as layers
from tests.cases import Arguments, Bad, Case, Sample
from tests.trials import Draw, Trial, anything, one, rarely, trial

SHAPE = (4, 3, 5, 6)
BAD = [Bad({"p": 1.5}), Bad({"p": -0.1}), Bad(dtype=torch.int64)]

ARGUMENTS = Arguments(("p", "training", "inplace"))


def dropout(draw: Draw, case: Case) -> Trial:
    options = {"p": rarely(draw, one(draw, 0.5, 0.1, 0.0, 1.0), one(draw, -0.1, 1.5)), "inplace": draw(st.booleans())}
    shape = anything(draw)
    if case.native is nn.Dropout1d:
        shape = rarely(draw, [one(draw, 1, 3, 0), *[draw(st.integers(1, 5))] * draw(st.integers(1, 2))], shape)
    return trial(draw, case.native, options, shape)


CASES = [
    Case(
        layers.Dropout,
        nn.Dropout,
        trial=dropout,
        trials=170,
        arguments=ARGUMENTS,
        samples=[
            Sample(SHAPE),
            Sample(SHAPE, {"p": 0.1, "inplace": True}),
            Sample(SHAPE, {"p": 0.0}),
            Sample(SHAPE, {"p": 1.0}),
            Sample(SHAPE, train=False),
            Sample((7,), {"p": 0.9}),
            Sample(()),
        ],
        bad=BAD,
    ),
    Case(
        layers.Dropout1d,
        nn.Dropout1d,
        trial=dropout,
        trials=170,
        arguments=ARGUMENTS,
        samples=[
            Sample((4, 3, 5)),
            Sample((4, 3, 5), {"p": 0.2, "inplace": True}),
            Sample((8, 5)),
            Sample((4, 3, 5), {"p": 1.0}),
            Sample((4, 3, 5), train=False),
        ],
        bad=[*BAD, Bad(shape=(3,)), Bad(shape=(2, 3, 4, 5))],
    ),
    Case(
        layers.Dropout2d,
        nn.Dropout2d,
        trial=dropout,
        trials=170,
        arguments=ARGUMENTS,
        samples=[
            Sample(SHAPE),
            Sample(SHAPE, {"p": 0.2, "inplace": True}),
            Sample(SHAPE, {"p": 0.0}),
            Sample(SHAPE, {"p": 1.0}),
            Sample(SHAPE, train=False),
        ],
        bad=BAD,
    ),
]
