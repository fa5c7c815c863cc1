import copy
import pickle
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import mish
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from cnn_lightning import layers, swap
from cnn_lightning.model import build_net
from cnn_lightning.ops import activation, conv, linear
from cnn_lightning.swap import LAYERS, native_type, plan, report, swap_layers


def small() -> nn.Sequential:
    """A convolution, a ReLU, and a linear layer, with the names 0, 1, 3."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)).double()


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body: Any = nn.ModuleDict({"conv1": nn.Conv2d(1, 3, 3), "relu1": nn.ReLU(), "conv2": nn.Conv2d(3, 2, 3)})
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body.values():
            x = layer(x)
        return self.head(x.flatten(1))


class Loud(nn.ReLU):
    """A subclass with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return input.clamp(min=0) * 2


class Slotted(nn.ReLU):
    __slots__ = ("extra",)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.linear(x))


class LoudBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def images() -> Tensor:
    return torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def step(net: nn.Module) -> list[Tensor]:
    """The output and every gradient."""
    net.zero_grad()
    output = net(images())
    output.square().sum().backward()
    return [output.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


def assert_same(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-12) -> None:
    for found, expected in zip(a, b, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def types(net: nn.Module) -> list[type]:
    return [type(module) for module in net.modules()]


def test_there_and_back_again() -> None:
    net = small()
    before, expected, memory = types(net), step(net), {key: value.data_ptr() for key, value in net.state_dict().items()}
    report = swap_layers(net, "numpy")
    assert report.swapped == report.changed == ["0", "1", "2", "3"]
    assert report.native == []
    assert types(net) == [layers.Sequential, layers.Conv2d, layers.ReLU, layers.Flatten, layers.Linear]
    assert_same(step(net), expected)
    assert swap_layers(net, "numpy").changed == []
    report = swap_layers(net, "torch")
    assert report.swapped == []
    assert report.native[0] == ("0", "as asked")
    assert types(net) == before
    assert {key: value.data_ptr() for key, value in net.state_dict().items()} == memory
    assert not any("_swapped_from" in module.__dict__ for module in net.modules())
    assert_same(step(net), expected, 0)


def test_first_pattern_wins_and_the_rest_stays() -> None:
    net = Named()
    report = swap_layers(net, {"body.conv2": "torch", "body.*": "numpy"})
    assert report.swapped == ["body.conv1", "body.relu1"]
    assert dict(report.native) == {"body.conv2": "as asked", "head": "no pattern names it"}
    assert swap_layers(net, {"head": "numpy"}).swapped == ["body.conv1", "body.relu1", "head"]
    assert swap_layers(net, {"body.conv?": "torch"}).swapped == ["body.relu1", "head"]
    assert swap_layers(net, {"*.relu[0-9]": "torch", "head": "torch"}).changed == ["body.relu1", "head"]


def test_numbers_are_names_of_a_sequential() -> None:
    net = nn.Sequential(small(), nn.ReLU())
    assert swap_layers(net, {1: "numpy", "0.1": "numpy"}).swapped == ["0.1", "1"]


def test_a_lone_layer_has_the_empty_name() -> None:
    net = nn.Linear(2, 2)
    assert swap_layers(net, {"": "numpy"}).swapped == [""]
    assert type(net) is layers.Linear
    swap_layers(net, {"*": "torch"})
    assert type(net) is nn.Linear


def test_modules_beside_the_network() -> None:
    net, loss = small(), nn.CrossEntropyLoss()
    report = swap_layers(net, {"loss": "numpy", "0": "numpy"}, beside={"loss": loss})
    assert report.swapped == ["0", "loss"]
    assert type(loss) is layers.CrossEntropyLoss
    assert swap_layers(net, "torch", beside={"loss": loss}).changed == ["0", "loss"]


def test_report_as_text() -> None:
    text = str(swap_layers(nn.Sequential(small(), StochasticDepth(0.5, "row"), Block()), {"0.*": "numpy"}))
    assert text.splitlines()[0] == "layers: 4 numpy, 2 torch"
    rows = [line.split(maxsplit=3) for line in text.splitlines()]
    assert ["0.0", "Conv2d", "numpy", "fast"] in rows
    assert ["1", "torchvision.ops.stochastic_depth.StochasticDepth", "-", "no arithmetic"] in rows
    assert "its forward calls relu as a function, not as a layer" in text


def test_every_layer_has_one_row_in_the_table() -> None:
    assert len(LAYERS) == len(set(LAYERS.values()))
    for native, ours in LAYERS.items():
        assert issubclass(ours, native)
        assert ours.__name__ == native.__name__
        assert "forward" in vars(ours)


# ---- a swap that is refused changes nothing


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nunpy", r"unknown implementation 'nunpy' \(did you mean 'numpy'\?\)"),
        ("torch.nn.ReLU", "expected 'numpy', 'torch' or a mapping"),
        (3, "expected 'numpy', 'torch' or a mapping of patterns, got 3"),
        (None, "expected 'numpy', 'torch' or a mapping of patterns, got None"),
        ({"*": "numpy", "head": "cupy"}, "unknown implementation 'cupy'"),
        ({"*": "numpy", "head": 3}, "unknown implementation 3"),
        ({"*": "numpy", "head": None}, "unknown implementation None"),
        ({"*": "numpy", "heat": "torch"}, "pattern 'heat' matches no layer; there are 'head', 'body.conv1'"),
        ({"*": "numpy", "body": "torch"}, r"'body' matches no layer: it names a ModuleDict .* 'body\.\*'"),
        ({"*": "numpy", nn.GELU: "torch"}, "no layer is a GELU; there are 'Conv2d', 'Linear', 'ReLU'"),
        ({"*": "numpy", 1.5: "torch"}, "expected a pattern of names or a module class as key, got 1.5"),
        ({"*": "numpy", "head": "nowhere.Linear"}, "unknown implementation 'nowhere.Linear': No module named"),
        ({"*": "numpy", "head": "torch.nn.Linnear"}, "unknown implementation 'torch.nn.Linnear'"),
        ({"*": "numpy", "head": "torch.nn.functional.relu"}, "expected .* to be a subclass of torch.nn.Module"),
        ({"body.conv2": "numpy", "head": "torch.nn.ReLU"}, "'head': expected a subclass of Linear, got ReLU"),
    ],
)
def test_bad_requests_change_nothing(spec: object, message: str) -> None:
    net = Named()
    before = types(net)
    with pytest.raises((ValueError, TypeError), match=message) as error:
        swap_layers(net, spec)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
    assert types(net) == before


