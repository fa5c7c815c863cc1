"""The referee: faults planted in torch, in a candidate or in NumPy, each with its layer, pass and party."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cnn_lightning import parity
from cnn_lightning.cli import main
from cnn_lightning.model import build_net
from cnn_lightning.ops import conv
from cnn_lightning.tools.parity.candidates import EAGER, Candidate
from cnn_lightning.tools.parity.layerwise.blame import Blame
from cnn_lightning.tools.parity.layerwise.results import Parity
from cnn_lightning.tools.parity.layerwise.rulings import Ruling
from cnn_lightning.tools.parity.layerwise.runner import Call
from tests.wrong_torch import Tokens, planted, times, with_broken_batch_norm

pytestmark = pytest.mark.usefixtures("empty_folder")  # the command writes reproducers into the current one

INPUT, WEIGHT, BIAS = "gradient of input", "gradient of weight", "gradient of bias"


class Head(nn.Module):
    """Ten logits of any feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(functional.adaptive_avg_pool2d(x.flatten(1)[:, None], (1, 36)).flatten(1))
        return y


def batch(shape: Sequence[int] = (4, 4, 8, 8), *, ties: bool = False) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=generator)
    return [(images.round() if ties else images, torch.randint(10, shape[:1], generator=generator))]


# ---- a fault planted in an operator of torch: in torch eager, in the candidate, or in both


