import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from cnn_lightning.classifier import Classifier
from cnn_lightning.cli import main
from cnn_lightning.layers.fused import run as run_fused
from cnn_lightning.model import SimpleCNN, build_net
from cnn_lightning.ops import (
    activation,
    conv,
    conv_transpose,
    dropout,
    linear,
    loss,
    norm,
    padding,
    pool,
    softmax,
)
from cnn_lightning.ops.fast import fused
from cnn_lightning.tools.parity.layerwise.distance import relative_error
from cnn_lightning.tools.parity.layerwise.results import WHOLE
from cnn_lightning.tools.parity.layerwise.runner import Batch
from cnn_lightning.tools.parity.lockstep import compare
from tests.cases import load
from tests.wrong_torch import Tokens, with_broken_batch_norm, wrong_kernel

pytestmark = pytest.mark.usefixtures("empty_folder")  # the command writes reproducers into the current one


def batches(steps: int = 1, shape: tuple[int, ...] = (4, 1, 8, 8), classes: int = 10) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(shape, generator=generator), torch.randint(classes, shape[:1], generator=generator))
        for _ in range(steps)
    ]


def digits() -> SimpleCNN:
    torch.manual_seed(0)
    return SimpleCNN(image_size=8, channels=(3, 4), hidden=8)


class Head(nn.Module):
    """Any shape to ten classes; its own computation is the same in both copies."""

    def __init__(self, log: bool = False) -> None:
        super().__init__()
        self.log = log

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        weights = torch.randn(flat.shape[1], 10, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        values = flat @ (weights / 10).to(x.dtype)
        return values.log_softmax(1) if self.log else values


class OneHot(nn.Module):
    """Mean squares to a class's unit vector."""

    def __init__(self) -> None:
        super().__init__()
        self.mse = nn.MSELoss()

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        value: Tensor = self.mse(x, nn.functional.one_hot(target, 10).to(x.dtype))
        return value


# ---- two correct implementations


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_networks_are_equal(dtype: torch.dtype) -> None:
    net = digits()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = compare(net, batches=batches(3), dtype=dtype)
    assert found.ok
    assert found.first is None
    assert len(found.losses) == 3
    assert {type(layer) for layer in net.children()} == {nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear}
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    if dtype != torch.bfloat16:
        assert all(row.error <= found.tolerance for row in found.rows)


def test_everything_is_compared_in_the_order_it_happens() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(inplace=True), Head())
    rows = compare(net, batches=batches(2)).rows
    assert [str(row) for row in rows if row.step == 0 and row.layer != WHOLE] == [
        "0, output",
        "1, output",
        "1, buffer running_mean",
        "1, buffer running_var",
        "1, buffer num_batches_tracked",
        "2, output",
        "3, output",
        "loss, output",
        "loss, gradient of input",
        "3, gradient of input",
        "2, gradient of input",
        "1, gradient of input",
        "1, gradient of weight",
        "1, gradient of bias",
        "0, gradient of input",
        "0, gradient of weight",
        "0, weight after the step",
        "1, weight after the step",
        "1, bias after the step",
    ]
    assert {row.step for row in rows} == {0, 1}


def test_mixed_layers_and_torch_alone() -> None:
    assert compare(digits(), {"conv*": "numpy", "loss": "numpy"}, batches=batches()).ok
    native = compare(digits(), "torch", batches=batches())
    assert all(row.error == 0 for row in native.rows if row.layer != WHOLE)


@pytest.mark.parametrize(
    ("name", "steps", "shape"),
    [
        ("resnet18", 2, (2, 3, 64, 64)),
        ("mobilenet_v3_small", 1, (2, 3, 64, 64)),
        ("googlenet", 1, (4, 3, 32, 32)),
    ],
)
def test_networks_of_torchvision(name: str, steps: int, shape: tuple[int, ...]) -> None:
    """Dozens of normalisations amplify rounding, ReLUs are reused in place, dropout and auxiliary heads join."""
    torch.manual_seed(0)
    net = build_net(name, num_classes=10)
    found = compare(net, batches=batches(steps, shape))
    assert found.ok, str(found.first)
    if name == "resnet18":
        assert any(row.call == 1 for row in found.rows if row.layer.endswith("relu"))


