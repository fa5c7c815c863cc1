"""Dropout: the tests seed torch's generator alike for both layers, so that masks must be equal too."""

import torch
from torch import nn

from cnn_lightning.layers import dropout as layers
from tests.cases import Bad, Case, Sample

SHAPE = (4, 3, 5, 6)
BAD = [Bad({"p": 1.5}), Bad({"p": -0.1}), Bad(dtype=torch.int64)]

CASES = [
    Case(
        layers.Dropout,
        nn.Dropout,
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
