"""Compiled and exported networks beside torch eager: planted faults are found in the smallest part, and no others."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cnn_lightning.model import build_net
from cnn_lightning.tools.export import formats
from cnn_lightning.tools.parity.candidates import Candidate, candidate_of, compiled
from cnn_lightning.tools.parity.layerwise.results import FAULTS, WHOLE, Evidence, Row
from cnn_lightning.tools.parity.layerwise.runner import Batch
from cnn_lightning.tools.parity.programs.halving import compare_program
from tests.wrong_torch import wrong_kernel

Function = Callable[..., Any]
INDUCTED = [
    *("alexnet", "vgg11", "squeezenet1_1", "resnet18", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small"),
    *("shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0", "regnet_x_400mf", "densenet121", "googlenet"),
    "convnext_tiny",
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batches(steps: int = 1, shape: tuple[int, ...] = (4, 3, 8, 8)) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(shape, generator=generator), torch.randint(10, shape[:1], generator=generator))
        for _ in range(steps)
    ]


def run(net: nn.Module, by: Candidate, **options: Any) -> tuple[list[Row], list[Evidence]]:
    given: dict[str, Any] = {
        "batches": batches(),
        "loss": nn.CrossEntropyLoss(),
        "dtype": torch.float32,
        "tolerance": 1e-4,
        "lr": 0.01,
        "momentum": 0.9,
        "seed": 0,
        "tick": lambda what: None,
        "torch_faults": [],
    }
    return compare_program(net, by, **given | options)


def faults(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.verdict in FAULTS]


def named(rows: list[Row]) -> set[tuple[str, str, str]]:
    return {(row.layer, row.what, row.verdict) for row in faults(rows)}


# ---- programs with a planted fault


def replacing(old: Any, new: Function, when: Callable[..., bool] = lambda *args: True) -> Candidate:
    """A program that calls ``new`` for the function ``old`` of torch, wherever ``when`` its arguments are such."""

    class Planted(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is old and when(*args):
                function = new
            return function(*args, **kwargs or {})

    def build(module: nn.Module, arguments: tuple[Any, ...]) -> Function:
        def program(*arguments: Any, **keywords: Any) -> Any:
            with Planted():
                return module(*arguments, **keywords)

        return program

    return Candidate("planted", build=build)


def compiled_with(old: Any, new: Function) -> Candidate:
    """A compiler that calls ``new`` for the function ``old`` of torch."""

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Function:
        for node in graph.graph.nodes:
            if node.op == "call_function" and node.target is old:
                node.target = new
        graph.recompile()
        return graph.forward

    return compiled(backend, "planted")


def scaled(function: Function) -> Function:
    return lambda *args, **options: function(*args, **options) * 1.001


def channels(count: int) -> Callable[..., bool]:
    """Where the input has so many channels."""
    return lambda x, *others: x.shape[1] == count


class WrongBackward(torch.autograd.Function):
    """The identity, with a gradient that is a thousandth too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 1.001


def deep() -> nn.Module:
    """A chain of layers, a few of them in a container."""
    torch.manual_seed(0)
    block = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(4, 5, 3, padding=1), norm=nn.BatchNorm2d(5), relu=nn.ReLU(), again=nn.ReLU())
    )
    layers = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(3, 4, 3, padding=1), relu=nn.ReLU(), block=block, pool=nn.MaxPool2d(2)
    )
    layers |= {"flatten": nn.Flatten(), "linear": nn.Linear(80, 10)}
    return nn.Sequential(layers)


