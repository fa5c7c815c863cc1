"""Parity compares three ways: torch, a layer's formula, and its fast function or chain."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cnn_lightning
import cnn_lightning.data
from cnn_lightning.cli import main
from cnn_lightning.layers.conv import Conv2d
from cnn_lightning.layers.pool import MaxPool2d
from cnn_lightning.ops import conv, pool, taps
from cnn_lightning.ops.fast import chooser, fused
from cnn_lightning.ops.fast.stage import Stage
from cnn_lightning.tools.check import check_layer
from cnn_lightning.tools.parity.layerwise.results import Parity
from cnn_lightning.tools.parity.lockstep import compare
from tests.test_parity import BIAS, INPUT, SMALL, WEIGHT, Head, batches, digits, plant

pytestmark = pytest.mark.usefixtures("empty_folder")  # the command writes reproducers into the current one

CHAIN1, CHAIN2 = "conv1 relu1 pool1 (chain)", "conv2 relu2 pool2 (chain)"


def fast(file: str) -> Any:
    return import_module(f"cnn_lightning.ops.fast.{file}")


def blamed(found: Parity) -> set[tuple[str, str, str]]:
    return {(row.layer, row.what, row.of) for row in found.faults}


def parity(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = main(["parity", *SMALL, *args])
    return code, capsys.readouterr().out


# ---- layers


LAYERS: list[tuple[Callable[[], nn.Module], str, str, int, str]] = [
    (lambda: nn.Conv2d(2, 3, 3), "conv", "conv2d", 0, "output"),
    (lambda: nn.Conv2d(2, 3, 3), "conv", "conv2d_backward", 0, INPUT),
    (lambda: nn.Conv2d(2, 3, 3), "conv", "conv2d_backward", 1, WEIGHT),
    (lambda: nn.Conv2d(2, 3, 3), "conv", "conv2d_backward", 2, BIAS),
    (lambda: nn.MaxPool2d(3, 2), "pool", "max_pool2d", 0, "output"),
    (lambda: nn.BatchNorm2d(2), "norm", "batch_norm_backward", 0, INPUT),
    (lambda: nn.BatchNorm2d(2), "norm", "batch_norm", 2, "buffer running_var"),
    (nn.Sigmoid, "activation", "sigmoid", 0, "output"),
    (nn.GELU, "activation", "gelu_backward", 0, INPUT),
]


@pytest.mark.parametrize(
    ("layer", "file", "name", "index", "what"), LAYERS, ids=[f"{row[2]}-{row[4]}" for row in LAYERS]
)
def test_a_wrong_fast_function_is_told_from_its_formula(
    layer: Callable[[], nn.Module], file: str, name: str, index: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), layer(), nn.Identity(), Head())
    equal = compare(net, batches=batches(1, (4, 2, 8, 8)))
    assert equal.ok
    assert all(row.tiers < 1e-12 for row in equal.rows if row.layer == "1" and "step" not in row.what)
    plant(monkeypatch, fast(file), name, index, 1.01)
    found = compare(net, batches=batches(2, (4, 2, 8, 8)))
    first = found.first
    assert first is not None
    assert (first.layer, first.what, first.of, first.tier) == ("1", what, "fast function", "fast")
    assert first.tiers > 5e-4
    assert {row.step for row in found.faults} == {0, 1}


def test_what_float32_hides_is_seen_between_the_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ten-millionth is less than the rounding that parity allows in float32."""
    plant(monkeypatch, fast("linear"), "linear_backward", 1, 1 + 1e-7)
    found = compare(digits(), batches=batches())
    assert blamed(found) == {("linear2", WEIGHT, "fast function"), ("linear1", WEIGHT, "fast function")}
    assert found.first is not None
    assert found.first.error == found.first.tiers == pytest.approx(1e-7, rel=0.01)


def test_a_fast_function_that_is_wrong_in_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, fast("linear"), "linear_backward", 1, dtype=np.float32)
    found = compare(digits(), batches=batches())
    assert blamed(found) == {("linear2", WEIGHT, "fast function"), ("linear1", WEIGHT, "fast function")}


