"""`numpy_ops`: every operator against torch's, derivatives of any order, whatever runs around it, and the report."""

import copy
import os
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.nn import functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import cnn_lightning
from cnn_lightning import Classifier, SimpleCNN, layers, numpy_ops, swap_layers
from cnn_lightning.aten.kernels import OPERATORS
from cnn_lightning.aten.report import Report
from cnn_lightning.cli import main
from cnn_lightning.data import Digits
from cnn_lightning.ops import activation, conv
from cnn_lightning.tools.parity.lockstep import compare

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch's jvp uses it

# ---- each operator, by torch's own samples of its functions

SAMPLES = 8
"""Samples of a function in the default run; ``pytest -m slow`` takes all."""
PREFIX = "nn.functional."
CONVOLUTIONS = [f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3)]
POOLS = [f"{kind}_pool{axes}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for axes in (1, 2, 3)]
ACTIVATIONS = [
    *("relu", "relu6", "threshold", "hardtanh", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("softplus", "hardswish", "hardsigmoid", "logsigmoid", "glu", "softsign", "tanhshrink", "softmin"),
]
LOSSES = [
    *("cross_entropy", "nll_loss", "mse_loss", "smooth_l1_loss", "l1_loss", "binary_cross_entropy"),
    "binary_cross_entropy_with_logits",
]
OTHERS = [
    *("linear", "bilinear", "batch_norm", "instance_norm", "layer_norm", "group_norm", "interpolate"),
    *("upsample_nearest", "upsample_bilinear", "pad", "scaled_dot_product_attention", "multi_head_attention_forward"),
]
PLAIN = [
    *(
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "mv",
        "dot",
        "vdot",
        "addmv",
        "addbmm",
        "matmul",
        "einsum",
        "tensordot",
        "inner",
    ),
    *("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update", "native_layer_norm", "sigmoid"),
    *("tanh", "softmax", "log_softmax", "linalg.multi_dot"),
]
NAMES = {*(PREFIX + name for name in CONVOLUTIONS + POOLS + ACTIVATIONS + LOSSES + OTHERS), *PLAIN}
FUNCTIONS = [op for op in op_db if op.name in NAMES]
NOT_IN_SAMPLES = {
    "_native_batch_norm_legit_no_training",  # what torch.export makes of batch norm in evaluation
    "_scaled_dot_product_flash_attention_for_cpu",
    "mkldnn_rnn_layer",
    "mkldnn_rnn_layer_backward",
}
SEEN: Counter[str] = Counter()


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def run(op: Any, sample: Any, order: int) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs, and gradients up to this order for fixed upstream gradients."""
    torch.manual_seed(1)
    outputs = tensors(op.op(sample.input, *sample.args, **sample.kwargs))
    wanted = [leaf for leaf in tensors((sample.input, sample.args, sample.kwargs)) if leaf.requires_grad]
    found: list[Any] = [output for output in outputs if output.requires_grad]
    gradients: list[Tensor | None] = []
    torch.manual_seed(2)
    for _ in range(order):
        found = [each for each in found if each is not None and each.requires_grad]
        if not found or not wanted:
            break
        upstream = [torch.randn_like(each) for each in found]
        found = list(torch.autograd.grad(found, wanted, upstream, allow_unused=True, create_graph=order > 1))
        gradients += found
    return [output.detach() for output in outputs], [None if each is None else each.detach() for each in gradients]


def assert_equal(found: list[Any], expected: list[Any], tolerance: float) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if a is None or b is None:
            other = b if a is None else a
            assert other is None or not other.any()
        else:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def attempt(call: Callable[[], Any]) -> Any:
    """The result, or the exception's type."""
    try:
        return call()
    except Exception as error:
        return type(error)


def equal_with_and_without(op: Any, dtype: torch.dtype, count: int | None) -> None:
    order, tolerance = (2, 1e-10) if dtype == torch.float64 else (1, 2e-4)
    if op.name.endswith("scaled_dot_product_attention"):
        order = 1  # torch's own kernel has no second derivative
    samples = list(op.sample_inputs("cpu", dtype, requires_grad=True))[:count]
    assert samples
    for sample in samples:
        call = partial(run, op, sample, order)
        expected = attempt(call)
        with numpy_ops() as report:
            found = attempt(call)
        SEEN.update(report.calls)
        if isinstance(expected, type) or isinstance(found, type):
            assert found == expected
            continue
        assert_equal(found[0], expected[0], tolerance)
        assert_equal(found[1], expected[1], 10 * tolerance)
        for a, b in zip(found[0], expected[0], strict=True):
            assert a.numel() == 0 or a.stride() == b.stride()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", FUNCTIONS, ids=lambda op: op.formatted_name)
def test_outputs_strides_and_two_derivatives_equal_torch(op: Any) -> None:
    equal_with_and_without(op, torch.float64, SAMPLES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_all_samples_and_every_operator_is_among_them() -> None:
    SEEN.clear()
    for op in FUNCTIONS:
        for dtype in (torch.float64, torch.float32):
            equal_with_and_without(op, dtype, None)
    assert set(OPERATORS) - set(SEEN) == NOT_IN_SAMPLES


FORWARD_MODE = [op for op in FUNCTIONS if op.supports_forward_ad and "attention" not in op.name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", FORWARD_MODE, ids=lambda op: op.formatted_name)
def test_forward_mode_over_reverse_equals_torch(op: Any) -> None:
    """Here a kernel of a backward gets the tangent of an input in the place of the input."""
    for sample in list(op.sample_inputs("cpu", torch.float64, requires_grad=False))[:4]:
        if not isinstance(sample.input, Tensor) or not sample.input.is_floating_point():
            continue

        def total(x: Tensor, sample: Any = sample) -> Tensor:
            torch.manual_seed(1)
            outputs = tensors(op.op(x, *sample.args, **sample.kwargs))
            return sum((each.pow(2).sum() for each in outputs if each.is_floating_point()), torch.zeros(()))

        def second(x: Tensor = sample.input, total: Any = total) -> Any:
            return tensors(jvp(grad(total), (x.clone(),), (torch.ones_like(x),)))

        expected = attempt(second)
        with numpy_ops():
            found = attempt(second)
        if isinstance(expected, type):
            assert isinstance(found, type)
        else:
            assert not isinstance(found, type), found
            assert_equal(found, expected, 1e-9)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_formats_and_dtypes_are_torchs(memory: torch.memory_format, dtype: torch.dtype) -> None:
    net: Any = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 6), nn.SiLU()),
        *(nn.ConvTranspose2d(6, 4, 2, stride=2), nn.AvgPool2d(2), nn.Upsample(scale_factor=2), nn.Hardswish()),
        nn.ReflectionPad2d(1),
    )
    net = net.to(dtype=dtype, memory_format=memory)
    x = torch.randn(2, 3, 8, 8).to(dtype).contiguous(memory_format=memory)
    for module in net:
        x.requires_grad_()
        expected, again = copy.deepcopy(module)(x), copy.deepcopy(module)
        (grad_x,) = torch.autograd.grad(expected, x, torch.ones_like(expected))
        with numpy_ops() as report:
            found = again(x)
            (grad_of_found,) = torch.autograd.grad(found, x, torch.ones_like(found))
        assert report.calls, module
        for a, b in ((found, expected), (grad_of_found, grad_x)):
            assert (a.dtype, a.stride()) == (b.dtype, b.stride()), module
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
        x = expected.detach()


def test_given_tensors_and_in_place_forms() -> None:
    a, b, c = torch.randn(3, 4), torch.randn(4, 5), torch.randn(3, 5)
    out, odd = torch.empty(3, 5), torch.empty(5, 3).t()
    with numpy_ops() as report:
        assert torch.mm(a, b, out=out) is out
        torch.mm(a, b, out=odd)
        added = torch.addmm(c, a, b, beta=2, alpha=3)
        same = c.clone().addmm_(a, b, beta=2, alpha=3)
        x = torch.randn(10)
        y = F.relu(x.clone(), inplace=True)
        z = F.hardtanh_(x.clone())
        new = torch.bmm(a[None], b[None], out=torch.empty(0))
    assert report.calls == Counter({"mm.out": 2, "addmm": 1, "addmm_": 1, "relu_": 1, "hardtanh_": 1, "bmm.out": 1})
    pairs = [(out, a @ b), (odd, a @ b), (new[0], a @ b), (added, same), (y, F.relu(x)), (z, F.hardtanh(x))]
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)
    with numpy_ops(), pytest.raises(RuntimeError, match="dtype"):
        torch.mm(a, b, out=torch.empty(3, 5, dtype=torch.float64))
    x = torch.zeros(1).expand(3)
    with numpy_ops(), pytest.raises(RuntimeError, match="single memory location"):
        torch.relu_(x)


