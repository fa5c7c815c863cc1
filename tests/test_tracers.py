"""Whatever traces a network: NumPy runs in the traced program, or one line says what to do. Never a constant.

The traced program runs on another input than it was traced with, on which a result that was baked in would be wrong.
"""

import copy
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, cast

import pytest
import torch
from functorch.compile import aot_function, nop
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from cnn_lightning import build_net, layers, swap_layers
from cnn_lightning.layers import bridge
from cnn_lightning.ops import activation
from tests.cases import load
from tests.test_layers import build, tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated"),
]

Inputs = tuple[Any, ...]
Made = tuple[nn.Module, Inputs]


def _simple_cnn() -> Made:
    torch.manual_seed(0)
    net = build_net("simple_cnn", image_size=8, channels=(4, 6), hidden=8, num_classes=3)
    swap_layers(net, "numpy")
    return net, (torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


def _layer(case: Any) -> Callable[[], Made]:
    sample = case.samples[0]
    return lambda: (build(case, sample)[0], sample.inputs())


VIEWS = [case.name for case in load() if case.is_view]
"""Torch's own operations: there is nothing to record but those."""
MADE = [pytest.param(_layer(case), id=case.name) for case in load()] + [pytest.param(_simple_cnn, id="SimpleCNN")]
COMPUTED = [row for row in MADE if row.id not in VIEWS]


def other(inputs: Inputs) -> Inputs:
    """Other numbers in the same shapes; classes stay classes."""
    return tuple(
        value.flip(-1) * 0.5 + 0.1 if isinstance(value, Tensor) and value.is_floating_point() and value.dim() else value
        for value in inputs
    )


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}


def forward(module: nn.Module) -> Callable[..., list[Tensor]]:
    """The module as a function of its state and inputs."""
    return lambda values, *inputs: tensors(functional_call(module, values, inputs))


def gradients(module: nn.Module) -> Callable[..., list[Tensor]]:
    """The gradients of its parameters and floating inputs as such a function."""
    names = [name for name, _ in module.named_parameters()]

    def function(values: dict[str, Tensor], *inputs: Any) -> list[Tensor]:
        leaves = {name: values[name].detach().requires_grad_() for name in names}
        given = [
            value.detach().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
            for value in inputs
        ]
        outputs = [y for y in forward(module)(values | leaves, *given) if y.requires_grad]
        wanted = [value for value in given if isinstance(value, Tensor) and value.requires_grad] + list(leaves.values())
        return list(torch.autograd.grad([(y * y).sum() for y in outputs], wanted))

    return function


def assert_right_on_another_input(traced: Callable[..., Any], function: Any, module: nn.Module, inputs: Inputs) -> None:
    again = other(inputs)
    torch.manual_seed(5)
    expected = function(state(module), *again)
    torch.manual_seed(5)
    found = traced(state(module), *again)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.manual_seed(5)
    stale = function(state(module), *inputs)
    assert any(not torch.equal(a, b) for a, b in zip(stale, expected, strict=True)), "the inputs tell nothing apart"


# ---- tools that record or replace torch's operators


@pytest.mark.parametrize("pre_dispatch", [False, True], ids=["", "pre_dispatch"])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("make", MADE)
def test_make_fx(make: Callable[[], Made], mode: Any, pre_dispatch: bool, request: pytest.FixtureRequest) -> None:
    module, inputs = make()
    function = forward(module)
    traced = make_fx(function, tracing_mode=mode, pre_dispatch=pre_dispatch)(state(module), *inputs)
    recorded = [node for node in traced.graph.nodes if node.target is torch.ops.cnn_lightning.call.default]
    assert bool(recorded) == (request.node.callspec.id.split("-")[0] not in VIEWS)
    assert_right_on_another_input(traced, function, module, inputs)


@pytest.mark.parametrize("mode", ["real", "fake"])
@pytest.mark.parametrize("make", MADE)
def test_make_fx_of_gradients(make: Callable[[], Made], mode: Any) -> None:
    module, inputs = make()
    function = gradients(module)
    traced = make_fx(function, tracing_mode=mode)(state(module), *inputs)
    if isinstance(module, nn.Flatten | nn.Identity):
        return
    assert_right_on_another_input(traced, function, module, inputs)


@pytest.mark.parametrize("frozen", [False, True])
def test_make_fx_of_the_module_itself(frozen: bool) -> None:
    """Its weights as constants, as make_fx takes them; those can be frozen or not."""
    net, (x,) = _simple_cnn()
    net.requires_grad_(not frozen)
    traced = make_fx(net)(x)
    torch.testing.assert_close(traced(other((x,))[0]), net(other((x,))[0]))


