"""Networks of timm by name: built, trained, tested, explained and exported; every mistake is one line."""

import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnn_lightning import build_net, swap_layers, timm_networks
from cnn_lightning.checkpoints import read_checkpoint
from cnn_lightning.classifier import Classifier, from_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.model import last_layers, least_image_size

timm = pytest.importorskip("timm", exc_type=ImportError)
QUIET = ["--trainer.enable_progress_bar", "false", "--pictures", "false"]
FIT = ["fit", *QUIET, "--trainer.limit_train_batches", "4", "--model.net", "timm/test_resnet"]
RUN = "runs/digits/version_0"
DOZEN = [
    *("resnet10t", "mobilenetv3_small_050", "efficientnet_b0", "convnext_atto", "regnetx_002", "densenet121"),
    *(
        "repvgg_a0",
        "ghostnet_050",
        "vit_tiny_patch16_224",
        "mixer_s32_224",
        "coatnet_nano_rw_224",
        "tf_efficientnet_b0",
    ),
]


# ---- building


@pytest.mark.parametrize("name", ["timm/test_resnet", "TIMM/vit-tiny-patch16-224"])
def test_a_network_takes_the_channels_classes_and_size_of_the_data(name: str) -> None:
    net = build_net(name, num_classes=3, in_channels=1, image_size=64)
    assert net(torch.zeros(2, 1, 64, 64)).shape == (2, 3)
    assert net.training


def test_without_a_size_it_is_the_one_that_the_network_is_made_for() -> None:
    assert build_net("timm/test_vit")(torch.zeros(2, 3, 160, 160)).shape == (2, 10)


