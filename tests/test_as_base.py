"""A network's own classes treated as their base: the functions of torch in their forward run in NumPy."""

import contextlib
import copy
import io
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cnn_lightning import layers
from cnn_lightning.layers import bridge, catalog
from cnn_lightning.swap import functional as functional_calls
from cnn_lightning.swap import native_type, swap_layers
from cnn_lightning.swap.functional import InNumPy
from tests.cases import Case, load


class Padded(nn.Conv2d):
    """Pads before the convolution of its base."""

    def forward(self, input: Tensor) -> Tensor:
        x = functional.pad(input, (1, 0, 1, 0))
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class NormAct(nn.BatchNorm2d):
    """Has a layer of its own, which it calls after the norm of its base."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


class Swish(nn.Module):
    """No subclass of a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class Idle(nn.ReLU):
    """Calls no function that a layer computes."""

    def forward(self, input: Tensor) -> Tensor:
        return input * (input > 0)


HERE = __name__
ALL: dict[Any, str] = {Padded: "numpy", f"{HERE}.NormAct": "numpy", "2": "numpy", "*": "numpy"}


def own() -> nn.Sequential:
    torch.manual_seed(0)
    parts = (Padded(3, 4, 2, stride=2), NormAct(4), Swish(), nn.Flatten(), nn.Linear(64, 3))
    return nn.Sequential(*parts).double()


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def results(net: nn.Module) -> list[Tensor]:
    """Output, gradients and buffers of a training step."""
    net.zero_grad()
    x = images().requires_grad_()
    y = net(x)
    y.square().sum().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    return [y.detach(), *(each.clone() for each in (x.grad, *gradients) if each is not None), *net.buffers()]


class Formulas(bridge.Listener):
    def __init__(self) -> None:
        self.names: list[str] = []

    def begin(self, op: Any, tensors: Any) -> None:
        self.names.append(op.__name__)

    def end(self, op: Any) -> None:
        pass


def test_the_forward_stays_and_its_functions_run_in_numpy() -> None:
    net, twin = own(), own()
    report = swap_layers(net, ALL)
    assert report.swapped == ["0", "1", "1.act", "2", "3", "4"]
    with bridge.watch(Formulas()) as formulas:
        found = results(net)
    forward = [name for name in formulas.names if "backward" not in name]
    assert forward == ["conv2d", "batch_norm", "relu", "sigmoid", "linear"]
    for a, b in zip(found, results(twin), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_the_report_names_class_and_base() -> None:
    lines = str(swap_layers(own(), ALL)).splitlines()
    assert f"  0      {HERE}.Padded   numpy  fast, as Conv2d" in lines
    assert f"  1      {HERE}.NormAct  numpy  fast, as BatchNorm2d" in lines
    assert f"  2      {HERE}.Swish    numpy  by the functions that it calls" in lines


def test_there_and_back_again() -> None:
    net = own()
    before = [type(module) for module in net.modules()]
    expected = results(own())
    swap_layers(net, ALL)
    assert isinstance(net[0], Padded)
    assert native_type(net[0]) is Padded
    assert net[0]._get_name() == "Padded"
    assert swap_layers(net, "numpy").changed == []
    assert swap_layers(net, {"0": "torch"}).changed == ["0"]
    assert swap_layers(net, {"*": "numpy"}).changed == []  # a star does not ask for a subclass
    swap_layers(net, "torch")
    assert [type(module) for module in net.modules()] == before
    assert all("forward" not in module.__dict__ for module in net.modules())
    assert all(map(torch.equal, results(net), expected))


def saved(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, saved, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_run_in_numpy_too(copied: Any) -> None:
    net = own()
    swap_layers(net, ALL)
    twin = copied(net)
    assert [type(module) for module in twin.modules()] == [type(module) for module in net.modules()]
    assert list(twin.state_dict()) == list(own().state_dict())
    assert all(map(torch.equal, results(twin), results(net)))
    swap_layers(twin, "torch")
    assert type(twin[0]) is Padded


def test_a_compiled_network_has_the_formulas_in_one_graph() -> None:
    torch._dynamo.reset()
    net = own().eval()
    swap_layers(net, ALL)
    with bridge.watch(Formulas()) as formulas:
        found = torch.compile(net, backend="aot_eager", fullgraph=True)(images())
    assert formulas.names == ["conv2d", "batch_norm", "relu", "sigmoid", "linear"]
    torch.testing.assert_close(found, net(images()))


def test_only_a_type_or_a_full_name_asks_for_a_subclass() -> None:
    for spec in ("numpy", {"*": "numpy"}, {"[01]": "numpy", "4": "numpy"}):
        net = own()
        if isinstance(spec, dict) and "[01]" in spec:
            with pytest.raises(ValueError, match=rf"'\[01\]' matches nothing .* ask for '{HERE}.Padded'"):
                swap_layers(net, spec)
        else:
            swap_layers(net, spec)
        assert [type(module) for module in net][:3] == [Padded, NormAct, Swish]
    assert swap_layers(own(), {"0": "numpy"}).swapped == ["0"]
    assert swap_layers(own(), {f"{HERE}.Padded": "numpy"}).swapped == ["0"]
    assert swap_layers(own(), {"torch.nn.ReLU": "numpy"}).swapped == ["1.act"]


def test_a_type_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=rf"no layer is a {HERE}.Idle; there are 'Flatten', 'Linear', 'ReLU', '{HERE}"):
        swap_layers(own(), {f"{HERE}.Idle": "numpy"})


def test_a_native_layer_inside_stays_native() -> None:
    """`NormAct` runs its own ReLU, for which torch is asked."""
    net = own()
    swap_layers(net, {NormAct: "numpy", nn.ReLU: "torch"})
    with bridge.watch(Formulas()) as formulas:
        net.eval()(images())
    assert formulas.names == ["batch_norm"]


def test_a_class_without_such_a_function_is_found_by_running() -> None:
    net = nn.Sequential(Idle(), nn.ReLU())
    assert swap_layers(net, {"0": "numpy", "1": "numpy"}).swapped == ["0", "1"]
    report = swap_layers(net, "numpy", verify=torch.randn(2, 3))
    assert report.native == [("0", "no function that it calls has a NumPy layer")]


# ---- every function of the catalogue, with every option of the cases


def computed(module: nn.Module, inputs: Any, mode: Any) -> list[Tensor | None]:
    """Results, gradients and buffers."""
    torch.manual_seed(0)
    first, *others = inputs
    x = first.detach().clone().requires_grad_(first.is_floating_point())
    with mode:
        y = module(x.clone(), *others)
    y = y if isinstance(y, tuple) else (y,)
    if y[0].requires_grad:
        generator = torch.Generator().manual_seed(3)
        y[0].backward(torch.randn(y[0].shape, dtype=y[0].dtype, generator=generator))
    return [*y, x.grad, *(parameter.grad for parameter in module.parameters()), *module.buffers()]


@pytest.mark.parametrize("case", load(), ids=lambda case: case.native.__name__)
@pytest.mark.filterwarnings("ignore")
def test_functions_are_computed_as_layers_are(case: Case) -> None:
    for sample in case.samples:
        torch.manual_seed(0)
        module = case.native(**sample.options).double().train(sample.train)
        twin, inputs = copy.deepcopy(module), sample.inputs(torch.float64)
        expected = computed(twin, inputs, contextlib.nullcontext())
        with bridge.watch(Formulas()) as formulas:
            found = computed(module, inputs, InNumPy(None))
        assert formulas.names or not has_function(case), sample
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, equal_nan=True)


