"""torchvision's convolutional networks in NumPy: outputs, every gradient, and buffers equal the native ones."""

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import Permute, StochasticDepth

from cnn_lightning.model import AUXILIARY, least_image_size, total_loss
from cnn_lightning.swap import LAYERS, swap_layers

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

Found = dict[str, Tensor]


def build(name: str) -> nn.Module:
    """The network in float64 with numbers that reach every layer: fresh running statistics would be 0 and 1."""
    torch.manual_seed(0)
    options = {"init_weights": False} if name in AUXILIARY else {}
    net = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
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
    for index, output in enumerate([outputs] if isinstance(outputs, Tensor) else outputs):
        found[f"{stage} output {index}"] = output.detach()
    found[f"{stage} gradient of the images"] = x.grad
    found.update(
        {f"{stage} gradient of {key}": digest(p.grad) for key, p in net.named_parameters() if p.grad is not None}
    )


def record(net: nn.Module, x: Tensor) -> Found:
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
    assert not bad


def check(name: str) -> None:
    net = build(name)
    # A map of one pixel would leave a batch normalisation two numbers to normalise: ±1 whatever they are.
    size = max(64, least_image_size(name))
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    buffers = {key: value.clone() for key, value in net.named_buffers()}
    expected = record(net, x)
    net.load_state_dict(buffers, strict=False)
    swap_layers(net, "numpy")
    for layer_name, module in net.named_modules():
        if next(module.children(), None) is None and not isinstance(module, StochasticDepth | Permute | nn.Sequential):
            assert type(module) in LAYERS.values(), f"{layer_name} is still a {type(module)}"
    assert_equal(record(net, x), expected)


def test_there_are_68_networks() -> None:
    assert len(ALL) == 68
    assert set(FIRST) < set(ALL)


@pytest.mark.parametrize("name", FIRST)
def test_equals_the_native_network(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in ALL if name not in FIRST])
def test_equals_the_native_network_too(name: str) -> None:
    check(name)