def test_tied_frozen_and_unused_parameters() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))
    net[3].weight = net[1].weight
    net[4].bias.requires_grad_(False)
    net.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    assert compare(net, batches=batches(2)).ok


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="batches: expected at least one"):
        compare(digits(), batches=[])
    with pytest.raises(ValueError, match="pattern 'con1' matches no layer"):
        compare(digits(), {"con1": "numpy"}, batches=batches())


# ---- a bug planted in each operation


def plant(
    patch: pytest.MonkeyPatch, home: ModuleType, name: str, index: int = 0, factor: float = 1.001, dtype: Any = None
) -> None:
    """Let a result of an operation be wrong by a thousandth, in one dtype or in all."""
    original = getattr(home, name)

    @functools.wraps(original)  # a fast function stays one by its module
    def wrong(*arrays: Any, **options: Any) -> Any:
        results = original(*arrays, **options)
        if dtype not in (None, arrays[0].dtype):
            return results
        if not isinstance(results, tuple):
            return results * results.dtype.type(factor)
        return tuple(
            result if i != index or result is None else result * result.dtype.type(factor)
            for i, result in enumerate(results)
        )

    patch.setattr(home, name, wrong)


INPUT, WEIGHT, BIAS = "gradient of input", "gradient of weight", "gradient of bias"
BUGS: list[tuple[Callable[[], nn.Module], ModuleType, str, dict[int, str]]] = []


def bugs(layer: Callable[[], nn.Module], home: ModuleType, name: str, *gradients: str, forward: str = "") -> None:
    BUGS.append((layer, home, forward or name, {0: "output"}))
    BUGS.append((layer, home, f"{name}_backward", dict(enumerate(gradients or (INPUT,)))))


bugs(lambda: nn.Conv2d(2, 3, 3), conv, "conv2d", INPUT, WEIGHT, BIAS)
bugs(lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 3, 3)), conv, "conv1d", INPUT, WEIGHT, BIAS)
bugs(lambda: nn.ConvTranspose2d(2, 3, 3), conv_transpose, "conv_transpose2d", INPUT, WEIGHT, BIAS)
bugs(lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), padding, "pad")
bugs(lambda: nn.Linear(8, 3), linear, "linear", INPUT, WEIGHT, BIAS)
bugs(lambda: nn.MaxPool2d(3, 2), pool, "max_pool2d")
bugs(lambda: nn.AvgPool2d(3, 2), pool, "avg_pool2d")
bugs(lambda: nn.AdaptiveAvgPool2d(3), pool, "adaptive_avg_pool2d")
bugs(lambda: nn.AdaptiveMaxPool2d(3), pool, "adaptive_max_pool2d")
bugs(lambda: nn.BatchNorm2d(2), norm, "batch_norm", INPUT, WEIGHT, BIAS)
bugs(lambda: nn.LayerNorm(8), norm, "layer_norm", INPUT, WEIGHT, BIAS)
bugs(lambda: LayerNorm2d(2), norm, "layer_norm", INPUT, WEIGHT, BIAS)
bugs(lambda: nn.GroupNorm(1, 2), norm, "group_norm", INPUT, WEIGHT, BIAS)
bugs(nn.PReLU, activation, "prelu", INPUT, WEIGHT)
bugs(lambda: nn.Softmax(1), softmax, "softmax")
bugs(lambda: nn.LogSoftmax(1), softmax, "log_softmax")
bugs(lambda: nn.Dropout(0.5), dropout, "dropout")
for case in load():
    if case.entry.formulas == "activation" and case.native is not nn.PReLU:
        bugs(functools.partial(case.native, **case.samples[0].options), activation, case.entry.functions[0])
