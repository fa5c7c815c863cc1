"""Pooling layers. Random inputs have no ties; these are tested in tests/test_pool.py."""

import torch
from hypothesis import strategies as st
from torch import nn

from cnn_lightning.layers import pool
from tests.cases import Arguments, Bad, Case, Sample
from tests.trials import Draw, Trial, one, shaped, sizes, trial

IMAGE = (2, 3, 9, 8)
SIGNAL = (2, 3, 11)
VOLUME = (2, 3, 5, 6, 4)

MAX = Arguments(("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"))


def window(draw: Draw, case: Case) -> Trial:
    axes = int(case.name[-2])
    options = {
        "kernel_size": sizes(draw, 1, 4, axes, odd=0),
        "stride": one(draw, None, sizes(draw, 1, 3, axes, odd=0)),
        "padding": 0,
        "ceil_mode": draw(st.booleans()),
    }
    if options["kernel_size"] != 1 and draw(st.booleans()):
        options["padding"] = sizes(draw, 0, 1, axes, odd=one(draw, 2, -1))
    if "Max" in case.name:
        options |= {"dilation": sizes(draw, 1, 2, axes, odd=0), "return_indices": draw(st.booleans())}
    else:
        options["count_include_pad"] = draw(st.booleans())
        if axes > 1:
            options["divisor_override"] = one(draw, None, None, 1, 3, -2, 0)
    shape = shaped(draw, draw(st.integers(1, 3)), axes, most=9 if axes < 3 else 6)
    if "dilation" in options and 1 in shape[-axes:]:
        options["dilation"] = 1  # a window may hold padding alone: torch's gradient goes to a pixel outside the image
    return trial(draw, case.native, options, shape)


def adaptive(draw: Draw, case: Case) -> Trial:
    axes = int(case.name[-2])
    size = sizes(draw, 0, 5, axes, odd=-1)
    if axes > 1 and isinstance(size, tuple):
        size = one(draw, size, (None, *size[1:]), (*size[:-1], None))
    options = {"output_size": size}
    if "Max" in case.name:
        options["return_indices"] = draw(st.booleans())
    return trial(draw, case.native, options, shaped(draw, draw(st.integers(1, 3)), axes, most=9 if axes < 3 else 6))


