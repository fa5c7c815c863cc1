"""``cnn-lightning benchmark``: step, layers, operations, memory and the floor, measured on this machine."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cnn_lightning.errors import UserError
from cnn_lightning.files import PICTURES, expect_writable, written
from cnn_lightning.tools import parser as parsers
from cnn_lightning.tools.benchmark import arguments
from cnn_lightning.tools.benchmark.bridge import measure_bridge
from cnn_lightning.tools.benchmark.fixed import measure_fixed
from cnn_lightning.tools.benchmark.floor import Floor, measure_floor
from cnn_lightning.tools.benchmark.layers import LayerRow, measure_layers
from cnn_lightning.tools.benchmark.memory import measure_memory
from cnn_lightning.tools.benchmark.networks import NETWORKS, NetworkRow, measure_networks
from cnn_lightning.tools.benchmark.operations import OperationRow, measure_operations
from cnn_lightning.tools.benchmark.picture import draw
from cnn_lightning.tools.benchmark.steps import IMPLEMENTATIONS, Contender, Setting, measure_steps
from cnn_lightning.tools.benchmark.tables import (
    BELOW_TUNING,
    Measured,
    machine_of,
    network_table,
    numbers_table,
    tables,
    trial_table,
)
from cnn_lightning.tools.benchmark.timing import Tick, Timing, threads
from cnn_lightning.tools.benchmark.tune import measure, more_threads, trials
from cnn_lightning.tools.machine import forced_kernel, machine


def main(args: list[str]) -> int:
    """Measure, print, and write what was asked for."""
    options = arguments.parser().parse_args(args)
    parsers.expect_at_least_one(options, "rounds", "threads", "data.batch_size")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: expected a device of this machine, got cuda, which torch does not see here")
    if options.tune and (options.json or options.png or options.networks or options.device != "cpu"):
        raise UserError(
            "--tune: expected neither --json nor --png nor --networks nor --device cuda: it measures the CPU and prints"
        )
    if options.networks and (options.png or options.compile or options.device != "cpu"):
        raise UserError("--networks: expected neither --png nor --compile nor --device cuda: it measures the CPU")
    expect_writable("--json", options.json)
    expect_writable("--png", options.png, PICTURES)
    console = Console()
    if options.tune:
        return _tune(more_threads(options.threads), options.rounds, console)
    if options.networks:
        return _networks(options.threads, options.rounds, options.json, console)
    setting = Setting(
        net=options.model.net,
        batch_size=options.data.batch_size,
        in_channels=options.data.in_channels,
        image_size=options.data.image_size,
        num_classes=options.data.num_classes,
        channels=tuple(options.model.channels),
        hidden=options.model.hidden,
        dropout=options.model.dropout,
        memory_format=options.model.memory_format,
        threads=options.threads,
        device=options.device,
    )
    try:
        setting.network()
    except ValueError as error:
        raise UserError(str(error)) from error
    by_functions = options.model.functions == "numpy"
    asked = {"numpy formulas": options.formulas, "torch.compile": options.compile, "numpy functions": by_functions}
    left_out = [name for name, wanted in asked.items() if not wanted]
    setting, found = _measure(
        setting, [name for name in IMPLEMENTATIONS if name not in left_out], options.rounds, console
    )
    for table in tables(setting, found):
        console.print(table)
    if by_functions:
        console.print(Contender.make("numpy functions", setting).backward(), highlight=False)
    _write({"setting": asdict(setting), "machine": machine_of(setting), **found}, options.json, console)
    if options.png:
        draw(setting, found["layers"], options.png)
        console.print(f"png: {options.png}")
    return 0


def _networks(threads: int, rounds: int, path: str | None, console: Console) -> int:
    with _progress(console) as tick:
        rows = measure_networks([replace(each, threads=threads) for each in NETWORKS], rounds, tick)
    for part in (*network_table(rows), forced_kernel()):
        if part:
            console.print(part)
    _write({"machine": machine_of(rows[0].setting), "networks": rows}, path, console)
    return 0


def _write(found: Measured, path: str | None, console: Console) -> None:
    if path:
        with written("--json", path) as temporary:
            temporary.write_text(json.dumps(_plain(found), indent=1))
        console.print(f"json: {path}")


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
    """Progress bars, one for each name, drawn between the bursts alone: a thread that draws them takes CPU time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        tasks: dict[str, Any] = {}

        def tick(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name)
            progress.update(tasks[name], completed=done, total=total, refresh=True)

        yield tick


def _measure(setting: Setting, names: list[str], rounds: int, console: Console) -> tuple[Setting, Measured]:
    """The setting with its memory format decided, and all figures."""
    with threads(setting.threads), _progress(console) as tick:
        setting, memory = setting.decided()
        found: Measured = {"memory_format": str(memory), **measure_steps(setting, names, rounds, tick)}
        found["layers"] = measure_layers(setting, rounds, tick)
        found["operations"] = measure_operations(setting, rounds, tick)
        found["fixed"] = measure_fixed(setting, rounds)
        found["bridge"] = measure_bridge(setting, rounds, tick)
        tick("memory", 0, 1)
        found["memory"] = measure_memory(setting, names)
        tick("memory", 1, 1)
        found["floor"] = measure_floor(setting)
    return setting, found


def _plain(value: Any) -> Any:
    """``value`` in the types of JSON."""
    if isinstance(value, Timing):
        return {"median_s": value.median, "spread": value.spread, "seconds": value.seconds, "wall": value.wall}
    if isinstance(value, NetworkRow):
        return _plain({"setting": asdict(value.setting), "step": value.step, "memory": value.memory})
    if isinstance(value, LayerRow | OperationRow | Floor):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
