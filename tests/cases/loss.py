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


def of_numbers(draw: Draw, case: Case) -> Trial:
    """Numbers and targets of one shape, and weights that broadcast to it."""
    shape = anything(draw)
    options: dict[str, Any] = {"reduction": rarely(draw, one(draw, "mean", "sum", "none"), "average")}
    if case.native is nn.SmoothL1Loss:
        options["beta"] = rarely(draw, one(draw, 1.0, 0.0, 0.5, 3), -1.0)
    target = Target("values", rarely(draw, tuple(shape), (*shape, 2)), needs=draw(st.booleans()))
    return trial(draw, case.native, options, shape, arguments=(target,), without=case.without)


def of_chances(shape: tuple[int, ...]) -> Make:
    """Numbers between 0 and 1, and targets of the same kind."""

    def make(generator: torch.Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        x, target = torch.rand(2, *shape, generator=generator, dtype=torch.float64) * 0.9 + 0.05
        return x.to(dtype), target.to(dtype)

    return make


BY_COLUMN = torch.tensor([0.5, 2.0, 1.0, 0.25])
BY_ROW = torch.tensor([[0.5], [2.0], [1.5]])
EACH = torch.arange(12.0).reshape(3, 4) / 8
SHAPES = ((2, 3, 5, 4), (7,), ())
BETWEEN = torch.full((3, 4), 0.5)
WRONG_PAIR = [
    Bad(make=fixed(BETWEEN, BETWEEN[0])),
    Bad(make=fixed(BETWEEN, BETWEEN.long())),
    Bad(make=fixed(BETWEEN.long(), BETWEEN.long())),
    Bad(make=fixed(BETWEEN.long(), BETWEEN)),
    Bad(make=fixed(BETWEEN, BETWEEN.bool())),
    Bad(make=fixed(BETWEEN, None)),
    Bad({"reduction": "average"}, make=fixed(BETWEEN, BETWEEN)),
    Bad({"weight": torch.ones(5)}, make=fixed(BETWEEN, BETWEEN)),
    Bad({"weight": torch.ones(2, 3, 4)}, make=fixed(BETWEEN, BETWEEN)),
]

CASES = [
    Case(
        layers.BCELoss,
        nn.BCELoss,
        trial=of_numbers,
        arguments=arguments("weight", "size_average", "reduce", "reduction"),
        samples=[
            *(Sample(options={"reduction": r}, make=of_chances(shape)) for shape in SHAPES for r in REDUCTIONS),
            *(
                Sample(options={"reduction": r, "weight": weight}, make=of_chances((3, 4)))
                for weight in (BY_COLUMN, BY_ROW, EACH)
                for r in REDUCTIONS
            ),
        ],
        bad=[
            *WRONG_PAIR,
            Bad(make=fixed(BETWEEN, BETWEEN.double())),
            Bad(make=fixed(BETWEEN + 1, BETWEEN)),
            Bad(make=fixed(BETWEEN - 1, BETWEEN)),
            Bad(make=fixed(BETWEEN, BETWEEN + 1)),
            Bad(make=fixed(BETWEEN * float("nan"), BETWEEN)),
        ],
    ),
    Case(
        layers.BCEWithLogitsLoss,
        nn.BCEWithLogitsLoss,
        trial=of_numbers,
        arguments=arguments("weight", "size_average", "reduce", "reduction", "pos_weight"),
        samples=[
            *(Sample(options={"reduction": r}, make=pair(shape)) for shape in SHAPES for r in REDUCTIONS),
            *(
                Sample(options={"reduction": r, **weights}, make=pair((3, 4)))
                for weights in (
                    {"weight": BY_COLUMN},
                    {"pos_weight": BY_COLUMN},
                    {"weight": BY_ROW, "pos_weight": BY_COLUMN},
                    {"weight": BY_COLUMN, "pos_weight": EACH},
                )
                for r in REDUCTIONS
            ),
        ],
        bad=[
            *WRONG_PAIR,
            Bad({"pos_weight": torch.ones(5)}, make=fixed(BETWEEN, BETWEEN)),
            Bad({"pos_weight": torch.ones(2, 3, 4)}, make=fixed(BETWEEN, BETWEEN)),
            Bad({"pos_weight": torch.ones(4).bool()}, make=fixed(BETWEEN, BETWEEN)),
        ],
    ),
    Case(
        layers.SmoothL1Loss,
        nn.SmoothL1Loss,
        trial=of_numbers,
        trials=300,
        arguments=arguments("size_average", "reduce", "reduction", "beta"),
        samples=[
            *(Sample(options={"reduction": r}, make=pair(shape)) for shape in SHAPES for r in REDUCTIONS),
            *(
                Sample(options={"reduction": r, "beta": b}, make=pair((3, 4)))
                for b in (0, 0.25, 4.0)
                for r in REDUCTIONS
            ),
        ],
        bad=[
            Bad({"reduction": "average"}, make=fixed(X, X)),
            Bad({"beta": -1.0}, make=fixed(X, X)),
            Bad({"beta": None}, make=fixed(X, X)),
            Bad({"beta": "1"}, make=fixed(X, X)),
            Bad({"beta": 0}, make=fixed(X.long(), X.long())),
            Bad(make=fixed(X.long(), X.long())),
            Bad(make=fixed(X, X[:, :3])),
            Bad(make=fixed(X, None)),
        ],
    ),
    Case(
        layers.L1Loss,
        nn.L1Loss,
        trial=of_numbers,
        trials=300,
        arguments=Arguments(
            ("target", "size_average", "reduce", "reduction", "weight"),
            inputs=("target",),
            fits=lambda x, arguments: arguments.get("weight") is None,  # which the layer has not
        ),
        samples=[
            Sample(options={"reduction": reduction}, make=pair(shape)) for shape in SHAPES for reduction in REDUCTIONS
        ],
        bad=[
            Bad({"reduction": "average"}, make=fixed(X, X)),
            Bad(make=fixed(X.long(), X.long())),
            Bad({"reduction": "sum"}, make=fixed(X.bool(), X.bool())),
            Bad(make=fixed(X, X[:, :3])),
            Bad(make=fixed(X, None)),
        ],
    ),
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