def test_make_fx_with_symbols_gives_a_program_for_every_batch() -> None:
    net, (x,) = _simple_cnn()
    traced = make_fx(forward(net), tracing_mode="symbolic")(state(net), x)
    for n in (1, 3, 7):
        images = torch.randn(n, 1, 8, 8)
        torch.testing.assert_close(traced(state(net), images), [net(images)])


@pytest.mark.parametrize("make", MADE)
def test_aot_function(make: Callable[[], Made]) -> None:
    module, inputs = make()
    values = state(module)
    names = list(values)

    def function(*given: Any) -> list[Tensor]:
        return forward(module)(dict(zip(names, given, strict=False)), *given[len(names) :])

    traced = aot_function(function, fw_compiler=nop, bw_compiler=nop)
    traced(*values.values(), *inputs)
    assert_right_on_another_input(
        lambda values, *inputs: traced(*values.values(), *inputs), forward(module), module, inputs
    )


class Seen(TorchDispatchMode):
    """Of any use: a log, a profiler, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", COMPUTED)
def test_a_dispatch_mode_sees_each_call_and_changes_nothing(make: Callable[[], Made]) -> None:
    module, inputs = make()
    torch.manual_seed(5)
    expected = gradients(module)(state(module), *inputs)
    torch.manual_seed(5)
    with Seen() as seen:
        found = gradients(module)(state(module), *inputs)
    assert seen.names.count("cnn_lightning.call.default") >= 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", MADE)
def test_fake_tensors_have_the_shapes_of_real_ones(make: Callable[[], Made]) -> None:
    module, inputs = make()
    expected = tensors(copy.deepcopy(module)(*inputs))
    real = state(module)
    with FakeTensorMode() as mode:
        values = {name: mode.from_tensor(value) for name, value in real.items()}
        found = forward(module)(values, *(mode.from_tensor(v) if isinstance(v, Tensor) else v for v in inputs))
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@contextmanager
def functionalized() -> Iterator[None]:
    torch._enable_functionalization(reapply_views=True)
    try:
        yield
    finally:
        torch._disable_functionalization()


@pytest.mark.parametrize("make", MADE)
def test_functional_tensors(make: Callable[[], Made]) -> None:
    """Their type is Tensor, and their own memory holds no values."""
    module, inputs = make()
    module.requires_grad_(False)
    wrapped = {name: torch._to_functional_tensor(value) for name, value in state(module).items()}
    given = [torch._to_functional_tensor(value) if isinstance(value, Tensor) else value for value in inputs]
    torch.manual_seed(5)
    expected = forward(module)(state(module), *inputs)
    torch.manual_seed(5)
    with functionalized():
        found = forward(module)(wrapped, *given)
    for a, b in zip(found, expected, strict=True):
        torch._sync(a)  # type: ignore[attr-defined]
        torch.testing.assert_close(torch._from_functional_tensor(a), b, rtol=1e-5, atol=1e-6)


class Wrapper(Tensor):
    """A class of tensors, such as a quantiser's, that knows some of torch's operators."""

    inner: Any

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapper":
        self = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own class says it is no class method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return Wrapper(args[0].inner)
        if func is torch.ops.cnn_lightning.call.default and cls is Knowing:
            name, given, options = args
            return func(name, [value.inner if isinstance(value, Wrapper) else value for value in given], options)
        return NotImplemented


class Knowing(Wrapper):
    """One that knows ours, too."""


def test_a_class_of_tensors_gets_the_operator_or_is_refused() -> None:
    layer, x = layers.Linear(3, 2).requires_grad_(False), torch.randn(4, 3)
    expected = layer(x)
    torch.testing.assert_close(layer(Knowing(x)), expected)
    layer.weight = nn.Parameter(Wrapper(layer.weight.detach()), requires_grad=False)
    with pytest.raises(NotImplementedError, match=r"linear: weight: expected a plain tensor, got Wrapper") as error:
        layer(x)
    assert_one_line(error.value)


# ---- tools whose recording would leave NumPy out


def assert_one_line(error: BaseException) -> None:
    text = str(error)
    assert "swap_layers(net, 'torch') first" in text
    assert "\n" not in text
    assert len(text) < 250


def _quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch's tracers warn of themselves."""

    def call(*args: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **options)

    return call


