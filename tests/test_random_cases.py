"""Random trials of every layer against torch: options, shapes, memory orders, dtypes and values, wrong ones too.

Results are equal, or both implementations raise the same type of exception. ``pytest -m slow`` runs the 10,000.
"""

import dataclasses
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import convnext

from tests.cases import Case, load
from tests.trials import LAYOUTS, UPSTREAM, VALUES, Draw, Target, Trial

CASES = {case.native: case for case in load()}
ROWS = [pytest.param(case, id=case.name) for case in CASES.values()]

# ---- a trial, run


@dataclass
class Outcome:
    """The resulting tensors by name, or the exception."""

    tensors: dict[str, Tensor | None] = field(default_factory=dict)
    error: Exception | None = None


def run(layer: type[nn.Module], trial: Trial, wide: bool = False, absolute: bool = False) -> Outcome:
    """Outputs, gradients and buffers of a layer.

    ``wide``: of the same numbers, in float64. ``absolute``: of their absolute values, where finite.
    """
    generator = torch.Generator().manual_seed(trial.seed)

    def numbers(shape: Sequence[int], dtype: torch.dtype, values: str = "normal") -> Tensor:
        x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
        x = VALUES[values](x, dtype, generator).to(dtype)
        x = x.abs().nan_to_num(0, 0, 0) if absolute else x
        return x.double() if wide else x

    def argument(value: Any) -> Any:
        if not isinstance(value, Target):
            return value
        if value.kind == "indices":
            target = torch.randint(max(1, value.classes), value.shape, generator=generator)
            return target if value.ignored is None else torch.where(target == 0, value.ignored, target)
        target = numbers(value.shape, trial.dtype)
        if value.kind == "probabilities" and target.dim():
            target = target.softmax(min(1, target.dim() - 1))
        return target.requires_grad_(value.needs)

    outcome = Outcome()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = dict(trial.options)
            if isinstance(options.get("weight"), list):
                options["weight"] = torch.tensor(options["weight"]).to(torch.float64 if wide else trial.dtype)
            module = layer(**options).train(trial.train)
            given_dtype = trial.parameters or trial.dtype
            module.to(torch.float64 if wide else given_dtype)
            for name, tensor in module.named_parameters():
                tensor.requires_grad_(trial.needs[1])
                tensor.detach().copy_(numbers(tensor.shape, given_dtype))
                outcome.tensors[f"gradient of {name}"] = None
            for name, buffer in module.named_buffers():
                if buffer.is_floating_point() and "running" in name:
                    buffer.copy_(numbers(buffer.shape, given_dtype).abs() + ("var" in name))
            leaf, view = LAYOUTS[trial.layout](numbers(trial.shape, trial.dtype, trial.values))
            leaf.requires_grad_(trial.needs[0])
            arguments = [argument(value) for value in trial.arguments]
            torch.manual_seed(trial.seed)
            results = module(view(leaf if trial.leaf else leaf * 1), *arguments)
            outputs = list(results) if isinstance(results, tuple) else [results]
            leaves = {"input": leaf, **dict(module.named_parameters())}
            leaves |= {f"argument {i}": value for i, value in enumerate(arguments) if isinstance(value, Tensor)}
            leaves = {name: tensor for name, tensor in leaves.items() if tensor.requires_grad}
            floats = [output for output in outputs if output.requires_grad]
            kept = [output.detach().clone() for output in outputs]
            if floats and leaves:
                upstream = [
                    UPSTREAM[trial.upstream](numbers(y.shape, trial.dtype).to(y.dtype), generator) for y in floats
                ]
                gradients = torch.autograd.grad(floats, list(leaves.values()), upstream, allow_unused=True)
                outcome.tensors |= {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}
            outcome.tensors |= {f"output {index}": output for index, output in enumerate(kept)}
            outcome.tensors |= {f"buffer {name}": buffer for name, buffer in module.named_buffers()}
            outcome.tensors["requires grad"] = torch.tensor([output.requires_grad for output in outputs])
    except Exception as error:
        outcome.error = error
    return outcome


# ---- two outcomes, compared

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

UNDECIDED = "|".join(
    [
        " not implemented for ",
        r"Calculated output size per channel: \((\d+ x )*0[ )]",
        "Only zero batch or zero channel inputs",
        "grad_input must be contiguous",
    ]
)
"""Errors that some of torch's kernels raise and others don't: dtypes, results of no pixels, orders of axes."""