PLANTED = [
    pytest.param(layer, home, name, index, what, id=f"{name}-{what}")
    for layer, home, name, found in BUGS
    for index, what in found.items()
]


def blame(net: nn.Module, **options: Any) -> tuple[str, str]:
    found = compare(net, batches=batches(1, (4, 2, 8, 8)), **options)
    assert found.first is not None, "the bug was not seen"
    assert found.first.error > found.tolerance
    assert found.first.other > 10 * found.first.native
    return found.first.layer, found.first.what


@pytest.mark.parametrize(("layer", "home", "name", "index", "what"), PLANTED)
def test_a_bug_is_found_in_its_layer_and_pass(
    layer: Callable[[], nn.Module], home: ModuleType, name: str, index: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), layer(), nn.Identity(), Head())
    assert compare(net, batches=batches(1, (4, 2, 8, 8))).ok
    plant(monkeypatch, home, name, index)
    found, passed = blame(net)
    assert found in ("1", "1.1")
    assert passed == what


@pytest.mark.parametrize("index", [1, 2])
def test_a_bug_in_running_statistics(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), Head())
    plant(monkeypatch, norm, "batch_norm", index, 1.01)
    name = "buffer running_mean" if index == 1 else "buffer running_var"
    assert blame(net) == ("1", name)


@pytest.mark.parametrize(
    ("criterion", "name"),
    [(nn.CrossEntropyLoss(), "cross_entropy"), (nn.NLLLoss(), "nll_loss"), (OneHot(), "mse_loss")],
)
@pytest.mark.parametrize("suffix", ["", "_backward"])
def test_a_bug_in_the_loss(criterion: nn.Module, name: str, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), Head(log=True))
    assert compare(net, batches=batches(1, (4, 2, 8, 8)), loss=criterion).ok
    plant(monkeypatch, loss, name + suffix)
    layer, what = blame(net, loss=criterion)
    assert layer in ("loss", "loss.mse")
    assert what == ("gradient of input" if suffix else "output")


def test_a_bug_that_only_the_unwatched_network_has(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, fused, "conv_relu_pool_backward", 1)
    first = compare(digits(), batches=batches()).first
    assert first is not None
    assert (first.layer, first.what, first.of) == ("conv1 relu1 pool1 (chain)", "gradient of conv1.weight", "chain")


def test_what_follows_a_fault_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, pool, "avg_pool2d")
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AvgPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), Head())
    found = compare(net, batches=batches(2, (4, 2, 8, 8)))
    assert {row.layer for row in found.rows if row.verdict == "fault"} == {"1"}
    assert "follows" in {row.verdict for row in found.rows if row.layer in ("2", "3")}


def test_the_wrong_dtype_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(nn.Tanh):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.double())

    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten())
    found = compare(net, {"1": Wide}, batches=batches(1, (4, 2, 8, 8)))
    assert found.first is not None
    assert (found.first.layer, found.first.what) == ("1", "output")


# ---- torch is wrong


def tokens() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), Tokens(), nn.Flatten(), nn.Linear(144, 10))


@with_broken_batch_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_batch_norm_is_blamed(dtype: torch.dtype) -> None:
    found = compare(tokens(), batches=batches(1, (1, 2, 8, 8)), dtype=dtype)
    first = found.first
    assert first is not None
    assert not found.ok
    assert (first.layer, first.what, first.verdict) == ("1", INPUT, "fault of torch")
    assert first.runs == "torch.nn.BatchNorm2d"
    assert "central differences" in first.why
    assert first.native > 0.1
    assert first.other < found.tolerance / 10
    assert {(row.layer, row.verdict) for row in found.faults} == {("1", "fault of torch")}
    assert {row.what for row in found.faults} >= {INPUT, WEIGHT, BIAS}
    follows = [row for row in found.rows if row.verdict == "follows"]
    assert follows
    assert all(math.isnan(row.native) and math.isnan(row.other) for row in follows)


