"""A fault becomes a program of at most 30 lines, which exits 1 with the fault and 0 without it."""

import copy
import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from cnn_lightning.layers import Conv2d as NumPyConv2d
from cnn_lightning.ops import activation
from cnn_lightning.swap import swap_layers
from cnn_lightning.tools.parity.candidates import Candidate, candidate_of, compiled
from cnn_lightning.tools.parity.layerwise.functions import FunctionCall
from cnn_lightning.tools.parity.layerwise.results import Evidence, Row
from cnn_lightning.tools.parity.layerwise.runner import Place, float_tensors
from cnn_lightning.tools.parity.lockstep import compare
from cnn_lightning.tools.parity.reproducer import make as reproducer
from cnn_lightning.tools.parity.reproducer import script
from cnn_lightning.tools.parity.reproducer.constructors import code_of
from cnn_lightning.tools.parity.reproducer.script import LITERALS, Numbers, relaid
from tests.cases import Case, load
from tests.wrong_torch import Tokens, planted, times, with_broken_batch_norm, wrong_kernel

Fault = Callable[[], AbstractContextManager[None]]


# ---- faults


def wrong_where(operator: str, condition: Callable[..., bool]) -> Fault:
    """A fault of a twentieth in the calls with such arguments."""
    return partial(planted, operator, times(1.05), lambda arguments: condition(*arguments))


def large_channels(result: Tensor, arguments: Any) -> Tensor:
    """From the sixth channel on, the result is wrong."""
    result = result.clone()
    result[:, 5:] *= 1.01
    return result


def at_zero(result: Tensor, arguments: Any) -> Tensor:
    """The gradient of LeakyReLU at 0 is that above it."""
    return torch.where(arguments[1] == 0, arguments[0], result)


def is_channels_last(x: Tensor, *others: Any) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


# ---- evidence


