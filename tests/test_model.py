import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cnn_lightning.model import SimpleCNN, build_net, least_image_size, net_names, total_loss


def names(net: nn.Module) -> list[str]:
    return [name for name, _ in net.named_children()]


# ---- SimpleCNN


def test_layers_have_names_a_person_can_address() -> None:
    assert names(SimpleCNN()) == (
        "conv1 relu1 pool1 conv2 relu2 pool2 flatten linear1 relu3 linear2".split()  # noqa: SIM905
    )
    assert names(SimpleCNN(channels=(2, 3, 4)))[-4:] == ["flatten", "linear1", "relu4", "linear2"]
    assert all(type(layer).__module__.startswith("torch.nn") for layer in SimpleCNN().children())


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 1, 28, 28)),
        ({"in_channels": 3, "image_size": 32, "num_classes": 7}, (2, 3, 32, 32)),
        ({"image_size": 9, "channels": [4], "hidden": 5}, (1, 1, 9, 9)),
        ({"image_size": 8, "channels": (2, 3, 4)}, (0, 1, 8, 8)),
    ],
)
def test_images_to_logits(options: dict[str, object], shape: tuple[int, ...]) -> None:
    net = SimpleCNN(**options)  # type: ignore[arg-type]
    assert net(torch.zeros(shape)).shape == (shape[0], options.get("num_classes", 10))


def test_equals_the_layers_one_by_one() -> None:
    net, x = SimpleCNN(), torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(net(x), nn.Sequential(*net.children())(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 3}, "image_size: expected at least 4 for 2 poolings by 2, got 3"),
        ({"image_size": 15, "channels": (1, 1, 1, 1)}, "expected at least 16 for 4 poolings"),
        ({"channels": ()}, r"channels: expected at least one number of channels, such as \(16, 32\), got \(\)"),
        ({"channels": 16}, "channels: expected at least one number of channels"),
        ({"channels": "16"}, "channels: expected at least one number of channels"),
        ({"channels": (16, 0)}, "channels: expected a whole number of at least 1, got 0"),
        ({"channels": (16, 1.5)}, "channels: expected a whole number of at least 1, got 1.5"),
        ({"hidden": -1}, "hidden: expected a whole number of at least 1, got -1"),
        ({"in_channels": 0}, "in_channels: expected"),
        ({"num_classes": 0}, "num_classes: expected"),
        ({"image_size": 28.0}, "image_size: expected a whole number of at least 1, got 28.0"),
    ],
)
def test_bad_arguments_are_one_line(options: dict[str, object], message: str) -> None:
    for build in (SimpleCNN, build_net):
        with pytest.raises(ValueError, match=message) as error:
            build(**options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


# ---- build_net


def test_simple_cnn_by_name() -> None:
    for name in ("simple_cnn", "SimpleCNN", "Simple-CNN"):
        net = build_net(name, num_classes=3, in_channels=2, image_size=8, channels=(4,), hidden=5)
        assert repr(net) == repr(SimpleCNN(2, 8, 3, (4,), 5))
    assert repr(build_net()) == repr(SimpleCNN())


def test_every_network_of_torchvision_by_name() -> None:
    assert net_names()[0] == "simple_cnn"
    assert len(net_names()) == 1 + len(torchvision.models.list_models(module=torchvision.models))
    assert isinstance(build_net("ResNet18"), torchvision.models.ResNet)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "net: unknown network 'resnet19'; close to it: resnet18"),
        ("", "unknown network ''; close to it: simple_cnn"),
        ("raft_large", "unknown network 'raft_large'"),
        (18, "expected the name of a network, such as 'simple_cnn' or 'resnet18', got 18"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build_net(name)
    assert "\n" not in str(error.value)


NETS = [
    ("resnet18", 32, 1),
    ("squeezenet1_1", 17, 2),
    ("densenet121", 29, 1),
    ("mobilenet_v3_small", 32, 4),
    ("alexnet", 63, 3),
    ("googlenet", 32, 1),
    ("inception_v3", 75, 1),
    ("vit_b_16", 32, 1),
    ("swin_t", 32, 1),
]


@pytest.mark.parametrize(("name", "size", "channels"), NETS)
def test_classes_channels_and_sizes(name: str, size: int, channels: int) -> None:
    net = build_net(name, num_classes=7, in_channels=channels, image_size=size).eval()
    assert net(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("alexnet", 32, "image_size: alexnet needs images of at least 63 pixels, got 32"),
        ("inception_v3", 64, "image_size: inception_v3 needs images of at least 75 pixels, got 64"),
        ("vit_b_16", 15, "vit_b_16 needs images of at least 16 pixels, got 15"),
        ("vit_b_16", 50, "vit_b_16 cuts images into equal windows: expected 64, say, got 50"),
    ],
)
def test_images_that_do_not_fit(name: str, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build_net(name, image_size=size)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "size"), [("alexnet", 63), ("squeezenet1_1", 17), ("densenet121", 29)])
def test_the_least_size_is_the_least(name: str, size: int) -> None:
    assert least_image_size(name) == size
    net = torchvision.models.get_model(name, weights=None).train()
    net(torch.zeros(2, 3, size, size))
    with pytest.raises(RuntimeError):
        net(torch.zeros(2, 3, size - 1, size - 1))