@with_broken_batch_norm
def test_torchs_own_batch_norm_is_blamed_where_both_run_it() -> None:
    """The two copies differ there by rounding alone, and the exact gradient is another one."""
    net = tokens()
    net.insert(3, nn.LayerNorm(4))
    found = compare(net, {"0": "numpy"}, batches=batches(1, (1, 2, 8, 8)))
    assert {row.verdict for row in found.faults} <= {"fault of torch"}


@with_broken_batch_norm
@pytest.mark.parametrize(("index", "what"), [(0, INPUT), (1, WEIGHT), (2, BIAS)])
def test_a_bug_where_torch_is_wrong_too(index: int, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, norm, "batch_norm_backward", index)
    found = compare(tokens(), batches=batches(1, (1, 2, 8, 8)))
    verdicts = {row.what: row.verdict for row in found.faults if row.layer == "1"}
    assert verdicts[what] == "both at fault"
    assert {verdicts[other] for other in (INPUT, WEIGHT, BIAS) if other != what} == {"fault of torch"}
    twice = compare(tokens(), batches=batches(1, (2, 2, 8, 8)))
    assert {(row.layer, row.verdict) for row in twice.faults} == {("1", "fault")}


@with_broken_batch_norm
def test_a_bug_elsewhere_is_named_beside_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, conv, "conv2d_backward", 1)
    found = compare(tokens(), batches=batches(1, (1, 2, 8, 8)))
    blamed = {(row.layer, row.verdict) for row in found.faults if row.layer != WHOLE}
    assert blamed == {("1", "fault of torch"), ("0", "fault")}
    assert next(row.what for row in found.faults if row.verdict == "fault") == WEIGHT


KERNELS = [
    (nn.Sigmoid, "sigmoid", 0, "output"),
    (nn.Sigmoid, "sigmoid_backward", 0, INPUT),
    (nn.GELU, "gelu", 0, "output"),
    (nn.GELU, "gelu_backward", 0, INPUT),
    (lambda: nn.Softmax(1), "_softmax", 0, "output"),
    (lambda: nn.Softmax(1), "_softmax_backward_data", 0, INPUT),
    (lambda: nn.Conv2d(2, 3, 3), "convolution", 0, "output"),
    (lambda: nn.Conv2d(2, 3, 3), "convolution_backward", 0, INPUT),
    (lambda: nn.Conv2d(2, 3, 3), "convolution_backward", 1, WEIGHT),
    (lambda: nn.Conv2d(2, 3, 3), "convolution_backward", 2, BIAS),
    (lambda: nn.MaxPool2d(2), "max_pool2d_with_indices", 0, "output"),
    (lambda: nn.MaxPool2d(2), "max_pool2d_with_indices_backward", 0, INPUT),
    (lambda: nn.AvgPool2d(2), "avg_pool2d", 0, "output"),
    (lambda: nn.AvgPool2d(2), "avg_pool2d_backward", 0, INPUT),
    (lambda: nn.BatchNorm2d(2), "native_batch_norm", 0, "output"),
    (lambda: nn.BatchNorm2d(2), "native_batch_norm_backward", 0, INPUT),
    (lambda: nn.BatchNorm2d(2), "native_batch_norm_backward", 1, WEIGHT),
    (lambda: nn.LayerNorm(8), "native_layer_norm", 0, "output"),
    (lambda: nn.LayerNorm(8), "native_layer_norm_backward", 2, BIAS),
    (nn.PReLU, "_prelu_kernel_backward", 1, WEIGHT),
]


@pytest.mark.parametrize(
    ("layer", "operator", "index", "what", "dtype"),
    [pytest.param(*row, None, id=f"{row[1]}-{row[3]}") for row in KERNELS]
    + [pytest.param(*row, torch.float32, id=f"{row[1]}-{row[3]}-float32") for row in KERNELS[::4]],
)
def test_a_bug_in_a_kernel_of_torch_is_blamed_on_torch(
    layer: Callable[[], nn.Module], operator: str, index: int, what: str, dtype: Any
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), layer(), nn.Identity(), Head())
    with wrong_kernel(operator, index, dtype):
        found = compare(net, batches=batches(1, (4, 2, 8, 8)))
    first = found.first
    assert first is not None, "the bug was not seen"
    assert (first.layer, first.what, first.verdict) == ("1", what, "fault of torch")
    assert first.native > 5e-4
    assert first.other < 1e-5
    assert {row.verdict for row in found.faults} == {"fault of torch"}


