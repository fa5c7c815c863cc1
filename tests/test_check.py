"""Every kind of fault is found and named, and no sound layer is accused of one."""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cnn_lightning import check_layer, layers
from cnn_lightning.cli import main
from cnn_lightning.ops import norm
from cnn_lightning.tools.check import CheckReport
from tests import broken_layers as broken
from tests.cases import Case, Sample, load
from tests.test_layers import build
from tests.wrong_torch import with_broken_batch_norm, wrong_kernel

FILE = Path(broken.__file__)
SHAPE = (3, 4)


def grade(kind: Any, reference: Any = None, shape: tuple[int, ...] = SHAPE) -> CheckReport:
    torch.manual_seed(0)
    return check_layer(kind(), torch.randn(shape), reference)


# ---- each fault: the rules that find it, and what the first of their findings calls it and where

FAULTS = [
    (broken.ForgottenBias, ["gradient"], "parameter 'bias' is missing", "without_bias"),
    (broken.TransposedWeight, ["gradient"], "parameter 'weight' is transposed", "transposed_weight"),
    (broken.TransposedFactor, ["gradient"], "input 'x' differs from numerical", "transposed_factor"),
    (broken.MeanForSum, ["gradient", "empty batch"], "parameter 'bias' is 0.333333 times", "mean_bias"),
    (broken.FlippedWeight, ["gradient"], "parameter 'weight' is upside down", "flipped_weight"),
    (broken.ForgottenBorder, ["gradient"], "input 'x' differs", "3 of 12 entries"),
    (broken.MissingFactor, ["gradient"], "input 'x' is 0.5 times", "half_of_square"),
    (broken.OffByOnePerMille, ["gradient"], "input 'x' is 1.001 times", "nearly_square"),
    (broken.WrongSign, ["gradient"], "input 'x' has the wrong sign", "minus_square"),
    (broken.Detached, ["gradient"], "the output has no graph", "Detached.forward"),
    (broken.WrongShape, ["gradient"], "got [4, 3] but expected shape compatible with [3, 4]", "backward"),
    (broken.EveryWinner, ["ties"], "means a slope of", "PointwiseFunction.backward"),
    (broken.SwallowsNaN, ["nan"], "a NaN in the input is swallowed", "SwallowsNaN.forward"),
    (broken.CreepingForward, ["dtype"], "float32 arrays give float64", "wide_square"),
    (broken.CreepingBackward, ["dtype"], "float32 arrays give float64", "wide_square_backward"),
    (broken.OnlyFloat32, ["dtype"], "float64 input is computed in float32", "OnlyFloat32.forward"),
    (broken.Bare, ["dtype", "half", "autocast", "double backward"], "gets a torch.float64 gradient", "BareFunction"),
    (broken.Wide, ["dtype", "half"], "float32 input gives torch.float64 output", "Wide.forward"),
    (broken.Half, ["half"], "bfloat16 input gives torch.float32 output", "Half.forward"),
    (broken.InaccurateHalf, ["half", "autocast"], "is off by 0.5 from float32's", "InaccurateHalf.forward"),
    (broken.NoAutocast, ["autocast"], "expected the dtype of the others, torch.bfloat16, got torch.float32", ""),
    (broken.IgnoresStrides, ["strides"], "input whose memory is transposed", "IgnoresStrides.forward"),
    (broken.IgnoresUpstreamStrides, ["strides"], "upstream gradient whose memory is", "PointwiseFunction.backward"),
    (broken.NoEmptyBatch, ["empty batch"], "cannot reshape array of size 0", "flattening_square"),
    (broken.ReturnsView, ["aliasing"], "a result is a view of the argument 'x'", "view (broken_layers.py"),
    (broken.UnseenView, ["half", "aliasing"], "bfloat16 input gives torch.float32", "UnseenView.forward"),
    (broken.ReusedBuffer, ["aliasing"], "both use the same buffer", "ReusedBuffer.forward"),
    (broken.WritesIntoInput, ["inputs unwritten"], "writes into its argument 'x'", "consuming_square"),
    (broken.WritesIntoUpstream, ["inputs unwritten"], "writes into its argument 'grad'", "writing_backward"),
    (broken.CachedOnSelf, ["used twice", "stateless"], "is not the sum of the two", "CachedFunction.backward"),
    (broken.ArrayOnCtx, ["in-place change"], "change of the input, the gradient of input 'x'", "ArrayOnCtxFunction"),
    (broken.Counting, ["forward"], "a second call", "Counting.forward"),
    (broken.Lambda, ["copies"], "pickle fails", "Lambda"),
    (broken.Lock, ["copies"], "deepcopy fails", "Lock"),
    (broken.PlainTensor, ["copies"], "a plain tensor is neither saved", "self.shift"),
    (broken.OnlyNeeded, ["frozen"], "incorrect number of gradients", "backward"),
    (broken.Raises, ["forward"], "raised ZeroDivisionError: nothing", "forward (broken_layers.py"),
    (broken.ReturnsNone, ["forward"], "a value of type NoneType", "ReturnsNone.forward"),
]


