"""Activations: gradcheck samples keep away from kinks, of which tests/test_activation.py has all."""

import torch
from torch import nn

from cnn_lightning.layers import activation as layers
from tests.cases import Bad, Case, Make, Sample

SHAPE = (2, 3, 5, 4)
LONG = Bad(dtype=torch.int64)
BOOL = Bad(dtype=torch.bool)


def spread(*kinks: float) -> Make:
    """Numbers from -8 to 8, none within 0.01 of a kink."""

    def make(generator: torch.Generator, dtype: torch.dtype) -> tuple[torch.Tensor]:
        x = (torch.rand(SHAPE, generator=generator, dtype=torch.float64) - 0.5) * 16
        for kink in kinks:
            near = (x - kink).abs() < 0.01
            x = torch.where(near, x + 0.05, x)
        return (x.to(dtype),)

    return make


def scalar(generator: torch.Generator, dtype: torch.dtype) -> tuple[torch.Tensor]:
    return (torch.rand((), generator=generator, dtype=torch.float64).to(dtype) + 0.5,)


def case(
    layer: type[nn.Module], native: type[nn.Module], *options: dict[str, object], kinks: tuple[float, ...]
) -> Case:
    samples = [Sample(SHAPE, each, make=spread(*kinks)) for each in options]
    return Case(layer, native, samples=[*samples, Sample(make=scalar)], bad=[LONG, BOOL])


PLAIN: dict[str, object] = {}
INPLACE: dict[str, object] = {"inplace": True}

CASES = [
    Case(
        layers.ReLU,
        nn.ReLU,
        samples=[Sample(SHAPE, each, make=spread(0)) for each in (PLAIN, INPLACE)] + [Sample(make=scalar)],
        bad=[BOOL],
    ),
    Case(
        layers.ReLU6,
        nn.ReLU6,
        samples=[Sample(SHAPE, each, make=spread(0, 6)) for each in (PLAIN, INPLACE)] + [Sample(make=scalar)],
        bad=[BOOL],
    ),
    case(
        layers.LeakyReLU,
        nn.LeakyReLU,
        PLAIN,
        INPLACE,
        {"negative_slope": 0.3},
        {"negative_slope": 0.0, "inplace": True},
        {"negative_slope": -0.5},
        {"negative_slope": 1.5},
        kinks=(0,),
    ),
    Case(
        layers.PReLU,
        nn.PReLU,
        samples=[
            Sample(SHAPE, make=spread(0)),
            Sample(SHAPE, {"num_parameters": 3, "init": 0.1}, make=spread(0)),
            Sample((4, 3), {"num_parameters": 3}),
            Sample((7,)),
            Sample(make=scalar),
        ],
        bad=[
            LONG,
            Bad({"num_parameters": 4}),
            Bad({"num_parameters": 3}, shape=(3,)),
            Bad({"num_parameters": 3}, shape=()),
            Bad(dtype=torch.float64),
        ],
    ),
    case(
        layers.ELU, nn.ELU, PLAIN, INPLACE, {"alpha": 1.3}, {"alpha": 0.4, "inplace": True}, {"alpha": -0.7}, kinks=(0,)
    ),
    Case(
        layers.GELU,
        nn.GELU,
        samples=[
            Sample(SHAPE, make=spread()),
            Sample(SHAPE, {"approximate": "tanh"}, make=spread()),
            Sample(make=scalar),
        ],
        bad=[LONG, BOOL, Bad({"approximate": "erf"})],
    ),
    case(layers.SiLU, nn.SiLU, PLAIN, INPLACE, kinks=()),
    case(layers.Mish, nn.Mish, PLAIN, INPLACE, kinks=()),
    case(
        layers.Softplus,
        nn.Softplus,
        PLAIN,
        {"beta": 2.0, "threshold": 5.0},
        {"beta": 0.5, "threshold": 1},
        {"beta": -1.0},
        kinks=(2, 2.5),
    ),
    case(layers.Hardswish, nn.Hardswish, PLAIN, INPLACE, kinks=(-3, 3)),
    case(layers.Hardsigmoid, nn.Hardsigmoid, PLAIN, INPLACE, kinks=(-3, 3)),
    Case(layers.Sigmoid, nn.Sigmoid, samples=[Sample(SHAPE, make=spread()), Sample(make=scalar)]),
    Case(layers.Tanh, nn.Tanh, samples=[Sample(SHAPE, make=spread()), Sample(make=scalar)]),
    Case(
        layers.Hardtanh,
        nn.Hardtanh,
        samples=[
            Sample(SHAPE, each, make=spread(-1, 1, -0.3, 2.5, 0.5, 0.7))
            for each in (PLAIN, INPLACE, {"min_val": -0.3, "max_val": 2.5}, {"min_val": 0.5, "max_val": 0.7})
        ]
        + [Sample(make=scalar)],
        bad=[BOOL],
    ),
    Case(
        layers.Threshold,
        nn.Threshold,
        samples=[
            Sample(SHAPE, {"threshold": 0.5, "value": -3.0}, make=spread(0.5)),
            Sample(SHAPE, {"threshold": -1.0, "value": 7.0, "inplace": True}, make=spread(-1)),
            Sample(options={"threshold": 0.1, "value": 2.0}, make=scalar),
        ],
        bad=[Bad({"threshold": 0.5, "value": 1.0}, dtype=torch.bool)],
    ),
    case(layers.SELU, nn.SELU, PLAIN, INPLACE, kinks=(0,)),
    case(
        layers.CELU,
        nn.CELU,
        PLAIN,
        INPLACE,
        {"alpha": 2.5},
        {"alpha": 0.4, "inplace": True},
        {"alpha": -3.0},
        kinks=(0,),
    ),
    Case(
        layers.LogSigmoid,
        nn.LogSigmoid,
        samples=[Sample(SHAPE, make=spread()), Sample(make=scalar)],
        bad=[LONG, BOOL],
    ),
    Case(
        layers.Softsign,
        nn.Softsign,
        samples=[Sample(SHAPE, make=spread(0)), Sample(make=scalar)],
        bad=[BOOL],
    ),
    Case(
        layers.GLU,
        nn.GLU,
        samples=[Sample(SHAPE), Sample((2, 6, 3, 5), {"dim": 1}), Sample((4, 3), {"dim": 0}), Sample((6,))],
        bad=[LONG, Bad({"dim": 1}), Bad({"dim": 5}), Bad(shape=())],
    ),
]
