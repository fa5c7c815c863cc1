"""The benchmark measures what it says: a layer slowed on purpose shows up where it is slow, and nowhere else."""

import functools
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cnn_lightning import layers
from cnn_lightning.cli import main
from cnn_lightning.layers.memory import MemoryFormat, arranged
from cnn_lightning.model import net_names
from cnn_lightning.ops import linear
from cnn_lightning.ops.fast import fused
from cnn_lightning.ops.fast import linear as fast_linear
from cnn_lightning.ops.fast.memory import is_batch_last
from cnn_lightning.tools.benchmark import command, fixed, networks, timing
from cnn_lightning.tools.benchmark.bridge import measure_bridge
from cnn_lightning.tools.benchmark.fixed import BRIDGE, measure_fixed
from cnn_lightning.tools.benchmark.floor import measure_floor
from cnn_lightning.tools.benchmark.layers import LayerRow, _seen, measure_layers
from cnn_lightning.tools.benchmark.memory import measure_memory
from cnn_lightning.tools.benchmark.operations import REST, kind_of, measure_operations
from cnn_lightning.tools.benchmark.steps import Contender, Setting, measure_steps
from cnn_lightning.tools.benchmark.tables import group_table, layer_table
from cnn_lightning.tools.benchmark.timing import Timing
from cnn_lightning.tools.machine import FORCED, forced_kernel, machine

SMALL = Setting(batch_size=4, image_size=8, channels=(2, 3), hidden=5)
SLOW = 0.02