def test_a_class_that_python_refuses_changes_nothing() -> None:
    net = nn.Sequential(nn.ReLU(), nn.ReLU())
    with pytest.raises(TypeError, match="'1' can't become a Slotted"):
        swap_layers(net, {"0": Loud, "1": Slotted})
    assert types(net) == [nn.Sequential, nn.ReLU, nn.ReLU]
    assert "_swapped_from" not in net[0].__dict__


class Raising(nn.Module):
    """Fails where the report looks at it."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error, self.child = error, nn.ReLU()

    def named_modules(self, *args: Any, **options: Any) -> Any:
        if not args and not options:  # the report asks for this module's own; a network's walk hands a memo on
            raise self.error("no")
        return super().named_modules(*args, **options)


@pytest.mark.parametrize("error", [RuntimeError, AttributeError, KeyboardInterrupt])
def test_a_report_that_fails_changes_nothing(error: type[BaseException]) -> None:
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1), nn.ReLU(), Raising(error))
    swap_layers(net[:3], {"1": "numpy", "2": Loud})
    before, memory = types(net), [dict(module.__dict__) for module in (net[0], net[1], net[2])]
    with pytest.raises(error):
        swap_layers(net, {"0": Loud, "1": "torch", "2": "torch", "3.child": "numpy"})
    assert types(net) == before
    assert [dict(module.__dict__) for module in (net[0], net[1], net[2])] == memory


def test_any_error_on_the_way_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of the steps of the swap in turn: the classes that are exchanged, the rows of the report."""
    for module, name in ((plan, "_become"), (swap, "rows_of"), (report, "_functional_calls")):
        original = getattr(module, name)
        for step in range(5):
            net = nn.Sequential(nn.ReLU(), Block(), nn.ReLU(), Block(), nn.ReLU(), Block(), Block(), Block())
            before = types(net)
            calls: list[int] = []

            def failing(*args: Any, step: int = step, original: Any = original, calls: list[int] = calls) -> Any:
                calls.append(1)
                if len(calls) == step + 1:
                    raise OSError("here")
                return original(*args)

            monkeypatch.setattr(module, name, failing)
            with pytest.raises(OSError, match="here"):
                swap_layers(net, "numpy")
            monkeypatch.undo()
            assert types(net) == before
            assert not any("_swapped_from" in module.__dict__ for module in net.modules())


