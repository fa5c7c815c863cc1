"""torch.compile and torch.export: one graph, NumPy inside it, the same numbers for any batch."""

import copy
import functools
import importlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cnn_lightning import build_net, layers, swap_layers
from cnn_lightning.classifier import Classifier
from cnn_lightning.cli import main
from cnn_lightning.layers import bridge
from cnn_lightning.layers.bridge import compile as compiler
from cnn_lightning.ops import activation
from cnn_lightning.ops.fast import chooser
from cnn_lightning.swap import native_type
from tests.cases import Case, load
from tests.test_layers import build, tensors

CASES = [pytest.param(case, id=case.name) for case in load()]
VIEWS = [case.name for case in load() if case.is_view]
NETS = ["simple_cnn", "resnet18"]

# The compiler's own look at an input that is no leaf.
pytestmark = pytest.mark.filterwarnings("default:The .grad attribute")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each operation of `cnn_lightning.ops` has run on arrays."""
    seen: Counter[str] = Counter()

    def counted(operation: Any) -> Any:
        @functools.wraps(operation)
        def call(*args: Any, **options: Any) -> Any:
            if not torch.compiler.is_compiling():  # what is traced does not run
                seen[operation.__name__] += any(type(value) is np.ndarray for value in args)
            return operation(*args, **options)

        return call

    for file, functions in chooser.formulas().items():
        for name, function in functions.items():
            monkeypatch.setattr(importlib.import_module(f"cnn_lightning.ops.{file}"), name, counted(function))
    return seen


def network(name: str, layers: Any) -> nn.Module:
    torch.manual_seed(0)
    net = build_net(name, in_channels=3, image_size=32, num_classes=5, channels=(4, 8), hidden=16)
    swap_layers(net, layers)
    return net.double()  # a batch of two says little about batch normalisation in float32


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def step(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Logits, all gradients and all buffers of one training step."""
    torch.manual_seed(1)
    net.zero_grad()
    x = x.requires_grad_()
    logits = net(x)
    (logits * torch.arange(5.0, dtype=torch.float64)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in [("x", x), *net.named_parameters()]}
    return {"logits": logits.detach()} | gradients | dict(copy.deepcopy(net).named_buffers())


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        scale = max(value.double().abs().max().item(), 1e-2)
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=tolerance * scale, msg=partial("{}: {}".format, name)
        )


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("simple_cnn", (2, 2, 3, 4)),
        pytest.param("resnet18", (3, 3, 2, 4), marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", (2, 3), marks=pytest.mark.slow),
    ],
)
def test_one_graph_with_numpy_inside(name: str, sizes: tuple[int, ...], calls: Counter[str]) -> None:
    compiled, eager, native = network(name, "numpy"), network(name, "numpy"), network(name, "torch")
    keys = list(compiled.state_dict())
    compiled.compile(fullgraph=True, backend="aot_eager")  # raises at a graph break
    for n in sizes:
        expected = step(eager, images(n))
        calls.clear()
        assert_same(step(native, images(n)), expected, 1e-8)
        assert not calls
        found = step(compiled, images(n))
        assert_same(found, expected, 1e-8)
    calls.clear()
    step(compiled, images(sizes[-1]))
    once = Counter(_layers(compiled))
    for operation, kind in (("conv2d", nn.Conv2d), ("linear", nn.Linear), ("batch_norm", nn.BatchNorm2d)):
        assert calls[operation] == once[kind]
        assert calls[f"{operation}_backward"] == once[kind]
    assert calls["relu"] == calls["relu_backward"] >= once[nn.ReLU]
    assert list(compiled.state_dict()) == keys


def _layers(net: nn.Module) -> list[type[nn.Module]]:
    return [native_type(module) for module in net.modules() if "cnn_lightning" in type(module).__module__]