@pytest.fixture
def slow_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear layer whose forward takes 20 ms of a clock that counts nothing else but a microsecond for each look."""
    fast: Callable[..., Any] = linear.linear
    now = 0.0

    @functools.wraps(fast)
    def slow(*args: Any, **options: Any) -> Any:
        nonlocal now
        now += SLOW
        return fast(*args, **options)

    def clock() -> float:
        nonlocal now
        now += 1e-6
        return now

    monkeypatch.setattr(linear, "linear", slow)
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(time, name, clock)


@pytest.mark.usefixtures("slow_linear")
def test_a_slow_layer_is_seen_in_the_step_and_in_its_own_row() -> None:
    with timing.threads(1):  # torch's threads wait for one another, for long where the machine is busy
        found = measure_steps(SMALL, ["numpy", "torch"], rounds=3)
        rows = {row.name: row for row in measure_layers(SMALL, rounds=3)}
    for kind in ("step", "forward"):
        assert found[kind]["numpy"].median > 2 * SLOW, "both linear layers"
        assert found[kind]["torch"].median < SLOW
    assert list(rows) == [
        "conv1",
        "relu1",
        "pool1",
        "conv2",
        "relu2",
        "pool2",
        "flatten",
        "linear1",
        "relu3",
        "linear2",
    ]
    for name, row in rows.items():
        assert (row.forward > SLOW) == name.startswith("linear"), name
        assert row.native_forward < SLOW
        assert row.backward < SLOW, "the forward's time is not taken for the backward's"


@pytest.mark.usefixtures("slow_linear")
def test_the_bridge_is_measured_against_the_very_operations_that_ran() -> None:
    found = measure_bridge(SMALL, rounds=3)
    assert found["arrays"].median > 2 * SLOW
    assert 0.9 < found["layers"].ratio(found["arrays"]) < 1.5


@pytest.mark.usefixtures("slow_linear")
def test_the_operations_of_a_step_are_told_apart() -> None:
    rows = measure_operations(SMALL, rounds=3)
    assert [row.name for row in rows][:: len(rows) - 1] == ["linear", REST]
    assert {"conv_relu_pool", "cross_entropy", "relu"} < {row.name for row in rows}
    assert rows[0].calls == 2
    assert rows[0].forward > 2 * SLOW > SLOW > rows[0].backward > 0
    assert all(row.seconds < SLOW for row in rows[1:])


@pytest.mark.parametrize(
    ("weight", "groups", "kind"),
    [
        ((), 1, "relu"),
        ((8, 4, 3, 3), 1, "relu 3x3"),
        ((8, 4, 1, 1), 2, "relu 1x1 grouped"),
        ((8, 1, 7), 8, "relu 7 depthwise"),
        ((8, 1, 3, 3), 1, "relu 3x3"),
    ],
)
def test_kinds_of_convolutions(weight: tuple[int, ...], groups: int, kind: str) -> None:
    assert kind_of("relu", weight, groups) == kind


def test_layers_get_the_memory_layout_that_they_have_in_the_network() -> None:
    contender = Contender.make("numpy", SMALL)
    seen = _seen(contender.net, arranged(contender.images, "batch_last"))
    assert is_batch_last(seen["relu2"][1].numpy())
    assert not any(module._forward_pre_hooks for module in contender.net.modules())
    assert not any(module._forward_pre_hooks for module, _ in seen.values()), "they would slow its copy down"


def test_the_memory_format_is_the_one_of_training() -> None:
    decided, memory = SMALL.decided()
    assert decided == replace(SMALL, memory_format="batch_last")
    assert str(memory) == "memory: batch_last"
    forced = replace(SMALL, memory_format="channels_last")
    assert forced.decided()[0] is forced
    net = Contender.make("numpy", forced).net
    assert net.get_parameter("conv2.weight").is_contiguous(memory_format=torch.channels_last)
    assert Contender.make("numpy formulas", forced).memory_format == "contiguous"


def test_without_dropout_a_network_computes_the_same_twice() -> None:
    setting = Setting("efficientnet_b0", 2, 3, 32, dropout=False)
    net, (images, _) = setting.network(), setting.batch()
    assert net.training
    assert torch.equal(net(images), net(images))


def test_fixed_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "BURST_SECONDS", 0.0)
    found = measure_fixed(replace(SMALL, memory_format="batch_last"), rounds=2)
    assert list(found) == ["ReLU", "BatchNorm2d", "Conv2d", BRIDGE]
    assert all(len(timing.seconds) == 2 for times in found.values() for timing in times.values())
    assert set(found[BRIDGE]) == {"numpy"}


def test_contenders_compute_the_same() -> None:
    gradients = []
    ways: tuple[tuple[str, MemoryFormat], ...] = (
        ("numpy", "contiguous"),
        ("numpy", "batch_last"),
        ("numpy", "channels_last"),
        ("numpy formulas", "auto"),
        ("torch", "auto"),
        ("torch channels_last", "auto"),
    )
    for name, memory_format in ways:
        contender = Contender.make(name, replace(SMALL, memory_format=memory_format))
        contender.backward()
        gradients.append([parameter.grad for parameter in contender.net.parameters()])
        assert isinstance(contender.net.conv1, layers.Conv2d) == name.startswith("numpy")
    for others in zip(*gradients, strict=True):
        for other in others[1:]:
            torch.testing.assert_close(other, others[0], rtol=1e-4, atol=1e-6)


def test_the_row_of_formulas_runs_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(fast: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fast)
        def count(*args: Any, **options: Any) -> Any:
            calls.append(fast.__name__)
            return fast(*args, **options)

        return count

    monkeypatch.setattr(fast_linear, "linear", counted(fast_linear.linear))
    monkeypatch.setattr(fused, "conv_relu_pool", counted(fused.conv_relu_pool))
    Contender.make("numpy formulas", SMALL).step()
    Contender.make("numpy formulas", SMALL).forward()
    assert calls == []
    Contender.make("numpy", SMALL).step()
    assert calls == ["conv_relu_pool", "linear", "linear"]


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that slows down by half between rounds changes no ratio."""
    assert Timing([2.0, 4.0, 2.0]).ratio(Timing([1.0, 2.0, 1.0])) == 2
    assert Timing([1.0, 2.0, 4.0]).median == 2
    assert Timing([1.0]).spread == 0
    assert Timing([2.0, 4.0], [3.0, 9.0]).over(Timing([1.0, 2.0], [3.0, 3.0])) == Timing([2.0, 2.0], [1.0, 3.0])


