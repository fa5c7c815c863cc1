"""Flatten and Identity."""

from hypothesis import strategies as st
from torch import nn

from cnn_lightning.layers import shape as layers
from tests.cases import Bad, Case, Sample
from tests.trials import Draw, Trial, anything, one, rarely, trial


def flatten(draw: Draw, case: Case) -> Trial:
    shape = anything(draw)
    first = draw(st.integers(0, max(0, len(shape) - 1)))
    last = draw(st.integers(first, max(0, len(shape) - 1)))
    options = {
        "start_dim": rarely(draw, first, 4),
        "end_dim": rarely(draw, one(draw, last, last - len(shape)), first - 1),
    }
    return trial(draw, case.native, one(draw, {}, options, options), shape)


CASES = [
    Case(
        layers.Flatten,
        nn.Flatten,
        trial=flatten,
        samples=[Sample((2, 3, 5, 4)), Sample((2, 3, 5, 4), {"start_dim": 0, "end_dim": 2}), Sample((2, 3))],
        bad=[Bad(shape=(3,)), Bad({"start_dim": 3, "end_dim": 1}), Bad({"end_dim": 7})],
    ),
    Case(layers.Identity, nn.Identity, samples=[Sample((2, 3, 5, 4)), Sample(())]),
]