def last_of_equals(results: Any, arguments: Sequence[Any]) -> Any:
    """The places of the last maxima in the windows of a 2x2 max-pooling, for the first."""
    y = results[0]
    windows = arguments[0].unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    last = 3 - (windows.flip(-1) == y[..., None]).int().argmax(-1)
    rows, columns = (2 * torch.arange(n) for n in y.shape[2:])
    return y, (rows[:, None] + last // 2) * arguments[0].shape[-1] + columns + last % 2


def gradient_at_zero(results: Any, arguments: Sequence[Any]) -> Any:
    """The gradient of a ReLU that is not 0 at 0."""
    gradient, x = arguments[:2]
    return torch.where(x == 0, gradient, results)


def without_sum(results: Any, arguments: Sequence[Any]) -> Any:
    """The gradient of a log-softmax without the sum over the classes."""
    return arguments[0].clone()


def without_mean(results: Any, arguments: Sequence[Any]) -> Any:
    """The gradient of a batch norm without the mean of the upstream gradient."""
    gradient, _, weight = arguments[:3]
    scale = (weight * arguments[6])[:, None, None]
    return results[0] + gradient.mean((0, 2, 3), keepdim=True) * scale, *results[1:]


def without_bias(results: Any, arguments: Sequence[Any]) -> Any:
    """A convolution without its bias."""
    return results if arguments[2] is None else results - arguments[2][:, None, None]


def without_last_tap(results: Any, arguments: Sequence[Any]) -> Any:
    """An average of windows without their last pixel."""
    return results - arguments[0][..., 1::2, 1::2] / 4


@dataclass(frozen=True)
class Plant:
    """A change of an operator, and the layer and result in which it is to be found."""

    operator: str
    change: Callable[[Any, Sequence[Any]], Any]
    layer: Callable[[], nn.Module]
    what: str
    name: str = "1"
    ties: bool = False


def plants() -> Iterator[Plant]:
    small = times(1.001)
    yield Plant("convolution", small, lambda: nn.Conv2d(4, 4, 3), "output")
    yield Plant("convolution", without_bias, lambda: nn.Conv2d(4, 4, 3), "output")
    yield Plant("convolution_backward", small, lambda: nn.Conv2d(4, 4, 3), INPUT)
    yield Plant("convolution_backward", times(1.001, 1), lambda: nn.Conv2d(4, 4, 3), WEIGHT)
    yield Plant("convolution_backward", times(1.001, 2), lambda: nn.Conv2d(4, 4, 3), BIAS)
    yield Plant("native_batch_norm", small, lambda: nn.BatchNorm2d(4), "output")
    yield Plant("native_batch_norm_backward", without_mean, lambda: nn.BatchNorm2d(4), INPUT)
    yield Plant("native_layer_norm", small, lambda: nn.LayerNorm(8), "output")
    yield Plant("native_layer_norm_backward", times(1.001, 1), lambda: nn.LayerNorm(8), WEIGHT)
    yield Plant("max_pool2d_with_indices", last_of_equals, lambda: nn.MaxPool2d(2), INPUT, ties=True)
    yield Plant("max_pool2d_with_indices_backward", small, lambda: nn.MaxPool2d(2), INPUT)
    yield Plant("avg_pool2d", without_last_tap, lambda: nn.AvgPool2d(2), "output")
    yield Plant("avg_pool2d_backward", small, lambda: nn.AvgPool2d(2), INPUT)
    yield Plant("threshold_backward", gradient_at_zero, nn.ReLU, INPUT, ties=True)
    yield Plant("gelu", small, nn.GELU, "output")
    yield Plant("gelu_backward", small, nn.GELU, INPUT)
    yield Plant("sigmoid_backward", small, nn.Sigmoid, INPUT)
    yield Plant("_softmax_backward_data", small, lambda: nn.Softmax(1), INPUT)
    yield Plant("_log_softmax_backward_data", without_sum, nn.Identity, INPUT, name="loss")
    yield Plant("addmm", small, nn.Identity, "output", name="3.linear")


def params() -> list[Any]:
    return [pytest.param(each, id=f"{each.operator}-{each.what}-{i}") for i, each in enumerate(plants())]


def many_threads(arguments: Sequence[Any] = ()) -> bool:
    """Whether the candidate ``threads=3`` runs."""
    return torch.get_num_threads() == 3


WHERE: dict[str, tuple[Callable[[Sequence[Any]], bool], str]] = {
    "candidate": (many_threads, "fault"),
    "candidate in float32": (lambda a: many_threads() and a[0].dtype == torch.float32, "fault"),
    "torch": (lambda a: not many_threads(), "fault of torch"),
    "torch in float32": (lambda a: not many_threads() and a[0].dtype == torch.float32, "fault of torch"),
    "both": (lambda a: True, "both at fault"),
    "both in float32": (lambda a: a[0].dtype == torch.float32, "both at fault"),
    "candidate in float64": (lambda a: many_threads() and a[0].dtype == torch.float64, "fault"),
    "torch in float64": (lambda a: not many_threads() and a[0].dtype == torch.float64, "fault of torch"),
}


def found_for(plant: Plant, where: Callable[[Sequence[Any]], bool], dtype: torch.dtype) -> Parity:
    """The comparison of ``threads=3`` with torch eager on one thread."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), plant.layer(), nn.Identity(), Head())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert parity.compare(net, batches=batch(ties=plant.ties), candidate="threads=3", dtype=dtype).ok
        with planted(plant.operator, plant.change, where):
            return parity.compare(net, batches=batch(ties=plant.ties), candidate="threads=3", dtype=dtype)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("who", WHERE)
@pytest.mark.parametrize("plant", params())
def test_a_planted_fault_is_found_with_layer_pass_and_party(plant: Plant, who: str) -> None:
    where, verdict = WHERE[who]
    found = found_for(plant, where, torch.float64 if who.endswith("float64") else torch.float32)
    first = found.first
    assert first is not None, "the fault was not seen"
    assert (first.layer, first.what, first.verdict) == (plant.name, plant.what, verdict)
    assert {row.verdict for row in found.faults} == {verdict}
    parties = {"fault": {"threads=3"}, "fault of torch": {"torch"}}.get(verdict, {"torch"})
    assert {each.party for each in found.evidence if each.row == first} >= parties


@pytest.mark.parametrize(("off", "wrong"), [(5e-9, False), (2e-7, True)])
def test_a_gradient_below_the_rounding_of_the_largest_is_no_fault(off: float, wrong: bool) -> None:
    """As that of a bias before a normalisation: its right value is 0, and what is found is rounding."""
    call = Call("conv", 0, nn.Conv2d(8, 8, 1), (), {}, {}, [], True)
    right = torch.full((8,), 5e-9, dtype=torch.float64)
    rulings: Any = SimpleNamespace(
        twins={},
        on=lambda *place: Ruling(right, "both", "two float64 results agree"),
        two=lambda call: (None, None),
        replays=SimpleNamespace(get=lambda *key, **options: None),
    )
    runner: Any = SimpleNamespace(users=lambda call, place: [(call, "bias")], rounds=torch.float32, mode=EAGER)
    blame = Blame(runner, runner, 1e-4, rulings)
    assert blame.examine(runner, call, (right + off).float(), ("parameter", "bias"), floor=1e-8).wrong is wrong


# ---- functions that no layer is


class Residual(nn.Module):
    """A block that adds, multiplies matrices and takes a ReLU by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x) + x) @ x.transpose(2, 3)


