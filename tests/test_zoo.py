"""torchvision's convolutional networks in NumPy: outputs, every gradient, and buffers equal the native ones."""

import re
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cnn_lightning import classifier
from cnn_lightning.cli import main
from cnn_lightning.model import AUXILIARY, least_image_size, total_loss
from cnn_lightning.ops import conv, linear, norm
from cnn_lightning.swap import LAYERS, swap_layers
from cnn_lightning.swap.arithmetic import is_without_arithmetic
from tests import zoo
from tests.stand_ins import write_cifar10, write_idx_set

ALL = [
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if not name.startswith(("vit", "swin", "maxvit"))
]
FIRST = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "vgg11_bn",
]
CLASSES = 5
TOLERANCE = 1e-6
WIDE, NARROW = 4096, 64
"""AlexNet and VGG have linear layers of 100 million weights; the default run makes them 64 wide."""
SIZES = {"inception_v3": 299}  # for a smaller picture its auxiliary head has no input

Found = dict[str, Tensor]


def build(name: str, *, narrow: bool) -> nn.Module:
    """The network in float64 with numbers that reach every layer: fresh running statistics would be 0 and 1."""
    torch.manual_seed(0)
    if narrow and name.startswith(("alexnet", "vgg")):
        net = narrowed(name)
    else:
        options = {"init_weights": False} if name in AUXILIARY else {}
        net = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)
    return with_statistics(net.double())


def with_statistics(net: nn.Module) -> nn.Module:
    """The network with random running statistics."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            mean, variance = module.running_mean, module.running_var
            assert mean is not None
            assert variance is not None
            mean.normal_(0, 0.1)
            variance.uniform_(0.5, 1.5)
    return net


def narrowed(name: str) -> nn.Module:
    """The network with its hidden linear layers made narrow before any number of the wide ones is drawn."""
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
        for key, module in list(net.named_modules()):
            if isinstance(module, nn.Linear):
                inside, outside = (
                    NARROW if size == WIDE else size for size in (module.in_features, module.out_features)
                )
                net.set_submodule(key, nn.Linear(inside, outside))
    net.to_empty(device="cpu")
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            module.reset_parameters()
    return net


def digest(x: Tensor) -> Tensor:
    """All numbers of a tensor or, of a large one (vgg's 100 million weights), sums in which none is left out."""
    if x.numel() <= 2**20:
        return x.clone()
    return torch.cat([x.flatten()[::1009], x.flatten(1).sum(0), x.flatten(1).sum(1)])


def run(net: nn.Module, x: Tensor, found: Found, stage: str) -> None:
    """Add outputs and gradients of one pass."""
    torch.manual_seed(1)
    net.zero_grad()
    x = x.clone().requires_grad_()
    outputs = net(x)
    loss, _ = total_loss(net, nn.functional.cross_entropy, outputs, torch.arange(len(x)) % CLASSES)
    loss.backward()
    if stage == "train":
        assert all(p.grad is not None for p in net.parameters())
    for index, output in enumerate([outputs] if isinstance(outputs, Tensor) else outputs):
        found[f"{stage} output {index}"] = output.detach()
    assert x.grad is not None
    found[f"{stage} gradient of the images"] = x.grad
    found.update(
        {f"{stage} gradient of {key}": digest(p.grad) for key, p in net.named_parameters() if p.grad is not None}
    )


def record(net: Any, x: Tensor) -> Found:
    """A training pass, and one in evaluation mode with the statistics it left behind."""
    found: Found = {}
    net.auxiliary_weights = (0.3, 0.3)
    run(net.train(), x, found, "train")
    found.update({f"buffer {key}": value.clone() for key, value in net.named_buffers()})
    run(net.eval(), x, found, "eval")
    return found


def assert_equal(found: Found, expected: Found) -> None:
    """Relative to each tensor's largest number.

    A bias before a normalisation has gradient zero and is all rounding, so nothing counts below 1e-8 of the largest.
    """
    assert list(found) == list(expected)
    largest = max(value.abs().max().item() for key, value in expected.items() if "gradient" in key)
    worst = {}
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert found[key].shape == value.shape
        floor = 1e-8 * largest if "gradient" in key else 1e-300
        scale = max(value.abs().max().item(), floor)
        worst[key] = (found[key].double() - value.double()).abs().max().item() / scale
    bad = {key: error for key, error in worst.items() if not error <= TOLERANCE}
    assert not bad, str(bad)  # whole: older pytest cuts it


def check(name: str, *, narrow: bool = False) -> None:
    net = build(name, narrow=narrow)
    # A map of one pixel would leave a batch normalisation two numbers to normalise: ±1 whatever they are.
    size = SIZES.get(name) or max(64, least_image_size(name))
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    buffers = {key: value.clone() for key, value in net.named_buffers()}
    expected = record(net, x)
    for key, value in net.named_buffers():
        value.copy_(buffers[key])
    swap_layers(net, "numpy")
    for layer_name, module in net.named_modules():
        if next(module.children(), None) is None and not isinstance(module, nn.Sequential):
            known = type(module) in LAYERS.values() or is_without_arithmetic(type(module))
            assert known, f"{layer_name} is still a {type(module)}"
    assert_equal(record(net, x), expected)


def test_there_are_68_networks() -> None:
    assert len(ALL) == 68
    assert set(FIRST) < set(ALL)


@pytest.mark.parametrize("name", FIRST)
def test_equals_the_native_network(name: str) -> None:
    check(name, narrow=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in ALL if name not in FIRST or name in ("alexnet", "vgg11_bn")])