def square(dtype: torch.dtype) -> Tensor:
    return torch.ones(2, 2, dtype=dtype)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: square(torch.int64) @ square(torch.int64), "int64"),
        (lambda: square(torch.complex64) @ square(torch.complex64), "complex64"),
        (lambda: torch.ops.aten.elu(torch.ones(2), 1.0, 2.0, 3.0), "scaled in another way than SELU and CELU"),
        (lambda: nn.LSTM(3, 4)(torch.ones(5, 2, 3)), "all steps of an LSTM in one kernel"),
    ],
)
def test_what_has_no_formula_is_torchs_and_counted(call: Callable[[], Any], reason: str) -> None:
    expected = attempt(lambda: (torch.manual_seed(0), call())[1])
    with numpy_ops() as report, torch.no_grad():
        found = attempt(lambda: (torch.manual_seed(0), call())[1])
    assert [why for _, why in report.native] == [reason]
    assert reason in str(report)
    assert_equal(tensors(found), [each.detach() for each in tensors(expected)], 1e-6)


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_recurrent_layers_are_computed_by_their_parts(kind: type[nn.Module]) -> None:
    module, x = kind(3, 4).double(), torch.randn(5, 2, 3, dtype=torch.float64)
    expected = module(x)[0]
    with numpy_ops() as report:
        torch.testing.assert_close(module(x)[0], expected)
    assert report.share == 1
    assert not report.native