CASES = [
    Case(
        pool.MaxPool2d,
        nn.MaxPool2d,
        trial=window,
        trials=600,
        arguments=MAX,
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
        nn.MaxPool1d,
        trial=window,
        trials=300,
        arguments=MAX,
        samples=[
            Sample(SIGNAL, {"kernel_size": 2}),
            Sample(SIGNAL, {"kernel_size": 3, "stride": 2, "padding": 1, "return_indices": True, "ceil_mode": True}),
            Sample((3, 11), {"kernel_size": 3, "dilation": 2}),
        ],
        bad=[Bad({"kernel_size": 2}), Bad({"kernel_size": 20}, SIGNAL)],
    ),
    Case(
        pool.AvgPool2d,
        nn.AvgPool2d,
        trial=window,
        trials=300,
        rounding="sum",
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
        nn.AvgPool1d,
        trial=window,
        trials=300,
        rounding="sum",
        samples=[
            Sample(SIGNAL, {"kernel_size": 2}),
            Sample(SIGNAL, {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
            Sample((3, 11), {"kernel_size": 3, "ceil_mode": True}),
        ],
        bad=[Bad({"kernel_size": 2})],
    ),
    Case(
        pool.AdaptiveAvgPool2d,
        nn.AdaptiveAvgPool2d,
        trial=adaptive,
        trials=250,
        rounding="sum",
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
        nn.AdaptiveAvgPool1d,
        trial=adaptive,
        trials=250,
        rounding="sum",
        samples=[Sample(SIGNAL, {"output_size": 4}), Sample((3, 11), {"output_size": 1})],
    ),
    Case(
        pool.AdaptiveMaxPool2d,
        nn.AdaptiveMaxPool2d,
        trial=adaptive,
        trials=250,
        samples=[
            Sample(IMAGE, {"output_size": 4}),
            Sample(IMAGE, {"output_size": (None, 3), "return_indices": True}),
            Sample((3, 9, 8), {"output_size": 1}),
        ],
        bad=[Bad({"output_size": 2}, (4, 4))],
    ),
    Case(
        pool.AdaptiveMaxPool1d,
        nn.AdaptiveMaxPool1d,
        trial=adaptive,
        trials=250,
        samples=[
            Sample(SIGNAL, {"output_size": 4}),
            Sample(SIGNAL, {"output_size": 3, "return_indices": True}),
            Sample((3, 11), {"output_size": 1}),
        ],
        bad=[
            Bad({"output_size": 2}, (4,)),
            Bad({"output_size": 2}, (2, 0, 4)),
            Bad({"output_size": None}, SIGNAL),
            Bad({"output_size": 2}, SIGNAL, torch.int64),
        ],
    ),
    Case(
        pool.MaxPool3d,
        nn.MaxPool3d,
        trial=window,
        trials=400,
        arguments=MAX,
        samples=[
            Sample(VOLUME, {"kernel_size": 2}),
            Sample(VOLUME, {"kernel_size": 3, "stride": 2, "padding": 1, "return_indices": True, "ceil_mode": True}),
            Sample(
                VOLUME, {"kernel_size": (2, 3, 1), "stride": (1, 2, 3), "padding": (1, 0, 0), "dilation": (2, 1, 1)}
            ),
            # One frame: torch refuses a single volume (C, D, H, W) in the memory of a channels_last image.
            Sample((3, 1, 6, 4), {"kernel_size": (1, 2, 2), "dilation": (1, 2, 1), "return_indices": True}),
        ],
        bad=[
            Bad({"kernel_size": 2}, (4, 4, 4)),
            Bad({"kernel_size": 2, "padding": 2}, VOLUME),
            Bad({"kernel_size": 9}, VOLUME),
            Bad({"kernel_size": (2, 2)}, VOLUME),
            Bad({"kernel_size": 2}, (1, 0, 4, 4, 4)),
            Bad({"kernel_size": 2}, VOLUME, torch.bool),
        ],
    ),
    Case(
        pool.AvgPool3d,
        nn.AvgPool3d,
        trial=window,
        trials=300,
        rounding="sum",
        samples=[
            Sample(VOLUME, {"kernel_size": 2}),
            Sample(VOLUME, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
            Sample(VOLUME, {"kernel_size": (2, 3, 1), "padding": (1, 0, 0), "count_include_pad": False}),
            Sample(VOLUME, {"kernel_size": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}),
            Sample(VOLUME[1:], {"kernel_size": 3, "stride": 1, "divisor_override": 5}),
        ],
        bad=[
            Bad({"kernel_size": 2}, (4, 4, 4)),
            Bad({"kernel_size": 2, "padding": 2}, VOLUME),
            Bad({"kernel_size": 9}, VOLUME),
            Bad({"kernel_size": 2, "divisor_override": 0}, VOLUME),
            Bad({"kernel_size": 2}, VOLUME, torch.int32),
        ],
    ),
    Case(
        pool.AdaptiveAvgPool3d,
        nn.AdaptiveAvgPool3d,
        trial=adaptive,
        trials=250,
        rounding="sum",
        samples=[
            Sample(VOLUME, {"output_size": 1}),
            Sample(VOLUME, {"output_size": (None, 3, 2)}),
            Sample(VOLUME, {"output_size": (7, 4, 5)}),
            Sample(VOLUME[1:], {"output_size": 2}),
        ],
        bad=[
            Bad({"output_size": 2}, (4, 4, 4)),
            Bad({"output_size": (2, 2)}, VOLUME),
            Bad({"output_size": 2}, VOLUME, torch.int64),
        ],
    ),
    Case(
        pool.AdaptiveMaxPool3d,
        nn.AdaptiveMaxPool3d,
        trial=adaptive,
        trials=250,
        samples=[
            Sample(VOLUME, {"output_size": 2}),
            Sample(VOLUME, {"output_size": (None, 3, 2), "return_indices": True}),
            Sample(VOLUME[1:], {"output_size": 1}),
        ],
        bad=[Bad({"output_size": 2}, (4, 4, 4)), Bad({"output_size": (2, 2)}, VOLUME)],
    ),
]