def test_the_clock_of_one_thread_counts_the_work_of_this_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"process_time": 0.0, "perf_counter": 0.0}
    for name in now:
        monkeypatch.setattr(time, name, lambda name=name: now[name])

    def work() -> None:
        now["process_time"] += 1
        now["perf_counter"] += 3

    for cpu, seconds in ((True, 1.0), (False, 3.0)):
        found = timing.interleave({"a": work}, rounds=2, cpu=cpu)["a"]
        assert found == Timing([seconds] * 2, [3.0] * 2)
    assert Setting().counts_cpu
    assert not replace(SMALL, threads=2).counts_cpu
    assert not replace(SMALL, device="cuda").counts_cpu


def test_turns_are_taken_and_the_first_calls_of_a_burst_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BURST_SECONDS", 0.0)
    calls: list[str] = []
    found = timing.interleave({name: partial(calls.append, name) for name in "ab"}, rounds=2)
    burst = timing.UNTIMED + 1
    assert "".join(calls) == ("a" * burst + "b" * burst) * 3
    assert [len(each.seconds) for each in found.values()] == [2, 2]


def test_memory_counts_what_the_steps_take() -> None:
    wide = Setting(batch_size=256, image_size=32, channels=(16, 16))
    (small,) = measure_memory(SMALL, ["numpy"]).values()
    (large,) = measure_memory(wide, ["numpy"]).values()
    assert large > small + 256 * 16 * 16 * 16 * 4, "at least the first stage's output"


def test_the_floor_counts_the_products_of_the_step() -> None:
    floor = measure_floor(SMALL)
    conv1, conv2 = 4 * 64 * 2 * 9, 4 * 16 * 3 * 2 * 9
    linear1, linear2 = 4 * 12 * 5, 4 * 5 * 10
    assert floor.flops == 2 * (2 * conv1 + 3 * (conv2 + linear1 + linear2)), "no gradient of the picture"
    assert floor.seconds == max(floor.flops / floor.peak_flops, floor.bytes / floor.bandwidth)


def test_no_round_begins_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = timing.interleave({"a": lambda: None}, rounds=5, burst=0.0, limit=-1.0)
    assert len(found["a"].seconds) == 1


TINY = ["--data.batch_size", "2", "--data.image_size", "8", "--model.channels", "[2,3]", "--rounds", "2"]


def test_the_command_prints_writes_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "BURST_SECONDS", 0.005)
    monkeypatch.setattr(command, "measure_memory", lambda setting, names: dict.fromkeys(names, 7_000_000))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv(FORCED, "Haswell")
    files = [tmp_path / "found.json", tmp_path / "layers.png"]
    assert main(["benchmark", *TINY, "--json", str(files[0]), "--png", str(files[1])]) == 0
    out = capsys.readouterr().out
    for text in ("channels_last", "linear2", "Conv2d 3x3", "conv_relu_pool", REST, BRIDGE, "memory: batch_last; "):
        assert text in out
    for text in ("bridge:", "floor:", "wall time:", "CPU time", "1 thread", "7.0"):
        assert text in out
    rows = re.findall(r"^((?:numpy|torch)[a-z_ ]*?) +\d+\.\d{3} ", out, re.MULTILINE)
    assert rows == ["numpy", "numpy formulas", "torch", "torch channels_last"]
    whole = " ".join(out.split())
    assert "BLAS kernel openblas" in whole
    assert "(forced)" in whole
    assert forced_kernel() in whole
    assert max(map(len, out.splitlines())) <= 80
    found = json.loads(files[0].read_text())
    assert found["setting"]["channels"] == [2, 3]
    assert len(found["step"]["numpy"]["seconds"]) == 2
    assert files[1].read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(("threads", "columns"), [(1, 10), (2, 9)])