# ---- derivatives of any order


def simple_cnn() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = SimpleCNN(num_classes=3, in_channels=1, image_size=12, channels=(3, 4), hidden=5).double().eval()
    return net, torch.randn(4, 1, 12, 12, dtype=torch.float64), torch.tensor([0, 1, 2, 0])


def resnet18() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=3).double().eval()
    return net, torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1])


class Derivatives:
    """Derivatives of a network's loss; each is a list of tensors."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        self.net, self.x, self.y = net, x, y
        self.weights = {name: weight.detach() for name, weight in net.named_parameters()}
        self.buffers = {name: value.detach() for name, value in net.named_buffers()}
        generator = torch.Generator().manual_seed(1)
        self.along = {
            name: torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            for name, weight in self.weights.items()
        }

    def outputs(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = functional_call(self.net, (weights, self.buffers), (x,))
        return result

    def loss(self, weights: dict[str, Tensor], x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return F.cross_entropy(self.outputs(weights, self.x if x is None else x), self.y if y is None else y)

    def _of_penalty(self, penalty: Callable[[Tensor], Tensor], choice: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = self.x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(choice(self.net(x)).sum(), x, create_graph=True)
        return list(torch.autograd.grad(penalty(slope), list(self.net.parameters()), materialize_grads=True))

    def gradient_penalty(self) -> Any:
        return self._of_penalty(lambda g: ((g.flatten(1).norm(dim=1) - 1) ** 2).mean(), lambda y: y)

    def r1(self) -> Any:
        return self._of_penalty(lambda g: g.pow(2).sum() / 2, lambda y: y[:, 0])

    def hessian_vector(self) -> Any:
        weights = list(self.net.parameters())
        slopes = torch.autograd.grad(F.cross_entropy(self.net(self.x), self.y), weights, create_graph=True)
        products = [(g * v).sum() for g, v in zip(slopes, self.along.values(), strict=True)]
        return torch.autograd.grad(torch.stack(products).sum(), weights)

    def forward_over_reverse(self) -> Any:
        return jvp(grad(self.loss), (self.weights,), (self.along,))

    def forward_mode(self) -> Any:
        return jvp(self.loss, (self.weights,), (self.along,))

    def per_sample(self) -> Any:
        return vmap(grad(lambda w, x, y: self.loss(w, x[None], y[None])), in_dims=(None, 0, 0))(
            self.weights, self.x, self.y
        )

    def jacobian(self) -> Any:
        return jacrev(lambda w: self.outputs(w, self.x))(self.weights)

    def hessian_of_bias(self) -> Any:
        name = list(self.weights)[-1]
        return hessian(lambda bias: self.loss({**self.weights, name: bias}))(self.weights[name])

    def hessian_of_pixels(self) -> Any:
        return hessian(lambda x: self.outputs(self.weights, x).square().sum())(self.x[:1])

    def inner_loop(self) -> Any:
        """Through two steps of gradient descent, as in MAML."""
        weights = {name: weight.clone().requires_grad_() for name, weight in self.weights.items()}
        inner: dict[str, Tensor] = weights
        for _ in range(2):
            slopes = torch.autograd.grad(self.loss(inner), list(inner.values()), create_graph=True)
            inner = {name: w - 0.1 * g for (name, w), g in zip(inner.items(), slopes, strict=True)}
        return torch.autograd.grad(self.loss(inner), list(weights.values()))


OF_ALL = ["gradient_penalty", "r1", "hessian_vector", "forward_over_reverse", "forward_mode", "per_sample", "jacobian"]
ORDERS = [(simple_cnn, name) for name in (*OF_ALL, "hessian_of_bias", "hessian_of_pixels", "inner_loop")]
ORDERS += [(resnet18, name) for name in OF_ALL]


@pytest.mark.parametrize(("network", "name"), ORDERS)
def test_derivatives_of_networks_equal_torch(network: Callable[[], Any], name: str) -> None:
    of = Derivatives(*network())
    expected = tensors(getattr(of, name)())
    with numpy_ops() as report:
        found = tensors(getattr(of, name)())
    assert report.share == 1
    assert report.native == Counter()
    largest = max(float(each.abs().max()) for each in expected)
    assert largest > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(1.0, largest))


@pytest.mark.parametrize(
    "name", ["conv2d", "conv_transpose2d", "linear", "batch_norm", "avg_pool2d", "gelu", "softmax"]
)
def test_gradgradcheck(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    square = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    calls: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "conv2d": (lambda x, w: F.conv2d(x, w, padding=1), (x, weight)),
        "conv_transpose2d": (lambda x, w: F.conv_transpose2d(x, w, stride=2), (x, weight)),
        "linear": (F.linear, (x, square)),
        "batch_norm": (lambda x: F.batch_norm(x, None, None, training=True), (x,)),
        "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), (x,)),
        "gelu": (F.gelu, (x,)),
        "softmax": (lambda x: F.softmax(x, 1), (x,)),
    }
    function, inputs = calls[name]
    with numpy_ops() as report:
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
    assert report.calls


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", [op for op in FUNCTIONS if op.supports_gradgrad], ids=lambda op: op.formatted_name)
def test_gradgradcheck_of_every_function(op: Any) -> None:
    for sample in list(op.sample_inputs("cpu", torch.float64, requires_grad=True))[:3]:
        leaves, structure = tree_flatten((sample.input, sample.args, sample.kwargs))
        wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]

        def function(*values: Tensor, leaves: Any = leaves, structure: Any = structure) -> Any:
            given = iter(values)
            filled = [next(given) if isinstance(leaf, Tensor) and leaf.requires_grad else leaf for leaf in leaves]
            input, args, kwargs = tree_unflatten(filled, structure)
            torch.manual_seed(1)
            outputs = tensors(op.op(input, *args, **kwargs))
            statistics = "native_" in op.name  # through those, torch passes no gradient
            return tuple(each for each in outputs[: 1 if statistics else None] if each.requires_grad)

        if not function(*wanted):
            continue
        check = partial(torch.autograd.gradgradcheck, function, wanted, fast_mode=True, atol=1e-4, rtol=1e-3)
        with numpy_ops():
            found = attempt(check)
        # torch forgets a derivative of native_layer_norm with a bias and no weight.
        assert found is True or (op.name == "native_layer_norm" and attempt(check) == found)


def test_a_swapped_layer_names_this_way_out() -> None:
    net, x, _ = simple_cnn()
    swap_layers(net, "numpy")
    x.requires_grad_()
    with pytest.raises(RuntimeError, match=r"double backward.*numpy_ops\(\)"):
        torch.autograd.grad(net(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"numpy_ops\(\)"):
        grad(lambda x: net(x).sum())(x)
    swap_layers(net, "torch")
    with numpy_ops():
        grad(lambda x: net(x).sum())(x)


# ---- what runs around it


def step(net: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    net.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    return [loss.detach(), *(weight.grad.clone() for weight in net.parameters() if weight.grad is not None)]


def test_an_edited_formula_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = simple_cnn()
    before = step(net, x, y)
    monkeypatch.setattr(
        conv, "conv2d", lambda *arrays, original=conv.conv2d, **options: 2 * original(*arrays, **options)
    )
    with numpy_ops():
        assert not torch.allclose(step(net, x, y)[0], before[0])
    assert torch.equal(step(net, x, y)[0], before[0])
    monkeypatch.undo()
    monkeypatch.setattr(activation, "relu_backward", lambda grad_y, x: 0 * grad_y)
    with numpy_ops():
        assert not step(net, x, y)[1].any()  # nothing reaches the first layer


@pytest.mark.parametrize("swapped", ["numpy", {"conv1": "numpy", "relu*": "numpy", "*": "torch"}])
def test_with_swapped_layers(swapped: Any) -> None:
    net, x, y = simple_cnn()
    expected = step(net, x, y)
    swap_layers(net, swapped)
    with numpy_ops() as report:
        found = step(net, x, y)
    assert_equal(found, expected, 1e-12)
    assert report.calls


def test_formulas_alone() -> None:
    net, x, y = simple_cnn()
    expected = step(net, x, y)
    with numpy_ops(), cnn_lightning.fast(False):
        assert_equal(step(net, x, y), expected, 1e-12)


def test_autocast_and_checkpointing() -> None:
    net, x, y = simple_cnn()
    net, x = net.float(), x.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = step(net, x, y)
        with numpy_ops() as report:
            found = step(net, x, y)
    assert report.share == 1
    assert [each.dtype for each in found] == [each.dtype for each in expected]
    assert_equal(found, expected, 5e-2)
    expected = step(net, x, y)
    with numpy_ops():
        net.zero_grad()
        F.cross_entropy(checkpoint(net, x, use_reentrant=False), y).backward()
    assert_equal([weight.grad for weight in net.parameters()], expected[1:], 1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_programs_keep_the_operators(backend: str) -> None:
    net, x, y = simple_cnn()
    expected = step(net, x, y)
    torch.compiler.reset()
    compiled = torch.compile(net, backend=backend)
    with numpy_ops() as report:
        assert_equal(step(compiled, x, y), expected, 1e-12)
    assert report.share == 1
    assert report.calls["convolution"] == 2


def test_exported_programs_keep_the_operators() -> None:
    net, x, _ = simple_cnn()
    program = torch.export.export(net, (x,)).module()
    with numpy_ops() as report:
        torch.testing.assert_close(program(x), net(x), rtol=0, atol=1e-12)
    assert report.calls["convolution"] == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_inductor_is_refused() -> None:
    """Where it compiles, and where it runs what it compiled before."""
    net, x, _ = simple_cnn()
    torch.compiler.reset()
    compiled = torch.compile(net)
    with torch.no_grad():
        with numpy_ops(), pytest.raises(Exception, match="expected a program whose operators are torch's"):
            compiled(x)
        torch.compiler.reset()
        expected = compiled(x)
        with numpy_ops(), pytest.raises(RuntimeError, match="expected a program whose operators are torch's"):
            compiled(x)
        assert torch.equal(compiled(x), expected)


def test_nested_repeated_and_switched_off_inside() -> None:
    x = torch.randn(5)
    with numpy_ops() as outer:
        torch.relu(x)
        with numpy_ops() as inner:
            torch.relu(x)
        with numpy_ops(False) as off:
            torch.relu(x)
    with numpy_ops() as again:
        torch.relu(x)
    assert [each.calls["relu"] for each in (outer, inner, off, again)] == [2, 1, 0, 1]
    with pytest.raises(ZeroDivisionError), numpy_ops():
        raise ZeroDivisionError
    assert not cnn_lightning.aten.is_on()


def test_outside_it_is_torch_to_the_bit() -> None:
    """In a process that never used it, and after a block."""
    code = (
        "import torch; from cnn_lightning import numpy_ops, SimpleCNN; torch.manual_seed(0); net = SimpleCNN();"
        "x = torch.randn(4, 1, 28, 28); a = net(x)\nwith numpy_ops(): net(x)\nb = net(x); assert torch.equal(a, b)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_switches_of_attention_are_restored() -> None:
    flags = torch.backends.cuda.flash_sdp_enabled, torch.backends.mha.get_fastpath_enabled
    before = [flag() for flag in flags]
    with numpy_ops():
        with numpy_ops():
            pass
        assert [flag() for flag in flags] == [False, False]
    assert [flag() for flag in flags] == before


def test_a_thread_and_a_forked_process_start_switched_off() -> None:
    seen: list[Counter[str]] = []
    x = torch.randn(3)
    with numpy_ops() as report:
        thread = threading.Thread(target=lambda: torch.relu(x))
        thread.start()
        thread.join()
        assert report.calls == Counter()
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of threads
            child = os.fork()
        if child == 0:
            os.write(writer, str(cnn_lightning.aten.is_on()).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 10) == b"False"
        seen.append(report.calls)
        assert cnn_lightning.aten.is_on()


def test_four_threads_in_an_operator_while_another_enters_and_leaves() -> None:
    x, stop, errors = torch.randn(1000), threading.Event(), []
    expected = torch.relu(x)

    def work() -> None:
        while not stop.is_set():
            if not torch.equal(torch.relu(x), expected):
                errors.append("relu")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10_000):
            with numpy_ops():
                pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors


OVERRIDDEN = """
import torch
from torch import library
target = library.Library("aten", "IMPL")
target.impl("gelu", lambda x, *, approximate="none": x, "CPU")
from cnn_lightning import numpy_ops
for _ in range(2):
    try:
        with numpy_ops():
            pass
    except RuntimeError as error:
        print(error)
