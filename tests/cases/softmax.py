"""Softmax and its logarithm along every dimension, first, last and between."""

import torch
from hypothesis import strategies as st
from torch import nn

from cnn_lightning.layers import softmax as layers
from tests.cases import Bad, Case, Sample
from tests.trials import Draw, Trial, anything, one, rarely, trial

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


def softmax(draw: Draw, case: Case) -> Trial:
    shape = anything(draw)
    last = max(1, len(shape))
    dim = rarely(draw, draw(st.integers(-last, last - 1)), one(draw, None, len(shape), -9))
    return trial(draw, case.native, {"dim": dim}, shape)


CASES = [
    Case(layers.Softmax, nn.Softmax, SAMPLES, BAD, trial=softmax, trials=200, rounding="largest"),
    Case(layers.LogSoftmax, nn.LogSoftmax, SAMPLES, BAD, trial=softmax, trials=200, rounding="largest"),
]