def test_without_the_bridge_the_compiler_leaves_numpy_out(calls: Counter[str]) -> None:
    """That the count above can fail: traced as it stands, NumPy's code becomes torch's."""

    class Traced(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(activation.tanh(x.numpy()))

    net = Traced()
    net(torch.ones(3))
    assert calls == {"tanh": 1}
    net.compile(backend="aot_eager")
    net(torch.ones(3))
    assert calls == {"tanh": 1}


def test_one_program_for_every_batch(calls: Counter[str]) -> None:
    net = network("simple_cnn", "numpy")
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    net.compile(fullgraph=True, backend=backend)
    with torch.no_grad():
        for n in range(2, 16):
            assert net(images(n)).shape == (n, 5)
    assert len(graphs) == 2, "one for the first size, one for any other"
    assert calls["conv2d"] >= 28


def test_under_autocast(calls: Counter[str]) -> None:
    compiled, eager = network("simple_cnn", "numpy").float(), network("simple_cnn", "numpy").float()
    compiled.compile(fullgraph=True, backend="aot_eager")
    found = []
    for net in (compiled, eager):
        calls.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(images(3).float())
        logits.sum().backward()
        assert calls["conv2d"] == calls["conv2d_backward"] == 2
        found.append([logits, *(parameter.grad for parameter in net.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
    assert found[0][0].dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_inductor(name: str, calls: Counter[str]) -> None:
    compiled, eager = network(name, "numpy"), network(name, "numpy")
    compiled.compile(fullgraph=True)
    for n in (2, 3, 5):
        calls.clear()
        found = step(compiled, images(n))
        assert calls["conv2d"]
        assert calls["conv2d_backward"]
        assert_same(found, step(eager, images(n)), 1e-8)


# ---- torch.export


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", ["simple_cnn", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_networks_export_for_any_batch(name: str, strict: bool, calls: Counter[str]) -> None:
    net = network(name, "numpy").eval()
    program = torch.export.export(
        net, (images(3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=strict
    ).module()
    for n in (1, 2, 7):
        expected = net(images(n))
        calls.clear()
        torch.testing.assert_close(program(images(n)), expected, rtol=1e-9, atol=1e-9)
        assert calls["conv2d"]


def test_an_exported_program_with_numpy_inside_can_be_kept(calls: Counter[str]) -> None:
    net = network("simple_cnn", "numpy").eval()
    file = BytesIO()
    torch.export.save(torch.export.export(net, (images(2),)), file)
    file.seek(0)
    program = torch.export.load(file).module()
    calls.clear()
    torch.testing.assert_close(program(images(2)), net(images(2)), rtol=1e-9, atol=1e-9)
    assert calls["conv2d"]


@pytest.mark.parametrize("case", CASES)
def test_every_layer_exports_with_numpy_inside(case: Case, calls: Counter[str]) -> None:
    sample = case.samples[0]
    ours, _ = build(case, sample)
    inputs = sample.inputs()
    torch.manual_seed(3)
    expected = tensors(copy.deepcopy(ours)(*inputs))
    program = torch.export.export(ours, inputs, strict=False).module()
    calls.clear()
    torch.manual_seed(3)
    for a, b in zip(tensors(program(*inputs)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert bool(calls) == (case.name not in VIEWS)


# ---- the operator


Call = tuple[str, list[Tensor | None], str]


class Record(bridge.Listener):
    """Copies of what the operator would be given for each call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def begin(self, op: Any, given: Any) -> None:
        self.copies = [value if value is None else value.detach().clone() for value in given]

    def enter(self, op: Any, arrays: Any, options: Any) -> None:
        self.options = options

    def leave(self, op: Any, arrays: Any, results: Any, dtypes: Any) -> None:
        mixed = len({value.dtype for value in self.copies if value is not None and value.is_floating_point()}) > 1
        self.calls.append((compiler.name_of(op), self.copies, compiler.encode(dtypes, mixed, self.options)))


def recorded(case: Case) -> list[Call]:
    """What the operator would be given in a forward and a backward of a layer."""
    ours, _ = build(case, case.samples[0])
    inputs = [
        value.requires_grad_() * 1 if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in case.samples[0].inputs()
    ]
    with bridge.watch(Record()) as record:
        outputs = [output for output in tensors(ours(*inputs)) if output.requires_grad]
        torch.autograd.backward([output.sum() for output in outputs])
    return record.calls


@pytest.mark.parametrize("case", CASES)
def test_the_operator_is_what_it_says_for_every_layer(case: Case) -> None:
    """torch's own check of schema and shapes, for each operation and its backward."""
    made = recorded(case)
    assert len(made) >= (0 if case.name in VIEWS else 2)
    for arguments in made:
        torch.library.opcheck(torch.ops.cnn_lightning.call, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_operator_passes_all_of_torchs_checks(case: Case) -> None:
    for arguments in recorded(case):
        torch.library.opcheck(torch.ops.cnn_lightning.call, arguments)


def test_a_wrong_shape_fails_torchs_check(monkeypatch: pytest.MonkeyPatch) -> None:
    learned = compiler._learned
    monkeypatch.setattr(compiler, "_learned", lambda *args: [((9,), (1,), torch.float32) for _ in learned(*args)])
    name = "cnn_lightning.ops.activation:relu"
    arguments = (name, [torch.ones(3)], compiler.encode((torch.float32,), False, {}))
    with pytest.raises(Exception, match=r"(?i)shape|size|metadata"):
        torch.library.opcheck(torch.ops.cnn_lightning.call, arguments, test_utils="test_faketensor")


# ---- shapes of any batch


def test_a_size_that_is_no_line_in_the_batch_is_taken_as_it_is() -> None:
    two, three, five = (((n * n,), (1,), torch.float32) for n in (2, 3, 5))
    assert compiler._in_terms_of(7, [two, three, five]) is None
    line = [((n, 2 * n + 1, 4), (8 * n, 4, 1), torch.float32) for n in (2, 3, 5)]
    assert compiler._in_terms_of(7, line) == ((7, 15, 4), (56, 4, 1), torch.float32)


# ---- the command line


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_fit_compiled(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = nn.Module.compile
    compiled: list[nn.Module] = []

    def note(module: nn.Module, **options: Any) -> None:
        compiled.append(module)
        whole(module, backend=backend, **options)

    monkeypatch.setattr(nn.Module, "compile", note)
    fast = ["--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1", "--data.batch_size", "512"]
    assert main(["fit", *fast, "--model.channels", "[4]", "--model.compile", "true"]) == 0
    (accuracy,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("test_acc: "))
    assert len(compiled) == 1
    checkpoint = "runs/digits/version_0/checkpoints/best.ckpt"
    assert main(["test", "--ckpt_path", checkpoint, "--model.layers", "torch"]) == 0
    assert accuracy.split()[1][:5] in capsys.readouterr().out
    assert len(compiled) == 1
    assert not [key for key in torch.load(checkpoint, weights_only=True)["state_dict"] if "_orig_mod" in key]


def test_a_compiled_classifier_has_the_keys_of_any_other() -> None:
    assert list(Classifier(compile=True).state_dict()) == list(Classifier().state_dict())


@pytest.mark.parametrize("frozen", ["x", "weight", "bias", ""])
def test_what_a_frozen_layer_keeps_is_enough_when_compiled(frozen: str) -> None:
    """What stands in for a frozen input or weight has its shape alone."""
    torch.manual_seed(0)
    layer, x = layers.Linear(3, 2), torch.randn(4, 3)
    given = {"x": x, **dict(layer.named_parameters())}
    for name, value in given.items():
        value.requires_grad_(name != frozen)
    wanted = [value for name, value in given.items() if name != frozen]
    expected = torch.autograd.grad(layer(x).square().sum(), wanted)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(x).square().sum(), wanted), expected, strict=True):
        torch.testing.assert_close(a, b)