class Residual(nn.Module):
    """A sum that no submodule computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x) + x)


def residual() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(first=Residual(), flatten=nn.Flatten(), linear=nn.Linear(192, 10)))


def test_a_wrong_layer_is_found_in_its_container() -> None:
    rows, evidence = run(deep(), replacing(F.conv2d, scaled(F.conv2d), channels(4)), batches=batches(2))
    assert {(row.layer, row.verdict) for row in faults(rows)} == {("block.conv", "fault")}
    row = faults(rows)[0]
    assert row.what == "output"
    assert row.other == pytest.approx(1e-3, rel=0.01)
    assert row.native < 1e-6 > row.numpy
    assert {other.verdict for other in rows if other.layer == WHOLE} == {"equal", "follows"}
    shown = evidence[0]
    assert (shown.party, shown.place, type(shown.part)) == ("planted", ("outputs", 0), nn.Conv2d)
    torch.testing.assert_close(shown.part(*shown.inputs).double(), shown.right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shown.found / 1.001, shown.right.float(), rtol=1e-5, atol=1e-5)


def test_a_wrong_compiler_is_found() -> None:
    rows, _ = run(deep(), compiled_with(F.linear, scaled(F.linear)), batches=batches(2))
    assert {(row.layer, row.verdict) for row in faults(rows)} == {("linear", "fault")}


def test_a_wrong_gradient_is_found() -> None:
    by = replacing(F.relu, lambda x, **options: F.relu(WrongBackward.apply(x)), channels(4))
    rows, evidence = run(deep(), by)
    assert named(rows) == {("relu", "gradient of input", "fault")}
    assert [shown.place for shown in evidence] == [("grad_inputs", 0)]
    assert evidence[0].upstream[0].shape == (4, 4, 8, 8)


def test_a_missing_bias_is_found() -> None:
    by = replacing(F.linear, lambda x, weight, bias: F.linear(x, weight) + 0 * bias)
    assert named(run(deep(), by)[0]) == {("linear", "output", "fault"), ("linear", "gradient of bias", "fault")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fault_in_one_precision_is_found(dtype: torch.dtype) -> None:
    def wrong(x: Tensor, *args: Any) -> Tensor:
        y = F.conv2d(x, *args)
        return y * 1.001 if x.dtype == dtype else y

    rows = run(deep(), replacing(F.conv2d, wrong, channels(4)), dtype=dtype, tolerance=1e-6)[0]
    assert ("block.conv", "output", "fault") in named(rows)


def test_a_fault_of_two_layers_together_names_both() -> None:
    """A compiler that joins two operators and makes one of them wrong."""
    by = replacing(F.relu, scaled(F.relu), lambda x: "BatchNorm" in x.grad_fn.name())
    rows, evidence = run(deep(), by)
    assert {row.layer for row in faults(rows)} == {"block.norm to block.relu"}
    assert [name for name, _ in evidence[0].part.named_children()] == ["norm", "relu"]


def test_each_layer_of_a_part_keeps_its_mode() -> None:
    """A frozen batch norm beside a ReLU in training: alone, the two compute what they do in the network."""
    net = deep()
    net.get_submodule("block.norm").eval()
    by = replacing(F.relu, scaled(F.relu), lambda x: "BatchNorm" in x.grad_fn.name())
    rows, evidence = run(net, by)
    assert {(row.layer, row.verdict) for row in faults(rows)} == {("block.norm to block.relu", "fault")}
    assert [layer.training for layer in evidence[0].part.children()] == [False, True]


def test_a_fault_between_submodules_names_the_one_that_contains_it() -> None:
    rows, _ = run(residual(), replacing(Tensor.add, lambda a, b: (a + b) * 1.001))
    assert {(row.layer, row.verdict) for row in faults(rows)} == {("first", "fault")}
    rows, _ = run(Residual(), replacing(Tensor.add, lambda a, b: (a + b) * 1.001), loss=Squares())
    assert {(row.layer, row.verdict) for row in faults(rows)} == {(WHOLE, "fault")}


class Squares(nn.Module):
    """The mean of squares."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return x.square().mean()


def test_several_faults_are_named() -> None:
    rows, _ = run(deep(), replacing(F.relu, scaled(F.relu)))
    assert [row.layer for row in faults(rows) if row.what == "output"] == ["relu", "block.relu", "block.again"]


def test_a_wrong_choice_at_a_tie_is_found() -> None:
    """Half of the images are 0, and there the gradient is 1 for 0."""
    net = nn.Sequential(OrderedDict(relu=nn.ReLU(), flatten=nn.Flatten(), linear=nn.Linear(192, 10)))
    images, target = batches()[0]
    by = replacing(F.relu, lambda x, **options: torch.where(x >= 0, x, 0))
    rows, _ = run(net, by, batches=[(images.relu(), target)])
    assert named(rows) == {("relu", "gradient of input", "fault")}


# ---- torch eager is wrong


def right_relu(x: Tensor, **options: Any) -> Tensor:
    return torch.where(x > 0, x, 0)


@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_a_wrong_kernel_of_torch_is_not_the_programs_fault(dtype: torch.dtype | None) -> None:
    with wrong_kernel("threshold_backward", dtype=dtype):
        rows, evidence = run(deep(), replacing(F.relu, right_relu))
    assert {(row.layer, row.what, row.verdict) for row in faults(rows)[:1]} == {
        ("relu", "gradient of input", "fault of torch")
    }
    assert {row.verdict for row in faults(rows)} == {"fault of torch"}
    assert {shown.party for shown in evidence} == {"torch"}


def test_both_can_be_wrong() -> None:
    with wrong_kernel("relu", dtype=torch.float32):
        rows, evidence = run(deep(), replacing(F.relu, lambda x, **options: right_relu(x) * 1.003, channels(4)))
    assert ("relu", "output", "both at fault") in named(rows)
    assert {shown.party for shown in evidence} == {"torch", "planted"}


