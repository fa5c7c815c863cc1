"""The tables of ``cnn-lightning benchmark``, which a terminal of 80 columns has room for."""

from collections.abc import Sequence
from dataclasses import fields

from rich import box
from rich.table import Table

from cnn_lightning.ops.fast.tuning import TUNING
from cnn_lightning.tools.benchmark.tune import Found

BELOW_TUNING = (
    "\n* is the number in cnn_lightning/ops/fast/tuning.py. Nothing was changed. After an edit there the formulas run, "
    "until python -m tests.prove, in a checkout, has proven the fast functions again.",
)


def compact(title: str, texts: Sequence[str], figures: Sequence[str]) -> Table:
    """An empty table without a frame: headings of columns of text, which are folded where they must, and of figures."""
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
    """A heading, and the times of a number's candidates."""
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
    """A number and its unit, bytes in the largest that divides them."""
    for size, name in ((2**20, "MiB"), (2**10, "KiB")):
        if unit == "bytes" and value % size == 0:
            return f"{value // size:,}", name
    return f"{value:,}", unit