class TwiceFunction(torch.autograd.Function):
    """Of a native layer of somebody's: its gradient is wrong by a thousandth."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2.002


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = TwiceFunction.apply(x)
        return result


class RightTwice(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


class ThriceTwice(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return x * 3


def test_the_native_layer_may_be_anybodys() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), Twice(), Head())
    first = compare(net, {"1": RightTwice}, batches=batches(1, (4, 2, 8, 8))).first
    assert first is not None
    assert (first.layer, first.what, first.verdict) == ("1", INPUT, "fault of torch")
    assert first.runs.endswith("test_parity.Twice")
    first = compare(net, {"1": ThriceTwice}, batches=batches(1, (4, 2, 8, 8))).first
    assert first is not None
    assert (first.layer, first.what, first.verdict) == ("1", "output", "fault")


class NumPySine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.sin(x.detach().numpy()))


class OtherSine(NumPySine):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.001


def test_what_nobody_can_tell_is_said_to_be_undecided() -> None:
    net = nn.Sequential(nn.Flatten(), NumPySine(), nn.Linear(64, 10))
    found = compare(net, {"1": OtherSine}, batches=batches())
    first = found.first
    assert first is not None
    assert not found.ok
    assert (first.layer, first.what, first.verdict) == ("1", "output", "undecided")
    assert "no third" in first.why


class OneAtZero(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return torch.where(input >= 0, input, 0)


def test_at_ties_torchs_choice_is_the_rule() -> None:
    ((images, target),) = batches()
    net = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    first = compare(net, {"0": OneAtZero}, batches=[(images.round(), target)]).first
    assert first is not None
    assert (first.layer, first.what, first.verdict) == ("0", INPUT, "fault")
    assert "torch's choice is the rule" in first.why


class ZeroAtNaN(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return torch.where(input.isnan(), input.detach(), super().forward(input))


class NoNaNFunction(torch.autograd.Function):
    """0 in place of NaN, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.nan_to_num()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class NoNaN(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = NoNaNFunction.apply(x)
        return result


def test_a_gradient_at_nan_is_undecided() -> None:
    """torch's own kernels differ there among themselves."""
    ((images, target),) = batches()
    images[0, 0, 0, 0] = math.nan
    net = nn.Sequential(nn.ReLU(), NoNaN(), nn.Flatten(), nn.Linear(64, 10))
    found = compare(net, {"0": ZeroAtNaN}, batches=[(images, target)])
    assert [(row.layer, row.what, row.verdict) for row in found.faults] == [("0", INPUT, "undecided")]


@with_broken_batch_norm
def test_command_says_that_torch_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cnn_lightning.tools.parity.subject._build", lambda wanted: tokens())
    size = ("--model.in_channels", "2", "--model.image_size", "8", "--steps", "1", "--data.batch_size", "1")
    code, out, _ = run(capsys, *size, "--json", str(tmp_path / "p.json"), "--png", str(tmp_path / "p.png"))
    assert code == 1
    (line,) = (line for line in out if line.startswith("parity: DIFFERENT"))
    assert line.startswith("parity: DIFFERENT, first in step 1, layer 1, gradient of input: ")
    assert "; TORCH IS WRONG here, not this layer: torch.nn.BatchNorm2d (central differences" in line
    assert not any("this layer is wrong" in line for line in out)
    (row,) = (line.split() for line in out if line.startswith("1 "))
    assert "TORCH:" in row
    assert row[1] == "numpy"
    found = json.loads((tmp_path / "p.json").read_text())
    assert (found["equal"], found["fault"], found["first"]["layer"]) == (False, "fault of torch", "1")
    plant(monkeypatch, conv, "conv2d_backward", 1)
    code, out, _ = run(capsys, *size)
    assert code == 1
    (line,) = (line for line in out if line.startswith("parity: also"))
    assert line.startswith("parity: also in step 1, layer 0, gradient of weight: this layer is wrong")


# ---- rounding that turns something over


def test_flips_by_rounding_are_told_from_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution is off by rounding only, but a thousand of its outputs are tied with 0 or with each other."""
    original = conv.conv2d
    generator = np.random.default_rng(0)

    def noisy(*arrays: Any, **options: Any) -> Any:
        y = original(*arrays, **options)
        return y + (generator.standard_normal(y.shape) * 1e-7).astype(y.dtype)

    monkeypatch.setattr(conv, "conv2d", noisy)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2), Head())
    images = torch.ones(4, 1, 8, 8)
    images[:, :, :4] = 0
    found = compare(net, batches=[(images, torch.arange(4))], tolerance=1e-5)
    assert found.ok
    assert found.flips > 10
    verdicts = {(row.layer, row.what): row.verdict for row in found.rows}
    assert verdicts["2", "output"] == "flip"
    assert verdicts["2", "gradient of input"] == "flip"


class Stages(nn.Sequential):
    """A network that computes layers together unless somebody watches them."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = run_fused(self.children(), x)
        return result


def ill_conditioned() -> nn.Module:
    """A normalisation of nearly constant numbers makes rounding large in every implementation, in float64 too."""
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, eps=1e-12), nn.Tanh()]
    return Stages(*first, nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), Head())