def _grad(module: nn.Module, inputs: Inputs) -> Any:
    x, *rest = inputs
    return torch.func.grad(lambda x: tensors(module(x, *rest))[0].sum())(x)


def _grad_of_weights(module: nn.Module, inputs: Inputs) -> Any:
    weights = {name: value.detach() for name, value in module.named_parameters()}
    return torch.func.grad(lambda values: forward(module)(values, *inputs)[0].sum())(weights)


def _jvp(module: nn.Module, inputs: Inputs) -> Any:
    x, *rest = inputs
    return torch.func.jvp(lambda x: module(x, *rest), (x,), (x,))


def _dual(module: nn.Module, inputs: Inputs) -> Any:
    x, *rest = inputs
    with forward_ad.dual_level():
        return module(forward_ad.make_dual(x, x.clone()), *rest)


def _vmap(module: nn.Module, inputs: Inputs) -> Any:
    return torch.vmap(module)(*(value[None] for value in inputs))


def _onnx(module: nn.Module, inputs: Inputs, frozen: bool) -> Any:
    module.requires_grad_(not frozen)
    return torch.onnx.export(
        module, inputs, cast(Any, BytesIO()), dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, verbose=False
    )


def _saved(module: nn.Module, inputs: Inputs) -> Any:
    return torch.jit.save(torch.jit.trace(module.requires_grad_(False), inputs), BytesIO())


REFUSED: dict[str, Callable[[nn.Module, Inputs], Any]] = {
    "fx.symbolic_trace": lambda module, inputs: torch.fx.symbolic_trace(module),
    "jit.trace": torch.jit.trace,
    "jit.save": _saved,
    "jit.script": lambda module, inputs: torch.jit.script(module),
    "onnx, frozen": lambda module, inputs: _onnx(module, inputs, True),
    "onnx, not frozen": lambda module, inputs: _onnx(module, inputs, False),
    "vmap": _vmap,
    "func.grad": _grad,
    "func.grad of weights": _grad_of_weights,
    "func.jvp": _jvp,
    "func.functionalize": lambda module, inputs: torch.func.functionalize(module)(*inputs),
    "forward_ad": _dual,
}


@pytest.mark.parametrize("tracer", REFUSED)
@pytest.mark.parametrize("make", COMPUTED)
def test_refused_in_one_line(make: Callable[[], Made], tracer: str) -> None:
    module, given = make()
    inputs = tuple(value for value in given if isinstance(value, Tensor))  # some of these tools take no others
    before = [type(each) for each in module.modules()]
    with pytest.raises((RuntimeError, TypeError)) as error:
        _quiet(REFUSED[tracer])(module, inputs)
    assert_one_line(error.value)
    assert [type(each) for each in module.modules()] == before
    tensors(module(*inputs))  # and nothing is left behind


@pytest.mark.parametrize("tracer", ["fx.symbolic_trace", "jit.trace", "vmap", "forward_ad"])
def test_a_layer_of_ones_own_is_refused_too(tracer: str) -> None:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            return bridge.call(activation.tanh, x)

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return Function.apply(x)

    with pytest.raises((RuntimeError, TypeError, NotImplementedError)) as error:
        _quiet(REFUSED[tracer])(Own(), (torch.ones(2),))
    assert "\n" not in str(error.value)
    if tracer in ("fx.symbolic_trace", "jit.trace"):  # for the others torch raises its own error first
        assert_one_line(error.value)


def test_the_newer_exporter_to_onnx_ends_with_the_line() -> None:
    net, inputs = _simple_cnn()
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"ONNX has no NumPy layers; .*swap_layers\(net, 'torch'\)"):
        _quiet(torch.onnx.export)(net, inputs, dynamo=True, verbose=False)


# ---- the remedy that the line names works


def _scripted(net: nn.Module, x: Tensor) -> Any:
    file = BytesIO()
    torch.jit.save(torch.jit.script(net), file)
    file.seek(0)
    return torch.jit.load(file)


def _traced(net: nn.Module, x: Tensor) -> Any:
    file = BytesIO()
    torch.jit.save(torch.jit.trace(net, x), file)
    file.seek(0)
    return torch.jit.load(file)


ADVISED: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "jit.script": _scripted,
    "jit.trace": _traced,
    "fx": lambda net, x: torch.fx.symbolic_trace(net),
    "vmap": lambda net, x: lambda images: torch.vmap(net)(images[None])[0],
    "functionalize": lambda net, x: torch.func.functionalize(net),
}


