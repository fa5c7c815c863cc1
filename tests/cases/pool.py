"""Pooling layers. Random inputs have no ties; these are tested in tests/test_pool.py."""

import torch

from cnn_lightning.layers import pool
from tests.cases import Bad, Case, Sample

IMAGE = (2, 3, 9, 8)
SIGNAL = (2, 3, 11)

CASES = [
    Case(
        pool.MaxPool2d,
        torch.nn.MaxPool2d,
        samples=[
            Sample(IMAGE, {"kernel_size": 2}),
            Sample(IMAGE, {"kernel_size": 3, "stride": 2, "padding": 1}),
            Sample(IMAGE, {"kernel_size": (2, 3), "stride": (1, 2), "dilation": (2, 1), "return_indices": True}),
            Sample(IMAGE, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "return_indices": True}),
            Sample((3, 9, 8), {"kernel_size": 2, "return_indices": True}),
        ],
        bad=[
            Bad({"kernel_size": 2}, (4, 4)),
            Bad({"kernel_size": 2, "padding": 2}),
            Bad({"kernel_size": 9}),
            Bad({"kernel_size": 2}, (1, 0, 4, 4)),
        ],
    ),
    Case(
        pool.MaxPool1d,
        torch.nn.MaxPool1d,
        samples=[
            Sample(SIGNAL, {"kernel_size": 2}),
            Sample(SIGNAL, {"kernel_size": 3, "stride": 2, "padding": 1, "return_indices": True, "ceil_mode": True}),
            Sample((3, 11), {"kernel_size": 3, "dilation": 2}),
        ],
        bad=[Bad({"kernel_size": 2}), Bad({"kernel_size": 20}, SIGNAL)],
    ),
    Case(
        pool.AvgPool2d,
        torch.nn.AvgPool2d,
        samples=[
            Sample(IMAGE, {"kernel_size": 2}),
            Sample(IMAGE, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
            Sample(IMAGE, {"kernel_size": (2, 3), "padding": (1, 0), "count_include_pad": False, "ceil_mode": True}),
            Sample((3, 9, 8), {"kernel_size": 3, "stride": 1, "divisor_override": 5}),
        ],
        bad=[
            Bad({"kernel_size": 2}, (4, 4)),
            Bad({"kernel_size": 2, "padding": 2}),
            Bad({"kernel_size": 9}),
            Bad({"kernel_size": 2, "divisor_override": 0}),
        ],
    ),
    Case(
        pool.AvgPool1d,
        torch.nn.AvgPool1d,
        samples=[
            Sample(SIGNAL, {"kernel_size": 2}),
            Sample(SIGNAL, {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
            Sample((3, 11), {"kernel_size": 3, "ceil_mode": True}),
        ],
        bad=[Bad({"kernel_size": 2})],
    ),
    Case(
        pool.AdaptiveAvgPool2d,
        torch.nn.AdaptiveAvgPool2d,
        samples=[
            Sample(IMAGE, {"output_size": 1}),
            Sample(IMAGE, {"output_size": (None, 3)}),
            Sample(IMAGE, {"output_size": (11, 5)}),
            Sample((3, 9, 8), {"output_size": 4}),
        ],
        bad=[Bad({"output_size": 2}, (4, 4)), Bad({"output_size": 2}, dtype=torch.int64)],
    ),
    Case(
        pool.AdaptiveAvgPool1d,
        torch.nn.AdaptiveAvgPool1d,
        samples=[Sample(SIGNAL, {"output_size": 4}), Sample((3, 11), {"output_size": 1})],
    ),
    Case(
        pool.AdaptiveMaxPool2d,
        torch.nn.AdaptiveMaxPool2d,
        samples=[
            Sample(IMAGE, {"output_size": 4}),
            Sample(IMAGE, {"output_size": (None, 3), "return_indices": True}),
            Sample((3, 9, 8), {"output_size": 1}),
        ],
        bad=[Bad({"output_size": 2}, (4, 4))],
    ),
]