def test_a_wrong_formula_is_told_from_the_fast_function_that_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nobody compares the formula with what was proven, its fast function may run beside a wrong one."""
    padded = taps.padded
    monkeypatch.setattr(chooser._Choice, "holds", lambda choice: True)
    monkeypatch.setattr(conv, "padded", lambda x, pad, value=0.0: padded(x, pad, value + 0.5))
    found = compare(digits(), batches=batches())
    assert {(row.layer, row.of) for row in found.faults if "chain" not in row.layer} == {
        ("conv1", "formula"),
        ("conv2", "formula"),
    }
    assert found.first is not None
    assert (found.first.layer, found.first.what, found.first.tier) == ("conv1", "output", "fast")
    code, out = parity(capsys)
    assert code == 1
    assert "layer conv1, output: " in out
    assert "this layer is wrong: its formula; the fast code that runs instead is right (of three float64 results" in out


# ---- chains


@pytest.mark.parametrize(
    ("index", "first"),
    [
        (0, (CHAIN1, INPUT)),
        (1, (CHAIN1, "gradient of conv1.weight")),
        (2, (CHAIN1, "gradient of conv1.bias")),
        (3, (CHAIN2, "gradient of conv2.weight")),
        (4, (CHAIN2, "gradient of conv2.bias")),
    ],
)
def test_a_bug_in_a_chains_backward_is_named_by_its_layers(
    index: int, first: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fused.conv_relu_pool_backward

    def wrong(*arrays: Any, **options: Any) -> Any:
        results: list[Any] = list(original(*arrays, **options))
        place = index if len(results) == 5 else index - 2  # in what lies behind the first stage
        if place > 0 or (place == 0 and len(results) == 5):
            results[place] = None if results[place] is None else results[place] * 1.001
        return tuple(results)

    wrong.__module__ = original.__module__
    monkeypatch.setattr(fused, "conv_relu_pool_backward", wrong)
    found = compare(digits(), batches=batches(2))
    assert blamed(found) == {(*first, "chain")}
    assert {row.step for row in found.faults} == {0}  # what comes after follows from it


@pytest.mark.parametrize(("stage", "expected"), [(0, CHAIN1), (1, CHAIN2)])
@pytest.mark.parametrize(("method", "what"), [("forward", "output"), ("route", "gradient of conv{}.weight")])
def test_a_bug_in_one_stage_of_a_chain(
    stage: int, expected: str, method: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(Stage, method)

    def wrong(self: Stage, array: Any, *others: Any) -> Any:
        results = original(self, array, *others)
        if self.c == (1, 3)[stage]:
            changed = others[0] if method == "forward" else results
            changed *= 1.5
        return results

    monkeypatch.setattr(Stage, method, wrong)
    found = compare(digits(), batches=batches())
    assert {row.layer for row in found.faults} == {expected}
    assert (expected, what.format(stage + 1), "chain") in blamed(found)


def test_flat_pictures_are_no_fault_of_a_chain() -> None:
    """Between equal patches rounding alone chooses the largest, perhaps another one in a chain."""
    images = torch.full((4, 1, 8, 8), 0.3)
    images[:, :, 3:5, 2:7] = 0.7
    assert compare(digits(), batches=[(images, torch.arange(4))]).ok


def test_another_rule_at_ties_is_a_fault_of_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lower of equal pixels wins."""
    original = Stage.forward

    def last(self: Stage, image: Any, pooled: Any, winners: Any) -> None:
        original(self, image, pooled, winners)
        if winners is not None:
            memory = self.memory(image.shape[-1])  # where the larger of left and right are now
            flags = winners.reshape(4, winners.shape[1], -1)
            flags[2] = memory.lower >= memory.upper

    monkeypatch.setattr(Stage, "forward", last)
    images = torch.zeros(4, 1, 8, 8)
    images[..., 2:6] = 1
    found = compare(digits(), batches=[(images, torch.arange(4))])
    assert {row.of for row in found.faults} == {"chain"}