class Refusing(nn.ReLU):
    """A class whose attributes can't be set after construction."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise RuntimeError(f"{name} can't be set")


def test_a_class_that_refuses_every_change_is_swapped_and_restored() -> None:
    net = nn.Sequential(nn.ReLU(), nn.ReLU())
    with pytest.raises(TypeError, match="'1' can't become a Slotted"):
        swap_layers(net, {"0": Refusing, "1": Slotted})
    assert types(net) == [nn.Sequential, nn.ReLU, nn.ReLU]
    assert swap_layers(net, {"0": Refusing}).swapped == ["0"]
    assert swap_layers(net, "torch").changed == ["0"]


class LooksAtItself(Block):
    """Names of objects that are no functions, are not hashable, or do not exist."""

    def forward(self, x: Any) -> Any:
        names = [key for key in x.__dict__ if key in x.__annotations__ and x.__slots__]
        return nn.functional.relu(self.linear(x)).view(-1) + len(names) + x.__doc__.count(".") + nn.nowhere.nothing(x)  # type: ignore[attr-defined]


def test_a_method_may_read_any_attribute() -> None:
    net = nn.Sequential(LooksAtItself(), nn.ReLU())
    report = swap_layers(net, "numpy")
    assert report.swapped == ["0.linear", "1"]
    assert report.native == [("0", "its forward calls relu as a function, not as a layer")]


lazy = ModuleType("lazy")


class Lazy(Block):
    def forward(self, x: Tensor) -> Tensor:
        return lazy.ops.relu(self.linear(x))


def test_a_module_that_loads_its_parts_when_asked_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(lazy, "__getattr__", asked.append, raising=False)
    assert lazy.ops is None
    assert swap_layers(nn.Sequential(Lazy()), "numpy").swapped == ["0.linear"]
    assert asked == ["ops"]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0"])
def test_feature_extractors_are_swapped(name: str) -> None:
    torch.manual_seed(0)
    whole = build_net(name, image_size=32, num_classes=3).eval()
    nodes = get_graph_node_names(whole)[1]
    net = create_feature_extractor(whole, [nodes[len(nodes) // 2], nodes[-1]]).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(x)
        report = swap_layers(net, "numpy")
        found = net(x)
    assert {"Conv2d", "ReLU"} & {row.type for row in report.rows if row.implementation == "numpy"}
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)
    swap_layers(net.train(), "torch")
    assert not any("cnn_lightning" in type(module).__module__ for module in net.modules())


@pytest.mark.parametrize("net", [nn.Sequential(), nn.Sequential(nn.Tanhshrink()), StochasticDepth(0.1, "row")])
def test_a_network_with_nothing_to_swap(net: nn.Module) -> None:
    for spec in ("numpy", "torch"):
        with pytest.raises(ValueError, match="expected a network with a layer that can be swapped"):
            swap_layers(net, spec)


def test_subclasses_stay_native() -> None:
    net = nn.Sequential(Loud(), nn.ReLU())
    report = swap_layers(net, "numpy")
    reason = f"{__name__}.Loud is a subclass of ReLU and may compute something else"
    assert report.native == [("0", reason)]
    assert types(net) == [layers.Sequential, Loud, layers.ReLU]
    assert swap_layers(net, {"*": "numpy"}).swapped == ["1"]
    with pytest.raises(ValueError, match=rf"pattern '\[0\]' matches nothing that can be swapped: '0': {reason}"):
        swap_layers(net, {"[0]": "numpy"})
    assert swap_layers(net, {"0": "torch"}).swapped == ["1"]


def test_frozen_batch_norm_and_unknown_types_are_reported() -> None:
    report = swap_layers(nn.Sequential(FrozenBatchNorm2d(3), nn.Tanhshrink(), nn.ReLU()), "numpy")
    assert dict(report.native) == {
        "0": "there is no NumPy layer for torchvision.ops.misc.FrozenBatchNorm2d",
        "1": "there is no NumPy layer for Tanhshrink",
    }


def test_lazy_and_patched_layers_stay_native() -> None:
    lazy = nn.LazyLinear(3)
    patched = nn.ReLU()
    patched.forward = lambda input: input  # type: ignore[method-assign]
    report = swap_layers(nn.Sequential(lazy, patched, nn.ReLU()), "numpy")
    assert dict(report.native) == {
        "0": "it has no parameters yet (run one batch first)",
        "1": "its forward was replaced on the object itself",
    }


class Functional(nn.Module):
    """Every way to write a call, and names that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.body: Any = nn.ModuleDict({"tanh": nn.Tanh(), "fc": nn.Linear(3, 3)})
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.sigmoid(self.body.tanh(x)) + self.body["tanh"](x)
        x = functional.gelu(nn.functional.elu(torch.relu(mish(x)), 1.0))
        return self.normalised(self.body.fc(x).softmax(1))

    def normalised(self, x: Tensor) -> Tensor:
        return sum([(x + n).log_softmax(1).relu_() for n in range(2)], x)