def nearly_constant(spread: float) -> list[Batch]:
    ((images, target),) = batches()
    return [(1 + images * spread, target)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1e-5, 1e-6])
def test_rounding_may_be_amplified(spread: float, dtype: torch.dtype) -> None:
    found = compare(ill_conditioned(), batches=nearly_constant(spread), dtype=dtype)
    assert found.ok, str(found.first)
    assert "rounding" in {row.verdict for row in found.rows if row.layer != WHOLE}
    assert "rounding" in {row.verdict for row in found.rows if row.layer == WHOLE}


@pytest.mark.parametrize("spread", [1e-5, 1e-6])
def test_a_bug_among_amplified_rounding(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, fused, "conv_relu_pool_backward", 1)
    first = compare(ill_conditioned(), batches=nearly_constant(spread)).first
    assert first is not None
    assert (first.layer, first.what) == ("3 4 5 (chain)", "gradient of 3.weight")


def test_a_bug_in_float64_alone_is_named_with_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, linear, "linear_backward", 1, dtype=np.float64)
    first = compare(digits(), batches=batches()).first
    assert first is not None
    assert (first.layer, first.what) == ("linear2", "gradient of weight in float64")


# ---- the step of the optimizer


def test_a_step_may_amplify_a_difference_of_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are half a step away from 0: after it they are as far away on the other side, twice as wrong."""
    lr = 1e-3
    linear_layer = nn.Linear(64, 10)
    net = nn.Sequential(nn.Flatten(), linear_layer)
    with torch.no_grad():
        linear_layer.weight.zero_()
    ((images, target),) = batches()
    nn.functional.cross_entropy(net(images), target).backward()
    with torch.no_grad():
        assert linear_layer.weight.grad is not None
        linear_layer.weight.copy_(linear_layer.weight.grad * lr / 2)
    plant(monkeypatch, linear, "linear_backward", 1, 1 + 8e-5, np.float32)
    found = compare(net, batches=[(images, target)], lr=lr)
    errors = {row.what: row.error for row in found.rows if row.layer == "1"}
    assert errors["gradient of weight"] < found.tolerance < errors["weight after the step"]
    assert [row.layer for row in found.rows if row.verdict == "fault"] == []


class Restless(nn.Linear):
    """Changes its bias behind everybody's back, after it has used it."""

    def forward(self, input: Tensor) -> Tensor:
        result = super().forward(input)
        self.bias.data += 0.01
        return result


