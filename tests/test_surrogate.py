"""`check --surrogate`: backward passes that are no derivatives, against the function that their author declares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnn_lightning import check_layer
from cnn_lightning.cli import main
from cnn_lightning.tools.check import CheckReport
from cnn_lightning.tools.check.surrogate import NAMED, Arctan, Clipped, FastSigmoid, Sigmoid, Triangle
from tests import surrogates as examples

FILE = Path(examples.__file__)


def grade(kind: Any, surrogate: Any, shape: tuple[int, ...] = (6, 8)) -> CheckReport:
    torch.manual_seed(0)
    return check_layer(kind(), torch.randn(shape) + 0.2, surrogate=surrogate)


SPIKE = {"slope": 4.0, "threshold": 0.75}
RIGHT = [
    (examples.Sign, "identity"),
    (examples.ClippedSign, "clipped"),
    (examples.ClippedSign, nn.Hardtanh()),
    (examples.Ternary, Clipped()),
    (examples.Levels, examples.range_of_levels),
    (examples.LearnedStep, examples.StepSurrogate()),
    (examples.BinaryLinear, examples.BinarySurrogate()),
    (examples.Spike, Sigmoid(**SPIKE)),
    (examples.ArctanSpike, Arctan(**SPIKE)),
    (examples.FastSpike, FastSigmoid(**SPIKE)),
    (examples.TriangleSpike, Triangle(**SPIKE)),
]


@pytest.mark.parametrize(("kind", "surrogate"), RIGHT, ids=[row[0].__name__ for row in RIGHT])
def test_a_backward_that_takes_the_surrogates_gradient_passes(kind: Any, surrogate: Any) -> None:
    report = grade(kind, surrogate)
    assert report.findings == ()
    grades = {grade.rule: grade for grade in report.grades}
    assert grades["gradient"].result == grades["ties"].result == "passed"
    assert grades["gradient"].asks == "Gradients equal the surrogate's, by numerical differences."
    assert grades["double backward"].skipped == "a surrogate declares the first derivative alone"
    assert {name for name, each in grades.items() if each.skipped} == {"double backward", "reference"}


@pytest.mark.parametrize("kind", [examples.Sign, examples.LearnedStep, examples.Spike])
def test_without_a_surrogate_these_layers_fail(kind: Any) -> None:
    assert "gradient" in grade(kind, None).failed


class MisleadingFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.clone()


class MisleadingIdentity(nn.Module):
    """A surrogate whose own backward is not the derivative of its forward, which alone counts."""

    def forward(self, x: Tensor) -> Tensor:
        return MisleadingFunction.apply(x)


WRONG = [
    (examples.Sign, "clipped", "the gradient of input 'x' is the upstream gradient as it is"),
    (examples.NarrowerSign, "clipped", "is 0 at "),
    (examples.SignOfWrongSign, "identity", "the gradient of input 'x' has the wrong sign"),
    (examples.DerivativeOfSign, "identity", "the gradient of input 'x' is missing (None or zeros)"),
    (
        examples.LevelsWithoutScale,
        examples.range_of_levels,
        "the gradient of input 'x' is 0.25 times the right one, that of the surrogate",
    ),
    (
        examples.LevelsWithoutRange,
        examples.range_of_levels,
        "is not 0 at 22 of 48 inputs (-1.908 and 2.505 among them)",
    ),
    (examples.MeanStep, examples.StepSurrogate(), "parameter 'step' is 0.0208333 times the right one"),
    (examples.ForgottenStep, examples.StepSurrogate(), "the gradient of parameter 'step' is missing"),
    (
        examples.BinaryLinearWithoutMask,
        examples.BinarySurrogate(),
        "the gradient of parameter 'weight' differs from numerical differences of the surrogate",
    ),
    (examples.SpikeAtOutput, Sigmoid(**SPIKE), "is the surrogate's at the layer's output, not at its input"),
    (examples.SpikeWithoutThreshold, Arctan(**SPIKE), "is the surrogate's at the input + 0.75"),
    (examples.FlatterSpike, Sigmoid(**SPIKE), "is that of a surrogate 0.5 times as steep"),
    (examples.WiderSpike, Triangle(**SPIKE), "is that of a surrogate 0.5 times as steep"),
    (
        examples.Sign,
        MisleadingIdentity(),
        "is that of the surrogate's own backward, which is not the",
    ),
    (examples.Spike, Arctan(**SPIKE), "differs from numerical differences of the surrogate"),
]


@pytest.mark.parametrize(("kind", "surrogate", "wrong"), WRONG, ids=[row[0].__name__ for row in WRONG])
def test_a_wrong_one_fails_and_is_named(kind: Any, surrogate: Any, wrong: str) -> None:
    report = grade(kind, surrogate)
    assert "gradient" in report.failed
    assert set(report.failed) <= {"gradient", "ties"}
    finding = report.findings[0]
    assert wrong in finding.wrong
    assert finding.where.startswith(("PointwiseFunction", "LearnedStepFunction", "BinaryLinearFunction"))
    assert finding.blames == "layer"
    assert finding.mend


def test_a_gradient_outside_of_the_surrogates_slopes_at_a_kink_is_found() -> None:
    class TwiceAtZero(examples.Sign):
        op_backward = staticmethod(lambda grad, x: grad * (1 + (x == 0)))

    report = grade(TwiceAtZero, "identity")
    assert "ties" in report.failed
    (finding,) = [finding for finding in report.findings if finding.rule == "ties"]
    assert "at all points around it the slope of the surrogate is from" in finding.wrong


def test_a_gradient_wrong_by_a_thousandth_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = examples.arctan_backward
    monkeypatch.setattr(
        examples.ArctanSpike, "op_backward", staticmethod(lambda *args, **options: 1.001 * right(*args, **options))
    )
    report = grade(examples.ArctanSpike, Arctan(**SPIKE))
    assert "is 1.001 times the right one, that of the surrogate" in report.findings[0].wrong


class ByDetach(nn.Module):
    """Straight-through by torch alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.round() - x).detach()


