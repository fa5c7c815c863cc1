"""Padding layers: widths of one number and of many, negative ones, with and without a batch axis, every dtype."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from cnn_lightning.layers import padding as layers
from tests.cases import Bad, Case, Sample
from tests.trials import Draw, Trial, one, rarely, shaped, trial

IMAGES = {1: (2, 3, 6), 2: (2, 3, 5, 6), 3: (2, 3, 4, 5, 6)}
"""A shape by the number of padded axes."""
UNEVEN = (1, 3, 0, 2, 2, 1)
CUT = (2, -1, -2, 1, 0, -1)
DTYPES = (torch.int64, torch.int32, torch.uint8)


def padding(draw: Draw, case: Case) -> Trial:
    """Widths that fit the image, rarely others; negative ones, too."""
    axes = int(case.name[-2])
    shape = shaped(draw, 2, axes, most=5)
    widths: Any = []
    for n in reversed(shape[-axes:]):
        most = {"Ref": n - 1, "Cir": n}.get(case.name[:3], 4)
        left, right = (draw(st.integers(0, max(0, most))) for _ in range(2))
        if draw(st.integers(0, 3)) == 0:
            right = -draw(st.integers(0, max(0, n // 2)))
            left = min(left, max(0, n + right - 1))
        widths += [left, rarely(draw, right, one(draw, 9, -9))]
    options: dict[str, Any] = {"padding": tuple(rarely(draw, widths, widths[:-1]))}
    if case.name.startswith("Constant"):
        options["value"] = one(draw, 0.5, -2.0, 0, float("nan"))
    return trial(draw, case.native, options, shape)


def images(shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    return lambda generator, _: (torch.randint(0, 9, shape, generator=generator).to(dtype),)


def case(layer: type[nn.Module], axes: int, **more: Any) -> Case:
    """A row: widths of every kind, and what torch refuses."""
    native, shape = getattr(nn, layer.__name__), IMAGES[axes]
    is_number = "value" in more or layer.__name__.startswith("Zero")
    uneven, cut, wide = UNEVEN[: 2 * axes], CUT[: 2 * axes], (9, *UNEVEN[1 : 2 * axes])
    kinds = [*DTYPES, *[torch.bool] * (is_number or layer.__name__.startswith("Circular"))]
    samples = [
        Sample(shape, {"padding": 1, **more}),
        Sample(shape, {"padding": uneven, **more}),
        Sample(shape[1:], {"padding": uneven, **more}),
        Sample(shape, {"padding": cut, **more}),
        Sample(shape, {"padding": 0, **more}),
        *(Sample(options={"padding": uneven, **more}, make=images(shape, dtype), gradcheck=False) for dtype in kinds),
    ]
    bad = [
        Bad({"padding": -9, **more}, shape),
        Bad({"padding": 1.5, **more}, shape),
        Bad({"padding": "ab", **more}, shape),
        Bad({"padding": None, **more}, shape),
        Bad({"padding": (1, 1, 1), **more}, shape),
        Bad({"padding": (1,) * 12, **more}, shape),
        Bad({"padding": 1, **more}, ()),
    ]
    if is_number:
        samples += [Sample(shape[-axes:], {"padding": 1, **more}), Sample((2, *shape), {"padding": 1, **more})]
    else:
        bad += [
            Bad({"padding": wide if "Replication" not in layer.__name__ else -3}, shape),
            Bad({"padding": 1}, shape[-axes:]),
            Bad({"padding": 1}, (1, *shape)),
            Bad({"padding": (1,) * 6 if axes == 1 else (1, 1)}, shape),
            Bad({"padding": 1}, (*shape[:-1], 0)),
        ]
    if layer.__name__.startswith("Re"):
        bad += [Bad({"padding": 1}, (2, 0, *shape[2:])), Bad({"padding": 1}, shape, torch.bool)]
    if "value" in more:
        samples += [Sample(shape, {"padding": 1, "value": value}) for value in (None, -1)]
        samples += [Sample(shape, {"padding": 1, "value": float("nan")}, gradcheck=False)]  # no difference of NaN
        samples += [Sample(options={"padding": 1, "value": 2.7}, make=images(shape, torch.int64), gradcheck=False)]
        bad += [
            Bad({"padding": 1, "value": "1"}, shape),
            Bad({"padding": 1, "value": 300}, shape, torch.uint8),
            Bad({"padding": 1, "value": float("nan")}, shape, torch.int64),
            Bad({"padding": 1, "value": 1e300}, shape),
        ]
    return Case(layer, native, samples, bad, trial=padding)


CASES = [
    case(layers.ZeroPad1d, 1),
    case(layers.ZeroPad2d, 2),
    case(layers.ZeroPad3d, 3),
    case(layers.ConstantPad1d, 1, value=1.5),
    case(layers.ConstantPad2d, 2, value=1.5),
    case(layers.ConstantPad3d, 3, value=1.5),
    case(layers.ReflectionPad1d, 1),
    case(layers.ReflectionPad2d, 2),
    case(layers.ReflectionPad3d, 3),
    case(layers.ReplicationPad1d, 1),
    case(layers.ReplicationPad2d, 2),
    case(layers.ReplicationPad3d, 3),
    case(layers.CircularPad1d, 1),
    case(layers.CircularPad2d, 2),
    case(layers.CircularPad3d, 3),
]