def test_functional_calls_are_reported() -> None:
    net = Functional()
    report = swap_layers(net, "numpy")
    assert report.swapped == ["body.tanh", "body.fc", "sigmoid"]
    ((name, reason),) = report.native
    assert name == ""
    calls = reason.removeprefix("its forward calls ").removesuffix(" as a function, not as a layer").split(", ")
    assert sorted(calls) == ["elu", "gelu", "log_softmax", "mish", "relu", "relu_", "softmax"]
    net(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("name", "where", "function"),
    [
        ("densenet121", "features.denseblock1.denselayer1", "dropout"),
        ("googlenet", "aux1", "adaptive_avg_pool2d, relu"),
        ("inception_v3", "Mixed_5b", "avg_pool2d"),
        ("resnet18", None, ""),
    ],
)
def test_functional_calls_of_torchvision(name: str, where: str | None, function: str) -> None:
    with torch.device("meta"):
        report = swap_layers(build_net(name), "numpy")
    reasons = dict(report.native)
    if where is None:
        assert reasons == {}
    else:
        assert reasons[where] == f"its forward calls {function} as a function, not as a layer"


# ---- a class of one's own


def test_a_class_of_ones_own_and_back() -> None:
    net = small()
    expected = step(net)
    report = swap_layers(net, {"1": Loud})
    assert report.swapped == ["1"]
    assert report.rows[1].implementation == "Loud"
    assert type(net[1]) is Loud
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    for other in (net, twin):
        assert native_type(other[1]) is nn.ReLU
        assert swap_layers(other, "numpy").changed == ["0", "1", "2", "3"]
        assert type(other[1]) is layers.ReLU
        swap_layers(other, {"1": f"{__name__}.Loud"})
        assert swap_layers(other, "torch").swapped == []
        assert types(other) == types(small())
        assert_same(step(other), expected, 0)


def test_a_type_may_stand_for_its_layers() -> None:
    net = nn.Sequential(small(), nn.ReLU(), Loud())
    assert swap_layers(net, {nn.ReLU: Loud}).changed == ["0.1", "1"]
    assert swap_layers(net, {layers.ReLU: "numpy"}).changed == ["0.1", "1"]
    assert types(net)[-2:] == [layers.ReLU, Loud]


def test_a_container_may_get_a_class_made_for_it() -> None:
    net = nn.Sequential(Block(), Block())
    report = swap_layers(net, {"0": LoudBlock, "*.linear": "numpy"})
    assert report.swapped == ["0", "0.linear", "1.linear"]
    assert [type(block) for block in net] == [LoudBlock, Block]
    swap_layers(net, {Block: "torch", "*": "torch"})
    assert [type(block) for block in net] == [Block, Block]


# ---- hooks, optimizers and all else that refers to the objects


def test_shared_modules_have_every_name() -> None:
    relu = nn.ReLU()
    net = nn.ModuleDict({"a": relu, "b": relu, "c": nn.Linear(2, 2)})
    assert swap_layers(net, {"b": "numpy"}).swapped == ["a", "b"]
    assert net["a"] is net["b"]
    assert swap_layers(net, {"c": "numpy", "a": "torch", "*": "numpy"}).swapped == ["c"]