assert torch.relu(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]
"""


def test_an_operator_that_another_library_replaced_is_one_clear_error() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OVERRIDDEN], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("numpy_ops: expected torch's own kernel of aten::gelu on the CPU") == 2


TWO_PROCESSES = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from cnn_lightning import SimpleCNN, numpy_ops
torch.manual_seed(0)
net = SimpleCNN(num_classes=3, image_size=12, channels=(3, 4), hidden=5).double()
x, y = torch.randn(4, 1, 12, 12, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
if sys.argv[1] == "2":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    net = nn.parallel.DistributedDataParallel(net)
    x, y = x[rank::2], y[rank::2]
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
with numpy_ops() as report:
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
assert report.share == 1 and report.calls["convolution"] == 6, report
if sys.argv[1] == "1" or rank == 0:
    torch.save([weight.detach() for weight in net.parameters()], sys.argv[2])
if dist.is_initialized():
    dist.barrier()
    os._exit(0)  # gloo's threads sometimes abort the end of an interpreter, also without numpy_ops
"""


@pytest.mark.ddp
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command in ([str(script), "1", "one.pt"], [*launch, str(script), "2", "two.pt"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / name) for name in ("one.pt", "two.pt"))
    assert_equal(two, one, 1e-12)


# ---- the report, and the commands