def evidence(
    part: nn.Module,
    inputs: tuple[Any, ...],
    place: Place,
    fault: Fault = nullcontext,
    party: str = "torch",
    upstream: Tensor | None = None,
    turn_on: Callable[[nn.Module], AbstractContextManager[Any]] = lambda layer: nullcontext(),
) -> Evidence:
    """What parity leaves of a fault."""
    gradients: dict[int, Tensor] = {}

    def result(dtype: torch.dtype | None) -> Tensor:
        module = copy.deepcopy(part) if dtype is None else copy.deepcopy(part).to(dtype)
        given = [x.detach().clone() if isinstance(x, Tensor) else x for x in inputs]
        given = [x.to(dtype) if dtype and x.is_floating_point() else x for x in given]
        leaves = [x.requires_grad_() if x.is_floating_point() else x for x in given]
        around = turn_on(module) if dtype is None else nullcontext()
        with around:
            outputs = float_tensors(module(*(x * 1 if x.is_floating_point() else x for x in leaves)))
        kind, key = place
        if kind == "outputs":
            return outputs[key].detach()
        if kind == "after":
            return module.get_buffer(key)
        generator = torch.Generator().manual_seed(7)
        for index, y in enumerate(outputs):
            gradients.setdefault(index, torch.randn(y.shape, generator=generator) if upstream is None else upstream)
        torch.autograd.backward(outputs, [gradients[i].to(y.dtype) for i, y in enumerate(outputs)])
        found = leaves[key].grad if kind == "grad_inputs" else module.get_parameter(key).grad
        assert found is not None
        return found

    with fault():
        found = result(None)
    right = result(torch.float64)
    row = Row(0, "layer", 0, "output", 1.0, (), 1.0, 0.0, 0, "fault of torch")
    return Evidence(row, party, part, inputs, {}, gradients, place, found, right)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def exit_code(path: Path) -> Any:
    """Of a file that runs in this process."""
    mkldnn: Any = torch.backends.mkldnn
    threads, enabled = torch.get_num_threads(), mkldnn.enabled
    try:
        with torch.random.fork_rng(), pytest.raises(SystemExit) as stop:
            runpy.run_path(str(path), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
        mkldnn.set_flags(_enabled=enabled)
    return stop.value.code


def shown(found: Evidence, path: Path, fault: Fault = nullcontext, against: Candidate | None = None) -> str:
    """The text of a file that fulfils the promises, with the fault and without."""
    with fault():
        reproducer.write(found, against, path)
        assert exit_code(path) == 1
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= reproducer.LINES
    assert max(map(len, lines)) <= 120
    if fault is not nullcontext:
        assert exit_code(path) == 0
    return "\n".join(lines)


# ---- faults of torch

PICTURES = numbers(4, 6, 9, 9)
KERNELS: list[tuple[str, int, nn.Module, tuple[Any, ...], Place]] = [
    ("convolution", 0, nn.Conv2d(6, 8, 3, padding=1), (PICTURES,), ("outputs", 0)),
    ("convolution", 0, nn.ConvTranspose2d(6, 8, 3, groups=2), (PICTURES,), ("outputs", 0)),
    ("convolution_backward", 0, nn.Conv2d(6, 8, 3, groups=2), (PICTURES,), ("grad_inputs", 0)),
    ("convolution_backward", 1, nn.Conv2d(6, 8, (3, 2), stride=2, bias=False), (PICTURES,), ("parameter", "weight")),
    ("convolution_backward", 2, nn.Conv2d(6, 6, 3, groups=6), (PICTURES,), ("parameter", "bias")),
    ("native_batch_norm", 0, nn.BatchNorm2d(6).eval(), (PICTURES,), ("outputs", 0)),
    ("native_batch_norm_backward", 0, nn.BatchNorm2d(6), (PICTURES,), ("grad_inputs", 0)),
    ("native_batch_norm_backward", 1, nn.BatchNorm2d(6), (PICTURES,), ("parameter", "weight")),
    ("native_group_norm", 0, nn.GroupNorm(2, 6), (PICTURES,), ("outputs", 0)),
    ("native_layer_norm_backward", 0, nn.LayerNorm((9, 9)), (PICTURES,), ("grad_inputs", 0)),
    ("addmm", 0, nn.Linear(9, 5), (PICTURES[0, 0],), ("outputs", 0)),
    ("max_pool2d_with_indices", 0, nn.MaxPool2d(2), (PICTURES,), ("outputs", 0)),
    ("max_pool2d_with_indices_backward", 0, nn.MaxPool2d(3, 2, 1), (PICTURES,), ("grad_inputs", 0)),
    ("threshold_backward", 0, nn.ReLU(inplace=True), (PICTURES,), ("grad_inputs", 0)),
    ("avg_pool2d", 0, nn.AvgPool2d(2), (PICTURES,), ("outputs", 0)),
    (
        "_log_softmax_backward_data",
        0,
        nn.CrossEntropyLoss(torch.linspace(1, 2, 10), label_smoothing=0.1),
        (numbers(8, 10), torch.arange(8)),
        ("grad_inputs", 0),
    ),
]


WITHOUT_DECOMPOSITION = [
    name
    for name in ("max_pool2d_with_indices_backward",)
    if getattr(torch.ops.aten, name).default not in torch._decomp.decomposition_table
]
"""Operators that this torch (2.11) can't compute in elementary steps, so that less is known of their rounding."""

PLANTED = [
    pytest.param(number, dtype, id=f"{kernel[0]}-{number}-{dtype or 'all'}", marks=marks)
    for number, kernel in enumerate(KERNELS)
    for dtype, marks in zip((None, torch.float32)[:: 1 if number % 2 else -1], ([], [pytest.mark.slow]), strict=True)
]


@pytest.mark.parametrize(("number", "dtype"), PLANTED)
def test_a_wrong_kernel_is_shown_by_a_small_layer(number: int, dtype: Any, tmp_path: Path) -> None:
    operator, index, part, inputs, place = KERNELS[number]
    fault = partial(wrong_kernel, operator, index, dtype)
    found = evidence(part, inputs, place, partial(wrong_kernel, operator, index, torch.float32))
    text = shown(found, tmp_path / "fault.py", fault)
    assert f"layer = nn.{type(part).__name__}(" in text
    assert "cnn_lightning" not in text
    sizes = [int(word) for line in text.splitlines() if "randn(" in line for word in line[:-1].split("(")[1].split(",")]
    assert max(sizes) <= (9 if operator in WITHOUT_DECOMPOSITION else 3)
    assert list(tmp_path.iterdir()) == [tmp_path / "fault.py"]


def test_a_program_needs_torch_alone(tmp_path: Path) -> None:
    jobs = []
    for number in (0, 15):
        operator, index, part, inputs, place = KERNELS[number]
        fault = partial(wrong_kernel, operator, index, torch.float32)
        with fault():
            reproducer.write(evidence(part, inputs, place, fault), None, tmp_path / f"{operator}.py")
        jobs.append((str(tmp_path / f"{operator}.py"), operator, index))
    code = f"""
import importlib.util, json, runpy, sys
sys.modules.update(dict.fromkeys(("cnn_lightning", "numpy", "torchvision", "lightning")))  # None: can't be imported
import pytest, torch
spec = importlib.util.spec_from_file_location("wrong_torch", {str(Path(__file__).with_name("wrong_torch.py"))!r})
wrong_torch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wrong_torch)

def code(path):
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as stop:
        return stop.code

for path, operator, index in json.loads(sys.argv[1]):
    with wrong_torch.wrong_kernel(operator, index, torch.float32):
        print("with", code(path))
    print("without", code(path))
"""
    command = [sys.executable, "-W", "ignore", "-c", code, json.dumps(jobs)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("with")] == ["with 1", "without 0"] * 2
    assert sum(line.startswith("expected ") for line in lines) == 4


def test_what_the_program_prints_and_says(tmp_path: Path) -> None:
    operator, index, part, inputs, place = KERNELS[0]
    fault = partial(wrong_kernel, operator, index, torch.float32)
    text = shown(evidence(part, inputs, place, fault), tmp_path / "fault.py", fault)
    version = torch.__version__.split("+")[0]
    assert text.startswith(f'"""torch.nn.Conv2d: the output is wrong in torch {version} on CPU."""\n')
    assert "layer = nn.Conv2d(1, 1, 1)\nx = torch.randn(1, 1, 1, 1)\ny = layer(x)\n" in text


def test_a_fault_of_float64_is_shown_in_float64(tmp_path: Path) -> None:
    fault = partial(wrong_kernel, "convolution", 0, torch.float64)
    part, x = nn.Conv2d(6, 8, 3).double(), PICTURES.double()
    right = part(x).detach()
    found = evidence(part, (x,), ("outputs", 0))
    found = Evidence(**{**vars(found), "found": right * 1.001, "right": right})
    text = shown(found, tmp_path / "fault.py", fault)
    assert "layer = nn.Conv2d(1, 1, 1).to(torch.float64)" in text
    assert "x = torch.randn(1, 1, 1, 1, dtype=torch.float64)" in text


@with_broken_batch_norm
def test_strides_stay_where_the_fault_needs_them(tmp_path: Path) -> None:
    class Keep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.register_hook(lambda g: kept.append(g.detach().clone()))
            return x

    kept: list[Tensor] = []
    norm, x = nn.BatchNorm2d(6), numbers(1, 6, 5, 5)
    nn.Sequential(norm, Keep(), Tokens())(x.clone().requires_grad_()).backward(numbers(1, 25, 6))
    found = evidence(nn.BatchNorm2d(6), (x,), ("grad_inputs", 0), upstream=kept[0].contiguous())
    layer, leaf = nn.BatchNorm2d(6), x.clone().requires_grad_()
    layer(leaf).backward(kept[0])
    found = Evidence(**{**vars(found), "found": leaf.grad, "upstream": {0: kept[0]}})
    text = shown(found, tmp_path / "fault.py")
    assert ".as_strided((1, 2, 2, " in text


def test_channels_last_stays_where_the_fault_needs_it(tmp_path: Path) -> None:
    fault = wrong_where("convolution", is_channels_last)
    x = PICTURES.to(memory_format=torch.channels_last)
    text = shown(evidence(nn.Conv2d(6, 8, 3, padding=1), (x,), ("outputs", 0), fault), tmp_path / "fault.py", fault)
    assert "nn.Conv2d(2, 1, 1)" in text
    assert ".to(memory_format=torch.channels_last)" in text


def test_as_many_channels_stay_as_the_fault_needs(tmp_path: Path) -> None:
    fault = partial(planted, "convolution", large_channels)
    found = evidence(nn.Conv2d(6, 16, 3, padding=1), (PICTURES,), ("outputs", 0), fault)
    text = shown(found, tmp_path / "fault.py", fault)
    assert "nn.Conv2d(1, 6, 1)" in text
    assert "found = y[0, 5, 0, 0].item()" in text


def test_numbers_stay_where_the_fault_needs_them(tmp_path: Path) -> None:
    fault = partial(planted, "leaky_relu_backward", at_zero)
    x = PICTURES.clone()
    x[2, 3, 4, 5] = 0
    text = shown(evidence(nn.LeakyReLU(), (x,), ("grad_inputs", 0), fault), tmp_path / "fault.py", fault)
    assert "x = torch.tensor([[[[0.0]]]])" in text


def test_buffers_stay_where_the_fault_needs_them(tmp_path: Path) -> None:
    def change(results: Any, arguments: Any) -> Any:
        return results[0] * (1.01 if arguments[3].abs().max() > 2.1 else 1), *results[1:]

    fault = partial(planted, "native_batch_norm", change)
    part = nn.BatchNorm2d(6).eval()
    part.get_buffer("running_mean")[4] = 2.34567
    text = shown(evidence(part, (PICTURES,), ("outputs", 0), fault), tmp_path / "fault.py", fault)
    assert "layer = nn.BatchNorm2d(1).eval()\nlayer.running_mean.data = torch.tensor([2.3])\nx = " in text


def test_a_wrong_buffer_is_shown(tmp_path: Path) -> None:
    def change(results: Any, arguments: Any) -> Any:
        arguments[3].mul_(1.01)
        return results

    fault = partial(planted, "native_batch_norm", change)
    found = evidence(nn.BatchNorm2d(6), (PICTURES + 3,), ("after", "running_mean"), fault)
    assert "found = layer.running_mean[0].item()" in shown(found, tmp_path / "fault.py", fault)


def test_a_missing_gradient_counts_as_zeros(tmp_path: Path) -> None:
    fault = partial(planted, "threshold_backward", times(0))
    found = evidence(nn.ReLU(), (PICTURES,), ("grad_inputs", 0), fault)
    assert "expected = 1.0" in shown(found, tmp_path / "fault.py", fault)


# ---- faults of a candidate, of NumPy and of a user's layer


@pytest.mark.parametrize(
    ("name", "condition", "line"),
    [
        ("channels_last", is_channels_last, "layer = layer.to(memory_format=torch.channels_last)"),
        ("threads=1", lambda *args: torch.get_num_threads() == 1, "torch.set_num_threads(1)"),
        (
            "no_mkldnn",
            lambda *args: not torch.backends.mkldnn.enabled,
            "torch.backends.mkldnn.set_flags(_enabled=False)",
        ),
        (
            "bf16",
            lambda x, *others: x.dtype == torch.bfloat16,
            'with torch.autocast("cpu", dtype=torch.bfloat16):\n    y = layer(x)',
        ),
    ],
)
def test_a_fault_of_a_mode_is_shown_in_this_mode(name: str, condition: Any, line: str, tmp_path: Path) -> None:
    fault = partial(planted, "convolution", times(1.2), lambda arguments: condition(*arguments))
    part, x = nn.Conv2d(6, 8, 3), PICTURES
    against = candidate_of(name, part)
    if name == "channels_last":
        x = x.to(memory_format=torch.channels_last)

    @contextmanager
    def turn_on(layer: nn.Module) -> Iterator[None]:
        if against.memory_format == "channels_last":
            layer.to(memory_format=torch.channels_last)
        cast = nullcontext() if against.autocast is None else torch.autocast("cpu", against.autocast)
        with against.around(), cast:
            yield

    before = torch.get_num_threads(), torch.backends.mkldnn.enabled
    found = evidence(part, (x,), ("outputs", 0), fault, name, turn_on=turn_on)
    with fault():
        reproducer.write(found, against, tmp_path / "before.py")
    assert (torch.get_num_threads(), torch.backends.mkldnn.enabled) == before
    text = shown(found, tmp_path / "fault.py", fault, against)
    assert line in text
    assert name in text.splitlines()[0]


def test_a_gradient_under_autocast_is_shown(tmp_path: Path) -> None:
    fault = wrong_where("convolution_backward", lambda *args: False)
    fault = partial(planted, "convolution_backward", _wrong_in_bf16)
    part = nn.Conv2d(6, 8, 3)
    found = evidence(
        part,
        (PICTURES,),
        ("parameter", "weight"),
        fault,
        "bf16",
        turn_on=lambda layer: torch.autocast("cpu", torch.bfloat16),
    )
    found = Evidence(**{**vars(found), "upstream": {i: g.bfloat16() for i, g in found.upstream.items()}})
    text = shown(found, tmp_path / "fault.py", fault, candidate_of("bf16", part))
    assert "g = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)" in text


def _wrong_in_bf16(results: Any, arguments: Any) -> Any:
    return tuple(r * 1.2 if r is not None and r.dtype == torch.bfloat16 else r for r in results)


def test_a_fault_of_numpy_is_shown_by_its_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = activation.relu
    part = nn.ReLU()
    found = Evidence(
        **{
            **vars(evidence(part, (PICTURES,), ("outputs", 0))),
            "party": "NumPy",
            "found": part(PICTURES) * 1.01,
        }
    )

    @contextmanager
    def fault() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(activation, "relu", lambda x: original(x) * 1.01)
            yield

    text = shown(found, tmp_path / "fault.py", fault)
    assert "import cnn_lightning\n" in text
    assert 'cnn_lightning.swap_layers(layer, "numpy")' in text


class DoubledConv2d(NumPyConv2d):
    """A user's layer that is wrong."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_a_fault_of_a_users_layer_is_shown_by_its_class(tmp_path: Path) -> None:
    part = nn.Conv2d(6, 8, 3)
    name = "tests.test_reproducer.DoubledConv2d"
    against = candidate_of(name, part)
    right = evidence(part, (PICTURES,), ("outputs", 0))
    swapped = copy.deepcopy(part)
    swap_layers(swapped, {"*": DoubledConv2d})
    found = Evidence(**{**vars(right), "party": name, "found": swapped(PICTURES).detach()})
    text = shown(found, tmp_path / "fault.py", against=against)
    assert f'cnn_lightning.swap_layers(layer, {{nn.Conv2d: "{name}"}})' in text


# ---- faults of a program


def wrong_relu(graph: Any, example: Any) -> Any:
    """A compiler whose ReLU is wrong."""
    for node in graph.graph.nodes:
        if "relu" in str(node.target):
            node.target = functional.relu6
    graph.recompile()
    return graph.forward


def test_a_fault_of_a_compiler_is_shown_by_a_compiled_layer(tmp_path: Path) -> None:
    if "wrong_relu" not in torch._dynamo.list_backends():
        torch._dynamo.register_backend(wrong_relu)
    part, x = nn.ReLU(), PICTURES + 8
    right = evidence(part, (x,), ("outputs", 0))
    found = Evidence(**{**vars(right), "party": "compile=wrong_relu", "found": functional.relu6(x)})
    text = shown(found, tmp_path / "fault.py", against=candidate_of("compile=wrong_relu", part))
    assert 'layer = torch.compile(layer, backend="wrong_relu")\n' in text
    assert "expected = 6." in text or "expected = 7." in text


@pytest.mark.parametrize("name", ["compile=eager", "pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_the_lines_of_a_program_compute_what_the_layer_does(name: str) -> None:
    part = nn.Sequential(nn.Conv2d(6, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    places: list[Place] = [("outputs", 0), ("parameter", "0.weight"), ("grad_inputs", 0), ("after", "1.running_mean")]
    if name == "onnx":
        part, places = part.eval(), places[:1]
    against = candidate_of(name, part)
    for place in places:
        found = Evidence(**{**vars(evidence(part, (PICTURES,), place)), "party": name})
        with script.undisturbed():
            ran = script.run(reproducer._recorded(found, reproducer._mode(found, against)))
        assert ran.found is not None
        torch.testing.assert_close(ran.found.double(), found.right, rtol=1e-4, atol=1e-4)


def test_a_program_without_code_has_no_reproducer(tmp_path: Path) -> None:
    part = nn.ReLU()
    found = Evidence(**{**vars(evidence(part, (PICTURES,), ("outputs", 0))), "party": "compile"})
    with pytest.raises(reproducer.NoReproducer, match="compile can't be written as code"):
        reproducer.write(found, compiled(wrong_relu), tmp_path / "fault.py")


# ---- parts of a network


def test_a_sequential_is_written_with_its_layers(tmp_path: Path) -> None:
    part = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3))
    part(PICTURES)
    fault = partial(wrong_kernel, "convolution_backward", 1, torch.float32)
    text = shown(evidence(part, (PICTURES,), ("parameter", "0.weight"), fault), tmp_path / "fault.py", fault)
    assert "layer = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(196, 3))" in text
    assert "found = layer[0].weight.grad[" in text


def test_a_block_is_written_as_a_class(tmp_path: Path) -> None:
    part = BasicBlock(4, 4)
    fault = partial(wrong_kernel, "convolution_backward", 1, torch.float32)
    found = evidence(part, (numbers(2, 4, 5, 5),), ("parameter", "conv1.weight"), fault)
    text = shown(found, tmp_path / "fault.py", fault)
    assert "class Part(nn.Module):" in text
    assert "return self.relu((self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x))" in text


def test_a_function_is_written_as_a_class(tmp_path: Path) -> None:
    fault = partial(wrong_kernel, "sigmoid", 0, None)
    part = FunctionCall(torch.sigmoid, (PICTURES,), {})
    found = evidence(part, (PICTURES,), ("outputs", 0), partial(wrong_kernel, "sigmoid", 0, torch.float32))
    text = shown(found, tmp_path / "fault.py", fault)
    assert text.startswith('"""torch.sigmoid: the output is wrong')
    assert "    def forward(self, x):\n        return torch.sigmoid(x)\n" in text


def test_a_function_of_two_tensors_is_written_with_both(tmp_path: Path) -> None:
    fault = partial(wrong_kernel, "bmm", 0, torch.float32)
    tensors = numbers(2, 4, 5), numbers(2, 5, 3)
    part = FunctionCall(torch.Tensor.matmul, tensors, {})
    text = shown(evidence(part, tensors, ("outputs", 0), fault), tmp_path / "fault.py", fault)
    assert "        return torch.Tensor.matmul(x, x1)\n" in text


def test_what_parity_finds_is_shown(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    fault = partial(wrong_kernel, "max_pool2d_with_indices_backward", 0, torch.float32)
    with fault():
        found = compare(net, batches=[(numbers(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))])
    assert [each.row.layer for each in found.evidence] == ["3"]
    assert "nn.MaxPool2d(2)" in shown(found.evidence[0], tmp_path / "fault.py", fault)


# ---- no program


class Own(nn.Module):
    """A layer that torch.fx can't trace."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.5 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("part", "x", "reason"),
    [
        (Own(), PICTURES, "torch.fx can't trace Own"),
        (nn.LSTM(9, 3), PICTURES[0], "the constructor of LSTM refuses what the layer has"),
        (nn.ReLU(), PICTURES, "the fault does not show when the layer runs alone"),
        (nn.MultiheadAttention(4, 2), PICTURES, "the constructor of MultiheadAttention makes another layer"),
    ],
)
def test_the_reason_why_there_is_no_program(part: nn.Module, x: Tensor, reason: str, tmp_path: Path) -> None:
    found = evidence(nn.Identity(), (x,), ("outputs", 0))
    found = Evidence(**{**vars(found), "part": part, "found": found.right * 1.01})
    if type(part) is nn.ReLU:
        found = Evidence(**{**vars(found), "right": part(x).double()})
    with pytest.raises(reproducer.NoReproducer, match=reason):
        reproducer.write(found, None, tmp_path / "fault.py")
    assert not list(tmp_path.iterdir())


def test_a_fault_that_needs_many_given_numbers_has_no_program(tmp_path: Path) -> None:
    x = numbers(20, 20).abs() + 1

    def many(result: Tensor, arguments: Any) -> Tensor:
        given = arguments[0]
        return result * 1.01 if given.numel() == x.numel() and (given > 0).all() else result

    fault = partial(planted, "avg_pool2d", many)
    found = evidence(nn.AvgPool2d(2), (x[None, None],), ("outputs", 0), fault)
    with fault(), pytest.raises(reproducer.NoReproducer, match="more given numbers than"):
        reproducer.write(found, None, tmp_path / "fault.py")


# ---- layers and numbers as code


@pytest.mark.parametrize("case", load(), ids=lambda case: case.name)
def test_the_code_of_a_layer_makes_this_layer(case: Case) -> None:
    if case.native is nn.MultiheadAttention:
        pytest.skip("its options can't be read from it")
    for sample in case.samples:
        module = case.native(**sample.options)
        code = code_of(module)
        names: dict[str, Any] = {"torch": torch, "nn": nn}
        exec("\n".join(code.before), names)
        made = eval(code.made, names)
        assert code.before or repr(made) == repr(module)
        state = {code.name_of(name): value.shape for name, value in module.state_dict().items()}
        assert {name: value.shape for name, value in made.state_dict().items()} == state


def test_the_lines_for_a_device_move_the_layer_and_its_numbers(tmp_path: Path) -> None:
    fault = partial(wrong_kernel, "convolution_backward", 0, torch.float32)
    part = nn.Conv2d(6, 8, 3)
    found = evidence(part, (PICTURES,), ("grad_inputs", 0), fault, "device")
    text = shown(found, tmp_path / "fault.py", fault, Candidate("device", device="cpu"))
    moved = ('layer = layer.to("cpu")', 'x = x.to("cpu")', 'g = g.to("cpu")', "x.requires_grad_()")
    assert "\n".join(moved) in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.permute(3, 2, 1, 0),
        lambda x: x[:1].expand(5, -1, -1, -1),
        lambda x: x[:1, :1],
        lambda x: x[0, 0, 0, 0],
    ],
)
def test_literal_numbers_make_the_same_tensor(layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x = layout((numbers(2, 3, 2, 3) * 3).to(dtype))
    x = relaid(x, x)
    assert x.numel() <= LITERALS * 2
    code = Numbers(x, "literal").code() if x.numel() <= LITERALS else "x"
    made = eval(code or "", {"torch": torch, "x": x})
    assert made.dtype == dtype
    assert made.stride() == x.stride()
    assert torch.equal(made, x)


def test_numbers_that_are_not_finite_are_written() -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e-30])
    code = Numbers(x, "literal").code()
    assert code == "torch.tensor([torch.inf, -torch.inf, torch.nan, 1e-30])"