def test_a_shared_module_gathers_the_gradients_of_all_its_calls() -> None:
    conv, relu = nn.Conv2d(1, 1, 3, padding=1), nn.ReLU()
    net = nn.Sequential(conv, relu, conv, relu, nn.Flatten()).double()
    expected = step(net)
    assert swap_layers(net, {"2": "numpy", "3": "numpy"}).swapped == ["0", "2", "1", "3"]
    assert net[0] is net[2]
    assert len(list(net.parameters())) == 2
    assert_same(step(net), expected)


def test_tied_and_frozen_parameters() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).double()
    net[3].weight = net[1].weight
    net[1].bias.requires_grad_(False)
    expected = step(net)
    for spec in ("numpy", {"1": "torch"}, "torch", "numpy"):
        swap_layers(net, spec)
        assert net[3].weight is net[1].weight
        assert [p.requires_grad for p in net.parameters()] == [True, False, True]
        assert_same(step(net), expected)
        assert net[1].bias.grad is None
    net.requires_grad_(False)
    assert not net(images()).requires_grad


def test_a_frozen_layer_computes_no_gradient_of_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, ...]] = []
    original = linear.linear_backward

    def backward(*arrays: Any, needs: tuple[bool, ...], **options: Any) -> Any:
        asked.append(tuple(needs))
        return original(*arrays, **options)

    monkeypatch.setattr(linear, "linear_backward", backward)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 5)).double()
    net[2].weight.requires_grad_(False)
    swap_layers(net, "numpy")
    step(net)
    assert asked == [(True, False, True), (False, True, True)]


def hooked(net: Any) -> list[str]:
    """Hooks of every kind on the convolution; some change what passes through it."""
    seen: list[str] = []

    def log(name: str, change: Any = None) -> Any:
        def hook(*arguments: Any) -> Any:
            seen.append(name)
            return None if change is None else change(arguments)

        return hook

    net[0].register_forward_pre_hook(log("before", lambda a: (a[1][0] + 1,)))
    net[0].register_forward_hook(log("after", lambda a: a[2] * 3))
    net[0].register_full_backward_pre_hook(log("backward", lambda a: (a[1][0] * 0.5,)))
    net[0].register_full_backward_hook(log("backward done", lambda a: (None if a[1][0] is None else a[1][0] * 7,)))
    net[0].weight.register_hook(log("weight", lambda a: a[0] * 11))
    return seen


@pytest.mark.parametrize("when", ["before the swap", "after it", "and back"])
def test_hooks_stay(when: str) -> None:
    expected_net, net = small(), small()
    hooked(expected_net)
    if when == "after it":
        swap_layers(net, "numpy")
    seen = hooked(net)
    swap_layers(net, "numpy")
    if when == "and back":
        swap_layers(net, "torch")
    found: list[Any] = []
    expected: list[Any] = []
    for each, result in ((net, found), (expected_net, expected)):
        x = images().requires_grad_()
        output = each(x)
        output.square().sum().backward()
        result += [output.detach(), x.grad, *(p.grad for p in each.parameters())]
    assert_same(found, expected)
    assert sorted(seen) == ["after", "backward", "backward done", "before", "weight"]


def test_swapping_nested_networks_again_and_again() -> None:
    inner = small()
    outer = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    net = nn.Sequential(inner, outer).double()
    expected = step(net)
    swap_layers(outer[1], "numpy")
    assert swap_layers(net, {"0.0": "numpy"}).swapped == ["0.0", "1.1.0", "1.1.1"]
    assert_same(step(net), expected)
    for spec in (
        {"1.*": "torch", "*": "numpy"},
        {"*.1.*": "numpy"},
        {"1.1.0": Loud},
        "numpy",
        "numpy",
        {"0.*": "torch"},
    ):
        swap_layers(net, spec)
        if Loud not in types(net):
            assert_same(step(net), expected)
    assert swap_layers(inner, "numpy").changed == ["0", "1", "2", "3"]
    assert swap_layers(net, "torch").swapped == []
    assert_same(step(net), expected, 0)