def test_flops_are_those_of_torchs_counter() -> None:
    net, x, y = resnet18()
    with FlopCounterMode(display=False) as counter:
        step(net, x, y)
    with numpy_ops() as report:
        step(net, x, y)
    assert report.flops == counter.get_total_flops()
    volumes = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ConvTranspose3d(2, 1, 3, stride=2), nn.Flatten(), nn.LazyLinear(3))
    v = torch.randn(2, 1, 5, 6, 5)
    volumes(v)
    with FlopCounterMode(display=False) as counter:
        step(volumes, v, torch.tensor([0, 1]))
    with numpy_ops() as report:
        step(volumes, v, torch.tensor([0, 1]))
    assert report.flops == counter.get_total_flops()


def test_the_report_is_a_line_and_a_table() -> None:
    report = Report(Counter({"mm": 2, "relu": 1}), Counter({("mkldnn_rnn_layer", "one kernel"): 1}), 300, 100)
    assert report.share == 0.75
    assert str(report) == (
        "functions: 3 calls of 2 operators in NumPy, 75 % of the FLOPs of convolutions and matrix products; torch: "
        "1 of mkldnn_rnn_layer (one kernel), sums, elementwise arithmetic, copies"
    )
    assert report.table() == [("mm", 2, "numpy"), ("mkldnn_rnn_layer", 1, "one kernel"), ("relu", 1, "numpy")]
    assert Report().share == 1


