"""The report of a run: layers that never run, functions that stay native, and that both kinds of layers agree."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional

from cnn_lightning import Classifier, layers
from cnn_lightning.callbacks import report as printed
from cnn_lightning.callbacks.report import LayerReport
from cnn_lightning.ops import linear
from cnn_lightning.swap import Row, observed, register_without_arithmetic, swap_layers
from tests.test_callbacks import trained


class Everything(nn.Module):
    """Uses a weight without its layer, functions, a layer in training alone, and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.qkv = nn.Linear(4, 6)
        self.transposed = nn.Linear(6, 5)
        self.aux = nn.Linear(6, 2)
        self.never = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.bn.forward(self.conv(x))).mean((2, 3))
        y = functional.linear(functional.pad(x, (0, 0)), self.qkv.weight, self.qkv.bias)
        if self.training:
            random.random()
            np.random.rand()  # noqa: NPY002
            self.aux(y)
        z = y @ self.transposed.weight.t()
        return torch.einsum("nc,nc->n", z, functional.interpolate(z[None], scale_factor=1)[0].view(z.shape))


class Broken(Everything):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("on purpose")


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def rows(report: Any) -> dict[str, tuple[str, str]]:
    return {row.name: (row.implementation, row.note) for row in report.rows}


def test_what_a_run_shows() -> None:
    report = swap_layers(Everything(), "numpy", verify=images())
    assert rows(report) == {
        "": ("torch", "its forward calls mean, pad, linear, matmul, interpolate, einsum as a function, not as a layer"),
        "conv": ("numpy", "fast"),
        "bn": ("numpy", "fast"),  # though the network calls its forward itself
        "dropout": ("numpy", "fast"),
        "qkv": ("torch", "never called; its weight is used by linear in the network"),
        "transposed": ("torch", "never called; its weight is used in the network"),
        "aux": ("numpy", "fast"),
        "never": ("-", "never called"),
    }
    assert report.swapped == ["conv", "bn", "dropout", "aux"]
    assert report.difference is not None
    assert report.difference < 1e-5
    assert str(report).splitlines()[-1].startswith("outputs: equal to torch's within ")


def state(net: nn.Module) -> list[Any]:
    return [
        [module.training for module in net.modules()],
        [sorted(module.__dict__) for module in net.modules()],
        [value.tolist() for value in net.state_dict().values()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
    ]


def test_a_run_changes_nothing() -> None:
    net = Everything()
    net.bn.eval()
    kinds = [type(module) for module in net.modules()]
    before = state(net)
    swap_layers(net, "numpy", verify=images())
    assert state(net) == before
    assert all(parameter.grad is None for parameter in net.parameters())
    swap_layers(net, "torch", verify=images())
    assert [type(module) for module in net.modules()] == kinds


def test_a_wrong_layer_is_found_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    original = linear.linear
    monkeypatch.setattr(linear, "linear", lambda *arrays: original(*arrays) * np.float32(1.01))
    net = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="expected outputs that equal torch's, got a difference of 1e-02"):
        swap_layers(net, "numpy", verify=torch.ones(2, 3))
    assert [type(module) for module in net.modules()] == [nn.Sequential, nn.Linear]
    assert "forward" not in net[0].__dict__


def test_a_run_that_fails_changes_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        swap_layers(net, "numpy", verify=torch.ones(2, 4))
    assert [type(module) for module in net.modules()] == [nn.Sequential, nn.Linear]
    assert net.training


@pytest.mark.parametrize("sample", [(torch.ones(2, 3), torch.ones(2, 3)), {"x": torch.ones(2, 3), "y": torch.ones(3)}])
def test_samples_of_several_arguments(sample: Any) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"sum": self.relu(x + y)}

    assert rows(swap_layers(Two(), "numpy", verify=sample)) == {"relu": ("numpy", "fast")}


def test_a_training_that_fails_leaves_the_question_open() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.aux = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("not for one picture")
            return self.relu(x)

    assert rows(swap_layers(Once(), "numpy", verify=images()))["aux"] == ("-", "not called in evaluation")