@pytest.mark.parametrize(
    ("operator", "layer", "what"),
    [
        ("bmm", "1:matmul", "output"),
        ("threshold_backward", "1:relu", INPUT),
    ],
)
def test_a_fault_in_a_function_is_found_by_the_block_that_calls_it(operator: str, layer: str, what: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 1), Residual(), Head())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with planted(operator, times(1.001), many_threads):
            first = parity.compare(net, batches=batch(), candidate="threads=3").first
    finally:
        torch.set_num_threads(before)
    assert first is not None
    assert (first.layer, first.what, first.verdict) == (layer, what, "fault")


def test_torch_s_wrong_function_is_found_where_a_layer_computes_it_in_numpy() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), Residual(), Head())
    with planted("threshold_backward", times(1.001)):
        first = parity.compare(net, batches=batch(), candidate="channels_last").first
    assert first is not None
    assert (first.layer, first.what, first.verdict) == ("1:relu", INPUT, "both at fault")


def test_attention_is_a_layer_and_its_weights_have_names() -> None:
    net: Any = build_net("vit_b_16", num_classes=10, in_channels=3, image_size=32)
    net.encoder.layers = net.encoder.layers[:1]
    rows = parity.compare(net, batches=batch((2, 3, 32, 32)), candidate="threads=1").rows
    found = {(row.layer, row.what): row for row in rows}
    attention = "encoder.layers.encoder_layer_0.self_attention"
    assert found[attention, "output"].verdict == "equal"
    assert found[attention, "gradient of out_proj.weight"].numpy < 1e-5
    assert found["encoder:add", "output"].verdict == "equal"


# ---- each candidate


@with_broken_batch_norm
@pytest.mark.parametrize(
    ("candidate", "verdict"), [("threads=1", "both at fault"), ("cnn_lightning.layers.BatchNorm2d", "fault of torch")]
)
def test_torch_eager_itself_is_wrong_at_ambiguous_strides(candidate: str, verdict: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), Tokens(), Head())
    found = parity.compare(net, batches=batch((1, 4, 8, 8)), candidate=candidate)
    assert {(row.layer, row.verdict) for row in found.faults} == {("1", verdict)}
    assert INPUT in {row.what for row in found.faults}


def test_numpy_may_be_the_one_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    original = conv.conv2d
    monkeypatch.setattr(conv, "conv2d", lambda *arrays, **options: original(*arrays, **options) * 1.001)
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), Head())
    found = parity.compare(net, batches=batch(), candidate="channels_last")
    assert [(row.layer, row.what, row.verdict) for row in found.faults] == [("0", "output", "fault of NumPy")]
    found = parity.compare(net, batches=batch(), candidate="formula")
    assert [(row.layer, row.what, row.verdict) for row in found.faults] == [("0", "output", "fault")]