@pytest.mark.parametrize("tracer", ADVISED)
@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
def test_swapped_back_first_it_works(name: str, tracer: str) -> None:
    net = build_net(name, in_channels=3, image_size=32, num_classes=3).eval()
    swap_layers(net, "numpy")
    swap_layers(net, "torch")
    x = torch.randn(2, 3, 32, 32)
    traced = _quiet(ADVISED[tracer])(net, x)
    again = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(traced(again), net(again), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
def test_traced_by_fx_and_then_swapped_numpy_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = build_net(name, in_channels=3, image_size=32, num_classes=3).eval()
    traced = torch.fx.symbolic_trace(net)
    report = swap_layers(traced, "numpy")
    assert {"Conv2d", "ReLU", "Linear"} <= {row.type for row in report.rows if row.implementation == "numpy"}
    calls: list[int] = []
    original = activation.relu

    def counted(x: Any) -> Any:
        calls.append(1)
        return original(x)

    monkeypatch.setattr(activation, "relu", counted)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(traced(x), build_like(net, name)(x), rtol=1e-4, atol=1e-4)
    assert calls


def build_like(net: nn.Module, name: str) -> nn.Module:
    twin = build_net(name, in_channels=3, image_size=32, num_classes=3).eval()
    twin.load_state_dict(net.state_dict())
    return twin


def test_a_scripted_network_keeps_its_names_and_mode() -> None:
    for training in (True, False):
        net = build_net("simple_cnn").train(training)
        scripted = _quiet(torch.jit.script)(net)
        assert list(scripted.state_dict()) == list(net.state_dict())
        assert scripted.training is training


# ---- tools that look for native layers by their exact type


def said(work: Callable[[], Any]) -> tuple[Any, dict[str, str]]:
    """The work's result, and what the layers said meanwhile: the line of each type of them."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = work()
    lines = [str(one.message) for one in seen if "runs in NumPy" in str(one.message)]
    for line in lines:
        assert line.endswith("; swap_layers(net, 'torch') first")
        assert "\n" not in line
    return result, {line.partition(": this layer runs in NumPy, and ")[0]: line for line in lines}


def test_dynamic_quantisation_says_what_it_leaves_out() -> None:
    net, _ = _simple_cnn()
    found, lines = said(lambda: torch.ao.quantization.quantize_dynamic(net, {nn.Linear}))
    assert type(found.linear1) is layers.Linear
    assert set(lines) == {"Conv2d", "Linear"}
    assert "torch.ao.quantization leaves it as it is" in lines["Linear"]
    swap_layers(net, "torch")
    found, lines = said(lambda: torch.ao.quantization.quantize_dynamic(net, {nn.Linear}))
    assert "quantized" in type(found.linear1).__module__
    assert not lines


def test_static_quantisation_says_what_it_leaves_out() -> None:
    net, (x,) = _simple_cnn()
    net.eval().qconfig = torch.ao.quantization.default_qconfig  # type: ignore[assignment]
    prepared, lines = said(lambda: torch.ao.quantization.prepare(net))
    assert set(lines) == {"Conv2d", "Linear"}
    prepared(x)
    converted, _ = said(lambda: torch.ao.quantization.convert(prepared))
    assert not hasattr(converted.conv1, "qconfig")


@pytest.mark.parametrize(
    ("module", "kinds", "consequence"),
    [
        ("captum.attr._core.deep_lift", {"ReLU", "MaxPool2d"}, "captum's DeepLift takes it for linear"),
        ("thop.profile", {"Conv2d", "Linear"}, "thop counts no operations for it"),
    ],
)
def test_a_tool_that_visits_every_layer_gets_a_warning(module: str, kinds: set[str], consequence: str) -> None:
    visited: list[type] = []

    def visit(layer: nn.Module) -> None:
        visited.append(type(layer))

    visit.__module__ = module
    net, _ = _simple_cnn()
    for function in (visit, types.MethodType(visit_of(module), object())):
        _, lines = said(lambda function=function: net.apply(function))  # type: ignore[misc]
        assert set(lines) == kinds
        assert all(consequence in line for line in lines.values())
    assert len(visited) == len(list(net.modules()))
    swap_layers(net, "torch")
    assert said(lambda: net.apply(visit))[1] == {}


def visit_of(module: str) -> Callable[..., None]:
    def method(self: object, layer: nn.Module) -> None:
        pass

    method.__module__ = module
    return method


def test_no_other_visitor_gets_a_warning() -> None:
    net, _ = _simple_cnn()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.apply(lambda layer: None)
        net.apply(nn.Module.eval)  # type: ignore[arg-type]
        net.double().half().float()
