"""The tables of ``cnn-lightning benchmark``, at most 80 columns wide."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from rich import box
from rich.table import Table

from cnn_lightning.ops.fast.tuning import TUNING
from cnn_lightning.tools.benchmark.layers import LayerRow
from cnn_lightning.tools.benchmark.networks import COMPARED, NetworkRow
from cnn_lightning.tools.benchmark.operations import OperationRow
from cnn_lightning.tools.benchmark.steps import Setting
from cnn_lightning.tools.benchmark.timing import Timing
from cnn_lightning.tools.benchmark.tune import Found
from cnn_lightning.tools.machine import forced_kernel, machine

Measured = dict[str, Any]
"""The figures of all measurements, by the name of the measurement."""

BELOW_TUNING = (
    "\n* is the number in cnn_lightning/ops/fast/tuning.py. Nothing was changed. After an edit there the formulas run, "
    "until python -m tests.prove, in a checkout, has proven the fast functions again.",
)


def compact(title: str, texts: Sequence[str], figures: Sequence[str]) -> Table:
    """An empty table without a frame: columns of text, which are folded where necessary, and columns of figures."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for heading in texts:
        table.add_column(heading, overflow="fold")
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, in six characters up to a minute."""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 100 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def tables(setting: Setting, found: Measured) -> list[Table | str]:
    """All tables and lines of a measurement."""
    warning = forced_kernel()
    return [
        _step_table(setting, found),
        found["memory_format"] + ("; the times are CPU time of the process" if setting.counts_cpu else ""),
        layer_table(found["layers"]),
        group_table(found["layers"]),
        operation_table(found["operations"]),
        fixed_table(found["fixed"]),
        *_lines(found),
        *([warning] if warning else []),
    ]


def _step_table(setting: Setting, found: Measured) -> Table:
    title = f"{setting.net}, batch {setting.batch_size}, milliseconds\n{machine_of(setting)}"
    table = compact(title, [""], ["step", "/ torch", "±", "forward", "/ torch", "±", "peak MB", "/ torch"])
    for name, step in found["step"].items():
        forward, peak = found["forward"][name], found["memory"][name]
        table.add_row(
            name,
            *_cells(step, found["step"]["torch"]),
            *_cells(forward, found["forward"]["torch"]),
            f"{peak / 1e6:.1f}",
            f"{peak / found['memory']['torch']:.2f}",
        )
    return table


def _cells(timing: Timing, torch_timing: Timing) -> tuple[str, str, str]:
    ratios = timing.over(torch_timing)
    return milliseconds(timing.median), f"{ratios.median:.2f}", f"{ratios.spread:.0%}"


def layer_table(rows: list[LayerRow]) -> Table:
    """The times of each layer, and its percentage of the sum."""
    total = sum(row.forward + row.backward for row in rows)
    title = "each layer alone on its own input, milliseconds (medians)"
    columns = ["forward", "/ torch", "backward", "/ torch", "GFLOP/s", "of all"]
    table = compact(title, ["layer", "type"], columns)
    for row in rows:
        table.add_row(
            row.name,
            row.kind,
            milliseconds(row.forward),
            _over(row.forward, row.native_forward),
            milliseconds(row.backward),
            _over(row.backward, row.native_backward),
            f"{row.gflops:.1f}" if row.flops else "",
            f"{(row.forward + row.backward) / total:.0%}",
        )
    return table


def group_table(rows: list[LayerRow]) -> Table:
    """The sums of the layers' times by type and kernel, largest first."""
    groups: dict[str, list[LayerRow]] = defaultdict(list)
    for row in rows:
        groups[row.group or row.kind].append(row)
    columns = ["layers", "forward", "/ torch", "backward", "/ torch", "of all"]
    table = compact("the same by type", ["type"], columns)
    total = sum(row.forward + row.backward for row in rows)
    sums = {name: [sum(getattr(row, part) for row in some) for part in _PARTS] for name, some in groups.items()}
    for name, (forward, backward, native_forward, native_backward) in sorted(
        sums.items(), key=lambda item: -sum(item[1][:2])
    ):
        table.add_row(
            name,
            f"{len(groups[name])}",
            milliseconds(forward),
            _over(forward, native_forward),
            milliseconds(backward),
            _over(backward, native_backward),
            f"{(forward + backward) / total:.0%}",
        )
    return table


_PARTS = "forward", "backward", "native_forward", "native_backward"


def operation_table(rows: list[OperationRow]) -> Table:
    """The kinds of operations of a step, and their percentages of it."""
    title = "operations of a NumPy step with the bridge, milliseconds (medians)"
    table = compact(title, ["operation"], ["calls", "forward", "backward", "of step"])
    total = sum(row.seconds for row in rows)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.calls or ''}",
            milliseconds(row.forward),
            milliseconds(row.backward) if row.backward else "",
            f"{row.seconds / total:.0%}",
        )
    return table