def test_first_convolution_keeps_the_scale() -> None:
    torch.manual_seed(0)
    colour, grey = build_net("resnet18"), build_net("resnet18", in_channels=1)
    assert grey.conv1.weight.shape == (64, 1, 7, 7)  # type: ignore[union-attr]
    ratio = grey.conv1.weight.std() / colour.conv1.weight.std()  # type: ignore[union-attr, operator]
    assert ratio.item() == pytest.approx(3**0.5, rel=0.1)


# ---- auxiliary heads


def test_auxiliary_outputs_are_weighted() -> None:
    net = build_net("googlenet", num_classes=3, image_size=32)
    assert net.auxiliary_weights == (0.3, 0.3)
    outputs = net(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    target = torch.tensor([0, 2])
    loss, logits = total_loss(net, nn.functional.cross_entropy, outputs, target)
    parts = [nn.functional.cross_entropy(output, target) for output in outputs]
    torch.testing.assert_close(loss, parts[0] + 0.3 * parts[1] + 0.3 * parts[2])
    assert logits is outputs[0]


def test_plain_outputs_are_the_logits() -> None:
    logits = torch.zeros(2, 3)
    loss, same = total_loss(nn.Identity(), nn.functional.cross_entropy, logits, torch.tensor([0, 2]))
    assert same is logits
    assert loss.item() == pytest.approx(1.0986, abs=1e-4)


def test_inception_drops_its_head_only_for_small_images() -> None:
    with torch.device("meta"):
        small, large = (build_net("inception_v3", image_size=size) for size in (75, 299))
    assert small.auxiliary_weights == ()
    assert small.AuxLogits is None
    assert large.auxiliary_weights == (0.4,)
    assert large.AuxLogits is not None


# ---- pretrained weights, from a state dict of our own instead of the net


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every pretrained weight is what a fresh network has; nothing is fetched."""
    urls: list[str] = []

    def state(self: torchvision.models.WeightsEnum, **_: object) -> dict[str, Tensor]:
        urls.append(self.url)
        name = type(self).__name__.removesuffix("_Weights").lower()
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        torch.manual_seed(7)
        return torchvision.models.get_model(name, weights=None, **options).state_dict()

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", state)
    return urls


def heads(net: nn.Module, outputs: int) -> list[str]:
    return [
        name
        for name, module in net.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", 0)) == outputs
    ]


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("resnet18", ["fc"]),
        ("squeezenet1_1", ["classifier.1"]),
        ("googlenet", ["aux1.fc2", "aux2.fc2", "fc"]),
    ],
)
def test_the_head_of_a_pretrained_network_is_replaced(fetched: list[str], name: str, where: list[str]) -> None:
    net = build_net(name, num_classes=7, weights="IMAGENET1K_V1")
    assert len(fetched) == 1
    assert heads(net, 7) == where
    assert heads(net, 1000) == []
    outputs = net.eval()(torch.zeros(2, 3, 64, 64))
    assert outputs.shape == (2, 7)


def test_pretrained_weights_stay_where_they_fit(fetched: list[str]) -> None:
    full, grey = (build_net("resnet18", num_classes=1000, weights="DEFAULT", in_channels=c).eval() for c in (3, 1))
    x = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(grey(x), full(x.expand(2, 3, 64, 64)), rtol=1e-3, atol=1e-3)


def test_bad_weights() -> None:
    with pytest.raises(ValueError, match="expected one of IMAGENET1K_V1, DEFAULT for resnet18, got 'IMAGENET1K_V9'"):
        build_net("resnet18", weights="IMAGENET1K_V9")
    with pytest.raises(ValueError, match="there are no pretrained ones for simple_cnn"):
        build_net(weights="DEFAULT")


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, **_: object) -> None:
        raise OSError("<urlopen error no route to host>")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fail)
    with pytest.raises(OSError, match=r"weights: .* can't be fetched from https://.*: <urlopen error no route"):
        build_net("resnet18", weights="DEFAULT")


def test_building_is_quiet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_net("googlenet")


@pytest.mark.slow
def test_every_network_has_one_head_a_first_convolution_and_a_least_size() -> None:
    for name in net_names()[1:]:
        with torch.device("meta") if not name.startswith("regnet") else torch.device("cpu"):
            net = build_net(name, num_classes=7, in_channels=1)
        expected = {"googlenet": 3, "inception_v3": 2}.get(name, 1)
        assert len(heads(net, 7)) == expected, name
        assert 1 <= least_image_size(name) <= 224