@pytest.mark.parametrize(("candidate", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_fault_above_the_rounding_of_half_precision(candidate: str, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), Head())
    with planted("convolution_backward", times(1.3, 1), lambda arguments: arguments[1].dtype == kind):
        found = parity.compare(net, batches=batch(), candidate=candidate)
    assert [(row.layer, row.what, row.verdict) for row in found.faults] == [("0", WEIGHT, "fault")]


class WrongReLU(nn.ReLU):
    """A layer of a user's, wrong by a thousandth."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.001 * super().forward(x)


def test_a_layer_of_a_user_is_a_candidate() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.ReLU6(), Head())
    found = parity.compare(net, batches=batch(), candidate=f"{__name__}.WrongReLU")
    assert [(row.layer, row.what, row.verdict) for row in found.faults[:1]] == [("1", "output", "fault")]
    assert {row.layer for row in found.faults} == {"1"}
    assert found.evidence[0].party == f"{__name__}.WrongReLU"


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ("chanels_last", "got 'chanels_last'; did you mean channels_last?"),
        ("threads=0", "expected threads=N with a whole number of at least 1, got 'threads=0'"),
        ("threads=", "got 'threads='"),
        ("bf16=1", "got 'bf16=1'"),
        ("no_such_package.Layer", "expected the import path of a layer, got no_such_package.Layer: No module named"),
        ("math.pi", "expected a subclass of torch.nn.Module, got math.pi, a float"),
        ("torch.nn.GELU", "expected a layer that torch.nn.GELU can replace in the network, found none"),
        ("mps", "expected a device of this machine, got mps, which torch does not see here"),
    ],
)
def test_a_candidate_that_is_none(candidate: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^against: ") as raised:
        parity.compare(nn.Sequential(nn.ReLU(), Head()), batches=batch(), candidate=candidate)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_candidate_on_a_device_is_compared_where_the_batch_is() -> None:
    """Its results are brought to the batch; the CPU stands for the other device."""
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2), Head())
    found = parity.compare(net, batches=batch() * 2, candidate=Candidate("cpu", device="cpu"))
    assert found.ok
    assert len(found.rows) == len(parity.compare(net, batches=batch() * 2, candidate="threads=1").rows)


def test_dropout_is_left_out_where_the_candidate_draws_other_numbers() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Dropout(0.5), Head())
    found = parity.compare(net, batches=batch(), candidate="channels_last")
    assert found.ok
    assert found.note == "dropout is off in all copies: channels_last draws other random numbers"
    assert parity.compare(net, batches=batch(), candidate="threads=1").note == ""
    assert net[1].training


MODES = ("channels_last", "bf16", "fp16", "no_mkldnn", "threads=1", "formula", "fast")
NETWORKS = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2"),
    *("regnet_y_400mf", "resnet50", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "vgg11_bn", "vit_b_16"),
)


def no_fault(name: str, candidate: str, steps: int, n: int, size: int) -> None:
    torch.manual_seed(0)
    net = build_net(name, num_classes=10, in_channels=3, image_size=size)
    found = parity.compare(net.train(), batches=batch((n, 3, size, size)) * steps, candidate=candidate)
    assert [(str(row), row.verdict, row.why) for row in found.faults] == []
    assert not any(math.isnan(row.error) for row in found.rows)


@pytest.mark.parametrize("candidate", MODES)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_no_false_fault(name: str, candidate: str) -> None:
    no_fault(name, candidate, steps=1, n=2, size=32)


@pytest.mark.slow
@pytest.mark.parametrize("candidate", MODES[:3])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_false_fault_in_networks_of_torchvision(name: str, candidate: str) -> None:
    no_fault(name, candidate, steps=2, n=4, size=64)


# ---- the command

SMALL = ("--model.image_size", "8", "--model.channels", "[3, 4]", "--steps", "1", "--data.batch_size", "4")


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, list[str]]:
    code = main(["parity", *SMALL, *args])
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, captured.out.splitlines()


def test_command_compares_a_candidate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out = run(capsys, "--against", "channels_last", "--json", str(tmp_path / "p.json"))
    assert code == 0
    assert out[0] == (
        "simple_cnn: largest relative errors of channels_last against torch, float32, 1 step on random pictures"
    )
    assert any("NumPy" in line for line in out[1:4])
    assert max(map(len, out[1:15])) <= 80
    assert any(line.startswith("loss of step 1: torch ") and "channels_last " in line for line in out)
    assert json.loads((tmp_path / "p.json").read_text())["candidate"] == "channels_last"


def test_command_names_the_party(capsys: pytest.CaptureFixture[str]) -> None:
    with planted("convolution_backward", times(1.001, 1)):
        code, out = run(capsys, "--against", "channels_last")
    assert code == 1
    (line,) = (line for line in out if line.startswith("parity: DIFFERENT"))
    assert line.startswith("parity: DIFFERENT, first in step 1, layer conv2, gradient of weight: ")
    assert "; torch and channels_last are BOTH WRONG (central differences" in line
    assert ", NumPy " in line
    assert any("BOTH at fault:" in line for line in out)


def test_command_refuses_a_candidate_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", "--against", "bf15"]) == 2
    assert "error: --against: expected one of " in capsys.readouterr().err