def test_the_least_size() -> None:
    least = least_image_size("timm/xcit_nano_12_p16_224")
    assert least == 32
    build_net("timm/xcit_nano_12_p16_224", image_size=least)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "timm/resnet10x"}, r"net: unknown network 'timm/resnet10x'; close to it: timm/resnet10t, .*in all"),
        ({"name": "timm/"}, r"net: unknown network 'timm/'; close to it: timm/"),
        ({"name": "timm/hf-hub:timm/resnet10t"}, r"net: unknown network 'timm/hf-hub:timm/resnet10t'; close to it"),
        ({"name": "timm/local-dir:/tmp"}, r"net: unknown network 'timm/local-dir:/tmp'; close to it"),
        ({"name": "timm/resnet18.a1_in1k"}, r"net: expected 'timm/resnet18', and weights 'a1_in1k' as an option"),
        ({"name": "timm/resnet18", "weights": "a7"}, r"weights: expected one of DEFAULT, a1_in1k, .*, got 'a7'"),
        ({"name": "timm/resnet10t", "num_classes": 0}, r"num_classes: expected a whole number of at least 1, got 0"),
        (
            {"name": "timm/convnext_atto", "image_size": 8},
            r"image_size: expected 32, say, for timm/convnext_atto, g",
        ),
        (
            {"name": "timm/xcit_nano_12_p16_224", "image_size": 40},
            r"image_size: expected 64, say, for timm/xcit_nano_12",
        ),
    ],
)
def test_a_mistake_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_net(**options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_without_timm_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    assert main(FIT) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    expected = "model.net: 'timm/test_resnet' needs the package timm, which is not installed: pip install"
    assert line.startswith(f"cnn-lightning: error: {expected} 'cnn-lightning[timm]'")
    assert list(tmp_path.iterdir()) == []


def test_other_networks_need_no_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    build_net("resnet18", image_size=32)


# ---- pretrained weights


def test_a_server_that_can_not_be_reached_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    asked = []

    def refuse(address: Any, *rest: Any) -> Any:
        asked.append(address)
        raise OSError(101, "Network is unreachable")

    original, offline = timm.create_model, []

    def create(*args: Any, **options: Any) -> Any:
        offline.append(constants.HF_HUB_OFFLINE)
        return original(*args, **options)

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(timm_networks, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match=r"weights: those of timm/test_resnet can't be fetched: .* \(Network is unreach"):
        build_net("timm/test_resnet", weights="DEFAULT")
    assert len(asked) == 1
    assert offline == [True]  # its library tries for a minute otherwise
    assert constants.HF_HUB_OFFLINE is False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert main([*FIT, "--model.weights", "r160_in1k"]) == 2
    assert len(asked) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line == (
        "cnn-lightning: error: weights: those of timm/test_resnet can't be fetched: HF_HUB_OFFLINE is set, and they "
        "are not in the cache"
    )


def test_weights_that_are_there_are_adapted_to_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    original = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        asked[name] = pretrained
        net: nn.Module = original(name.partition(".")[0], **options)
        return net

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(timm_networks, "getproxies", lambda: {"https": "a proxy"})
    net = build_net("timm/test_resnet", weights="r160_in1k", num_classes=3, in_channels=1)
    assert asked == {"test_resnet.r160_in1k": True}
    assert net(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


# ---- NumPy


@pytest.mark.parametrize(
    ("name", "freed"), [("test_resnet", ["fc"]), ("deit_tiny_distilled_patch16_224", ["head", "head_dist"])]
)
def test_freeze_trains_the_heads(name: str, freed: list[str]) -> None:
    with torch.device("meta"):
        net = timm.create_model(name)
    assert last_layers(net) == [net.get_submodule(each) for each in freed]
    if name == "test_resnet":
        model = Classifier(f"timm/{name}", freeze=True, in_channels=3, image_size=32, layers="torch")
        trained = [key for key, value in model.net.named_parameters() if value.requires_grad]
        assert trained == ["fc.weight", "fc.bias"]


def test_classes_of_timm_stay_native_and_are_treated_as_their_base_from_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "model:\n  layers:\n    timm.layers.Conv2dSame: numpy\n    timm.layers.BatchNormAct2d: numpy\n    '*': numpy\n"
    )
    command = ["fit", *QUIET, "--trainer.fast_dev_run", "1", "--model.net", "timm/tf_mobilenetv3_small_minimal_100"]
    assert main(command) == 0
    before = capsys.readouterr().out
    for line in (r"conv_stem +Conv2dSame .* torch", r"34 BatchNormAct2d \(.*\): torch"):
        assert re.search(line, before)
    assert main([*command, "--config", "mine.yaml"]) == 0
    after = capsys.readouterr().out
    for line in (
        r"conv_stem +Conv2dSame .* numpy",
        r"34 BatchNormAct2d \(.*\): numpy",
        r"layers: 172 numpy, 1 torch\n",
    ):
        assert re.search(line, after), after


def step(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Logits and gradients of a step; some networks draw a dropout."""
    torch.manual_seed(1)
    net.zero_grad()
    logits = net(images)
    nn.functional.cross_entropy(logits, torch.arange(len(images)) % logits.shape[1]).backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **gradients}


def compare(name: str, size: int) -> None:
    torch.manual_seed(0)
    net = build_net(f"timm/{name}", num_classes=5, image_size=size).double()
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    expected = step(net, images)
    net.load_state_dict(state)
    assert swap_layers(net, "numpy").swapped
    found = step(net, images)
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for key, value in expected.items() if key != "logits")
    for key, value in expected.items():
        scale = float(value.abs().max()) if key == "logits" else largest
        assert float((found[key] - value).abs().max()) <= 1e-9 * scale, key


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_forward_and_backward_equal_the_native_ones(name: str) -> None:
    compare(name, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", DOZEN)
def test_a_dozen_networks_equal_the_native_ones(name: str) -> None:
    compare(name, 64)


# ---- the commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*FIT, "--trainer.max_epochs", "2"]) == 0
    return folder


def test_a_checkpoint_names_the_network_and_loads(trained: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    path = f"{RUN}/checkpoints/best.ckpt"
    assert read_checkpoint(path)["hyper_parameters"]["net"] == "timm/test_resnet"
    assert type(from_checkpoint(path).net).__module__.startswith("timm.")
    for layers in ("numpy", "torch"):
        assert main(["test", *QUIET, "--ckpt_path", path, "--model.layers", layers]) == 0
    tables = [(trained / f"runs/digits-test/version_{each}/confusion.csv").read_text() for each in (0, 1)]
    assert tables[0] == tables[1]


def test_a_run_that_is_resumed_ends_with_the_same_bits(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*FIT, "--trainer.max_epochs", "2", "--trainer.max_steps", "3"]) == 0
    assert main([*FIT, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    states = [read_checkpoint(folder / RUN / "checkpoints/last.ckpt") for folder in (tmp_path, trained)]
    assert states[0]["global_step"] == states[1]["global_step"] == 8
    for name, value in states[1]["state_dict"].items():
        assert torch.equal(states[0]["state_dict"][name], value), name


@pytest.mark.parametrize("found", ["local-dir:/", "hf-hub:a/b"])
def test_a_checkpoint_can_not_name_a_folder_or_a_repository(
    found: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = read_checkpoint(trained / RUN / "checkpoints/best.ckpt")
    checkpoint["hyper_parameters"]["net"] = f"timm/{found}"
    torch.save(checkpoint, "other.ckpt")
    assert main(["test", *QUIET, "--ckpt_path", "other.ckpt"]) == 2
    assert f"unknown network 'timm/{found}'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_tools_take_it(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(trained)
    path = f"{RUN}/checkpoints/best.ckpt"
    assert main(["explain", "--ckpt_path", path, "--output", "explain.html"]) == 0
    assert "test_resnet" in (trained / "explain.html").read_text()
    assert main(["export", "--ckpt_path", path, "--format", "pt2"]) == 0
    capsys.readouterr()
    assert main(["parity", "--model.net", "timm/test_resnet", "--steps", "1", "--data.batch_size", "2"]) == 0
    assert "timm/test_resnet" in capsys.readouterr().out
    size = ["--data.batch_size", "2", "--data.image_size", "32", "--data.in_channels", "3", "--threads", "1"]
    more = ["--rounds", "1", "--formulas", "false", "--compile", "false"]
    assert main(["benchmark", "--model.net", "timm/test_resnet", *size, *more]) == 0