LINE = r"functions: \d+ calls of 12 operators in NumPy, 100 % of the FLOPs of convolutions and matrix products"


def test_fit_test_and_predict_print_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model.functions", "numpy", "--trainer.enable_progress_bar", "false"]
    small = [
        "--trainer.limit_train_batches",
        "4",
        "--trainer.limit_val_batches",
        "2",
        "--trainer.limit_test_batches",
        "2",
    ]
    assert main(["fit", *options, *small, "--model.layers", "torch", "--trainer.max_epochs", "1"]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("functions: ")]
    assert len(lines) == 1
    assert "100 % of the FLOPs" in lines[0]
    assert [line.partition(": ")[0] for line in printed.splitlines()[-2:]] == ["again", "see"]
    for command in ("test", "validate"):
        assert main([command, "--ckpt_path", "last", *options, *small[-2:], "--model.layers", "torch"]) == 0
        assert capsys.readouterr().out.count("functions: ") == 1


def curve(functions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    folder = tmp_path / functions
    folder.mkdir()
    monkeypatch.chdir(folder)
    options = ["--model.functions", functions, "--model.layers", "torch", "--trainer.enable_progress_bar", "false"]
    options += ["--trainer.max_epochs", "1", "--trainer.precision", "64-true", "--trainer.limit_train_batches", "6"]
    assert main(["fit", *options]) == 0
    state: dict[str, Tensor] = torch.load(folder / "runs/digits/version_0/checkpoints/last.ckpt")["state_dict"]
    return state


def test_a_fit_gives_the_weights_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, found = (curve(functions, tmp_path, monkeypatch) for functions in ("torch", "numpy"))
    for name, value in expected.items():
        if value.is_floating_point() and name.startswith("net."):
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)