def test_the_table_of_networks(
    threads: int,
    columns: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "BURST_SECONDS", 0.0)
    monkeypatch.setattr(command, "NETWORKS", (SMALL, Setting("shufflenet_v2_x1_0", 2, 3, 64, dropout=False)))
    monkeypatch.setattr(networks, "SECONDS", 600.0)  # a busy machine finishes both rounds
    monkeypatch.setattr(networks, "measure_memory", lambda setting, names: dict.fromkeys(names, 7_000_000))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv(FORCED, "Haswell")
    path = tmp_path / "found.json"
    args = ["--networks", "--threads", str(threads), "--rounds", "2", "--json", str(path)]
    assert main(["benchmark", *args]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert [len(row) for row in table] == [columns] * 4
    assert [row[:2] for row in table[2:]] == [["simple_cnn", "4x1x8x8"], ["shufflenet_v2_x1_0", "2x3x64x64"]]
    assert table[2][-2:] == ["7", "7"]
    assert forced_kernel() in " ".join(out.split())
    assert f"{threads} thread" in out
    found = json.loads(path.read_text())["networks"]
    assert [each["setting"]["memory_format"] for each in found] == ["batch_last"] * 2
    assert len(found[1]["step"]["torch"]["wall"]) == 2


def test_the_networks_of_the_table_are_there() -> None:
    for setting in networks.NETWORKS:
        assert setting.net in net_names()
        assert not setting.dropout
    assert len(set(networks.NETWORKS)) == 11


@pytest.mark.parametrize("value", ["", None])
def test_a_kernel_that_nothing_forces_is_not_warned_of(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORCED, raising=False)
    if value is not None:
        monkeypatch.setenv(FORCED, value)
    assert forced_kernel() == ""
    assert "forced" not in machine(1)


def test_only_an_openblas_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORCED, "Haswell")
    monkeypatch.setattr(
        "cnn_lightning.tools.machine.threadpool_info", lambda: [{"user_api": "blas", "internal_api": "mkl"}]
    )
    assert "BLAS kernel mkl," in machine(1)
    assert forced_kernel() == ""


def test_layers_with_long_names_fit_into_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["features.18.0", "features.0.0"]
    rows = [LayerRow(name, "BatchNorm2d", 1.2345678, 0.1234567, 0.1, 1e-5, 10**9) for name in names]
    Console(width=80).print(layer_table(rows))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for name, line in zip(names, lines[-2:], strict=True):
        assert line.split() == [name, "BatchNorm2d", "1235", "12.35", "123.5", "12345.67", "0.7", "50%"]
    long = replace(rows[0], group="ConvTranspose2d 7x7 depthwise")
    Console(width=80).print(group_table([*rows, long]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-2].split() == ["BatchNorm2d", "2", "2469", "12.35", "246.9", "12345.67", "67%"]
    assert lines[-1].split()[:4] == ["ConvTranspose2d", "7x7", "depthwise", "1"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tune", "--json", "found.json"], "--tune"),
        (["--tune", "--png", "layers.png"], "--tune"),
        (["--tune", "--networks"], "--tune"),
        (["--networks", "--png", "layers.png"], "--networks"),
        (["--networks", "--compile", "true"], "--networks"),
        (["--model.memory_format", "batch_first"], "memory_format"),
        (["--rounds", "0"], "--rounds"),
        (["--threads", "-1"], "--threads"),
        (["--device", "cuda"], "--device"),
        (["--model.net", "resnet"], "resnet"),
        (["--model.net", "alexnet", "--data.image_size", "28"], "image_size"),
        (["--json", "nowhere/found.json"], "nowhere"),
        (["--data.batch_size", "many"], "batch_size"),
    ],
)
def test_wrong_flags_end_in_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if args[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main(["benchmark", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
