"""Normalisation layers."""

import torch
from torchvision.models import convnext

from cnn_lightning.layers import norm
from tests.cases import Bad, Case, Sample

CASES = [
    Case(
        norm.BatchNorm1d,
        torch.nn.BatchNorm1d,
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
        torch.nn.BatchNorm2d,
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
        torch.nn.LayerNorm,
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
        samples=[Sample((2, 6, 3, 4), {"normalized_shape": 6})],
        bad=[Bad({"normalized_shape": 5}, (2, 6, 3, 4))],
    ),
    Case(
        norm.GroupNorm,
        torch.nn.GroupNorm,
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
    ),
]
