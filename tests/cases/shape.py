"""Flatten and Identity."""

from torch import nn

from cnn_lightning.layers import shape as layers
from tests.cases import Bad, Case, Sample

CASES = [
    Case(
        layers.Flatten,
        nn.Flatten,
        samples=[Sample((2, 3, 5, 4)), Sample((2, 3, 5, 4), {"start_dim": 0, "end_dim": 2}), Sample((2, 3))],
        bad=[Bad(shape=(3,)), Bad({"start_dim": 3, "end_dim": 1}), Bad({"end_dim": 7})],
    ),
    Case(layers.Identity, nn.Identity, samples=[Sample((2, 3, 5, 4)), Sample(())]),
]