def fixed_table(found: dict[str, dict[str, Timing]]) -> Table:
    """What a layer costs however small its input is."""
    title = "fixed cost: forward and backward of 2x4x4x4, microseconds"
    table = compact(title, [""], ["numpy", "torch", "/ torch"])
    for name, times in found.items():
        ours, native = times["numpy"], times.get("torch")
        cells = (f"{native.median * 1e6:.1f}", f"{ours.ratio(native):.2f}") if native else ("", "")
        table.add_row(name, f"{ours.median * 1e6:.1f}", *cells)
    return table


def network_table(rows: list[NetworkRow]) -> tuple[str, Table, str]:
    """Headings, the table in Markdown, and the legend."""
    cpu = all(row.setting.counts_cpu for row in rows)
    table = Table(box=box.MARKDOWN, padding=0, show_edge=True)
    table.add_column("network", no_wrap=True)
    for heading in ("batch", "numpy", "torch", "ratio", "±", "c_last", *["wall"] * cpu, "MB", "torch"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        setting, (numpy, torch_, channels_last) = row.setting, (row.step[name] for name in COMPARED)
        ratios = numpy.over(torch_)
        size = setting.image_size
        table.add_row(
            setting.net,
            f"{setting.batch_size}x{setting.in_channels}x{size}x{size}",
            milliseconds(numpy.median),
            milliseconds(torch_.median),
            f"{ratios.median:.2f}",
            f"{ratios.spread:.0%}",
            f"{numpy.ratio(channels_last):.2f}",
            *[f"{statistics.median(ratios.wall):.2f}"] * cpu,
            *(f"{row.memory[name] / 1e6:.0f}" for name in COMPARED[:2]),
        )
    times = "CPU time of the process" if cpu else "wall time"
    legend = (
        f"numpy, torch: milliseconds of a training step, {times}; ratio: numpy / torch; ±: its spread; c_last: numpy / "
        f"torch in channels_last memory; {'wall: the ratio by wall time; ' * cpu}MB, torch: peak memory of numpy, torch"
    )
    return machine_of(rows[0].setting), table, legend


def _over(a: float, b: float) -> str:
    return f"{a / b:.2f}" if b > 0 else ""


def _lines(found: Measured) -> list[str]:
    bridge, floor = found["bridge"], found["floor"]
    step, wall = found["step"]["numpy"].median, found["step"]["numpy"].over(found["step"]["torch"]).wall
    return [
        f"wall time: the NumPy step takes {statistics.median(wall):.2f} times torch's",
        f"bridge: adds {bridge['layers'].ratio(bridge['arrays']) - 1:.1%} to the time of the operations it calls",
        f"floor: {floor.flops / 1e9:.2f} GFLOP at {floor.peak_flops / 1e9:.0f} GFLOP/s take "
        f"{floor.flops / floor.peak_flops * 1e3:.3f} ms, {floor.bytes / 1e6:.0f} MB at "
        f"{floor.bandwidth / 1e9:.1f} GB/s {floor.bytes / floor.bandwidth * 1e3:.3f} ms; "
        f"the NumPy step is {step / floor.seconds:.1f} times the larger",
    ]


def machine_of(setting: Setting) -> str:
    """The machine that the figures of a setting belong to."""
    return machine(setting.threads, torch.cuda.get_device_name() if setting.device == "cuda" else "")


def numbers_table() -> Table:
    """All tuned numbers."""
    table = compact("tuned numbers of the fast functions", ["number", "decides"], ["value"])
    table.add_column("unit")
    table.columns[0].no_wrap = True
    for number in fields(TUNING):
        value, unit = amount(getattr(TUNING, number.name), number.metadata["unit"])
        table.add_row(number.name, number.metadata["decides"], value, unit)
    return table


def trial_table(found: Found) -> tuple[str, Table]:
    """A heading, and a table of the times of a number's candidates."""
    trial = found.trial
    number = next(each for each in fields(TUNING) if each.name == trial.number)
    unit, here = number.metadata["unit"], getattr(TUNING, trial.number)
    names = {
        candidate: " ".join(amount(candidate, unit if unit == "bytes" else "")).strip() + "*" * (candidate == here)
        for candidate in trial.candidates
    }
    heading = f"\n{trial.number} ({unit}): {number.metadata['decides']}\nmilliseconds of {trial.work}"
    table = compact("", [""], [*names.values(), "fastest" if trial.kind == "choice" else trial.kind])
    for index, way in enumerate(trial.ways):
        if trial.kind == "choice":
            best = names[found.best(way)]
        else:
            limit = found.limit()
            best = "" if index == 0 else "none" if limit is None else names[limit]
        times = [milliseconds(found.times[way.name, candidate].median) for candidate in trial.candidates]
        table.add_row(way.name, *times, best)
    return heading, table


def amount(value: int, unit: str) -> tuple[str, str]:
    """A number and its unit; bytes in the largest unit that divides them."""
    for size, name in ((2**20, "MiB"), (2**10, "KiB")):
        if unit == "bytes" and value % size == 0:
            return f"{value // size:,}", name
    return f"{value:,}", unit