def test_a_layer_of_torchs_operators_may_be_graded_and_may_be_its_own_surrogate() -> None:
    assert grade(ByDetach, "identity").passed
    assert grade(ByDetach, ByDetach()).passed
    assert "gradient" in grade(ByDetach, None).failed


def by_data(x: Tensor) -> Tensor:
    return x + (x.data.round() - x.data)


def by_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy().copy())


@pytest.mark.parametrize("surrogate", [by_data, by_numpy])
def test_a_surrogate_needs_no_graph_of_its_own(surrogate: Callable[[Tensor], Tensor]) -> None:
    assert grade(examples.Sign, surrogate).passed
    assert "differs from numerical differences of the surrogate" in grade(examples.Spike, surrogate).findings[0].wrong


def test_a_reference_beside_a_surrogate_is_judged_by_the_surrogate() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 8)

    class RoundFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.round()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return 2 * grad

    assert check_layer(ByDetach(), x, ByDetach(), "identity").passed
    (finding,) = [
        each
        for each in check_layer(ByDetach(), x, RoundFunction.apply, "identity").findings
        if each.rule == "reference"
    ]
    assert finding.blames == "reference"


@pytest.mark.parametrize("kind", NAMED.values(), ids=NAMED)
def test_a_named_surrogate_has_the_gradient_that_its_docstring_states(kind: type[nn.Module]) -> None:
    x = torch.tensor([-0.7, -0.1, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(kind(), x)
    found = torch.autograd.grad(kind()(x).sum(), x)[0]
    u = x.detach()
    s = u.sigmoid()
    expected = {
        "Identity": torch.ones_like(u),
        "Clipped": (u.abs() <= 1).double(),
        "Sigmoid": s * (1 - s),
        "Arctan": 1 / (1 + (torch.pi * u) ** 2),
        "FastSigmoid": 1 / (1 + 25 * u.abs()) ** 2,
        "Triangle": (1 - u.abs()).clamp_min(0),
    }
    torch.testing.assert_close(found, expected[kind.__name__])


# ---- bad ones


def of_other_shape(x: Tensor) -> Tensor:
    return x[:, :1]


def two_outputs(x: Tensor) -> Any:
    return x, x


def fails(x: Tensor) -> Tensor:
    raise RuntimeError("no\nway")


def gives_none(x: Tensor) -> Any:
    return None


def noisy(x: Tensor) -> Tensor:
    return torch.empty_like(x).uniform_()


calls = iter(range(10**9))


def unsteady(x: Tensor) -> Tensor:
    return x + next(calls)


Bad = tuple[Any, Callable[..., Any] | str | int, type[Exception], str]
BAD: list[Bad] = [
    (examples.Sign, "identty", TypeError, "surrogate: expected a function, a module or one of identity, clipped,"),
    (examples.Sign, 3, TypeError, "got a value of type int"),
    (examples.Sign, Clipped, TypeError, "got a value of type type"),
    (examples.Sign, of_other_shape, ValueError, "expected outputs of the layer's shapes, (6, 8), got (6, 1)"),
    (examples.Sign, two_outputs, ValueError, "expected outputs of the layer's shapes, (6, 8), got (6, 8), (6, 8)"),
    (examples.Sign, fails, ValueError, "surrogate: expected outputs, got RuntimeError: no way"),
    (examples.Sign, gives_none, ValueError, "surrogate: expected outputs, got TypeError: expected the forward to"),
    (examples.Sign, torch.sign, ValueError, "got one whose numerical differences are all 0, as those of a step are"),
    (examples.Sign, unsteady, ValueError, "depend on the step, as those of a jump or of noise do"),
    (
        examples.LearnedStep,
        "identity",
        ValueError,
        "expected a state_dict with step (1,), as that of the module, got no",
    ),
    (examples.Sign, nn.PReLU(), ValueError, "expected a state_dict with nothing in it, as that of the module, got wei"),
]


@pytest.mark.parametrize(("kind", "surrogate", "error", "line"), BAD)
def test_a_bad_surrogate_gives_one_line(kind: Any, surrogate: Any, error: type[Exception], line: str) -> None:
    with pytest.raises(error) as raised:
        grade(kind, surrogate)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


COMMANDS = [
    (["Sign", "--surrogate", "identity"], 0, "Sign passed 16 rules, 2 skipped"),
    (["Spike", "--surrogate", "sigmoid", "--surrogate_options", "slope=4", "threshold=0.75"], 0, "Spike passed"),
    (["Spike", "--surrogate", "sigmoid"], 1, "is that of a surrogate 4 times as steep"),
    (["Levels", "--surrogate", f"{FILE}:range_of_levels"], 0, "Levels passed"),
    (["LearnedStep", "--surrogate", f"{FILE}:StepSurrogate"], 0, "LearnedStep passed"),
    (["Sign", "--surrogate", "identty"], 2, "--surrogate: expected one of identity, clipped, sigmoid"),
    (["Sign", "--surrogate", "sigmoid", "--surrogate_options", "slop=2"], 2, "--surrogate_options: Sigmoid(slop=2)"),
    (["Sign", "--surrogate", f"{FILE}:no"], 2, "--surrogate: expected"),
    (["Sign", "--surrogate", "torch.sign"], 2, "--surrogate: expected a differentiable function of the inputs"),
    (["Sign", "--surrogate", "identity", "--kinks"], 2, "--surrogate: expected no --kinks beside it"),
]


@pytest.mark.parametrize(("args", "code", "line"), COMMANDS, ids=lambda value: str(value)[:40])
def test_the_command(args: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{FILE}:{args[0]}", "--shape", "6,8", *args[1:]]) == code
    shown = capsys.readouterr()
    assert line in shown.out + shown.err
    assert code != 2 or shown.err.count("\n") == 1
