"""Normalisation layers."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import nn
from torchvision.models import convnext

from cnn_lightning.layers import norm
from tests.cases import Arguments, Bad, Case, Sample
from tests.trials import Draw, Trial, one, rarely, shaped, trial

# ---- torch's functions

PARAMETERS = ("weight", "bias")


def batch_norm_of(*axes: int) -> Arguments:
    """For inputs of so many axes."""
    names = ("running_mean", "running_var", "weight", "bias")
    return Arguments(
        (*names, "training", "momentum", "eps"),
        parameters=names,
        sizes=lambda x, arguments: {
            "num_features": x.shape[1] if x.dim() > 1 else 1,
            "track_running_stats": arguments["running_mean"] is not None,
        },
        fits=lambda x, arguments: x.dim() in axes,
    )


INSTANCE_NORM = Arguments(
    ("running_mean", "running_var", *PARAMETERS, "training", "momentum", "eps"),
    parameters=("running_mean", "running_var", *PARAMETERS),
    sizes=lambda x, arguments: {
        "num_features": x.shape[1],
        "affine": arguments["weight"] is not None,
        "track_running_stats": arguments["running_mean"] is not None,
    },
)
LAYER_NORM = Arguments(("normalized_shape", *PARAMETERS, "eps"), parameters=PARAMETERS)
RMS_NORM = Arguments(("normalized_shape", "weight", "eps"), parameters=("weight",))
GROUP_NORM = Arguments(
    ("num_groups", *PARAMETERS, "eps"),
    parameters=PARAMETERS,
    sizes=lambda x, arguments: {"num_channels": x.shape[1] if x.dim() > 1 else 1},
)

# ---- random trials

EPS = (1e-3, 0.1, 0.5)
"""None so small that what rounding leaves of equal numbers becomes large (tests/test_norm.py has such)."""

AXES: dict[type[nn.Module], int] = {
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
    nn.InstanceNorm1d: 1,
    nn.InstanceNorm2d: 2,
    nn.InstanceNorm3d: 3,
}


def batch_norm(draw: Draw, case: Case) -> Trial:
    channels = draw(st.integers(1, 4))
    options = {
        "num_features": channels,
        "eps": rarely(draw, one(draw, *EPS), one(draw, 0.0, -1.0)),
        "momentum": one(draw, 0.1, None, 0.0, 1.0),
        "affine": draw(st.booleans()),
        "track_running_stats": draw(st.booleans()),
    }
    axes = draw(st.integers(0, 1)) if case.native is nn.BatchNorm1d else AXES[case.native]
    shape = shaped(draw, channels, axes, most=9 if axes < 3 else 5, batched=True)
    # Where an axis has one element, torch takes some orders of axes for others and gives the gradients of other pixels.
    return trial(draw, case.native, options, shape, without="reversed,huge")


def instance_norm(draw: Draw, case: Case) -> Trial:
    channels = draw(st.integers(1, 4))
    options = {
        "num_features": channels,
        "eps": one(draw, *EPS),
        "momentum": one(draw, 0.1, None, 0.0, 1.0),
        "affine": draw(st.booleans()),
        "track_running_stats": draw(st.booleans()),
    }
    axes = AXES[case.native]
    shape = shaped(draw, channels, axes, most=9 if axes < 3 else 5)
    # Of weights and an empty batch, torch's own backward fails, in the derivative of repeat.
    options["affine"] = options["affine"] and shape[0] > 0
    return trial(draw, case.native, options, shape, without="huge")


def group_norm(draw: Draw, case: Case) -> Trial:
    groups = draw(st.integers(1, 3))
    channels = rarely(draw, groups * draw(st.integers(1, 3)), 5)
    options = {"num_groups": groups, "num_channels": channels, "eps": one(draw, *EPS), "affine": draw(st.booleans())}
    shape = shaped(draw, channels, draw(st.integers(0, 2)), batched=True)
    return trial(draw, case.native, options, shape, without="huge")


def layer_norm(draw: Draw, case: Case) -> Trial:
    options = {"eps": one(draw, *EPS), "elementwise_affine": draw(st.booleans()), "bias": draw(st.booleans())}
    if case.native is nn.LayerNorm:
        shape: Sequence[int] = [draw(st.integers(0, 5)) for _ in range(draw(st.integers(1, 4)))]
        last = shape[draw(st.integers(0, len(shape) - 1)) :]
        options["normalized_shape"] = rarely(draw, one(draw, last, tuple(last)), shape[-1])
    else:
        options["normalized_shape"] = draw(st.integers(1, 5))
        shape = shaped(draw, options["normalized_shape"], 2, batched=True)
    return trial(draw, case.native, options, shape, without="huge")


def rms_norm(draw: Draw, case: Case) -> Trial:
    shape = [draw(st.integers(0, 5)) for _ in range(draw(st.integers(1, 4)))]
    last = shape[draw(st.integers(0, len(shape) - 1)) :]
    options = {
        "normalized_shape": rarely(draw, one(draw, last, tuple(last)), shape[-1]),
        "eps": one(draw, None, *EPS),
        "elementwise_affine": draw(st.booleans()),
    }
    return trial(draw, case.native, options, shape, without="huge")


CASES = [
    Case(
        norm.BatchNorm1d,
        nn.BatchNorm1d,
        trial=batch_norm,
        trials=450,
        rounding="largest",
        arguments=batch_norm_of(2, 3),
        samples=[
            Sample((5, 3), {"num_features": 3}),
            Sample((4, 3, 6), {"num_features": 3, "momentum": None}),
            Sample((4, 3), {"num_features": 3}, train=False),
        ],
        bad=[
            Bad({"num_features": 3}, (2, 3, 4, 5)),
            Bad({"num_features": 4}, (2, 3)),
            Bad({"num_features": 3}, (1, 3)),
        ],
    ),
    Case(
        norm.BatchNorm2d,
        nn.BatchNorm2d,
        trial=batch_norm,
        trials=450,
        rounding="largest",
        arguments=batch_norm_of(4),
        samples=[
            Sample((4, 3, 5, 4), {"num_features": 3}),
            Sample((4, 3, 5, 4), {"num_features": 3}, train=False),
            Sample((4, 3, 5, 4), {"num_features": 3, "affine": False}),
            Sample((4, 3, 5, 4), {"num_features": 3, "track_running_stats": False}, train=False),
            Sample((4, 3, 5, 4), {"num_features": 3, "momentum": None, "eps": 0.1}),
        ],
        bad=[
            Bad({"num_features": 3}, (2, 3)),
            Bad({"num_features": 4}),
            Bad({"num_features": 3}, (1, 3, 1, 1)),
            Bad({"num_features": 3}, dtype=torch.int64),
        ],
    ),
    Case(
        norm.LayerNorm,
        nn.LayerNorm,
        trial=layer_norm,
        trials=300,
        rounding="largest",
        arguments=LAYER_NORM,
        samples=[
            Sample((4, 3, 6), {"normalized_shape": 6}),
            Sample((4, 3, 6), {"normalized_shape": (3, 6)}),
            Sample((4, 6), {"normalized_shape": (6,), "elementwise_affine": False}),
            Sample((4, 6), {"normalized_shape": (6,), "bias": False}),
        ],
        bad=[Bad({"normalized_shape": 6}, (4, 5))],
    ),
    Case(
        norm.LayerNorm2d,
        convnext.LayerNorm2d,
        trial=layer_norm,
        trials=300,
        rounding="largest",
        samples=[Sample((2, 6, 3, 4), {"normalized_shape": 6})],
        bad=[Bad({"normalized_shape": 5}, (2, 6, 3, 4))],
    ),
    Case(
        norm.GroupNorm,
        nn.GroupNorm,
        trial=group_norm,
        trials=300,
        rounding="largest",
        arguments=GROUP_NORM,
        samples=[
            Sample((3, 6, 4, 5), {"num_groups": 2, "num_channels": 6}),
            Sample((3, 6), {"num_groups": 3, "num_channels": 6, "affine": False}),
        ],
        bad=[
            Bad({"num_groups": 4, "num_channels": 6}, (3, 6, 2, 2)),
            Bad({"num_groups": 2, "num_channels": 4}, (3, 6, 2, 2)),
        ],
    ),
    Case(
        norm.InstanceNorm1d,
        torch.nn.InstanceNorm1d,
        samples=[
            Sample((4, 3, 6), {"num_features": 3}),
            Sample((3, 6), {"num_features": 3, "affine": True}),
            Sample((4, 3, 6), {"num_features": 3, "track_running_stats": True}, train=False),
        ],
        bad=[
            Bad({"num_features": 3}, (2, 3, 4, 5)),
            Bad({"num_features": 4, "affine": True}, (2, 3, 5)),
            Bad({"num_features": 3}, (2, 3, 1)),
        ],
        trial=instance_norm,
        trials=300,
        rounding="largest",
        arguments=replace(INSTANCE_NORM, fits=lambda x, arguments: x.dim() == 3),
    ),
    Case(
        norm.InstanceNorm2d,
        torch.nn.InstanceNorm2d,
        samples=[
            Sample((4, 3, 5, 4), {"num_features": 3}),
            Sample((4, 3, 5, 4), {"num_features": 3, "affine": True, "eps": 0.1}),
            Sample((4, 3, 5, 4), {"num_features": 3, "affine": True, "track_running_stats": True}),
            Sample((4, 3, 5, 4), {"num_features": 3, "affine": True, "track_running_stats": True}, train=False),
            Sample((4, 3, 5, 4), {"num_features": 3, "track_running_stats": True, "momentum": None}),
            Sample((3, 5, 4), {"num_features": 3}),
        ],
        bad=[
            Bad({"num_features": 3}, (2, 3)),
            Bad({"num_features": 4, "affine": True}),
            Bad({"num_features": 3}, (2, 3, 1, 1)),
            Bad({"num_features": 3}, dtype=torch.int64),
        ],
        trial=instance_norm,
        trials=300,
        rounding="largest",
        arguments=replace(INSTANCE_NORM, fits=lambda x, arguments: x.dim() == 4),
    ),
    Case(
        norm.BatchNorm3d,
        nn.BatchNorm3d,
        trial=batch_norm,
        trials=300,
        rounding="largest",
        arguments=batch_norm_of(5),
        samples=[
            Sample((3, 2, 2, 4, 3), {"num_features": 2}),
            Sample((3, 2, 2, 4, 3), {"num_features": 2}, train=False),
            Sample((3, 2, 2, 4, 3), {"num_features": 2, "affine": False, "momentum": None, "eps": 0.1}),
            Sample((3, 2, 2, 4, 3), {"num_features": 2, "track_running_stats": False}, train=False),
        ],
        bad=[
            Bad({"num_features": 3}),
            Bad({"num_features": 4}, (2, 3, 4, 4, 4)),
            Bad({"num_features": 3}, (1, 3, 1, 1, 1)),
            Bad({"num_features": 3}, (2, 3, 4, 4, 4), torch.int64),
        ],
    ),
    Case(
        norm.InstanceNorm3d,
        nn.InstanceNorm3d,
        samples=[
            Sample((3, 2, 2, 4, 3), {"num_features": 2}),
            Sample((3, 2, 2, 4, 3), {"num_features": 2, "affine": True, "track_running_stats": True, "eps": 0.1}),
            Sample((3, 2, 2, 4, 3), {"num_features": 2, "affine": True, "track_running_stats": True}, train=False),
            Sample((3, 2, 2, 4, 3), {"num_features": 2, "track_running_stats": True, "momentum": None}),
            Sample((2, 2, 4, 3), {"num_features": 2}),
        ],
        bad=[
            Bad({"num_features": 3}, (2, 3, 5)),
            Bad({"num_features": 4, "affine": True}, (2, 3, 4, 4, 4)),
            Bad({"num_features": 3}, (2, 3, 1, 1, 1)),
            Bad({"num_features": 3}, (2, 3, 4, 4, 4), torch.int64),
        ],
        trial=instance_norm,
        trials=300,
        rounding="largest",
        arguments=replace(INSTANCE_NORM, fits=lambda x, arguments: x.dim() == 5),
    ),
    Case(
        norm.RMSNorm,
        nn.RMSNorm,
        trial=rms_norm,
        trials=300,
        rounding="largest",
        arguments=RMS_NORM,
        samples=[
            Sample((4, 3, 6), {"normalized_shape": 6}),
            Sample((4, 3, 6), {"normalized_shape": (3, 6), "eps": 0.1}),
            Sample((4, 6), {"normalized_shape": (6,), "elementwise_affine": False}),
            Sample((5,), {"normalized_shape": [5], "eps": 1e-3}),
        ],
        bad=[
            Bad({"normalized_shape": 6}, (4, 5)),
            Bad({"normalized_shape": (3, 6)}, (6,)),
            Bad({"normalized_shape": ()}, (4, 5)),
            Bad({"normalized_shape": 5}, (4, 5), torch.int64),
            Bad({"normalized_shape": 5, "elementwise_affine": False}, (4, 5), torch.bool),
        ],
    ),
]