def test_equals_the_native_network_too(name: str) -> None:
    check(name)


# ---- layers of a network's own, treated as their base


@pytest.mark.parametrize(
    ("name", "own", "left"),
    [
        ("convnext_atto", ["LayerNorm2d", "activations.GELU"], set()),
        ("mobilenetv3_small_100", ["BatchNormAct2d", "Linear"], {"SqueezeExcite"}),
        pytest.param("resnetv2_50x1_bit", ["StdConv2d", "GroupNormAct"], {"ConstantPad2d"}, marks=pytest.mark.slow),
        pytest.param("tf_efficientnet_b0", ["BatchNormAct2d", "Conv2dSame"], {"SqueezeExcite"}, marks=pytest.mark.slow),
    ],
)
def test_timm_networks_equal_the_native_ones(name: str, own: list[str], left: set[str]) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = with_statistics(timm.create_model(name, num_classes=CLASSES, drop_rate=0.0, drop_path_rate=0.0).double())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    buffers = {key: value.clone() for key, value in net.named_buffers()}
    expected = record(net, x)
    for key, value in net.named_buffers():
        value.copy_(buffers[key])
    report = swap_layers(net, {**{f"timm.layers.{kind}": "numpy" for kind in own}, "*": "numpy"}, verify=x)
    assert report.difference is not None
    assert report.difference < 1e-9
    assert {row.type.rpartition(".")[2] for row in report.rows if row.implementation == "torch"} <= left
    assert_equal(record(net, x), expected)


# ---- from the command line


def fit(root: Path, *args: str) -> int:
    write_cifar10(root, 4)
    write_idx_set(root, "MNIST")
    options = {"--data.root": str(root), "--data.batch_size": "4", "--trainer.fast_dev_run": "true"}
    flags = [word for pair in options.items() for word in pair]
    return main(["fit", *args, "--model.layers", "numpy", *flags, "--trainer.enable_progress_bar", "false"])


def test_fit_reports_what_runs_each_layer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(tmp_path, "--model.net", "resnet18", "--data", "CIFAR10") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("resnet18: 11,181,642 parameters to train, ")
    assert lines[1] == "layers: 53 numpy, fast"
    assert lines[2].startswith("memory: ")