def test_a_run_that_stopped_inside_an_epoch_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = ["fit", "--model.functions", "numpy", "--model.layers", "torch", "--trainer.enable_progress_bar", "false"]
    fit += ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "8"]
    weights = []
    for name, runs in (("whole", [[]]), ("stopped", [["--trainer.max_steps", "11"], ["--ckpt_path", "last"]])):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        for options in runs:
            assert main([*fit, *options]) == 0
        saved = torch.load(folder / "runs/digits/version_0/checkpoints/last.ckpt")
        assert saved["global_step"] == 16
        assert "functions" not in saved["hyper_parameters"]
        weights.append([value for key, value in saved["state_dict"].items() if key.startswith("net.")])
    assert all(map(torch.equal, *weights))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated.*", "ignore:.*GPU available but not used.*")
def test_a_block_around_a_trainer_stays_on(tmp_path: Path) -> None:
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with numpy_ops() as report:
        trainer.fit(Classifier(layers="torch", image_size=8, schedule="none"), datamodule=Digits())
    assert report.calls["convolution"] == 4
    assert report.calls["convolution_backward"] == 4
    assert report.share == 1


def test_bad_settings_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--model.functions", "numpy", "--model.compile", "true"]) == 2
    assert "functions: expected torch with compile" in capsys.readouterr().err
    assert main(["fit", "--model.functions", "jax"]) == 2
    assert "model.functions" in capsys.readouterr().err


@pytest.fixture
def wrong_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "relu", lambda x, original=activation.relu: 1.001 * original(x))


@pytest.mark.usefixtures("wrong_relu")
def test_parity_finds_a_wrong_formula_under_torchs_layers() -> None:
    net, x, y = simple_cnn()
    found = compare(net, "torch", batches=[(x, y)], dtype=torch.float64, functions="numpy")
    assert found.first is not None
    assert (found.first.layer, found.first.what, found.first.verdict) == ("relu1", "output", "fault")
    assert compare(net, "torch", batches=[(x, y)], dtype=torch.float64).ok


@pytest.mark.usefixtures("wrong_relu")
def test_what_compares_with_torch_switches_it_off() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    with numpy_ops():
        report = cnn_lightning.check_layer(layers.Tanh(), x)
        net, images, labels = simple_cnn()
        assert compare(net, "torch", batches=[(images, labels)], dtype=torch.float64).ok
    assert report.passed


def test_parity_prints_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", "--model.functions", "numpy", "--precision", "64", "--steps", "1"]) == 0
    assert "functions: " in capsys.readouterr().out