def check(trial: Trial) -> bool:
    """Assert that results are equal to within rounding, or nearer to the truth than torch's; or errors of one type.

    False where torch is undecided.
    """
    case = CASES[trial.native]
    expected, found = run(trial.native, trial), run(case.layer, trial)
    if expected.error is not None or found.error is not None:
        if re.search(UNDECIDED, str(expected.error)):
            return False
        assert type(found.error) is type(expected.error), f"{found.error!r} in place of {expected.error!r}"
        assert str(found.error).strip()
        assert "\n" not in str(found.error) or str(found.error) == str(expected.error), str(found.error)
        return True
    truth = run(trial.native, trial, wide=True)
    sizes = run(trial.native, trial, wide=True, absolute=True) if case.rounding == "sum" else truth
    assert found.tensors.keys() == expected.tensors.keys()
    for name, theirs in expected.tensors.items():
        ours, true, size = (outcome.tensors.get(name) for outcome in (found, truth, sizes))
        assert (ours is None) == (theirs is None), name
        if ours is None or theirs is None:
            continue
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        true, size = (theirs if tensor is None else tensor for tensor in (true, size))
        good = close(ours, theirs, size, trial) | close(ours, true.to(theirs.dtype), size, trial)
        if trial.dtype != torch.float64 and theirs.is_floating_point() and theirs.numel():
            good |= (ours.double() - true).abs() <= (theirs.double() - true).abs().nan_to_num(0, 0, 0).max()
        assert good.all(), f"{name}: {ours[~good]} in place of {theirs[~good]}, truly {true[~good]}"
    return True


def close(ours: Tensor, theirs: Tensor, size: Tensor, trial: Trial) -> Tensor:
    """Where two tensors are equal to within the rounding of numbers of ``size``."""
    if not theirs.is_floating_point():
        return ours == theirs
    a, b, size = ours.double(), theirs.double(), size.double().abs().nan_to_num(0, 0, 0)
    rounding = CASES[trial.native].rounding
    largest = rounding in ("largest", "chain")
    if largest and size.numel():
        size = size.max()
    tolerance = TOLERANCE[max((trial.dtype, theirs.dtype), key=TOLERANCE.__getitem__)]
    if rounding == "chain" and tolerance > TOLERANCE[torch.float32]:
        tolerance *= 16
    equal = (a == b) | (a.isnan() & b.isnan())
    if largest and trial.upstream == "special gradient":
        equal |= ~a.isfinite() & ~b.isfinite()  # infinities cancel or not, as the sums are ordered
    return equal | ((a - b).abs() <= tolerance * size.clamp(min=1.0))


# ---- trials that found a fault


def plain(native: type[nn.Module], shape: Sequence[int], **options: Any) -> Trial:
    return Trial(native, options, tuple(shape))


ONCE_WRONG = [
    plain(nn.AdaptiveAvgPool2d, (1, 1, 3, 3), output_size=0),
    plain(nn.AdaptiveMaxPool2d, (1, 1, 3, 3), output_size=(2, 0)),
    plain(nn.AdaptiveAvgPool1d, (2, 3, 0), output_size=1),
    plain(nn.AdaptiveAvgPool2d, (2, 3, 0, 2), output_size=1),
    plain(nn.AdaptiveAvgPool2d, (2, 8, 3), output_size=(None, 2, 0)),
    plain(nn.GroupNorm, (5, 4), num_groups=1, num_channels=3, affine=False),
    plain(nn.GroupNorm, (2, 1, 1), num_groups=2, num_channels=2, affine=False),
    plain(convnext.LayerNorm2d, (1, 4, 4, 1), normalized_shape=3, elementwise_affine=False),
    dataclasses.replace(
        plain(nn.BatchNorm1d, (2, 4), num_features=4, affine=False), parameters=torch.float32, train=False
    ),
    dataclasses.replace(plain(nn.BatchNorm1d, (1, 5), num_features=4), parameters=torch.float32),
    dataclasses.replace(plain(nn.NLLLoss, (4,)), arguments=(Target("values", (4,)),)),
    plain(nn.Dropout1d, (4, 1), p=0.0, inplace=True),
    dataclasses.replace(plain(nn.Dropout1d, (1, 3), p=1.0, inplace=True), layout="transposed", train=False),
    plain(nn.Dropout2d, (2,), p=1.0),
    dataclasses.replace(
        plain(nn.CrossEntropyLoss, (2, 3), label_smoothing=0.5, ignore_index=0),
        arguments=(Target("indices", (2,), classes=1),),
    ),
]


@pytest.mark.parametrize("trial", ONCE_WRONG, ids=lambda trial: trial.native.__name__)
def test_what_was_once_wrong(trial: Trial) -> None:
    assert check(trial)


# ---- the trials of each row


@st.composite
def trials(draw: Draw, case: Case) -> Trial:
    return case.trial(draw, case)


def try_out(case: Case, count: int) -> None:
    tried = 0

    @settings(max_examples=count, suppress_health_check=[*HealthCheck])
    @given(trials(case))
    def each(trial: Trial) -> None:
        nonlocal tried
        assume(check(trial))
        tried += 1

    each()
    assert tried >= count


@pytest.mark.parametrize("case", ROWS)
def test_a_few_random_trials(case: Case) -> None:
    try_out(case, 12)


@pytest.mark.slow
@pytest.mark.parametrize("case", ROWS)
def test_ten_thousand_random_trials(case: Case) -> None:
    try_out(case, case.trials)


def test_there_are_ten_thousand() -> None:
    assert sum(case.trials for case in CASES.values()) >= 10_000
