import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from cnn_lightning import layers
from cnn_lightning.ops import activation
from cnn_lightning.swap import LAYERS, native_type, swap_layers


def small() -> nn.Sequential:
    """A convolution, a ReLU, and a linear layer, with the names 0, 1, 3."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)).double()


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"conv1": nn.Conv2d(1, 3, 3), "relu1": nn.ReLU(), "conv2": nn.Conv2d(3, 2, 3)})
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
    assert types(net) == [nn.Sequential, layers.Conv2d, layers.ReLU, layers.Flatten, layers.Linear]
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
    assert text.splitlines()[0] == "layers: 4 numpy, 3 torch"
    assert "  0.0       Conv2d           numpy" in text.splitlines()
    assert "there is no NumPy layer for StochasticDepth" in text
    assert "its forward calls relu as a function, not as a layer" in text


def test_every_layer_stands_in_the_table_once() -> None:
    assert len(LAYERS) == len(set(LAYERS.values()))
    for native, ours in LAYERS.items():
        assert issubclass(ours, native)
        assert ours.__name__ == native.__name__
        assert "forward" in vars(ours)


# ---- what can't be done, and leaves nothing half done


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


@pytest.mark.parametrize("net", [nn.Sequential(), nn.Sequential(nn.Softsign()), StochasticDepth(0.1, "row")])
def test_a_network_with_nothing_to_swap(net: nn.Module) -> None:
    for spec in ("numpy", "torch"):
        with pytest.raises(ValueError, match="expected a network with a layer that can be swapped"):
            swap_layers(net, spec)


def test_subclasses_stay_native() -> None:
    net = nn.Sequential(Loud(), nn.ReLU())
    report = swap_layers(net, "numpy")
    assert report.native == [("0", "Loud is a subclass of ReLU and may compute something else")]
    assert types(net) == [nn.Sequential, Loud, layers.ReLU]
    assert swap_layers(net, {"*": "numpy"}).swapped == ["1"]
    with pytest.raises(ValueError, match="pattern '0' matches nothing that can be swapped: '0': Loud is a subclass"):
        swap_layers(net, {"0": "numpy"})
    assert swap_layers(net, {"0": "torch"}).swapped == ["1"]


def test_frozen_batch_norm_and_unknown_types_are_reported() -> None:
    report = swap_layers(nn.Sequential(FrozenBatchNorm2d(3), nn.Softsign(), nn.ReLU()), "numpy")
    assert dict(report.native) == {
        "0": "there is no NumPy layer for FrozenBatchNorm2d",
        "1": "there is no NumPy layer for Softsign",
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


# ---- whatever is tied to the objects


def test_shared_modules_have_every_name() -> None:
    relu = nn.ReLU()
    net = nn.ModuleDict({"a": relu, "b": relu, "c": nn.Linear(2, 2)})
    assert swap_layers(net, {"b": "numpy"}).swapped == ["a", "b"]
    assert net["a"] is net["b"]
    assert swap_layers(net, {"c": "numpy", "a": "torch", "*": "numpy"}).swapped == ["c"]


def test_tied_and_frozen_parameters() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    swap_layers(net, "numpy")
    assert net[2].weight is net[0].weight
    net(torch.randn(3, 4)).sum().backward()
    assert net[0].bias.grad is None
    assert net[0].weight.grad is not None


def test_hooks_stay() -> None:
    net = small()
    seen: list[str] = []
    net[0].register_forward_pre_hook(lambda *_: seen.append("pre"))
    net[0].register_forward_hook(lambda *_: seen.append("forward"))
    net[0].register_full_backward_hook(lambda *_: seen.append("backward"))
    swap_layers(net, "numpy")
    net(images().requires_grad_()).sum().backward()
    assert seen == ["pre", "forward", "backward"]


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


def test_parametrized_layers_are_left_alone() -> None:
    net = small()
    parametrizations.weight_norm(net[0])
    expected = step(net)
    report = swap_layers(net, "numpy")
    assert report.swapped == ["1", "2", "3"]
    ((name, reason),) = report.native
    assert name == "0"
    assert reason.startswith("its weight is parametrized")
    assert_same(step(net), expected)
    with pytest.raises(ValueError, match="'0' matches nothing that can be swapped: '0': its weight is parametrized"):
        swap_layers(net, {"0": "numpy"})
    parametrize.remove_parametrizations(net[0], "weight")
    assert swap_layers(net, "numpy").swapped == ["0", "1", "2", "3"]


def test_parametrized_after_the_swap() -> None:
    net = small()
    swap_layers(net, "numpy")
    parametrizations.spectral_norm(net[0])
    step(net)
    assert swap_layers(net, "numpy").swapped == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="'0' can't be swapped back: its weight is parametrized"):
        swap_layers(net, "torch")
    assert type(net[1]) is layers.ReLU
    parametrize.remove_parametrizations(net[0], "weight")
    swap_layers(net, "torch")
    assert types(net) == types(small())


def test_weight_norm_by_hooks() -> None:
    net = small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(net[0])
    expected = step(net)
    swap_layers(net, "numpy")
    assert_same(step(net), expected)


def test_names_inside_wrappers(tmp_path: object) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        net = DistributedDataParallel(small())
        assert swap_layers(net, {"module.0": "numpy", "1": "numpy"}).swapped == ["0", "1"]
        step(net)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("how", ["torch.compile", "net.compile"])
def test_compiled_networks_are_compiled_again(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = activation.relu

    def relu(x: object) -> object:
        calls.append(1)
        return original(x)

    monkeypatch.setattr(activation, "relu", relu)
    torch._dynamo.reset()
    net = small()
    expected = net(images())
    compiled = torch.compile(net, backend="aot_eager") if how == "torch.compile" else net
    if compiled is net:
        net.compile(backend="aot_eager")
    for spec in ("torch", "numpy", {"1": "torch"}, {"1": "numpy"}):
        report = swap_layers(compiled, spec)
        calls.clear()
        torch.testing.assert_close(compiled(images()), expected)
        assert bool(calls) == ("1" in report.swapped)
    assert swap_layers(nn.Sequential(compiled), {"0.1": "torch"}).changed == ["0.1"]
