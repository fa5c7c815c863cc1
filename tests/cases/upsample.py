"""Upsampling layers. Places near a border between two pixels are tested in tests/test_upsample.py."""

import torch
from hypothesis import strategies as st
from torch import nn

from cnn_lightning.layers import upsample
from tests.cases import Arguments, Bad, Case, Sample
from tests.trials import Draw, Trial, one, rarely, shaped, sizes, trial

SIGNAL = (2, 3, 7)
IMAGE = (2, 3, 5, 4)
VOLUME = (2, 3, 3, 4, 2)
FUNCTION = Arguments(("size", "scale_factor"))

AXES = {"linear": 1, "bilinear": 2, "trilinear": 3, "bicubic": 2}
SCALES = (2.0, 0.5, 1.5, 3.0, 2.5)
"""For which torch's forward and backward read the same pixels; for 1.1, for example, they do not."""


def resized(draw: Draw, case: Case) -> Trial:
    free = case.native is nn.Upsample
    mode = one(draw, "nearest", "nearest-exact", "area", *AXES) if free else "nearest"
    axes: int = (AXES.get(mode) or draw(st.integers(1, 3))) if free else 2
    options = {"mode": mode} if free else {}
    if draw(st.booleans()):
        options["size"] = sizes(draw, 1, 12, axes, odd=0)
        if free and isinstance(options["size"], list):
            options["size"] = tuple(options["size"])
    else:
        scales = tuple(one(draw, *SCALES) for _ in range(axes))
        options["scale_factor"] = scales if draw(st.booleans()) else scales[0]
        if free:
            options["recompute_scale_factor"] = one(draw, None, False, True)
    if mode in AXES:
        options["align_corners"] = one(draw, None, False, True)
    elif free:
        options["align_corners"] = rarely(draw, None, True)
    shape = shaped(draw, draw(st.integers(1, 5)), axes, batched=True)
    # A weight of 0 times infinity is NaN, so rounding decides in single precision where there is one.
    without = "special,infinite,all nan,special gradient" if mode in AXES or not free else "special gradient"
    return trial(draw, case.native, options, shape, without=without)


CASES = [
    Case(
        upsample.Upsample,
        nn.Upsample,
        trial=resized,
        trials=600,
        rounding="largest",  # weights of cubic interpolation may be negative
        samples=[
            Sample(IMAGE, {"scale_factor": 2}),
            Sample(SIGNAL, {"size": 10}),
            Sample(VOLUME, {"scale_factor": (2.0, 1.5, 3.0)}),
            Sample(IMAGE, {"size": (7, 3), "mode": "nearest-exact"}),
            Sample(IMAGE, {"size": (7, 3), "mode": "area"}),
            Sample(SIGNAL, {"scale_factor": 1.7, "mode": "area"}),
            Sample(VOLUME, {"scale_factor": 0.6, "mode": "area"}),
            Sample(SIGNAL, {"scale_factor": 1.7, "mode": "linear"}),
            Sample(SIGNAL, {"size": 4, "mode": "linear", "align_corners": True}),
            Sample(IMAGE, {"scale_factor": (2.3, 0.6), "mode": "bilinear", "align_corners": False}),
            Sample(IMAGE, {"scale_factor": 2.3, "mode": "bilinear", "recompute_scale_factor": True}),
            Sample(IMAGE, {"size": (9, 1), "mode": "bilinear", "align_corners": True}),
            Sample(VOLUME, {"size": (5, 6, 7), "mode": "trilinear", "align_corners": True}),
            Sample(VOLUME, {"scale_factor": 1.5, "mode": "trilinear"}),
            Sample(IMAGE, {"scale_factor": 2, "mode": "bicubic"}),
            Sample(IMAGE, {"size": (3, 9), "mode": "bicubic", "align_corners": True}),
        ],
        bad=[
            Bad(),
            Bad({"size": 3, "scale_factor": 2}),
            Bad({"size": 3, "recompute_scale_factor": True}),
            Bad({"size": (3, 3, 3)}),
            Bad({"size": 2.5}),
            Bad({"size": (2.5, 3)}),
            Bad({"size": 0}),
            Bad({"scale_factor": (2.0,)}),
            Bad({"scale_factor": 0.01}),
            Bad({"scale_factor": float("nan")}),
            Bad({"scale_factor": float("nan"), "recompute_scale_factor": True}),
            Bad({"scale_factor": float("inf"), "recompute_scale_factor": True}),
            Bad({"scale_factor": 2, "align_corners": True}),
            Bad({"scale_factor": 2, "mode": "linear"}),
            Bad({"scale_factor": 2, "mode": "trilinear"}),
            Bad({"scale_factor": 2, "mode": "bicubic"}, (2, 3, 4)),
            Bad({"scale_factor": 2, "mode": "lanczos"}),
            Bad({"scale_factor": 2, "mode": "cubic"}),
            Bad({"scale_factor": 2}, (2, 3)),
            Bad({"scale_factor": 2}, (2, 0, 3)),
            Bad({"scale_factor": 2}, dtype=torch.int64),
            Bad({"scale_factor": 2, "mode": "bilinear"}, dtype=torch.bool),
        ],
    ),
    Case(
        upsample.UpsamplingNearest2d,
        nn.UpsamplingNearest2d,
        trial=resized,
        arguments=FUNCTION,
        samples=[Sample(IMAGE, {"scale_factor": 2}), Sample(IMAGE, {"size": (3, 7)})],
        bad=[Bad(), Bad({"size": 0}), Bad({"scale_factor": (2.0, 2.0)}, SIGNAL)],
    ),
    Case(
        upsample.UpsamplingBilinear2d,
        nn.UpsamplingBilinear2d,
        trial=resized,
        rounding="sum",
        arguments=FUNCTION,
        samples=[Sample(IMAGE, {"scale_factor": 2}), Sample(IMAGE, {"size": (3, 7)})],
        bad=[Bad(), Bad({"size": 0}), Bad({"scale_factor": 2}, SIGNAL)],
    ),
]
