"""One table of cases: a row for each layer, which every test of all layers reads.

How to write a row: put a `Case` into the list ``CASES`` of the file beside this one that has the name of the layer's
file in ``cnn_lightning/layers``. It names the layer, the native layer, good samples, and bad ones beside them::

    Case(
        layers.Flatten,
        nn.Flatten,
        samples=[Sample((2, 3, 5, 4)), Sample((2, 3), {"start_dim": 0})],
        bad=[Bad(shape=(3,)), Bad({"end_dim": 7})],
    )

An elementwise activation is one line by `tests.cases.activation.elementwise`: options of its samples, and its kinks.

The first sample is the one that the dearer tests take, so it is a usual one. Together the samples set every option to
every kind of value. All other fields have a default, which most layers need no more than; see `Case`. `Arguments` is
for a layer with parameters, whose arguments torch's function takes in another order than the constructor.
A layer of the catalogue without a row fails ``test_catalog.py::test_every_layer_has_a_row``.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.layers import catalog
from tests.trials import Draw, Trial, anything, one, rarely, trial

Make = Callable[[torch.Generator, torch.dtype], tuple[Any, ...]]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """A module's options and inputs.

    ``shape`` is that of one float input of normal numbers, ``extra`` makes the inputs after it; ``make`` makes all.
    Set ``gradcheck=False`` where numerical differences can't see the gradient (kinks, ties); say why beside it.
    """

    shape: tuple[int, ...] = ()
    options: Options = field(default_factory=dict)
    extra: tuple[Callable[[torch.Generator], Any], ...] = ()
    train: bool = True
    gradcheck: bool = True
    make: Make | None = None

    def inputs(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Any, ...]:
        """Fresh inputs, equal for equal arguments up to the dtype's rounding."""
        generator = torch.Generator().manual_seed(seed)
        if self.make is not None:
            return self.make(generator, dtype)
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)
        return (x, *(make(generator) for make in self.extra))


@dataclass(frozen=True)
class Bad:
    """Options or inputs that torch refuses: ours must refuse them with the same exception type in one line."""

    options: Options = field(default_factory=dict)
    shape: tuple[int, ...] = (2, 3, 8, 8)
    dtype: torch.dtype = torch.float32
    make: Make | None = None

    def inputs(self) -> tuple[Any, ...]:
        """The inputs to be refused."""
        if self.make is not None:
            return self.make(torch.Generator().manual_seed(0), self.dtype)
        return (torch.ones(self.shape).to(self.dtype),)


@dataclass(frozen=True)
class Arguments:
    """The arguments, after the input, of the function of torch that computes what a layer does.

    torch's own tests have samples of them (``tests/test_torch_suite.py``), of which we make layers.

    Attributes:
        names: In the function's order; None where they are the constructor's, in its order.
        inputs: Those of them that the layer takes as inputs.
        parameters: Those of them that are parameters or buffers of the layer.
        sizes: What the constructor needs besides, from the input and all arguments by name.
        fits: Whether a layer can be made of an input and these arguments.
    """

    names: tuple[str, ...] | None = None
    inputs: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    sizes: Callable[[Tensor, Mapping[str, Any]], Options] = lambda x, arguments: {}
    fits: Callable[[Tensor, Mapping[str, Any]], bool] = lambda x, arguments: True


def of_any_shape(draw: Draw, case: "Case") -> Trial:
    """`Case.trial` of a layer that takes any shape, with options that its row has."""
    return trial(draw, case.native, case.options(draw), anything(draw), without=case.without)


@dataclass(frozen=True)
class Case:
    """A layer, the native one it stands for, and what to try on both.

    Attributes:
        layer: Our class.
        native: The class of torch or torchvision, as in the catalogue.
        samples: Options and inputs that both take.
        bad: Options and inputs that both refuse.
        trial: Draws options and an input at random (``tests/test_random_cases.py``).
        trials: How many such trials ``pytest -m slow`` runs.
        values: Values of options for random trials, beside those of the samples.
        without: What `tests.trials.trial` must not draw; say why beside it.
        rounding: Of the results of random trials: relative to "each" number of them, to the "largest" (each depends
            on many numbers), or to the same "sum" of absolute values; "chain" is "largest" for a layer of several
            operations, each of which rounds half precisions again.
        arguments: Those of torch's function.
        precision: How near torch's results in float64 are to those of elementary tensor operations.
    """

    layer: type[nn.Module]
    native: type[nn.Module]
    samples: list[Sample]
    bad: list[Bad] = field(default_factory=list)
    trial: Callable[[Draw, "Case"], Trial] = of_any_shape
    trials: int = 150
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    without: str = ""
    rounding: str = "each"
    arguments: Arguments = Arguments()
    precision: float = 1e-12

    @property
    def name(self) -> str:
        return self.layer.__name__

    @property
    def entry(self) -> catalog.Entry:
        """The layer in the catalogue."""
        return catalog.entries()[self.native]

    @property
    def is_view(self) -> bool:
        """Whether the layer is an operation of torch's own that computes nothing."""
        return not self.entry.formulas

    def options(self, draw: Draw) -> dict[str, Any]:
        """Any combination of the samples' options, rarely with one that torch refuses."""
        absent = object()
        rows = [sample.options for sample in self.samples]
        names = list(dict.fromkeys(name for row in rows for name in row))
        drawn = {}
        for name in names:
            values = [row.get(name, absent) for row in rows] + list(self.values.get(name, ()))
            refused = [bad.options[name] for bad in self.bad if name in bad.options]
            value = one(draw, *_distinct(values))
            drawn[name] = rarely(draw, value, one(draw, *refused)) if refused else value
        return {name: value for name, value in drawn.items() if value is not absent}


def _distinct(values: list[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if value not in values[:index]]


def load() -> list[Case]:
    """The rows of every file beside this one."""
    return [
        case
        for info in pkgutil.iter_modules(__path__)
        for case in importlib.import_module(f"{__name__}.{info.name}").CASES
    ]