@pytest.mark.parametrize(("kind", "rules", "wrong", "where"), FAULTS, ids=[row[0].__name__ for row in FAULTS])
def test_a_fault_is_found_and_named(kind: type[torch.nn.Module], rules: list[str], wrong: str, where: str) -> None:
    report = grade(kind)
    assert list(report.failed) == rules
    first = report.findings[0]
    assert wrong in first.wrong
    assert where in first.where
    assert all(finding.mend and "\n" not in finding.wrong for finding in report.findings)


def test_every_broken_layer_is_in_the_table() -> None:
    kinds = {kind for kind in vars(broken).values() if isinstance(kind, type) and issubclass(kind, torch.nn.Module)}
    assert kinds == {broken.Affine} | {row[0] for row in FAULTS} | {row[0] for row in UNLIKE}


def row_max(x: Tensor) -> Tensor:
    return x.max(-1, keepdim=True).values


UNLIKE = [
    (broken.LastWinner, row_max, ["ties"], "where inputs are equal or 0, the gradient of input 'x'"),
    (broken.OneAtZero, torch.nn.ReLU(), ["ties"], "where inputs are equal or 0, the gradient of input 'x'"),
    (broken.EveryWinner, row_max, ["ties"], "where inputs are equal or 0, the gradient of input 'x'"),
    (broken.SwallowsNaN, torch.nn.ReLU(), ["nan"], "for an input with nan, the output"),
    (broken.Square, torch.abs, ["reference"], "the output is off by"),
    (broken.MissingFactor, torch.square, ["reference", "gradient"], "the gradient of input 'x' is off by"),
    (broken.Square, torch.nn.Flatten(0), ["reference"], "has another shape"),
    (broken.Square, lambda x: (x * x, x), ["reference"], "1 outputs where the reference has 2"),
    (broken.Square, lambda x: x @ x, ["reference"], "mat1 and mat2 shapes cannot be multiplied"),
    (broken.Rounding, torch.clone, ["reference"], "from the reference's in float32"),
]


@pytest.mark.parametrize(
    ("kind", "reference", "rules", "wrong"),
    [pytest.param(*row, id=f"{row[0].__name__}-{i}") for i, row in enumerate(UNLIKE)],
)
def test_what_differs_from_the_reference_is_named(kind: Any, reference: Any, rules: list[str], wrong: str) -> None:
    report = grade(kind, reference)
    assert list(report.failed) == rules
    assert wrong in report.findings[0].wrong


@pytest.mark.parametrize("shape", [SHAPE, (1, 1), (2, 3, 5, 4), (64, 64)], ids=str)
@pytest.mark.parametrize("off", [1.001, 0.999, 1.0001])
def test_a_gradient_wrong_by_a_thousandth_is_found_in_any_shape(
    shape: tuple[int, ...], off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broken.Square, "op_backward", staticmethod(lambda grad, x: 2 * off * x * grad))
    report = grade(broken.Square, shape=shape)
    assert report.failed == ("gradient",)
    assert f"is {off:.6g} times the right one" in report.findings[0].wrong


