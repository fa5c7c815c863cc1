"""Losses: targets as indices and as probabilities, weighted, smoothed, ignored, in every reduction."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from cnn_lightning.layers import loss as layers
from tests.cases import Arguments, Bad, Case, Make, Sample
from tests.trials import Draw, Target, Trial, anything, one, rarely, shaped, trial

CLASSES = 5
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0])


def scores(shape: tuple[int, ...], target: Callable[[torch.Generator, torch.dtype], Tensor]) -> Make:
    def make(generator: torch.Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
        return x.to(dtype), target(generator, dtype)

    return make


def indices(*shape: int, ignored: int | None = None) -> Callable[[torch.Generator, torch.dtype], Tensor]:
    def make(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        target = torch.randint(CLASSES, shape, generator=generator)
        return target if ignored is None else torch.where(target == 2, ignored, target)

    return make


def probabilities(*shape: int) -> Callable[[torch.Generator, torch.dtype], Tensor]:
    def make(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        logits = torch.randn(shape, generator=generator, dtype=torch.float64)
        return logits.softmax(1 if len(shape) > 1 else 0).to(dtype)

    return make


def log_scores(shape: tuple[int, ...], target: Callable[[torch.Generator, torch.dtype], Tensor]) -> Make:
    def make(generator: torch.Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        x, classes = scores(shape, target)(generator, torch.float64)
        return x.log_softmax(1 if len(shape) > 1 else 0).to(dtype), classes

    return make


def pair(shape: tuple[int, ...]) -> Make:
    return scores(
        shape, lambda generator, dtype: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    )


def fixed(*inputs: Any) -> Make:
    return lambda generator, dtype: inputs


REDUCTIONS = ("mean", "sum", "none")
PLACES = [((7, 5), (7,)), ((5,), ()), ((3, 5, 4), (3, 4)), ((2, 5, 3, 4), (2, 3, 4))]

HARD = [
    Sample(options={"reduction": reduction, **options}, make=scores(shape, indices(*place, ignored=ignored)))
    for shape, place in PLACES
    for reduction in REDUCTIONS
    for options, ignored in (
        ({}, None),
        ({"weight": WEIGHT}, None),
        ({"ignore_index": 9}, 9),
        ({"weight": WEIGHT, "label_smoothing": 0.1, "ignore_index": -1}, -1),
        ({"label_smoothing": 1.0}, None),
    )
]
SOFT = [
    Sample(options={"reduction": reduction, **options}, make=scores(shape, probabilities(*shape)))
    for shape, _ in PLACES
    for reduction in REDUCTIONS
    for options in ({}, {"weight": WEIGHT, "label_smoothing": 0.2})
]
NLL = [
    Sample(options={"reduction": reduction, **options}, make=log_scores(shape, indices(*place, ignored=ignored)))
    for shape, place in PLACES
    for reduction in REDUCTIONS
    for options, ignored in (({}, None), ({"weight": WEIGHT, "ignore_index": -1}, -1))
]

X = torch.zeros(4, CLASSES)
IMAGE = torch.zeros(2, CLASSES, 3, 3)
GOOD = torch.tensor([0, 1, 2, 3])

WRONG_TARGET = [
    Bad(make=fixed(X, torch.tensor([0, 1, 2, 5]))),
    Bad(make=fixed(X, torch.tensor([0, 1, 2, -1]))),
    Bad(make=fixed(X[0], torch.tensor(5))),
    Bad(make=fixed(IMAGE, torch.full((2, 3, 3), 7))),
    Bad(make=fixed(X, GOOD[:3])),
    Bad(make=fixed(X, torch.tensor(1))),
    Bad(make=fixed(X, GOOD[:, None])),
    Bad(make=fixed(X[0], GOOD[:2])),
    Bad(make=fixed(X, GOOD.int())),
    Bad(make=fixed(X, GOOD.float())),
    Bad(make=fixed(X, GOOD.bool())),
    Bad(make=fixed(X, X.long())),
    Bad(make=fixed(X.long(), GOOD)),
    Bad(make=fixed(IMAGE, torch.zeros(3, 3, 3).long())),
    Bad(make=fixed(IMAGE, torch.zeros(2, 3, 4).long())),
    Bad(make=fixed(IMAGE, torch.zeros(2, 3).long())),
    Bad(make=fixed(IMAGE[..., 0], torch.zeros(2).long())),
    Bad({"weight": WEIGHT[:4]}, make=fixed(X, GOOD)),
    Bad({"weight": WEIGHT[:, None]}, make=fixed(X, GOOD)),
    Bad({"weight": WEIGHT[:3]}, make=fixed(IMAGE, torch.zeros(2, 3, 3).long())),
    Bad({"weight": WEIGHT.double()}, make=fixed(X, GOOD)),
    Bad({"reduction": "average"}, make=fixed(X, GOOD)),
]

# ---- torch's functions

OLD = ("size_average", "ignore_index", "reduce", "reduction")


def arguments(*names: str) -> Arguments:
    return Arguments(("target", *names), inputs=("target",))


# ---- random trials


def classifying(draw: Draw, case: Case) -> Trial:
    classes = draw(st.integers(1, 4))
    shape = list(shaped(draw, classes, draw(st.integers(0, 2)), most=3))
    options: dict[str, Any] = {"reduction": rarely(draw, one(draw, "mean", "sum", "none"), "average")}
    if draw(st.booleans()) and options["reduction"] != "average":
        weights = [draw(st.integers(0, 8)) / 4 for _ in range(classes)]
        options["weight"] = rarely(draw, weights, [*weights, 1.0])
    options["ignore_index"] = ignored = one(draw, -100, -100, 0, -1, 1)
    if case.native is nn.CrossEntropyLoss:
        options["label_smoothing"] = rarely(draw, one(draw, 0.0, 0.0, 0.1, 0.9), 1.5)
    places = shape[:1] + shape[2:] if len(shape) > 1 else []
    target = Target("indices", tuple(places), rarely(draw, classes, classes + 3), one(draw, None, ignored))
    if draw(st.integers(0, 3)) == 0:
        target = Target("probabilities", tuple(shape), needs=draw(st.booleans()))
    target = rarely(draw, target, dataclasses.replace(target, shape=(*target.shape, 2)))
    return trial(draw, case.native, options, shape, arguments=(target,), without=case.without)


def mean_squared_error(draw: Draw, case: Case) -> Trial:
    shape = anything(draw)
    other = rarely(draw, tuple(shape), one(draw, tuple(shape[1:]), (*shape, 1), (7,)))
    target = Target("values", other, needs=draw(st.booleans()))
    options = {"reduction": rarely(draw, one(draw, "mean", "sum", "none"), "average")}
    return trial(draw, case.native, options, shape, arguments=(target,))


CASES = [
    Case(
        layers.CrossEntropyLoss,
        nn.CrossEntropyLoss,
        trial=classifying,
        trials=700,
        arguments=arguments("weight", *OLD, "label_smoothing"),
        samples=[*HARD, *SOFT],
        bad=[
            *WRONG_TARGET,
            Bad(make=fixed(X[0, 0], torch.tensor(0))),
            Bad({"label_smoothing": 1.5}, make=fixed(X, GOOD)),
            Bad({"label_smoothing": 1.5}, make=fixed(X, X)),
            Bad({"ignore_index": 1}, make=fixed(X, X)),
            Bad({"weight": WEIGHT[:4]}, make=fixed(X, X)),
            Bad({"weight": WEIGHT[:1]}, make=fixed(X, X)),
        ],
    ),
    Case(
        layers.NLLLoss,
        nn.NLLLoss,
        trial=classifying,
        trials=350,
        without="huge",  # of which little but rounding is left where they cancel
        arguments=arguments("weight", *OLD),
        samples=NLL,
        bad=[*WRONG_TARGET, Bad(make=fixed(X[0, 0], torch.tensor(0))), Bad(make=fixed(X, X))],
    ),
    Case(
        layers.MSELoss,
        nn.MSELoss,
        trial=mean_squared_error,
        trials=300,
        arguments=arguments("size_average", "reduce", "reduction"),
        samples=[
            Sample(options={"reduction": reduction}, make=pair(shape))
            for shape in ((2, 3, 5, 4), (7,), ())
            for reduction in REDUCTIONS
        ],
        bad=[
            Bad({"reduction": "average"}, make=fixed(X, X)),
            Bad(make=fixed(X.long(), X.long())),
        ],
    ),
]