def test_a_compiled_network_is_run_as_it_is_written() -> None:
    torch._dynamo.reset()
    net = torch.compile(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), backend="aot_eager")
    net(torch.ones(2, 3))
    report = swap_layers(net, "numpy", verify=torch.ones(2, 3))  # type: ignore[arg-type]
    assert report.swapped == ["0", "1"]
    assert not report.native


def test_types_without_arithmetic() -> None:
    class Turn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(-1)

    net = nn.Sequential(nn.PixelShuffle(1), Turn(), nn.ReLU(), nn.Embedding(2, 2))
    report = swap_layers(net, {"0": "numpy", "*": "numpy"})
    assert ("0", "-") in [(row.name, row.implementation) for row in report.rows]
    assert [name for name, _ in report.native] == ["1"]
    register_without_arithmetic(Turn)
    report = swap_layers(net, "numpy")
    assert report.native == []
    assert report.swapped == ["2"]
    assert str(report).splitlines()[0] == "layers: 1 numpy"
    assert Row("1", f"{__name__}.{Turn.__qualname__}", "-", "no arithmetic") in report.rows


# ---- networks of torchvision and timm


def verified(name: str, size: int = 64, **options: Any) -> dict[str, tuple[str, str]]:
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None, **options)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return rows(swap_layers(net, "numpy", verify=x))


def calls(*names: str) -> tuple[str, str]:
    return "torch", f"its forward calls {', '.join(names)} as a function, not as a layer"


def test_resnet_is_all_numpy() -> None:
    assert {implementation for implementation, _ in verified("resnet18").values()} == {"numpy"}


def test_swin_computes_its_attention_by_functions() -> None:
    found = verified("swin_t")
    assert found["features.1.0.attn"] == calls("pad", "linear", "matmul", "softmax", "dropout")
    never = "never called; its weight is used by linear in features.1.0.attn"
    assert found["features.1.0.attn.qkv"] == found["features.1.0.attn.proj"] == ("torch", never)
    assert found["features.1.0.mlp.0"] == ("numpy", "fast")
    assert found["features.1.0.stochastic_depth"] == ("-", "no arithmetic")


def test_densenet_and_deeplab_call_functions() -> None:
    assert verified("densenet121")[""] == calls("relu", "adaptive_avg_pool2d")
    found = verified("deeplabv3_resnet50", weights_backbone=None)
    assert found[""] == found["classifier.0.convs.4"] == calls("interpolate")


def test_heads_of_training_are_called() -> None:
    found = verified("googlenet", init_weights=False)
    assert found["aux1.fc1"] == ("numpy", "fast")
    assert found["aux1"] == calls("adaptive_avg_pool2d", "relu")


# ---- in fit


def fitted(root: Path, *callbacks: Callback) -> list[Tensor]:
    """Weights, statistics and random numbers after a training with dropout and a batch norm."""
    torch.manual_seed(0)
    model = Classifier(image_size=8, channels=(4,), hidden=16)
    model.net.add_module("drop", nn.Dropout(0.2))
    model.net.add_module("bn", nn.BatchNorm1d(10))
    model.swap("numpy")
    trained(root, *callbacks, model=model)
    return [*model.state_dict().values(), torch.rand(3)]


def test_the_run_for_the_report_changes_no_bit_of_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = fitted(tmp_path, LayerReport())
    assert "simple_cnn: " in capsys.readouterr().out
    assert all(map(torch.equal, watched, fitted(tmp_path)))


def test_the_printed_report_is_that_of_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = Classifier(image_size=8, channels=(4,), hidden=16)
    model.net = Everything()
    model.net.conv = nn.Conv2d(1, 4, 3)
    model.swap("numpy")
    calls: list[int] = []
    model.net.conv.register_forward_hook(lambda *_: calls.append(1))
    module_report = printed.report_of(model)
    assert calls == []
    assert rows(module_report)["qkv"] == ("torch", "never called; its weight is used by linear in the network")
    model.net = Broken()
    model.report = model.swap("numpy")
    assert printed.report_of(model) is model.report


def test_observed_keeps_what_the_swap_knows() -> None:
    net = Everything()
    report = swap_layers(net, {"bn": "torch", "*": "numpy"})
    found = observed(report, net, images())
    assert rows(found)["bn"] == ("torch", "as asked")
    assert found.changed == report.changed
    assert type(net.conv) is layers.Conv2d
