"""Softmax and its logarithm along every dimension, first, last and between."""

import torch
from torch import nn

from cnn_lightning.layers import softmax as layers
from tests.cases import Bad, Case, Sample

SAMPLES = [
    Sample((2, 3, 5, 4), {"dim": 1}),
    Sample((2, 3, 5, 4), {"dim": -1}),
    Sample((2, 3, 5), {"dim": 0}),
    Sample((6,), {"dim": -1}),
    Sample((), {"dim": 0}),
    Sample((2, 1), {"dim": 1}),
    Sample((2, 0), {"dim": 1}),
]
BAD = [
    Bad({"dim": 1}, dtype=torch.int64),
    Bad({"dim": 4}),
    Bad({"dim": -5}),
    Bad({"dim": 1}, shape=()),
    Bad({"dim": "channels"}),
]

CASES = [
    Case(layers.Softmax, nn.Softmax, samples=SAMPLES, bad=BAD),
    Case(layers.LogSoftmax, nn.LogSoftmax, samples=SAMPLES, bad=BAD),
]
