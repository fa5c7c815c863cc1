"""The report of layers on the screen: one line where all is alike, else few rows, and nothing hidden by folding."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cnn_lightning.callbacks import layer_sizes, report
from cnn_lightning.callbacks.layer_sizes import Size, sizes_of
from cnn_lightning.callbacks.layer_table import WIDTH, lines_of, patterns, short
from cnn_lightning.classifier import Classifier
from cnn_lightning.cli import main
from cnn_lightning.ops import conv
from cnn_lightning.ops.fast import chooser
from cnn_lightning.swap import Row, SwapReport

QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--pictures", "false"]
QUICK += ["--trainer.enable_progress_bar", "false"]
RESNET: dict[str, Any] = {"net": "resnet50", "in_channels": 3, "image_size": 64}


def printed(layers: Any = "numpy", edit: Any = None, **options: Any) -> list[str]:
    model = Classifier(layers=layers, **options)
    if edit is not None:
        edit(model.net)
        model.report = model.swap(layers)
    lines = lines_of(report.report_of(model), model.net, sizes_of(model))
    assert max(map(len, lines)) <= WIDTH
    return lines


def row(lines: list[str], name: str) -> str:
    (found,) = (line for line in lines if line.split()[0] == name)
    return " ".join(found.split())


# ---- one line


@pytest.mark.parametrize(
    ("layers", "line"),
    [
        ("numpy", "layers: 11 numpy, fast; as one: conv1 relu1 pool1, conv2 relu2 pool2"),
        ("torch", "layers: 11 torch, as asked"),
    ],
)
def test_a_network_of_equal_layers_is_one_line(layers: str, line: str) -> None:
    assert printed(layers) == [line]


def test_a_large_network_of_equal_layers_is_one_line() -> None:
    assert printed(**RESNET) == ["layers: 127 numpy, fast"]


def test_formulas_are_one_line_too() -> None:
    with chooser.fast(False):
        model = Classifier()
        lines = lines_of(report.report_of(model), model.net, {})
    assert lines == ["layers: 11 numpy (formula: off)"]


def test_a_view_is_not_hidden_among_native_layers() -> None:
    lines = printed({"flatten": "numpy", "*": "torch"})
    assert lines[0] == "layers: 10 torch, 1 numpy"
    assert row(lines, "flatten") == "flatten Flatten 1568 numpy"


def test_many_chains_are_counted() -> None:
    rows = [
        Row(f"block{block}.a_layer_with_a_long_name{at}", "ReLU", "numpy", file="activation", chain=("another",))
        for block in range(4)
        for at in range(2)
    ]
    assert lines_of(SwapReport(rows), nn.Sequential(), {}) == ["layers: 8 numpy, fast; 8 chains of layers as one"]


def test_a_network_without_layers() -> None:
    assert lines_of(SwapReport([Row("0", "PixelShuffle", "-")]), nn.Sequential(nn.PixelShuffle(2)), {}) == [
        "layers: none"
    ]


# ---- a table


def test_a_small_network_has_a_row_for_each_layer() -> None:
    lines = printed({"conv2": "torch", "*": "numpy"})
    assert lines[0] == "layers: 10 numpy, 1 torch"
    assert lines[1].split() == ["layer", "type", "output", "params", "FLOPs", "implementation"]
    assert row(lines, "conv1") == "conv1 Conv2d 16x28x28 160 226k numpy fast, with relu1 pool1"
    assert row(lines, "conv2") == "conv2 Conv2d 32x14x14 4.64k 1.81M torch as asked"
    assert row(lines, "relu2").endswith("numpy fast")
    assert row(lines, "loss") == "loss CrossEntropyLoss numpy fast"
    assert row(lines, "total") == "total 207k 2.44M"
    assert len(lines) == 14


def test_a_stage_of_equal_layers_is_one_row() -> None:
    lines = printed({"layer4.*": "torch", "*": "numpy"}, **RESNET)
    assert len(lines) == 14
    assert row(lines, "layer1").endswith("3 Bottleneck 256x16x16 216k 109M numpy fast")
    assert row(lines, "layer4").endswith("3 Bottleneck 2048x2x2 15M 132M torch as asked")


def test_native_layers_inside_of_blocks_are_named() -> None:
    lines = printed({"*.conv2": "torch", "*": "numpy"}, **RESNET)
    assert row(lines, "layer3").endswith("38 numpy, 6 torch")
    assert lines[-1].strip() == "16 Conv2d (layer*.*.conv2): torch  as asked"
    one = printed({"layer3.5.bn1": "torch", "*": "numpy"}, **RESNET)
    assert one[-1].strip() == "1 BatchNorm2d (layer3.5.bn1): torch  as asked"
    few = printed({"layer3.*.bn1": "torch", "*": "numpy"}, **RESNET)
    assert few[-1].strip() == "6 BatchNorm2d (layer3.*.bn1): torch  as asked"


def test_a_replaced_formula_inside_of_blocks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "conv2d", lambda *args, **options: np.zeros(1))
    model = Classifier(layers="numpy", **RESNET)
    lines = lines_of(model.report, model.net, {})
    assert row(lines, "conv1").endswith("numpy (formula: replaced)")
    assert row(lines, "layer1") == "layer1 3 Bottleneck mixed"
    below = " ".join(" ".join(lines[-2:]).split())
    assert below == "52 Conv2d (layer*.*.conv1, layer*.*.conv2, layer*.*.conv3 and 1 more): numpy (formula: replaced)"


def test_a_reason_that_is_too_long_for_its_row_is_below() -> None:
    lines = printed(net="mobilenet_v2", in_channels=3, image_size=64)
    assert row(lines, "(the").endswith("torch [1]")
    assert lines[-1].strip() == "[1] its forward calls adaptive_avg_pool2d as a function, not as a layer"


def test_many_flat_layers_of_two_kinds_are_few_lines() -> None:
    net = nn.Sequential(*(layer for _ in range(20) for layer in (nn.Linear(3, 3), nn.ReLU())))
    rows = [
        Row(name, type(module).__name__, "torch" if isinstance(module, nn.ReLU) else "numpy")
        for name, module in net.named_children()
    ]
    lines = lines_of(SwapReport([*rows, Row("loss", "CrossEntropyLoss", "numpy")]), net, {})
    assert row(lines, "0-39") == "0-39 40 layers 20 numpy, 20 torch"
    assert row(lines, "loss").endswith("numpy")
    assert lines[-1].split() == ["20", "ReLU", "(*):", "torch"]


def test_equal_blocks_are_one_row_and_unequal_ones_are_not() -> None:
    many = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(30)))
    rows = [
        Row(name, type(each).__name__, "torch" if name == "20.0" else "numpy")
        for name, each in many.named_modules()
        if not isinstance(each, nn.Sequential)
    ]
    lines = lines_of(SwapReport(rows), many, {})
    assert row(lines, "0-19") == "0-19 20 Sequential numpy"
    assert row(lines, "20") == "20 Sequential 1 torch, 1 numpy"
    assert lines[-1].split() == ["1", "Linear", "(20.0):", "torch"]
    assert row(lines, "21-29") == "21-29 9 Sequential numpy"


def test_names_and_numbers() -> None:
    assert patterns(["a.0.conv2", "a.1.conv2", "b1.0", "b1.3", "7", "8"]) == ["a.*.conv2", "b1.*", "*"]
    assert patterns(["layer1.0.bn", "layer1.2.bn"]) == ["layer1.*.bn"]
    assert [short(n) for n in (0, 999, 1000, 226_000, 1_806_336, 99_960_000, 4.1e9, 2e15)] == (
        ["", "999", "1k", "226k", "1.81M", "100M", "4.1G", "2000T"]
    )


# ---- sizes


def test_sizes_are_those_of_the_network_with_either_layers() -> None:
    numpy, torch_ = (sizes_of(Classifier(layers=layers, **RESNET)) for layers in ("numpy", "torch"))
    assert numpy == torch_
    assert numpy["layer1.0.conv1"] == Size((64, 16, 16), 64 * 64, 2 * 64 * 64 * 16 * 16)
    assert numpy[""].flops == sum(size.flops for name, size in numpy.items() if name.count(".") == 0 and name)


def test_a_network_that_can_not_run_has_its_parameters() -> None:
    model = Classifier(image_size=8, channels=(4,), hidden=16)
    model.net.add_module("more", nn.Linear(7, 7))
    model.net.forward = lambda x: 1 / 0
    assert sizes_of(model)["more"] == Size((), 56, 0)


def test_the_run_for_the_sizes_changes_nothing() -> None:
    model = Classifier(image_size=8, channels=(4,), hidden=16)
    model.net.add_module("bn", nn.BatchNorm1d(10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    sizes_of(model)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.net.modules())
    assert layer_sizes.made_pictures(model, 2).shape == (2, 1, 8, 8)


# ---- from the command line


def test_fit_prints_few_lines_and_keeps_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "simple_cnn: 206,922 parameters to train, 2.44M FLOPs for a picture" or re.match(
        r"simple_cnn: [\d,]+ parameters to train, [\d.]+[kM] FLOPs for a picture$", lines[0]
    )
    assert lines[1].startswith("layers: 11 numpy, fast; as one: ")
    assert lines[2].startswith("memory: ")
    whole = (tmp_path / "runs/digits/version_0/layers.txt").read_text().splitlines()
    assert whole[0] == "layers: 11 numpy"
    assert whole[1].split() == ["conv1", "Conv2d", "numpy", "fast,", "with", "relu1", "pool1"]
    assert len(whole) == 12
    assert main(["fit", *QUICK, "--config", "mixed"]) == 0
    text = capsys.readouterr().out
    assert "all layers: runs/digits/version_1/layers.txt\nmemory: " in text
    assert text.count("layers: 1 numpy, 10 torch") == 1
