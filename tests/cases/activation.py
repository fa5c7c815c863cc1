"""Activations: gradcheck samples keep away from kinks, of which tests/test_activation.py has all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.layers import activation as layers
from tests.cases import Arguments, Bad, Case, Make, Options, Sample
from tests.trials import Draw, Trial, anything, one, rarely, trial

SHAPE = (2, 3, 5, 4)
LONG = Bad(dtype=torch.int64)
BOOL = Bad(dtype=torch.bool)


def away_from(*kinks: float) -> Make:
    """Numbers from -8 to 8, none within 0.01 of a kink."""

    def make(generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor]:
        x = (torch.rand(SHAPE, generator=generator, dtype=torch.float64) - 0.5) * 16
        for kink in kinks:
            near = (x - kink).abs() < 0.01
            x = torch.where(near, x + 0.05, x)
        return (x.to(dtype),)

    return make


def scalar(generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor]:
    return (torch.rand((), generator=generator, dtype=torch.float64).to(dtype) + 0.5,)


@dataclass(frozen=True)
class Elementwise(Case):
    """An activation without parameters, each output of which depends on one input: tests/test_activation.py.

    Attributes:
        kinks: Inputs at which it or its gradient jumps, for any options of the samples.
        from_output: Options with which its backward takes the output in place of the input, too.
        integers: Whether it gives integers of integers.
    """

    kinks: tuple[float, ...] = ()
    from_output: tuple[Options, ...] = ()
    integers: bool = False

    @property
    def op(self) -> str:
        """The name of its formula, which is that of torch's function."""
        return self.entry.functions[0]

    @property
    def function(self) -> Callable[..., Tensor]:
        """Torch's function of an input and options."""
        function: Callable[..., Tensor] = getattr(nn.functional, self.op)
        return function

    @property
    def formula_options(self) -> list[dict[str, Any]]:
        """Options of the samples, and each of `Case.values` in turn, without ``inplace``."""
        rows = [dict(sample.options) for sample in self.samples]
        rows += [{**rows[0], name: value} for name, values in self.values.items() for value in values]
        rows = [{name: value for name, value in row.items() if name != "inplace"} for row in rows]
        return [row for index, row in enumerate(rows) if row not in rows[:index]]


def elementwise(
    layer: type[nn.Module],
    native: type[nn.Module],
    *options: Options,
    kinks: tuple[float, ...] = (),
    integers: bool = False,
    bad: tuple[Bad, ...] = (LONG, BOOL),
    **more: Any,
) -> Elementwise:
    """A row with a sample for each of ``options``, and one without axes by the first of them."""
    samples = [Sample(SHAPE, each, make=away_from(*kinks)) for each in options]
    samples.append(Sample(options=options[0], make=scalar))
    refused = [case for case in bad if not (integers and case is LONG)]
    return Elementwise(layer, native, samples, refused, kinks=kinks, integers=integers, **more)


DEFAULT: Options = {}
INPLACE: Options = {"inplace": True}
LANES = "special,all nan,special gradient"
"""At NaN, torch's gradient of some depends on whether the element is in a whole vector (tests/test_activation.py)."""


def prelu(draw: Draw, case: Case) -> Trial:
    number = one(draw, 1, 2, 3)
    shape = anything(draw)
    if len(shape) > 1:
        shape[1] = rarely(draw, number, 4)
    return trial(draw, case.native, {"num_parameters": number}, shape)


def glu(draw: Draw, case: Case) -> Trial:
    shape, dim = anything(draw), one(draw, -1, 0, 1)
    if -len(shape) <= dim < len(shape):
        shape[dim] = rarely(draw, 2 * shape[dim], 3)
    return trial(draw, case.native, {"dim": dim}, shape)