def test_an_optimizer_goes_on() -> None:
    def train(swap: bool) -> list[Tensor]:
        net = small()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        for spec in ("numpy", {"1": "torch"}, "torch", "numpy"):
            if swap:
                swap_layers(net, spec)
            optimizer.zero_grad()
            net(images()).square().sum().backward()
            optimizer.step()
        return list(net.state_dict().values())

    assert_same(train(True), train(False), 1e-9)


def test_training_mode_stays() -> None:
    net = small()
    net[1].eval()
    swap_layers(net, "numpy")
    assert [layer.training for layer in net] == [True, False, True, True]


PARAMETRIZED = [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]


@pytest.mark.parametrize("parametrized", PARAMETRIZED)
def test_parametrized_layers_are_left_alone(parametrized: Any) -> None:
    net = small()
    parametrized(net[0])
    twin = copy.deepcopy(net)  # spectral_norm keeps vectors, which each step improves
    report = swap_layers(net, "numpy")
    assert report.swapped == ["1", "2", "3"]
    ((name, reason),) = report.native
    assert name == "0"
    assert reason.startswith("its weight is parametrized")
    assert_same(step(net), step(twin))
    with pytest.raises(ValueError, match="'0' matches nothing that can be swapped: '0': its weight is parametrized"):
        swap_layers(net, {"0": "numpy"})
    parametrize.remove_parametrizations(net[0], "weight")
    assert swap_layers(net, "numpy").swapped == ["0", "1", "2", "3"]


@pytest.mark.parametrize("parametrized", PARAMETRIZED)
def test_parametrized_after_the_swap(parametrized: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net, twin = small(), small()
    swap_layers(net, "numpy")
    for each in (net, twin):
        torch.manual_seed(0)
        parametrized(each[0])
    calls: list[int] = []
    original = conv.conv2d

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return original(*args, **options)

    monkeypatch.setattr(conv, "conv2d", counted)
    assert_same(step(net), step(twin))
    assert calls
    assert swap_layers(net, "numpy").swapped == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="'0' can't be swapped back: its weight is parametrized"):
        swap_layers(net, "torch")
    assert type(net[1]) is layers.ReLU
    parametrize.remove_parametrizations(net[0], "weight")
    swap_layers(net, "torch")
    assert types(net) == types(small())


@pytest.mark.parametrize("normalised", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_normalised_by_hooks(normalised: Any) -> None:
    net, twin = small(), small()
    for each in (net, twin):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            normalised(each[0])
    assert swap_layers(net, "numpy").swapped == ["0", "1", "2", "3"]
    assert_same(step(net), step(twin))


def test_networks_in_data_parallel_go_on(tmp_path: Path) -> None:
    """Between steps, before and after the first one, when the buckets of gradients are there."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        net, twin = DistributedDataParallel(small()), small()
        optimizers = [torch.optim.SGD(each.parameters(), 0.01, 0.9) for each in (net, twin)]
        for spec, swapped in (
            ({"module.0": "numpy", "1": "numpy"}, ["0", "1"]),
            ("torch", []),
            ("numpy", ["0", "1", "2", "3"]),
            ({"module.3": "torch"}, ["0", "1", "2"]),
        ):
            assert swap_layers(net, spec).swapped == swapped
            assert_same(step(net), step(twin))
            for optimizer in optimizers:
                optimizer.step()
        assert swap_layers(net.module, "torch").changed == ["0", "1", "2"]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("how", ["torch.compile", "net.compile"])
def test_compiled_networks_are_compiled_again(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = activation.relu

    def relu(x: Any) -> Any:
        calls.append(1)
        return original(x)

    monkeypatch.setattr(activation, "relu", relu)
    torch._dynamo.reset()
    net = small()
    expected = step(net)
    compiled: Any = torch.compile(net, backend="aot_eager") if how == "torch.compile" else net
    if compiled is net:
        net.compile(backend="aot_eager")
    for spec in ("torch", "numpy", {"1": "torch"}, {"1": "numpy"}):
        report = swap_layers(compiled, spec)
        calls.clear()
        assert_same(step(compiled), expected)
        assert bool(calls) == ("1" in report.swapped)
    assert swap_layers(nn.Sequential(compiled), {"0.1": "torch"}).changed == ["0.1"]