@pytest.mark.parametrize("entry", [(0, 0), (3, 5), (7, 7)], ids=str)
def test_one_entry_wrong_by_a_hundredth_is_found_and_named(
    entry: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def backward(grad: Any, x: Any) -> Any:
        grad_x = 2 * x * grad
        grad_x[entry] *= 1.01
        return grad_x

    monkeypatch.setattr(broken.Square, "op_backward", staticmethod(backward))
    finding = grade(broken.Square, shape=(8, 8)).findings[0]
    assert f"1 of 64 entries looked at are wrong, the worst at {entry}" in finding.where


# ---- the reference is wrong, or torch


class TokenNorm(layers.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).flatten(2).transpose(1, 2)


class NativeTokenNorm(torch.nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).flatten(2).transpose(1, 2)


def of_one(kind: type[torch.nn.Module], reference: type[torch.nn.Module]) -> CheckReport:
    torch.manual_seed(0)
    return check_layer(kind(4), torch.randn(1, 4, 5, 5), reference(4))


@with_broken_batch_norm
def test_torchs_own_batch_norm_is_blamed() -> None:
    report = of_one(TokenNorm, NativeTokenNorm)
    assert report.failed == ("reference",)
    assert {finding.blames for finding in report.findings} == {"torch"}
    first = report.findings[0]
    assert first.wrong.startswith("the gradient of input 'input' is off by")
    assert (
        "TORCH is wrong there, not the layer (the reference is made of its operators; central differences"
        in first.wrong
    )
    assert first.where.startswith("the reference, NativeTokenNorm (test_check.py:")
    assert "NativeBatchNormBackward0" in first.where
    assert report.verdict == "TokenNorm passed 17 rules; not the layer but torch failed: reference"


@with_broken_batch_norm
def test_torchs_own_batch_norm_in_a_layer_is_blamed() -> None:
    report = of_one(NativeTokenNorm, TokenNorm)
    assert report.failed == ("reference", "gradient")
    assert {finding.blames for finding in report.findings} == {"torch"}
    assert "the layer is made of its operators" in report.findings[0].wrong
    alone = check_layer(NativeTokenNorm(4), torch.randn(1, 4, 5, 5))
    assert alone.failed == ("gradient",)
    assert {finding.blames for finding in alone.findings} == {"torch"}


@with_broken_batch_norm
@pytest.mark.parametrize(("index", "name"), [(0, "input 'input'"), (1, "parameter 'weight'"), (2, "parameter 'bias'")])
def test_a_layer_that_is_wrong_where_torch_is_wrong_too(index: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = norm.batch_norm_backward

    def wrong(*arrays: Any, **options: Any) -> Any:
        return tuple(g if i != index or g is None else g * 1.001 for i, g in enumerate(original(*arrays, **options)))

    monkeypatch.setattr(norm, "batch_norm_backward", wrong)
    report = of_one(TokenNorm, NativeTokenNorm)
    assert report.failed == ("reference", "gradient")
    blames = {finding.wrong.partition(" is off")[0]: finding.blames for finding in report.findings}
    assert blames.pop(f"the gradient of {name}") == "both"
    assert blames.pop(f"the gradient of {name} is 1.001 times the right one") == "layer"
    assert set(blames.values()) == {"torch"}


@pytest.mark.parametrize("operator", ["sigmoid", "sigmoid_backward"])
def test_a_kernel_of_torch_is_blamed(operator: str) -> None:
    with wrong_kernel(operator):
        report = grade(layers.Sigmoid, torch.nn.Sigmoid())
        native = grade(torch.nn.Sigmoid, layers.Sigmoid())
    assert report.failed == ("reference",)
    assert {finding.blames for finding in report.findings} == {"torch"}
    assert all("the reference is made of its operators" in finding.wrong for finding in report.findings)
    assert native.failed == ("reference", "gradient")
    assert {finding.blames for finding in native.findings} == {"torch"}
    assert all("the layer is made of" in finding.wrong for finding in native.findings if finding.rule == "reference")


class RightReLU(torch.nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return torch.where(input.isnan() | (input > 0), input, 0)


def test_a_wrong_reference_is_told_so() -> None:
    report = grade(broken.Square, broken.MissingFactor())
    assert report.failed == ("reference",)
    (finding,) = report.findings
    assert finding.blames == "reference"
    assert "from the reference's in float64: the REFERENCE is wrong there, not the layer (central diff" in finding.wrong
    assert finding.where.startswith("the reference, MissingFactor (broken_layers.py:")
    assert "the layer need not change" in finding.mend
    assert report.verdict == "Square passed 17 rules; not the layer but reference failed: reference"


def test_a_reference_that_is_not_what_the_layer_subclasses_is_told_so() -> None:
    report = grade(RightReLU, lambda x: torch.nn.functional.leaky_relu(x, 0.001))
    assert report.failed == ("reference",)
    assert {finding.blames for finding in report.findings} == {"reference"}
    assert "the layer gives the output of torch.nn.modules.activation.ReLU" in report.findings[0].wrong
    # The layer is wrong where it differs from both.
    assert {finding.blames for finding in grade(broken.OneAtZero, torch.nn.ReLU()).findings} == {"layer"}


def test_a_reference_with_an_impossible_gradient_at_ties_is_told_so() -> None:
    report = grade(broken.LastWinner, broken.EveryWinner())
    assert report.failed == ("ties",)
    (finding,) = report.findings
    assert finding.blames == "reference"
    assert "the REFERENCE is wrong there, not the layer" in finding.wrong


def test_both_may_be_wrong_and_nobody_may_know() -> None:
    both = grade(broken.MissingFactor, broken.WrongSign())
    assert [(f.rule, f.blames) for f in both.findings] == [("reference", "both"), ("gradient", "layer")]
    assert "BOTH wrong" in both.findings[0].wrong
    unknown = grade(broken.Square, broken.Rounding())
    assert unknown.failed == ("reference",)
    assert {finding.blames for finding in unknown.findings} == {"undecided"}
    assert "UNDECIDED" in unknown.findings[0].wrong
    assert "not the layer" not in unknown.verdict


# ---- no false alarm

CASES = load()
SAMPLES = [
    pytest.param(
        case,
        sample,
        id=f"{case.name}-{index}",
        marks=[pytest.mark.slow] if index else [],
    )
    for case in CASES
    for index, sample in enumerate(case.samples)
    if all(value.numel() for value in sample.inputs() if isinstance(value, Tensor))
]


def takes_an_empty_batch(native: torch.nn.Module, inputs: tuple[Any, ...]) -> bool:
    try:
        native(*(value[:0] if isinstance(value, Tensor) else value for value in inputs))
    except (RuntimeError, ValueError, IndexError):
        return False
    return True


@pytest.mark.parametrize(("case", "sample"), SAMPLES)
def test_a_built_in_layer_passes(case: Case, sample: Sample) -> None:
    ours, native = build(case, sample)
    report = check_layer(ours, sample.inputs(), native)
    assert report.passed, report


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_built_in_layer_passes_without_a_reference(case: Case) -> None:
    sample = next(s for s in case.samples if takes_an_empty_batch(build(case, s)[1], s.inputs()))
    report = check_layer(build(case, sample)[0], sample.inputs())
    assert report.passed, report


class Shares(torch.nn.Module):
    """Of its own inputs alone, numbers between 0 and 1; the second result is for others to fill."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        assert ((x >= 0) & (x <= 1)).all()
        return x.square(), None


def test_numbers_that_a_layer_refuses_are_not_held_against_it() -> None:
    report = check_layer(Shares(), torch.tensor([[0.0, 0.25, 1.0], [1.0, 0.5, 0.0]]))
    assert report.passed, report
    assert {grade.rule for grade in report.grades if grade.skipped} == {"reference", "ties", "nan"}
    chances, labels = torch.rand(4, 3), torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 1], [1, 1, 0]])
    report = check_layer(torch.nn.BCELoss(), (chances, labels), layers.BCELoss())
    assert report.passed, report
    assert {grade.rule: grade.skipped for grade in report.grades if grade.skipped} == {"nan": "it refuses NaN"}
    report = check_layer(Shares(), torch.rand(2, 3), lambda x: (x.square(), None))
    assert report.failed == ("ties", "nan")


def test_sound_layers_and_native_ones_pass() -> None:
    assert grade(broken.Square, torch.square).passed
    assert grade(broken.Affine, torch.nn.Linear(4, 4)).passed
    assert grade(torch.nn.ReLU).passed
    two = check_layer(torch.nn.CosineSimilarity(), (torch.randn(5, 4), torch.randn(5, 4)))
    assert two.passed, two


# ---- the report, and what is left as it was


def test_layer_sample_and_random_state_are_left_as_they_were() -> None:
    layer, sample = layers.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    before, kept = copy.deepcopy(layer.state_dict()), sample.clone()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_layer(layer, sample)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(sample, kept)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(p.grad is None for p in layer.parameters())


def test_the_report_in_words() -> None:
    report = grade(broken.MissingFactor)
    assert not report.passed
    assert report.verdict == "MissingFactor failed 1 of 17 rules, 1 skipped: gradient"
    text = str(report)
    assert "passed  copies" in text
    assert "skipped reference (no reference was given)" in text
    assert "\n  mend:  look for a factor" in text
    assert text.splitlines()[-1] == report.verdict
    assert all(0 < len(grade.asks) <= 52 for grade in report.grades)
    assert grade(broken.Square, torch.square).verdict == "Square passed 18 rules"


@pytest.mark.parametrize(
    ("module", "sample", "reference", "error", "message"),
    [
        (torch.relu, torch.ones(2), None, TypeError, "module: expected an instance of torch.nn.Module"),
        (torch.nn.ReLU(), 3, None, TypeError, "sample: expected a float tensor"),
        (torch.nn.ReLU(), torch.ones(2).long(), None, TypeError, "sample: expected a float tensor"),
        (torch.nn.ReLU(), torch.ones(0, 2), None, ValueError, "sample: expected tensors that hold something"),
        (torch.nn.ReLU(), torch.ones(2), torch.nn.PReLU(), ValueError, "reference: expected a state_dict with nothing"),
        (torch.nn.Linear(2, 3), torch.ones(2), torch.nn.Linear(2, 2), ValueError, r"weight \(3, 2\).*weight \(2, 2\)"),
    ],
)
def test_what_can_not_be_graded_is_refused(
    module: Any, sample: Any, reference: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_layer(module, sample, reference)


# ---- the command


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(["check", *args])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules that the command loads are forgotten again."""
    monkeypatch.setenv("COLUMNS", "80")
    yield
    for path in (FILE, Path("my_layer.py"), *map(Path, FILES)):
        sys.modules.pop(path.stem, None)


def test_command_grades_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--shape", "2,4", "--options", "features=4", "outputs=3")
    linear = ("--reference", "torch.nn.Linear", "--reference_options", "in_features=4", "out_features=3")
    code, out, err = run(capsys, f"{FILE}:Affine", *options, *linear)
    assert (code, err) == (0, "")
    assert "Affine passed 18 rules" in out
    code, out, _ = run(capsys, f"{FILE}:MeanForSum", *options)
    assert code == 1
    assert "gradient: the gradient of parameter 'bias' is 0.5 times the right one\n" in out
    assert "where: AffineFunction.backward (broken_layers.py:" in out
    assert out.rstrip().endswith("MeanForSum failed 2 of 17 rules, 1 skipped: gradient, empty batch")
    assert all(len(line) <= 80 for line in out.split("\ngradient:")[0].splitlines())


def test_command_grades_what_can_be_imported(capsys: pytest.CaptureFixture[str]) -> None:
    conv = ("--options", "in_channels=3", "out_channels=2", "kernel_size=[3,1]", "padding=same")
    assert run(capsys, "cnn_lightning.layers.Conv2d", *conv, "--reference", "torch.nn.Conv2d")[0] == 0
    assert run(capsys, "torch.nn.CosineSimilarity", "--shape", "5,4 5,4", "--options", "dim=-1")[0] == 0
    code, out, _ = run(capsys, "cnn_lightning.layers.BatchNorm2d", "--options", "num_features=3", "--eval")
    assert code == 0, out
    assert run(capsys, f"{FILE}:OneAtZero", "--reference", "torch.relu")[0] == 1


def test_command_says_that_the_reference_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, f"{FILE}:Square", "--reference", f"{FILE}:MissingFactor")
    assert code == 1
    assert "the REFERENCE is wrong there, not the layer" in out
    assert out.rstrip().endswith("Square passed 17 rules; not the layer but reference failed: reference")


MY = """
import helper
import torch

class MyLayer(torch.nn.Module):
    def forward(self, x):
        return helper.double(x)
"""


def test_command_finds_what_lies_beside_a_file_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "helper.py").write_text("def double(x):\n    return x * 2\n")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = sys.path.copy()
    for name in ("my_layer.py", "my.layer.py", "torch.py"):
        (tmp_path / name).write_text(MY)
        code, out, err = run(capsys, f"{tmp_path / name}:MyLayer", "--shape", "2,3")
        assert (code, err) == (0, ""), out
        assert sys.modules.pop("helper").__file__ == str(tmp_path / "helper.py")
    assert sys.path == before
    assert sys.modules["torch"] is torch


def test_a_layer_that_exits_does_not_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its exit code is not that of the command."""
    path = tmp_path / "leaves.py"
    path.write_text("import torch\nclass MyLayer(torch.nn.Module):\n    def forward(self, x): raise SystemExit(0)\n")
    code, out, _ = run(capsys, f"{path}:MyLayer")
    assert code == 1
    assert "raised SystemExit: 0" in out
    code, _, err = run(capsys, "--kinks", f"{path}:MyLayer")
    assert code == 2
    assert "to return, got a call of exit(0)" in err


FILES = {
    "syntax.py": "class MyLayer(:\n",
    "error.py": "raise KeyError('three\\nlines\\nlong')\n",
    "exits.py": "raise SystemExit(3)\n",
    "missing.py": "import no_such_module_of_mine\n",
    "other.py": "import torch\nclass Other(torch.nn.Module): ...\nMyLayer = 3\nclass Plain: ...\n",
    "init.py": "import torch\nclass MyLayer(torch.nn.Module):\n    def __init__(self): raise SystemExit(0)\n",
    "raises.py": "import torch\nclass MyLayer(torch.nn.Module):\n    def __init__(self): raise ValueError('no')\n",
}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "layer"),
        (["nowhere.py:MyLayer"], "layer: expected a Python file, found none at nowhere.py"),
        (["other.py"], "layer: expected my_file.py:MyLayer or my_package.MyLayer, got 'other.py'"),
        (["MyLayer"], "layer: expected my_file.py:MyLayer or my_package.MyLayer, got 'MyLayer'"),
        (["no_such_package_of_mine.MyLayer"], "no_such_package_of_mine could not be loaded: ModuleNotFoundError"),
        (["syntax.py:MyLayer"], "syntax.py could not be loaded: SyntaxError"),
        (["error.py:MyLayer"], "error.py could not be loaded: KeyError: 'three\\nlines\\nlong'"),
        (["exits.py:MyLayer"], "exits.py could not be loaded: SystemExit: 3"),
        (["missing.py:MyLayer"], "No module named 'no_such_module_of_mine'"),
        (["other.py:Mine"], "layer: expected other.py to define Mine, found Other"),
        (
            ["other.py:MyLayer"],
            "expected a subclass of torch.nn.Module, got other.py:MyLayer, which is a value of type",
        ),
        (["other.py:Plain"], "which is the class Plain"),
        (["raises.py:MyLayer"], "--options: MyLayer() raised ValueError: no"),
        (["init.py:MyLayer"], "--options: MyLayer() raised SystemExit: 0"),
        (
            ["torch.nn.ReLU", "--shape", "2,x"],
            "--shape: expected whole numbers of at least 1 such as 2,3,8,8, got '2,x'",
        ),
        (["torch.nn.ReLU", "--shape", "2,0"], "--shape: expected whole numbers"),
        (["torch.nn.ReLU", "--shape", ""], "--shape: expected whole numbers"),
        (["torch.nn.ReLU", "--options", "inplace"], "--options: expected name=value, got 'inplace'"),
        (["torch.nn.ReLU", "--options", "in_place=True"], "--options: ReLU(in_place=True) raised TypeError"),
        (["torch.nn.ReLU", "--reference", "gone.py:f"], "--reference: expected a Python file, found none at gone.py"),
        (["torch.nn.ReLU", "--reference", "other.py:MyLayer"], "--reference: expected a function or a subclass of"),
        (["torch.nn.ReLU", "--reference", "torch.nn.PReLU"], "--reference: expected a state_dict with nothing in it"),
        (
            ["torch.nn.ReLU", "--reference", "torch.nn.ELU", "--reference_options", "beta=1"],
            "--reference_options: ELU(beta=1) raised TypeError",
        ),
        (["torch.nn.ReLU", "--speed", "3"], "speed"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err