def test_a_parameter_that_changes_without_a_gradient() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    first = compare(net, {"1": Restless}, batches=batches()).first
    assert first is not None
    assert (first.layer, first.what) == ("1", "bias after the step")


@pytest.mark.parametrize(
    ("found", "expected", "error", "where"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5, (1,)),
        ([math.nan, math.inf, 1.0], [math.nan, math.inf, 1.0], 0.0, (0,)),
        ([1.0, math.nan], [1.0, 2.0], math.inf, (1,)),
        ([1.0, -math.inf], [1.0, math.inf], math.inf, (1,)),
        ([0.0], [0.0], 0.0, (0,)),
        ([1e-30], [0.0], math.inf, (0,)),
        ([], [], 0.0, ()),
    ],
)
def test_relative_error(found: list[float], expected: list[float], error: float, where: tuple[int, ...]) -> None:
    assert relative_error(torch.tensor(found), torch.tensor(expected)) == (error, where)


def test_relative_error_of_other_shapes_and_with_a_floor() -> None:
    assert relative_error(torch.zeros(2), torch.zeros(3)) == (math.inf, ())
    assert relative_error(torch.tensor([1e-8]), torch.tensor([0.0]), 1e-2)[0] == pytest.approx(1e-6)
    assert relative_error(torch.ones(2, 3), torch.ones(2, 3) + torch.eye(2, 3))[1] == (0, 0)


# ---- the command


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, list[str], str]:
    code = main(["parity", *args])
    output = capsys.readouterr()
    return code, output.out.splitlines(), output.err


SMALL = ("--model.image_size", "8", "--model.channels", "[3, 4]", "--steps", "2", "--data.batch_size", "4")


def test_command_says_equal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, *SMALL, "--json", str(tmp_path / "p.json"), "--png", str(tmp_path / "p.png"))
    assert (code, err) == (0, "")
    assert out[0] == "simple_cnn: largest relative errors against torch, float32, 2 steps on random pictures"
    assert any(line.split()[:2] == ["conv1", "numpy"] and line.endswith("equal") for line in map(str.strip, out))
    assert any(line.startswith("parity: equal; ") for line in out)
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads((tmp_path / "p.json").read_text())
    assert found["equal"] is True
    assert found["first"] is None
    assert {row["layer"] for row in found["comparisons"]} >= {"conv1", "relu3", "linear2", "loss"}


def test_command_names_the_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant(monkeypatch, conv, "conv2d_backward", 1)
    code, out, _ = run(capsys, *SMALL, "--json", str(tmp_path / "p.json"), "--png", str(tmp_path / "p.png"))
    assert code == 1
    (line,) = (line for line in out if line.startswith("parity: DIFFERENT"))
    assert line.startswith(
        "parity: DIFFERENT, first in step 1, layer conv2, gradient of weight: relative error 1.0e-03"
    )
    assert any("conv2" in line and "fault:" in line for line in out)
    found = json.loads((tmp_path / "p.json").read_text())
    assert (found["first"]["layer"], found["first"]["what"]) == ("conv2", "gradient of weight")


