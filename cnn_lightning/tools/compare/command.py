"""``cnn-lightning compare``: train the same network four ways and print a table of the measured cost of each."""

import json
from dataclasses import asdict

from jsonargparse import Namespace
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from cnn_lightning.errors import UserError
from cnn_lightning.files import PICTURES, expect_writable, written
from cnn_lightning.notices import tell
from cnn_lightning.ops.fast import blocks
from cnn_lightning.tools import parser as parsers
from cnn_lightning.tools.compare import arguments
from cnn_lightning.tools.compare.measure import Measured, RunError, measure
from cnn_lightning.tools.compare.ways import PLAIN_TORCH, PROGRAMS, Setting
from cnn_lightning.tools.machine import forced_kernel, machine

WIDTH = 80
"""The most columns of the screen that the table takes."""


def main(args: list[str]) -> int:
    """Measure, print the table, and write what was asked for."""
    options = arguments.parser().parse_args(parsers.data_by_name(args))
    setting = _setting(options)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)
        try:
            found = measure(
                setting,
                options.rounds,
                lambda what, done, total: progress.update(task, description=what, completed=done, total=total),
            )
        except RunError as error:
            raise UserError(str(error)) from error
    text = markdown(setting, found)
    if options.markdown == arguments.SCREEN:
        print(text)
    else:
        _show(setting, found)
    if forced_kernel():
        tell(forced_kernel())  # on stderr: stdout has the table alone, which may go into a page
    if options.markdown not in (None, arguments.SCREEN):
        with written("--markdown", options.markdown) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    if options.json:
        ways = {way: asdict(measured) for way, measured in found.items()}
        content = {"machine": machine(setting.threads), "setting": asdict(setting), "ways": ways}
        with written("--json", options.json) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if options.png:
        _draw(setting, found, options.png)
    return 0


def _setting(options: Namespace) -> Setting:
    parsers.expect_at_least_one(options, "epochs", "rounds", "threads", "data.batch_size")
    parsers.expect_seed(options.seed)
    if not 0 < options.lr < float("inf"):
        raise UserError(f"--lr: expected a rate above 0, got {options.lr}")
    for name in ("markdown", "json", "png"):
        if options[name] != arguments.SCREEN:
            expect_writable(f"--{name}", options[name], PICTURES if name == "png" else ())
    return Setting(
        data=options.data.name.lower(),
        root=options.data.root,
        epochs=options.epochs,
        batch_size=options.data.batch_size,
        lr=options.lr,
        seed=options.seed,
        threads=options.threads or blocks.get_num_threads(),
    )


# ---- the table


def _rows(setting: Setting, found: dict[str, Measured]) -> dict[str, list[str]]:
    """The figures in words, a list for each row with an entry for each way."""
    base = found[PLAIN_TORCH]
    n = setting.epochs
    return {
        "lines of code, the program": [f"{each.lines[PROGRAMS[way]]}" for way, each in found.items()],
        "lines of code, our functions that ran": [f"{sum(each.called.values()):,}" for each in found.values()],
        "lines of code, all of their files": [f"{sum(each.lines.values()):,}" for each in found.values()],
        "backward pass": [each.runs[0].backward for each in found.values()],
        "GPU": [each.gpu for each in found.values()],
        "time per epoch": [f"{each.epoch:.3g} s" for each in found.values()],
        "ratio to plain torch": [f"{each.ratio(base):.2f}" for each in found.values()],
        "time to first batch": [f"{each.first_batch:.1f} s" for each in found.values()],
        "peak memory": [f"{each.peak_bytes / 1e6:.0f} MB" for each in found.values()],
        "packages imported": [f"{len(each.runs[0].packages)}" for each in found.values()],
        f"test accuracy after {n} epoch{'s' * (n > 1)}": [f"{each.runs[0].test_acc:.2%}" for each in found.values()],
    }


def _measured(setting: Setting, found: dict[str, Measured], command: str) -> str:
    """How and on what the figures were measured, in a sentence."""
    rounds = len(found[PLAIN_TORCH].runs)
    return (
        f"Measured by {command} on {machine(setting.threads)}: {setting.data}, batches of "
        f"{setting.batch_size}, Adam, the same first weights and order for all; medians of {rounds} "
        f"run{'s' * (rounds > 1)} that took turns, each in a process of its own."
    )


def markdown(setting: Setting, found: dict[str, Measured]) -> str:
    """The table in Markdown: one column for each way, and the machine below."""
    head = ["", *found]
    lines = [_row(head), _row(["---"] + ["---:"] * len(found))]
    lines += [_row([key, *cells]) for key, cells in _rows(setting, found).items()]
    return "\n".join([*lines, "", _measured(setting, found, "`cnn-lightning compare`")])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _show(setting: Setting, found: dict[str, Measured]) -> None:
    """Print the table for people, at most `WIDTH` columns wide."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    for way in found:
        table.add_column(way, justify="right", vertical="bottom", max_width=len("NumPy layers"))
    for key, cells in _rows(setting, found).items():
        table.add_row(key, *cells)
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    console.print(table)
    console.print(_measured(setting, found, "cnn-lightning compare"))


# ---- the picture


def _draw(setting: Setting, found: dict[str, Measured], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    panels = (
        ("time per epoch", "s", [each.epoch for each in found.values()]),
        ("time to first batch", "s", [each.first_batch for each in found.values()]),
        ("peak memory", "MB", [each.peak_bytes / 1e6 for each in found.values()]),
    )
    for index, (axes, (title, unit, values)) in enumerate(zip(figure.subplots(1, 3), panels, strict=True)):
        colors = ["#3b6fb6" if "NumPy" in way else "#c58b2a" for way in found]
        bars = axes.barh(range(len(found)), values, 0.6, color=colors)
        axes.bar_label(bars, [f"{value:.3g} {unit}" for value in values], padding=4, fontsize=9)
        axes.set_yticks(range(len(found)), list(found) if index == 0 else [""] * len(found))
        axes.invert_yaxis()
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlim(0, max(values) * 1.3)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.supxlabel(f"{setting.data}, batches of {setting.batch_size}; {machine(setting.threads)}", fontsize=7)
    with written("--png", path) as temporary:
        figure.savefig(temporary, dpi=150)
