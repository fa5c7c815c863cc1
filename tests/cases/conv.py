"""Convolutions."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from cnn_lightning.layers.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from tests.cases import Arguments, Bad, Case, Make, Sample
from tests.trials import Draw, Trial, one, rarely, shaped, sizes, trial, unless_empty


def _options(c: int, o: int, k: Any, **more: Any) -> dict[str, Any]:
    return {"in_channels": c, "out_channels": o, "kernel_size": k, **more}


def _images(*shape: int, output_size: list[int]) -> Make:
    def make(generator: torch.Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype), output_size

    return make


# ---- torch's functions


def _sizes(x: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
    outside, inside, *kernel = arguments["weight"].shape
    options = _options(inside * arguments.get("groups", 1), outside, tuple(kernel))
    return {**options, "bias": arguments["bias"] is not None}


def _transposed_sizes(x: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
    inside, outside, *kernel = arguments["weight"].shape
    options = _options(inside, outside * arguments.get("groups", 1), tuple(kernel))
    return {**options, "bias": arguments["bias"] is not None}


PARAMETERS = ("weight", "bias")
CONVOLUTION = Arguments((*PARAMETERS, "stride", "padding", "dilation", "groups"), parameters=PARAMETERS, sizes=_sizes)
TRANSPOSED = Arguments(
    (*PARAMETERS, "stride", "padding", "output_padding", "groups", "dilation"),
    parameters=PARAMETERS,
    sizes=_transposed_sizes,
)


# ---- random trials

INFINITE_SUMS = "special gradient"
"""Infinity times a pixel of the padding is NaN, or left out."""


AXES: dict[type[nn.Module], int] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
MOST = (9, 9, 5)
"""Pixels along an axis of one, two or three."""


def convolution(draw: Draw, case: Case) -> Trial:
    axes = AXES[case.native]
    groups = one(draw, 1, 1, 2, 3)
    inner = groups * draw(st.integers(1, 3))
    shape = shaped(draw, inner, axes, most=MOST[axes - 1])
    mode = one(draw, "zeros", "zeros", "zeros", "reflect", "replicate", "circular")
    # With another padding mode, torch's error for a wrong number depends on what its padding makes of it first.
    wrong = unless_empty(shape if mode == "zeros" else (0,))
    options = {
        "in_channels": inner,
        "out_channels": rarely(draw, groups * draw(st.integers(1, 3)), 5),
        "kernel_size": sizes(draw, 1, 3, axes, wrong(0)),
        "stride": sizes(draw, 1, 3, axes, wrong(0)),
        "padding": one(draw, sizes(draw, 0, 2, axes, wrong(-1)), sizes(draw, 0, 2, axes), "same", "valid"),
        "dilation": sizes(draw, 1, 3, axes, wrong(0)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": mode,
    }
    if options["padding"] == "same":
        options["stride"] = rarely(draw, 1, options["stride"])
    found = trial(draw, case.native, options, shape, without=INFINITE_SUMS)
    if options["padding"] == "same" and found.dtype == torch.bfloat16:  # a gradient in which torch 2.15 may crash
        found = dataclasses.replace(found, dtype=torch.float16)
    return found


def transposed(draw: Draw, case: Case) -> Trial:
    axes, groups = AXES[case.native], one(draw, 1, 1, 2, 3)
    inner = groups * draw(st.integers(1, 3))
    shape = shaped(draw, inner, axes, most=5)
    wrong = unless_empty(shape)
    options = {
        "in_channels": inner,
        "out_channels": rarely(draw, groups * draw(st.integers(1, 3)), 5),
        "kernel_size": sizes(draw, 1, 3, axes, wrong(0)),
        "stride": sizes(draw, 1, 3, axes, wrong(0)),
        "padding": sizes(draw, 0, 2, axes, wrong(-1)),
        "output_padding": one(draw, 0, 0, sizes(draw, 0, 2, axes, wrong(-1))) if wrong(0) is not None else 0,
        "dilation": sizes(draw, 1, 3, axes),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    output_size = rarely(draw, (), ([draw(st.integers(1, 9)) for _ in range(axes)],))
    without = f"{INFINITE_SUMS},special,infinite,all nan"
    return trial(draw, case.native, options, shape, arguments=output_size, without=without)


CASES = [
    Case(
        Conv2d,
        nn.Conv2d,
        trial=convolution,
        trials=1350,
        rounding="sum",
        arguments=CONVOLUTION,
        samples=[
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding=1)),
            Sample((2, 3, 7, 6), _options(3, 4, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(1, 2))),
            Sample((2, 4, 6, 5), _options(4, 6, 3, groups=2)),
            Sample((2, 4, 6, 5), _options(4, 8, 3, groups=4, padding=1, bias=False)),
            Sample((2, 5, 6, 5), _options(5, 3, 1)),
            Sample((2, 5, 9, 9), _options(5, 3, 1)),
            Sample((2, 5, 9, 9), _options(5, 3, 1, stride=2, padding=1)),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding="same")),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding="valid", dilation=2)),
            Sample((3, 6, 5), _options(3, 4, 3)),
            Sample((3, 6, 5), _options(3, 4, 3, padding=1, padding_mode="circular")),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding=2, padding_mode="reflect")),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding=(1, 4), padding_mode="reflect", bias=False)),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding=(7, 2), padding_mode="replicate", stride=2)),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding=(6, 1), padding_mode="circular")),
            Sample((2, 3, 6, 5), _options(3, 4, (4, 2), padding="same", padding_mode="circular")),
            Sample((2, 3, 6, 5), _options(3, 4, (4, 2), padding="same", padding_mode="reflect")),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding="valid", padding_mode="replicate")),
            Sample((2, 1, 3, 3), _options(1, 1, 3)),
            Sample((1, 3, 12, 4), _options(3, 4, 3, stride=4)),
        ],
        bad=[
            Bad(_options(4, 2, 3)),
            Bad(_options(3, 2, 9)),
            Bad(_options(3, 2, 3, dilation=4)),
            Bad(_options(3, 2, 3), (3, 8)),
            Bad(_options(3, 2, 3), (1, 2, 3, 8, 8)),
            Bad(_options(3, 2, 3, padding=1, padding_mode="reflect"), (3, 8)),
            Bad(_options(3, 2, 3, padding=8, padding_mode="reflect")),
            Bad(_options(3, 2, 3, padding=9, padding_mode="circular")),
            Bad(_options(3, 2, 3, padding=1, padding_mode="replicate"), (2, 3, 0, 8)),
            Bad(_options(3, 2, 3), dtype=torch.int64),
            Bad(_options(3, 2, 3), dtype=torch.bool),
            Bad(_options(3, 2, 3), dtype=torch.float64),
            Bad(_options(3, 2, 3), dtype=torch.float16),
            Bad(_options(3, 2, 3, dtype=torch.float64)),
            Bad(_options(3, 2, 3, padding=1, padding_mode="circular"), dtype=torch.int64),
            Bad(_options(3, 2, 3, stride=2, padding="same")),
            Bad(_options(3, 2, 3, padding="full")),
            Bad(_options(3, 2, 3, padding_mode="mirror")),
            Bad(_options(3, 2, 3, stride=0)),
            Bad(_options(3, 2, 3, dilation=0)),
            Bad(_options(3, 2, 3, padding=-1)),
            Bad(_options(3, 2, 3, stride=(1, 1, 1))),
            Bad(_options(3, 2, 3, groups=2)),
            Bad(_options(3, 2, 3, groups=0)),
            Bad(_options(-3, 2, 3)),
            Bad(_options(3, 2, 3), (2, 3, 0, 8)),
            Bad(_options(3, 2, 3), make=lambda generator, dtype: (torch.ones(2, 3, 8, 8).numpy(),)),
            Bad(_options(3, 2, 3), make=lambda generator, dtype: (None,)),
        ],
    ),
    Case(
        Conv1d,
        nn.Conv1d,
        trial=convolution,
        trials=700,
        rounding="sum",
        arguments=CONVOLUTION,
        samples=[
            Sample((2, 3, 8), _options(3, 4, 3, padding=1)),
            Sample((2, 3, 9), _options(3, 4, 4, stride=2, padding=3, dilation=2)),
            Sample((2, 4, 8), _options(4, 6, 2, groups=2, bias=False)),
            Sample((2, 3, 8), _options(3, 4, 3, padding="valid")),
            Sample((3, 8), _options(3, 4, 3)),
            Sample((3, 8), _options(3, 4, 3, padding=7, padding_mode="reflect")),
            Sample((2, 3, 8), _options(3, 4, 4, padding="same", padding_mode="replicate")),
            Sample((2, 3, 8), _options(3, 4, 3, padding=8, padding_mode="circular", stride=3)),
            Sample((2, 3, 8), _options(3, 4, 1)),
        ],
        bad=[
            Bad(_options(4, 2, 3), (2, 3, 8)),
            Bad(_options(3, 2, 9), (2, 3, 8)),
            Bad(_options(3, 2, 3), (2, 3, 8, 8)),
            Bad(_options(3, 2, 3), (8,)),
            Bad(_options(3, 2, 3, padding=1, padding_mode="reflect"), (2, 3, 8, 8)),
            Bad(_options(3, 2, 3, padding=8, padding_mode="reflect"), (2, 3, 8)),
            Bad(_options(3, 2, 3), (2, 3, 8), torch.int32),
            Bad(_options(3, 2, 3), (2, 3, 8), torch.float64),
            Bad(_options(3, 2, 3, stride=0), (2, 3, 8)),
            Bad(_options(3, 2, 3, stride=2, padding="same"), (2, 3, 8)),
        ],
    ),
    Case(
        ConvTranspose2d,
        nn.ConvTranspose2d,
        trial=transposed,
        trials=1000,
        rounding="sum",
        arguments=TRANSPOSED,
        samples=[
            Sample((2, 3, 5, 4), _options(3, 4, 3, stride=2, padding=1, output_padding=1)),
            Sample((2, 3, 5, 4), _options(3, 4, 3)),
            Sample((2, 3, 5, 4), _options(3, 4, (2, 3), stride=(3, 1), padding=(1, 2), dilation=(1, 2))),
            Sample((2, 4, 5, 4), _options(4, 6, 3, stride=2, groups=2, bias=False)),
            Sample((2, 3, 5, 4), _options(3, 2, 2, dilation=3, output_padding=2)),
            Sample((2, 3, 5, 4), _options(3, 2, 3, stride=2, dilation=4, output_padding=3, padding=1)),
            Sample((2, 3, 5, 4), _options(3, 2, 3, stride=2, output_padding=(1, 0))),
            Sample((3, 5, 4), _options(3, 4, 3, stride=2)),
            Sample((2, 3, 5, 4), _options(3, 4, 1, stride=2)),
            Sample((2, 3, 5, 4), _options(3, 4, 1)),
            Sample((2, 3, 9, 9), _options(3, 4, 1)),
            Sample(options=_options(3, 4, 3, stride=2), make=_images(2, 3, 5, 4, output_size=[12, 10])),
            Sample(options=_options(3, 4, 3, stride=2), make=_images(2, 3, 5, 4, output_size=[2, 4, 11, 10])),
            Sample(options=_options(3, 4, 3, stride=2), make=_images(3, 5, 4, output_size=[12, 9])),
        ],
        bad=[
            Bad(_options(4, 2, 3)),
            Bad(_options(3, 2, 3), (3, 8)),
            Bad(_options(3, 2, 3), (1, 2, 3, 8, 8)),
            Bad(_options(3, 2, 3), dtype=torch.int64),
            Bad(_options(3, 2, 3), dtype=torch.float64),
            Bad(_options(3, 2, 3, output_padding=1)),
            Bad(_options(3, 2, 3, stride=2, output_padding=2)),
            Bad(_options(3, 2, 3, stride=2, output_padding=-1)),
            Bad(_options(3, 2, 3, padding=-1)),
            Bad(_options(3, 2, 3, padding=6)),
            Bad(_options(3, 2, 3, stride=0)),
            Bad(_options(3, 2, 3, groups=2)),
            Bad(_options(3, 2, 3, padding_mode="reflect")),
            Bad(_options(3, 2, 3, stride=2), make=_images(2, 3, 8, 8, output_size=[19, 18])),
            Bad(_options(3, 2, 3, stride=2), make=_images(2, 3, 8, 8, output_size=[2, 18, 18])),
            Bad(_options(3, 2, 3), (2, 3, 0, 8)),
        ],
    ),
    Case(
        Conv3d,
        nn.Conv3d,
        trial=convolution,
        trials=700,
        rounding="sum",
        arguments=CONVOLUTION,
        samples=[
            Sample((2, 3, 4, 5, 3), _options(3, 4, 3, padding=1)),
            Sample((2, 3, 5, 4, 6), _options(3, 2, (2, 3, 1), stride=(2, 1, 3), padding=(1, 2, 0), dilation=(3, 1, 2))),
            Sample((2, 4, 3, 4, 3), _options(4, 6, 2, groups=2, bias=False)),
            Sample((1, 4, 4, 4, 3), _options(4, 4, 2, groups=4, stride=2)),
            Sample((2, 3, 3, 4, 3), _options(3, 4, 1)),
            Sample((2, 3, 3, 4, 3), _options(3, 4, (1, 3, 3), stride=(2, 1, 1))),
            Sample((2, 3, 3, 4, 5), _options(3, 2, (3, 2, 1), padding="same", dilation=(1, 2, 1))),
            Sample((2, 3, 3, 4, 5), _options(3, 2, 2, padding="valid")),
            Sample((3, 4, 3, 4), _options(3, 2, 3, padding=(1, 0, 2))),
            Sample((2, 3, 4, 3, 4), _options(3, 2, 2, padding=(3, 1, 2), padding_mode="reflect")),
            Sample((2, 3, 2, 3, 4), _options(3, 2, 3, padding="same", padding_mode="replicate")),
            Sample((3, 2, 3, 4), _options(3, 2, 2, padding=(2, 1, 0), padding_mode="circular", stride=(1, 2, 2))),
        ],
        bad=[
            Bad(_options(4, 2, 3), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, (6, 3, 3)), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3, dilation=(1, 1, 4)), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3), (2, 3, 8)),
            Bad(_options(3, 2, 3), (1, 2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3, padding=1, padding_mode="reflect"), (2, 3, 8)),
            Bad(_options(3, 2, 3, padding=5, padding_mode="reflect"), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3), (2, 3, 5, 5, 5), torch.int64),
            Bad(_options(3, 2, 3), (2, 3, 5, 5, 5), torch.float64),
            Bad(_options(3, 2, 3, stride=(2, 1, 1), padding="same")),
            Bad(_options(3, 2, 3, stride=(0, 1, 1)), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3, dilation=(0, 1, 1)), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3, padding=(-1, 0, 0)), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3, stride=(1, 1)), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3, groups=2), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3), (2, 3, 0, 5, 5)),
        ],
    ),
    Case(
        ConvTranspose1d,
        nn.ConvTranspose1d,
        trial=transposed,
        trials=500,
        rounding="sum",
        arguments=TRANSPOSED,
        samples=[
            Sample((2, 3, 5), _options(3, 4, 3, stride=2, padding=1, output_padding=1)),
            Sample((2, 3, 5), _options(3, 4, 3)),
            Sample((2, 4, 5), _options(4, 6, 2, stride=3, dilation=2, groups=2, bias=False)),
            Sample((2, 3, 5), _options(3, 2, 3, stride=2, dilation=4, output_padding=3, padding=1)),
            Sample((3, 5), _options(3, 4, 3, stride=2)),
            Sample(options=_options(3, 4, 3, stride=2), make=_images(2, 3, 5, output_size=[12])),
        ],
        bad=[
            Bad(_options(4, 2, 3), (2, 3, 8)),
            Bad(_options(3, 2, 3), (2, 3, 8, 8)),
            Bad(_options(3, 2, 3), (8,)),
            Bad(_options(3, 2, 3), (2, 3, 8), torch.int64),
            Bad(_options(3, 2, 3), (2, 3, 8), torch.float64),
            Bad(_options(3, 2, 3, output_padding=1), (2, 3, 8)),
            Bad(_options(3, 2, 3, padding=6), (2, 3, 8)),
            Bad(_options(3, 2, 3, stride=0), (2, 3, 8)),
            Bad(_options(3, 2, 3, padding_mode="reflect"), (2, 3, 8)),
            Bad(_options(3, 2, 3, stride=2), make=_images(2, 3, 8, output_size=[19])),
            Bad(_options(3, 2, 3), (2, 3, 0)),
        ],
    ),
    Case(
        ConvTranspose3d,
        nn.ConvTranspose3d,
        trial=transposed,
        trials=500,
        rounding="sum",
        arguments=TRANSPOSED,
        samples=[
            Sample((2, 3, 3, 4, 2), _options(3, 4, 3, stride=2, padding=1, output_padding=1)),
            Sample((2, 3, 3, 4, 2), _options(3, 2, 2)),
            Sample((2, 3, 3, 4, 2), _options(3, 2, (2, 3, 1), stride=(3, 1, 2), padding=(1, 2, 0), dilation=(2, 2, 1))),
            Sample((2, 4, 3, 2, 2), _options(4, 6, 2, stride=2, groups=2, bias=False)),
            Sample((2, 3, 2, 2, 2), _options(3, 2, 2, dilation=(3, 1, 2), stride=2, output_padding=(2, 1, 0))),
            Sample((3, 2, 3, 4), _options(3, 2, 2, stride=2)),
            Sample((2, 3, 3, 4, 2), _options(3, 2, 1)),
            Sample(options=_options(3, 2, 3, stride=2), make=_images(2, 3, 2, 3, 2, output_size=[6, 7, 5])),
            Sample(options=_options(3, 2, 3, stride=2), make=_images(3, 2, 3, 2, output_size=[3, 5, 8, 6])),
        ],
        bad=[
            Bad(_options(4, 2, 3), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3), (2, 3, 8)),
            Bad(_options(3, 2, 3), (1, 2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3), (2, 3, 5, 5, 5), torch.int64),
            Bad(_options(3, 2, 3), (2, 3, 5, 5, 5), torch.float64),
            Bad(_options(3, 2, 3, output_padding=(1, 0, 0)), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3, padding=(-1, 0, 0)), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3, padding=(5, 0, 0)), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3, stride=(0, 1, 1)), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3, groups=2), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3, padding_mode="reflect"), (2, 3, 5, 5, 5)),
            Bad(_options(3, 2, 3, stride=2), make=_images(2, 3, 3, 3, 3, output_size=[9, 8, 8])),
            Bad(_options(3, 2, 3), (2, 3, 0, 5, 5)),
        ],
    ),
]