@pytest.mark.parametrize(
    ("width", "names", "verdicts"),
    [
        (80, ["features.3.", "expand1x1", "features.3.", "expand1x1_", "activation"], ["fault:", "output", "follows"]),
        pytest.param(
            *(120, ["features.3.expand1x1", "features.3.expand1x1_activation"], ["fault: output", "follows"]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_command_fits_the_terminal(
    width: int,
    names: list[str],
    verdicts: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Names are folded at dots, verdicts between words, and numbers never."""
    monkeypatch.setenv("COLUMNS", str(width))
    plant(monkeypatch, conv, "conv2d")
    net = ("--model.net", "squeezenet1_1", "--model.image_size", "17", "--model.layers", "{features.3.*: numpy}")
    code, out, _ = run(capsys, *net, "--steps", "1", "--data.batch_size", "1")
    assert code == 1
    table = out[1 : next(index for index, line in enumerate(out) if line.startswith("loss of step"))]
    assert max(map(len, table)) <= width
    assert not any("…" in line for line in table)
    cells = [re.split(r"  +| (?=\d|torch|numpy|fault|follows)", line.strip()) for line in table[3:]]
    start = next(i for i in range(len(cells)) if [cell[0] for cell in cells[i : i + len(names)]] == names)
    shown = [cell[-1] for cell in cells[start : start + len(names)] if cell[-1] in verdicts]
    assert shown == verdicts


@pytest.mark.parametrize(
    "args",
    [
        ("--data", "Digits"),
        ("--data=Digits", "--model.layers", "{conv1: numpy, loss: numpy}", "--precision", "64"),
        ("--config", "digits", "--config", "mixed"),
        ("--model.net", "mobilenet_v3_small", "--model.in_channels", "1", "--model.image_size", "32"),
    ],
)
def test_command_takes_data_layers_and_networks(capsys: pytest.CaptureFixture[str], args: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *args, "--steps", "1", "--data.batch_size", "2")
    assert (code, err) == (0, "")
    if "mixed" in args:
        runs = {line.split()[0]: line.split()[1] for line in out if line.strip().endswith("equal") and "(" not in line}
        assert runs["conv1"] == "numpy"
        assert runs["conv2"] == "torch"


def test_command_takes_a_config_and_other_data_where_its_own_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "data: {class_path: ImageFolder, init_args: {root: nowhere, image_size: 12}}\n"
        "model: {channels: [3], hidden: 5, layers: torch}\ntrainer: {max_epochs: 3}\n"
    )
    code, out, _ = run(capsys, "--config", str(path), "--steps", "1", "--model.layers", "numpy")
    assert code == 0
    assert out[0].endswith("1 step on random pictures (ImageFolder is not here)")
    code, _, err = run(capsys, "--config", str(path), "--data.root", str(tmp_path / "neither"))
    assert code == 2
    assert err.startswith("cnn-lightning: error: --data ImageFolder: ")
    assert err.count("\n") == 1


def test_command_takes_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = Classifier(channels=(3,), hidden=5, image_size=8, num_classes=10)
    path = tmp_path / "best.ckpt"
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save(content | {"pytorch-lightning_version": lightning.__version__}, path)
    code, _, err = run(capsys, "--ckpt_path", str(path), "--steps", "1", "--json", str(tmp_path / "p.json"))
    assert (code, err) == (0, "")
    images, target = batches(1, (8, 1, 8, 8))[0]
    expected = nn.functional.cross_entropy(model.net(images), target).item()
    assert json.loads((tmp_path / "p.json").read_text())["losses"][0]["torch"] == pytest.approx(expected, rel=1e-5)
    code, _, err = run(capsys, "--ckpt_path", str(path), "--model.hidden", "6")
    assert (code, err) == (2, "cnn-lightning: error: hidden: expected 5, that of the checkpoint, got 6\n")
    path.write_bytes(path.read_bytes()[:500])
    code, _, err = run(capsys, "--ckpt_path", str(path))
    assert code == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--steps", "0"), "--steps: expected at least 1, got 0"),
        (("--config", "nowhere"), "expected a file or one of"),
        (("--data", "Digit"), "--data: expected one of"),
        (("--model.net", "resnet19"), "unknown network 'resnet19'"),
        (("--model.net", "alexnet", "--model.image_size", "32"), "alexnet needs images of at least 63 pixels, got 32"),
        (("--model.layers", "nunpy"), "unknown implementation 'nunpy'"),
        (("--model.layers", "{con1: numpy}"), "pattern 'con1' matches no layer"),
        (("--json", "/nowhere/p.json"), "expected a file in a folder that exists"),
        (("--stesp", "1"), ""),
    ],
)
def test_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str) -> None:
    code, _, err = run(capsys, *args)
    assert code == 2
    assert err.startswith("cnn-lightning: error: ")
    assert message in err
    assert err.count("\n") == 1
