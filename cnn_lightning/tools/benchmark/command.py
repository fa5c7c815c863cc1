"""``cnn-lightning benchmark``: step, layers, bridge, memory and the floor, measured on the reader's own machine."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from cnn_lightning.errors import UserError
from cnn_lightning.files import PICTURES, expect_writable, written
from cnn_lightning.tools import parser as parsers
from cnn_lightning.tools.benchmark.measure import (
    IMPLEMENTATIONS,
    Floor,
    LayerRow,
    Setting,
    Tick,
    Timing,
    measure_bridge,
    measure_floor,
    measure_layers,
    measure_memory,
    measure_steps,
    threads,
)
from cnn_lightning.tools.benchmark.tables import BELOW_TUNING, compact, milliseconds, numbers_table, trial_table
from cnn_lightning.tools.benchmark.tune import measure, more_threads, trials
from cnn_lightning.tools.machine import forced_kernel, machine

HELP = "measure step, layers, bridge and memory of every implementation on this machine"

Measured = dict[str, Any]


def _parser() -> ArgumentParser:
    parser = parsers.make("benchmark", __doc__)
    parser.add_argument("--model.net", default="simple_cnn", help="simple_cnn or the name of a torchvision model")
    parser.add_argument("--model.channels", type=tuple[int, ...], default=(16, 32), help="of SimpleCNN's convolutions")
    parser.add_argument("--model.hidden", type=int, default=128, help="of SimpleCNN's first linear layer")
    parser.add_argument("--data.in_channels", type=int, default=1, help="1 for grey, 3 for colour")
    parser.add_argument("--data.image_size", type=int, default=28, help="height and width of the random pictures")
    parser.add_argument("--data.num_classes", type=int, default=10, help="number of classes")
    parser.add_argument("--data.batch_size", type=int, default=64, help="pictures in a batch")
    parser.add_argument("--threads", type=int, default=1, help="threads of both libraries")
    parser.add_argument("--rounds", type=int, default=15, help="bursts of each implementation")
    parser.add_argument(
        "--tune", action="store_true", help="print the tuned numbers and measure the most telling ones instead"
    )
    parser.add_argument("--compile", type=bool, default=False, help="measure torch.compile too")
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="where the tensors live")
    parser.add_argument("--json", type=str | None, default=None, help="write every figure to this file")
    parser.add_argument(
        "--png", type=str | None, default=None, help="draw the layers' share of the step into this file"
    )
    return parser


def main(args: list[str]) -> int:
    """Measure, print, and write what was asked for."""
    options = _parser().parse_args(args)
    parsers.expect_at_least_one(options, "rounds", "threads", "data.batch_size")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: expected a device of this machine, got cuda, which torch does not see here")
    if options.tune and (options.json or options.png or options.device != "cpu"):
        raise UserError("--tune: expected neither --json nor --png nor --device cuda: it measures the CPU and prints")
    expect_writable("--json", options.json)
    expect_writable("--png", options.png, PICTURES)
    console = Console()
    if options.tune:
        return _tune(more_threads(options.threads), options.rounds, console)
    setting = Setting(
        net=options.model.net,
        batch_size=options.data.batch_size,
        in_channels=options.data.in_channels,
        image_size=options.data.image_size,
        num_classes=options.data.num_classes,
        channels=tuple(options.model.channels),
        hidden=options.model.hidden,
        threads=options.threads,
        device=options.device,
    )
    try:
        setting.network()
    except ValueError as error:
        raise UserError(str(error)) from error
    found = _measure(setting, options.rounds, options.compile, console)
    for table in _tables(setting, found):
        console.print(table)
    if options.json:
        with written("--json", options.json) as temporary:
            temporary.write_text(json.dumps(_plain(setting, found), indent=1))
        console.print(f"json: {options.json}")
    if options.png:
        _draw(setting, found["layers"], options.png)
        console.print(f"png: {options.png}")
    return 0


def _tune(threads: int, rounds: int, console: Console) -> int:
    console.print(machine(threads))
    console.print(numbers_table())
    with _progress(console) as tick:
        found = measure(trials(threads), rounds, tick)
    for each in found:
        for part in trial_table(each):
            console.print(part)
    for line in (*BELOW_TUNING, forced_kernel()):
        if line:
            console.print(line)
    return 0


@contextmanager
def _progress(console: Console) -> Iterator[Tick]:
    """Bars for whoever watches, one for each name."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def tick(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name)
            progress.update(tasks[name], completed=done, total=total)

        yield tick