CASES = [
    elementwise(layers.ReLU, nn.ReLU, DEFAULT, INPLACE, kinks=(0,), from_output=(DEFAULT,), integers=True),
    elementwise(
        *(layers.ReLU6, nn.ReLU6, DEFAULT, INPLACE),
        kinks=(0, 6),
        from_output=(DEFAULT,),
        integers=True,
        without=LANES,
    ),
    elementwise(
        layers.LeakyReLU,
        nn.LeakyReLU,
        DEFAULT,
        INPLACE,
        {"negative_slope": 0.3},
        {"negative_slope": 0.0, "inplace": True},
        {"negative_slope": -0.5},
        {"negative_slope": 1.5},
        kinks=(0,),
        from_output=({"negative_slope": 2.0},),
        values={"negative_slope": (1.0, 2.0)},
    ),
    Case(
        layers.PReLU,
        nn.PReLU,
        samples=[
            Sample(SHAPE, make=away_from(0)),
            Sample(SHAPE, {"num_parameters": 3, "init": 0.1}, make=away_from(0)),
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
        trial=prelu,
        arguments=Arguments(
            ("weight",),
            parameters=("weight",),
            sizes=lambda x, arguments: {"num_parameters": max(1, arguments["weight"].numel())},
        ),
    ),
    elementwise(
        layers.ELU,
        nn.ELU,
        DEFAULT,
        INPLACE,
        {"alpha": 1.3},
        {"alpha": 0.4, "inplace": True},
        {"alpha": -0.7},
        kinks=(0,),
        values={"alpha": (0.5, 0.0, -1.0)},
        without=LANES,
    ),
    elementwise(layers.GELU, nn.GELU, DEFAULT, {"approximate": "tanh"}, bad=(LONG, BOOL, Bad({"approximate": "erf"}))),
    elementwise(layers.SiLU, nn.SiLU, DEFAULT, INPLACE),
    elementwise(layers.Mish, nn.Mish, DEFAULT, INPLACE),
    elementwise(
        layers.Softplus,
        nn.Softplus,
        DEFAULT,
        {"beta": 2.0, "threshold": 5.0},
        {"beta": 0.5, "threshold": 1},
        {"beta": -1.0},
        kinks=(2, 2.5, 10, 20),
        values={"beta": (2.5, 0.0), "threshold": (0.0,)},
    ),
    elementwise(layers.Hardswish, nn.Hardswish, DEFAULT, INPLACE, kinks=(-3, 3), without=LANES),
    elementwise(
        *(layers.Hardsigmoid, nn.Hardsigmoid, DEFAULT, INPLACE),
        kinks=(-3, 3),
        precision=1e-7,  # torch's kernel has 1 / 6 in float32 in it, for float64 too
    ),
    elementwise(layers.Sigmoid, nn.Sigmoid, DEFAULT, bad=()),
    elementwise(layers.Tanh, nn.Tanh, DEFAULT, bad=()),
    elementwise(
        *(layers.Hardtanh, nn.Hardtanh, DEFAULT, INPLACE),
        {"min_val": -0.3, "max_val": 2.5},
        {"min_val": 0.5, "max_val": 0.7},
        kinks=(-1, 1, -0.3, 2.5, 0.5, 0.7),
        integers=True,
        without=LANES,
    ),
    elementwise(
        *(layers.Threshold, nn.Threshold),
        {"threshold": 0.5, "value": -3.0},
        {"threshold": -1.0, "value": 7.0, "inplace": True},
        kinks=(0.5, -1),
        integers=True,
        bad=(Bad({"threshold": 0.5, "value": 1.0}, dtype=torch.bool),),
    ),
    elementwise(layers.SELU, nn.SELU, DEFAULT, INPLACE, kinks=(0,), without=LANES),
    elementwise(
        *(layers.CELU, nn.CELU, DEFAULT, INPLACE),
        {"alpha": 2.5},
        {"alpha": 0.4, "inplace": True},
        {"alpha": -3.0},
        kinks=(0,),
        bad=(LONG, BOOL, Bad({"alpha": 0.0})),
        without=LANES,
    ),
    elementwise(layers.LogSigmoid, nn.LogSigmoid, DEFAULT),
    Case(
        layers.Softsign,
        nn.Softsign,
        samples=[Sample(SHAPE, make=away_from(0)), Sample(make=scalar)],
        bad=[BOOL],
    ),
    Case(
        layers.GLU,
        nn.GLU,
        samples=[Sample(SHAPE), Sample((2, 6, 3, 5), {"dim": 1}), Sample((4, 3), {"dim": 0}), Sample((6,))],
        bad=[LONG, Bad({"dim": 1}), Bad({"dim": 5}), Bad(shape=())],
        trial=glu,
    ),
]