STAY = {"pad", "_native_multi_head_attention", "multi_head_attention_forward", "scaled_dot_product_attention"}
"""Functions whose arguments are not the options of a layer."""


def has_function(case: Case) -> bool:
    """Whether a function of torch computes the layer, by a formula in every sample."""
    entry = catalog.entries()[case.native]
    return bool(set(entry.functions) - STAY) and entry.formulas not in ("", "dropout")


def test_of_layers_with_one_function_none_is_taken_for_another() -> None:
    def keys(*kinds: type[nn.Module]) -> dict[str, str]:
        entry = catalog.entries()[nn.ReLU]
        found = functional_calls._by_axes([replace(entry, native=kind) for kind in kinds])
        return {key: entry.native.__name__ for key, entry in found.items()}

    assert keys(nn.Conv2d) == {"": "Conv2d"}
    assert keys(nn.BatchNorm1d, nn.BatchNorm2d) == {"1d": "BatchNorm1d", "2d": "BatchNorm2d"}
    assert keys(nn.UpsamplingNearest2d, nn.Upsample, nn.UpsamplingBilinear2d) == {"": "Upsample"}
    assert keys(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad2d) == {"1d": "ReflectionPad1d"}


def test_what_no_layer_can_stays_with_torch() -> None:
    x = torch.randn(2, 3, 4)
    with bridge.watch(Formulas()) as formulas, InNumPy(None):
        assert functional.softmax(x, 1, dtype=torch.float64).dtype == torch.float64
        torch.sigmoid(x, out=torch.empty(0))
        with pytest.raises(ValueError, match="Expected more than 1 value"):
            functional.batch_norm(torch.randn(1, 3), None, None, training=True)
        with pytest.raises(RuntimeError, match="running_mean"):
            functional.batch_norm(torch.randn(2, 3), None, None)
        with pytest.raises(TypeError):
            functional.conv2d(x)  # type: ignore[call-overload]
    assert formulas.names == []


def test_in_place_functions_of_layers_without_the_option() -> None:
    x = torch.randn(3, requires_grad=True)
    with bridge.watch(Formulas()) as formulas, InNumPy(None):
        y = x.clone()
        assert y.sigmoid_() is y
    y.sum().backward()
    expected = torch.autograd.functional.jacobian(lambda v: v.sigmoid().sum(), x.detach())
    torch.testing.assert_close(x.grad, expected)
    assert formulas.names[0] == "sigmoid"


def test_our_layers_are_never_made_of_it() -> None:
    net = nn.Sequential(layers.Conv2d(1, 1, 1))
    assert swap_layers(net, {layers.Conv2d: "numpy", "0": "numpy"}).changed == []