# ---- no fault


def test_a_sign_that_rounding_decides_is_no_fault() -> None:
    """The sum before a ReLU is 0 but for rounding, and the program adds in another order."""
    net = nn.Sequential(OrderedDict(linear=nn.Linear(3, 1, bias=False), relu=nn.ReLU(), out=nn.Linear(1, 10)))
    net[0].weight.data = torch.tensor([[1.0, 1.0, -1.0]])
    images = torch.tensor([[0.1, 0.2, 0.3]])
    images[0, 2] = torch.nextafter(images[0, 2], torch.zeros(()))

    def in_another_order(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias) - torch.finfo(x.dtype).eps

    by = replacing(F.linear, in_another_order, lambda x, weight, bias: bias is None)
    rows, _ = run(net, by, batches=[(images, torch.tensor([3]))])
    assert max(row.error for row in rows) > 0.1
    assert {row.verdict for row in rows} == {"equal", "flip", "rounding"}


@pytest.mark.parametrize("against", ["compile=aot_eager", "pt2", "onnx"])
def test_equal_programs_are_equal(against: str) -> None:
    net = nn.Sequential(deep(), nn.Dropout(0.5))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    rows, evidence = run(net, candidate_of(against, net), batches=batches(3))
    assert {row.verdict for row in rows} == {"equal"}
    assert evidence == []
    assert net[1].training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert ("output" if against == "onnx" else "0.linear.bias after the step") in {row.what for row in rows}
    assert all(row.numpy < 1e-5 for row in rows if row.what == "output")


@pytest.mark.parametrize(
    "name",
    ["simple_cnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "vit_b_32", "googlenet"))],
)
def test_networks_compile_without_a_false_fault(name: str) -> None:
    torch.manual_seed(0)
    net = build_net(name, in_channels=3, image_size=32 if name in ("simple_cnn", "vit_b_32") else None)
    rows, _ = run(net, candidate_of("compile=aot_eager", net), batches=batches(1, (2, 3, 32, 32)))
    assert faults(rows) == []


def other_rounding(module: nn.Module, arguments: tuple[Any, ...]) -> Function:
    """The same network by torch's other kernels."""

    def program(*arguments: Any) -> Any:
        with torch.backends.mkldnn.flags(enabled=False):
            return module(*arguments)

    return program


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_small", *(pytest.param(name, marks=pytest.mark.slow) for name in INDUCTED if "v3" not in name)],
)
def test_another_rounding_is_no_fault(name: str) -> None:
    """Batches of three: a statistic may be 0 but for rounding, and a gradient may change by as much as it is."""
    torch.manual_seed(0)
    by = Candidate("planted", build=other_rounding, draws_alike=False)
    rows, _ = run(build_net(name), by, batches=batches(1, (3, 3, 64, 64)))
    assert faults(rows) == []
    if name == "mobilenet_v3_small":
        assert max(row.error for row in rows) > 0.1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", INDUCTED)
def test_inductor_has_no_false_fault(name: str) -> None:
    torch.manual_seed(0)
    net = build_net(name)
    rows, _ = run(net, candidate_of("compile", net), batches=batches(2, (3, 3, 64, 64)))
    assert faults(rows) == []


# ---- what can't be compared


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("compile=aot_eagr", "^against: expected compile=inductor.*, got compile=aot_eagr; did you mean aot_eager.$"),
        ("compile=", "against: expected one of .*compile=BACKEND.*, got 'compile='"),
    ],
)
def test_an_unknown_program_is_refused_in_one_line(text: str, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        candidate_of(text, deep())


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda other: None if other == name else find_spec(other))
    with pytest.raises(ValueError, match=f"against onnx: expected the packages .*, {name} not found; pip install"):
        candidate_of("onnx", deep())


class Undecided(nn.Module):
    """A branch on a value, which can't be exported."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(1)
        return y * 2 if y.sum() > 0 else y


class DropoutFunction(nn.Module):
    """A dropout that no layer turns off."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x.flatten(1), training=self.training)


def test_random_numbers_of_a_function_are_refused() -> None:
    with pytest.raises(ValueError, match="against compile=aot_eager: expected a network that draws random numbers in"):
        run(DropoutFunction(), candidate_of("compile=aot_eager", DropoutFunction()))


@pytest.mark.parametrize("against", ["pt2", "onnx"])
def test_a_network_that_cannot_be_exported_is_named_in_one_line(against: str) -> None:
    with pytest.raises(ValueError, match=f"^against: expected a network that {against} can run, got .*$"):
        run(Undecided(), candidate_of(against, Undecided()))