def _measure(setting: Setting, rounds: int, compiled: bool, console: Console) -> Measured:
    names = [name for name in IMPLEMENTATIONS if compiled or name != "torch.compile"]
    with threads(setting.threads), _progress(console) as tick:
        found: Measured = measure_steps(setting, names, rounds, tick)
        found["layers"] = measure_layers(setting, rounds, tick)
        found["bridge"] = measure_bridge(setting, rounds, tick)
        tick("memory", 0, 1)
        found["memory"] = measure_memory(setting, names)
        tick("memory", 1, 1)
        found["floor"] = measure_floor(setting)
    return found


def _tables(setting: Setting, found: Measured) -> list[Table | str]:
    warning = forced_kernel()
    return [_step_table(setting, found), _layer_table(found["layers"]), *_lines(found), *([warning] if warning else [])]


def _step_table(setting: Setting, found: Measured) -> Table:
    title = f"{setting.net}, batch {setting.batch_size}, milliseconds\n{_machine(setting)}"
    table = compact(title, [""], ["step", "±", "/ torch", "forward", "±", "/ torch", "peak MB", "/ torch"])
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
    return milliseconds(timing.median), f"{timing.spread:.0%}", f"{timing.ratio(torch_timing):.2f}"


def _layer_table(rows: list[LayerRow]) -> Table:
    total = sum(row.forward + row.backward for row in rows)
    title = "each layer alone on its own input, milliseconds (medians)"
    columns = ["forward", "/ torch", "backward", "/ torch", "GFLOP/s", "share"]
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


def _over(a: float, b: float) -> str:
    return f"{a / b:.2f}" if b > 0 else ""


def _lines(found: Measured) -> list[str]:
    bridge, floor = found["bridge"], found["floor"]
    step = found["step"]["numpy"].median
    return [
        f"bridge: adds {bridge['layers'].ratio(bridge['arrays']) - 1:.1%} to the time of the operations it calls",
        f"floor: {floor.flops / 1e9:.2f} GFLOP at {floor.peak_flops / 1e9:.0f} GFLOP/s take "
        f"{floor.flops / floor.peak_flops * 1e3:.3f} ms, {floor.bytes / 1e6:.0f} MB at "
        f"{floor.bandwidth / 1e9:.1f} GB/s {floor.bytes / floor.bandwidth * 1e3:.3f} ms; "
        f"the NumPy step is {step / floor.seconds:.1f} times the larger",
    ]


def _machine(setting: Setting) -> str:
    return machine(setting.threads, torch.cuda.get_device_name() if setting.device == "cuda" else "")


def _plain(setting: Setting, found: Measured) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, Timing):
            return {"median_s": value.median, "spread": value.spread, "seconds": value.seconds}
        if isinstance(value, LayerRow | Floor):
            return asdict(value)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return {"setting": asdict(setting), "machine": _machine(setting), **plain(found)}


def _draw(setting: Setting, rows: list[LayerRow], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.4 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    for offset, label, color, forward, backward in (
        (-0.2, "NumPy", "#3b6fb6", "forward", "backward"),
        (0.2, "torch", "#c58b2a", "native_forward", "native_backward"),
    ):
        first = np.array([getattr(row, forward) for row in rows]) * 1e3
        second = np.array([getattr(row, backward) for row in rows]) * 1e3
        axes.barh(places + offset, first, 0.38, color=color, label=f"{label} forward")
        axes.barh(places + offset, second, 0.38, left=first, color=color, alpha=0.5, label=f"{label} backward")
    axes.set_yticks(places, [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.set_title(f"{setting.net}, batch {setting.batch_size}: each layer alone\n{_machine(setting)}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    with written("--png", path) as temporary:
        figure.savefig(temporary, dpi=150)
