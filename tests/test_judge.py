"""The judge of two implementations that differ: neither is assumed to be right."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cnn_lightning.tools import judge
from cnn_lightning.tools.elementary import Elementary
from tests.cases import Case, load

CASES = [
    pytest.param(case, index, id=f"{case.name}-{index}", marks=[pytest.mark.slow] if index > 1 else [])
    for case in load()
    for index in range(len(case.samples))
]


# ---- torch's operators by elementary operations


def results(module: torch.nn.Module, inputs: tuple[Any, ...], mode: Elementary | None) -> list[Tensor | None]:
    """Outputs, gradients and buffers in float64."""
    torch.manual_seed(0)
    module = copy.deepcopy(module).double()
    leaves = [v.double().requires_grad_() for v in inputs if isinstance(v, Tensor) and v.is_floating_point()]
    free = iter(leaves)
    given = [next(free) * 1 if isinstance(v, Tensor) and v.is_floating_point() else v for v in inputs]

    def run() -> list[Tensor | None]:
        outputs = module(*given)
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        outputs = [y for y in outputs if y.is_floating_point()]
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in outputs]
        wanted = [*leaves, *module.parameters()]
        return [*outputs, *torch.autograd.grad(outputs, wanted, upstream, allow_unused=True), *module.buffers()]

    if mode is None:
        return run()
    with mode:
        return run()


@pytest.mark.parametrize(("case", "index"), CASES)
def test_elementary_operations_give_what_torch_gives(case: Case, index: int) -> None:
    sample = case.samples[index]
    native = case.native(**sample.options).train(sample.train)
    mode = Elementary()
    found, expected = results(native, sample.inputs(), mode), results(native, sample.inputs(), None)
    assert len(found) == len(expected)
    for value, right in zip(found, expected, strict=True):
        if right is None or value is None:
            assert value is right
        else:
            torch.testing.assert_close(value, right, rtol=case.precision, atol=case.precision)
    assert mode.is_second_opinion or case.is_view or not sample.inputs()[0].numel()


def test_what_is_not_made_of_torchs_operators_is_no_second_opinion() -> None:
    with Elementary() as mode:
        x = torch.ones(3)
    assert mode.is_second_opinion
    with Elementary() as mode:
        torch.from_numpy(np.sin(x.clone().numpy()))
    assert not mode.is_second_opinion


# ---- gradients


def party(
    forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor | None], x: Tensor
) -> judge.Party:
    upstream = torch.randn(forward(x).shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return judge.Party(
        {"x": x}, [upstream], lambda at: [forward(at["x"])], lambda at: {"x": backward(at["x"], upstream)}
    )


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def cosine(x: Tensor, g: Tensor) -> Tensor:
    return g * torch.cos(x)


def scaled(factor: float, x: Tensor, g: Tensor) -> Tensor:
    return factor * cosine(x, g)


@pytest.mark.parametrize("shape", [(1,), (7, 5), (64, 64)])
@pytest.mark.parametrize("factor", [1.001, 0.5, -1.0, 1 + 1e-7])
@pytest.mark.parametrize("swapped", [False, True])
def test_the_gradient_of_its_own_forward_is_right(shape: tuple[int, ...], factor: float, swapped: bool) -> None:
    x = numbers(*shape)
    right, wrong = party(torch.sin, cosine, x), party(torch.sin, lambda x, g: factor * cosine(x, g), x)
    pair = (wrong, right) if swapped else (right, wrong)
    assert judge.of_backwards(*pair, "x") == ("second" if swapped else "first", False)


def test_one_entry_of_many_is_enough() -> None:
    def wrong(x: Tensor, g: Tensor) -> Tensor:
        gradient = cosine(x, g)
        gradient[3, 5] *= 1.001
        return gradient

    x = numbers(64, 64)
    assert judge.of_backwards(party(torch.sin, wrong, x), party(torch.sin, cosine, x), "x") == ("second", False)


def test_both_may_be_wrong_or_right() -> None:
    x = numbers(4, 4)
    half, third = (party(torch.sin, partial(scaled, factor), x) for factor in (0.5, 0.3))
    assert judge.of_backwards(half, third, "x")[0] == "neither"
    # Two functions, each with its own gradient: the judge of backwards finds both right.
    other = party(torch.exp, lambda x, g: g * torch.exp(x), x)
    assert judge.of_backwards(party(torch.sin, cosine, x), other, "x")[0] == "both"


def test_a_missing_gradient_is_one_of_zeros() -> None:
    x = numbers(4, 4)
    missing = party(torch.sin, lambda x, g: None, x)
    assert judge.of_backwards(missing, party(torch.sin, cosine, x), "x") == ("second", False)
    flat = party(lambda x: x * 0, lambda x, g: None, x)
    assert judge.is_gradient(flat, "x", None) is True


def relu(at_zero: float, factor: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, g: factor * g * torch.where(x == 0, at_zero, (x > 0).double())


def test_at_a_kink_both_are_right_unless_they_differ_beside_it_too() -> None:
    x = numbers(8, 8)
    x[::2] = 0
    zero, one = party(torch.relu, relu(0), x), party(torch.relu, relu(1), x)
    assert judge.of_backwards(zero, one, "x") == ("both", True)
    wrong = party(torch.relu, relu(0, 1.001), x)
    assert judge.of_backwards(zero, wrong, "x")[0] == "first"
    assert judge.of_backwards(wrong, zero, "x")[0] == "second"


def test_noise_and_numbers_that_are_not_finite_settle_nothing() -> None:
    x = numbers(4, 4)
    noise = party(lambda x: x + torch.randn(x.shape, dtype=x.dtype), cosine, x)
    assert judge.is_gradient(noise, "x", cosine(x, noise.upstream[0])) is None  # type: ignore[arg-type]
    x[0, 0] = float("nan")
    broken = party(torch.sin, cosine, x)
    assert judge.is_gradient(broken, "x", cosine(x, broken.upstream[0])) is None  # type: ignore[arg-type]
    wrong = party(torch.sin, lambda x, g: 2 * cosine(x, g), x)
    assert judge.of_backwards(broken, wrong, "x") == ("first", True)


# ---- outputs


@pytest.mark.parametrize(
    ("first", "second", "third", "right"),
    [
        ([1.0, 2.0], [1.0, 2.002], [1.0, 2.0 + 1e-12], "first"),
        ([1.0, 2.002], [1.0, 2.0], [1.0, 2.0 + 1e-12], "second"),
        ([1.0, 2.1], [1.0, 1.9], [1.0, 2.0], "unclear"),
        ([1.0, 2.0], [1.0, float("nan")], [1.0, 2.0], "first"),
        ([1.0, 2.0], [1.0, float("nan")], [1.0, float("nan")], "second"),
        ([1.0, float("inf")], [1.0, -float("inf")], [1.0, 3.0], "unclear"),
        ([1.0], [1.0, 2.0], [1.0, 2.0], "second"),
    ],
)
def test_of_three_outputs_two_that_agree_win(
    first: list[float], second: list[float], third: list[float], right: str
) -> None:
    assert judge.of_forwards(*map(torch.tensor, (first, second, third))) == right