def test_the_command_names_the_chain(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    plant(monkeypatch, fused, "conv_relu_pool_backward", 1, 1.5)
    code, out = parity(capsys, "--json", str(tmp_path / "p.json"))
    assert code == 1
    assert (
        f"parity: DIFFERENT, first in step 1, layer {CHAIN1}, gradient of conv1.weight: relative error 5.0e-01" in out
    )
    assert "this layer is wrong: the chain differs from the formulas of its layers" in out
    table = out.splitlines()[1:]
    assert max(map(len, table[: next(i for i, line in enumerate(table) if line.startswith("loss of"))])) <= 80
    assert "fast: all NumPy layers" in out
    found = json.loads((tmp_path / "p.json").read_text())
    assert (found["first"]["layer"], found["first"]["of"]) == (CHAIN1, "chain")
    assert {row["tier"] for row in found["layers"] if row["name"] != "flatten"} == {"fast"}


# ---- edited formulas


def larger(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arrays, **options: 1.5 * original(*arrays, **options)


def negative(original: Callable[..., Any]) -> Callable[..., Any]:
    def backward(*arrays: Any, **options: Any) -> Any:
        grad_x, grad_weight, grad_bias = original(*arrays, **options)
        return grad_x, -grad_weight, grad_bias

    return backward


def last_of_equal(original: Callable[..., Any]) -> Callable[..., Any]:
    """The last of equal pixels wins: the first in the picture turned round."""

    def backward(grad_y: Any, x: Any, **options: Any) -> Any:
        return original(grad_y[:, :, ::-1, ::-1], x[:, :, ::-1, ::-1], **options)[:, :, ::-1, ::-1]

    return backward


EDITS: list[tuple[Any, str, Callable[..., Any], str, str, str]] = [
    (conv, "conv2d", larger, "0", "output", "reference: the output is off"),
    (conv, "conv2d_backward", negative, "0", WEIGHT, "gradient: the gradient of parameter 'weight'"),
    (pool, "max_pool2d_backward", last_of_equal, "1", INPUT, "ties: "),
]
edits = pytest.mark.parametrize(
    ("home", "name", "change", "layer", "what", "found"), EDITS, ids=[row[1] for row in EDITS]
)


@edits
def test_parity_names_layer_and_pass_of_a_replaced_formula(
    home: Any, name: str, change: Any, layer: str, what: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, name, change(getattr(home, name)))
    net: Any = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2), Head())
    net[0].weight.data.fill_(1)  # so that whole numbers stay whole, and are tied
    ((images, target),) = batches()
    first = compare(net, batches=[(images.round(), target)]).first
    assert first is not None
    assert (first.layer, first.what) == (layer, what)
    assert (first.of, first.tier) == ("formula", "(formula: replaced)")


@edits
def test_check_names_layer_and_pass_of_a_replaced_formula(
    home: Any, name: str, change: Any, layer: str, what: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    ours, native = (MaxPool2d(2), nn.MaxPool2d(2)) if home is pool else (Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3))
    if isinstance(native, nn.Conv2d):
        native.load_state_dict(ours.state_dict())
    monkeypatch.setattr(home, name, change(getattr(home, name)))
    report = check_layer(ours, torch.randn(2, 2, 6, 6), native)
    assert not report.passed
    assert report.layer == type(ours).__name__
    assert found in str(report)


def test_formulas_alone_train_as_the_fast_tier() -> None:
    """20 steps in float64 with 64 digits."""
    data = cnn_lightning.data.Digits(batch_size=64)
    data.setup("fit")
    images, target = next(iter(data.train_dataloader()))
    losses: dict[bool, list[float]] = {True: [], False: []}
    for on, values in losses.items():
        torch.manual_seed(0)
        net = cnn_lightning.SimpleCNN(image_size=8, channels=(4, 8), hidden=16).double()
        cnn_lightning.swap_layers(net, "numpy")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        with cnn_lightning.fast(on):
            for _ in range(20):
                optimizer.zero_grad()
                value = nn.functional.cross_entropy(net(images.double()), target)
                value.backward()
                optimizer.step()
                values.append(value.item())
    assert losses[True][-1] < losses[True][0]
    np.testing.assert_allclose(losses[False], losses[True], rtol=0, atol=1e-9)