def test_fit_with_grey_images_and_auxiliary_heads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights, losses = [], []

    def watched(net: nn.Module, loss: nn.Module, outputs: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        total, logits = total_loss(net, loss, outputs, target)
        if net.training:
            weights.append(net.auxiliary_weights)
            main, aux2, aux1 = (loss(output, target) for output in outputs)
            losses.append((total.item(), (main + 0.3 * aux2 + 0.3 * aux1).item()))
        return total, logits

    monkeypatch.setattr(classifier.module, "total_loss", watched)
    assert fit(tmp_path, "--model.net", "googlenet", "--data", "MNIST") == 0
    assert weights == [(0.3, 0.3)]
    assert losses[0][0] == pytest.approx(losses[0][1])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "layers: 61 torch, 141 numpy"
    reason = "its forward calls adaptive_avg_pool2d, relu as a function, not as a layer"
    assert f"2 InceptionAux (aux1, aux2): torch {reason}" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize(
    ("net", "data", "least", "size"),
    [
        ("alexnet", "CIFAR10", 63, 32),
        ("vgg11", "MNIST", 32, 28),
    ],
)
def test_fit_refuses_images_that_are_too_small(
    net: str, data: str, least: int, size: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert fit(tmp_path, "--model.net", net, "--data", data) == 2
    assert capsys.readouterr().err == (
        f"cnn-lightning: error: model.image_size: {net} needs images of at least {least} pixels, got {size}\n"
    )


# ---- these tests can fail


@pytest.mark.parametrize(
    ("home", "function", "index", "what"),
    [
        (linear, "linear", 0, "train output 0"),
        (conv, "conv2d_backward", 0, "gradient of the images"),
        (conv, "conv2d_backward", 1, "conv.weight"),
        (norm, "batch_norm_backward", 2, "bn.bias"),
        (norm, "batch_norm", 2, "bn.running_var"),
    ],
)
def test_an_error_of_thirty_millionths_is_seen(
    home: ModuleType, function: str, index: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        parts = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "flatten": nn.Flatten(), "fc": nn.Linear(144, 5)}
        return nn.Sequential(OrderedDict(parts)).double()

    original = getattr(home, function)

    def wrong(*arrays: Any, **options: Any) -> Any:
        results = original(*arrays, **options)
        if not isinstance(results, tuple):
            return results * (1 + 3e-5)
        return tuple(result * (1 + 3e-5) if i == index else result for i, result in enumerate(results))

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = record(net(), x)
    swapped = net()
    swap_layers(swapped, "numpy")
    assert_equal(record(swapped, x), expected)
    monkeypatch.setattr(home, function, wrong)
    swapped = net()
    swap_layers(swapped, "numpy")
    with pytest.raises(AssertionError, match=what):
        assert_equal(record(swapped, x), expected)


def test_a_layer_left_native_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(LAYERS, nn.AdaptiveAvgPool2d)
    with pytest.raises(AssertionError, match=r"classifier.3 is still a .*AdaptiveAvgPool2d"):
        check("squeezenet1_1")


# ---- networks of all tasks, by layers and by operators


NETWORKS = {f"{each.group} {each.name}": each for each in zoo.torchvision_networks()}
USUAL = ["classification mobilenet_v3_small", "classification shufflenet_v2_x0_5"]


def assert_all_in_numpy(network: zoo.Network) -> None:
    row = zoo.measured(network)
    assert not row.error
    assert row.share == 1
    assert row.is_large or (row.swapped < 1e-8 and row.functions < 1e-8)


@pytest.mark.parametrize("name", USUAL)
def test_a_network_is_computed_by_layers_and_by_operators(name: str) -> None:
    assert_all_in_numpy(NETWORKS[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("optical flow")])
def test_every_network_is_computed_by_layers_and_by_operators(name: str) -> None:
    """RAFT makes tensors of float32 itself, so it does not run in float64."""
    assert_all_in_numpy(NETWORKS[name])


def test_the_script_prints_a_line_and_a_sum(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["zoo", "torchvision", "--only", "squeezenet1_1"])
    zoo.main()
    line, total = capsys.readouterr().out.splitlines()
    assert re.search(r"squeezenet1_1 .* 0 leaves by torch, .* 100 % of FLOPs", line)
    assert total.startswith("classification: 1 of 1 with every leaf in NumPy; 1 with 99.9 % of FLOPs by functions")


def test_the_measure_sees_what_is_not_numpy() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fold, self.linear = nn.LSTM(3, 4), nn.Fold((2, 2), 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Any:
            return self.linear(self.fold(self.lstm(x)[0].reshape(1, 4, -1)[:, :, :1]))

    x = torch.randn(2, 5, 3, dtype=torch.float64)
    row = zoo.measured(zoo.Network("mine", "net", Net, lambda: (x,)))
    assert [each.split(":")[0] for each in row.native] == ["lstm", "fold"]
    assert not row.is_whole
