"""The results of a sweep: a table on the screen, ``trials.csv``, two pictures, and the best trial as a config."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table

from cnn_lightning.callbacks.tables import write_table
from cnn_lightning.checkpoints import shown
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import write_or_warn
from cnn_lightning.tools.sweep.folder import PRUNED, REASON, Sweep

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SHOWN = 10
"""The trials of the table."""
WIDTH = 80
BEST = "best.yaml"
DONE, OTHER, FAILED, LINE = "#3b6fb6", "#c58b2a", "#c0504d", "0.4"
STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "not ended"}


def write(sweep: Sweep) -> None:
    """Write the files, and print the table and the best trial.

    Raises:
        UserError: No trial has a value, or the config of the best one is missing.
    """
    trials = sweep.trials()
    done = ranked(sweep)
    write_table(sweep.path / "trials.csv", _rows(sweep, trials))
    if not done:
        reasons = [
            f"trial {trial.number}: {trial.user_attrs[REASON]}" for trial in trials if REASON in trial.user_attrs
        ]
        reason = f"; {reasons[0]}" if reasons else ""
        raise UserError(f"sweep: no trial of {shown(sweep.path)} has a value{reason}")
    best = done[0]
    try:
        config = (sweep.folder(best.number) / "config.yaml").read_bytes()
    except OSError as error:
        raise UserError(f"sweep: can't read the config of the best trial, {best.number}: {one_line(error)}") from None
    write_or_warn(sweep.path / BEST, lambda place: place.write_bytes(config))
    draw_history(sweep, sweep.path / "history.png")
    draw_importances(sweep, sweep.path / "importances.png")
    Console(width=WIDTH).print(_table(sweep, trials, done))
    print(f"best: trial {best.number}, {sweep.settings.metric} {best.value:.4f}")
    print(f"trials: {shown(sweep.path / 'trials.csv')}")
    print(f"see: {shown(sweep.path / 'history.png')}, {shown(sweep.path / 'importances.png')}")
    print(f"again: cnn-lightning fit --config {shown(sweep.path / BEST)}")


def ranked(sweep: Sweep) -> "list[FrozenTrial]":
    """The trials that ran to their end, the best first."""
    done = [trial for trial in sweep.trials() if trial.state.name == "COMPLETE"]
    return sorted(done, key=lambda trial: trial.value or 0.0, reverse=sweep.settings.direction == "max")


def in_words(values: dict[str, Any]) -> str:
    """The options of a trial on one line."""
    return ", ".join(f"{option} {_short(value)}" for option, value in values.items())


def ending(sweep: Sweep, trial: "FrozenTrial") -> str:
    """How a trial ended, in words."""
    if REASON in trial.user_attrs:
        return f"failed: {trial.user_attrs[REASON]}"
    if trial.value is None:
        return STATES[trial.state.name]
    value = f"{sweep.settings.metric} {trial.value:.4f}"
    return f"{value}, pruned after epoch {trial.user_attrs[PRUNED] + 1}" if PRUNED in trial.user_attrs else value


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]


# ---- tables


def _rows(sweep: Sweep, trials: "list[FrozenTrial]") -> list[list[Any]]:
    options = list(sweep.settings.space)
    rows: list[list[Any]] = [["trial", "state", sweep.settings.metric, "epochs", "seconds", *options, "reason"]]
    for trial in trials:
        values = sweep.values_of(trial)
        seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.1f}"
        row = [trial.number, STATES[trial.state.name], "" if trial.value is None else repr(trial.value)]
        row += [_epochs(trial), seconds, *(values.get(option, "") for option in options)]
        rows.append([*row, trial.user_attrs.get(REASON, "")])
    return rows


def _table(sweep: Sweep, trials: "list[FrozenTrial]", done: "list[FrozenTrial]") -> Table:
    counts = {words: sum(STATES[trial.state.name] == words for trial in trials) for words in STATES.values()}
    table = Table(
        title=f"{len(trials)} trials: {', '.join(f'{n} {words}' for words, n in counts.items() if n)}",
        title_justify="left",
        width=WIDTH,
    )
    table.add_column("trial", justify="right")
    table.add_column(sweep.settings.metric, justify="right")
    table.add_column("epochs", justify="right")
    table.add_column("options", ratio=1)
    for trial in done[:SHOWN]:
        options = in_words(sweep.values_of(trial))
        table.add_row(str(trial.number), f"{trial.value:.4f}", str(_epochs(trial)), options)
    return table


def _epochs(trial: "FrozenTrial") -> int:
    return max(trial.intermediate_values, default=-1) + 1


# ---- pictures


def draw_history(sweep: Sweep, target: Path) -> None:
    """Draw the value of each trial, and the best one so far as a line."""
    figure, axes = _axes(7, 4)
    done = [(trial.number, trial.value or 0.0) for trial in sweep.trials() if trial.state.name == "COMPLETE"]
    axes.plot(*zip(*done, strict=True), "o", color=DONE, label="done")
    # At the lower edge: a trial of fewer epochs has no value that could be compared.
    for state, color, marker in (("PRUNED", OTHER, "v"), ("FAIL", FAILED, "x")):
        numbers = [trial.number for trial in sweep.trials() if trial.state.name == state]
        if numbers:
            edge = axes.get_xaxis_transform()
            axes.plot(numbers, [0.03] * len(numbers), marker, color=color, label=STATES[state], transform=edge)
    best: list[tuple[int, float]] = []
    for number, value in done:
        best.append((number, sweep.settings.better(value, best[-1][1]) if best else value))
    axes.step(*zip(*best, strict=True), where="post", color=LINE, label="best so far", zorder=1)
    axes.set_title(f"{sweep.settings.metric} of each trial", loc="left", fontweight="bold")
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="0.9")
    axes.margins(y=0.12)
    axes.legend(frameon=False)
    write_or_warn(target, partial(figure.savefig, dpi=150))


def draw_importances(sweep: Sweep, target: Path) -> None:
    """Draw how much each option decides the value, by fANOVA; a sentence if there are too few values for it."""
    found = importances(sweep)
    names = sorted(found, key=lambda name: found[name])
    figure, axes = _axes(7, 1.2 + 0.4 * max(1, len(names)))
    axes.set_title(f"which options decide {sweep.settings.metric}", loc="left", fontweight="bold")
    if found:
        bars = axes.barh(range(len(names)), [found[name] for name in names], 0.6, color=DONE)
        axes.bar_label(bars, [f"{found[name]:.0%}" for name in names], padding=4)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(0, 1.1)
    else:
        axes.text(0, 0.5, "needs more trials with different values", transform=axes.transAxes)
        axes.set_yticks([])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    write_or_warn(target, partial(figure.savefig, dpi=150))


def importances(sweep: Sweep) -> dict[str, float]:
    """The share of each option in the differences of the values; empty if all values are equal, or only one."""
    import optuna

    if len({trial.value for trial in ranked(sweep)}) < 2:
        return {}
    try:
        # Optuna's default, PED-ANOVA, looks at the best tenth of the trials alone, which is one or two here.
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found: dict[str, float] = optuna.importance.get_param_importances(sweep.study(), evaluator=evaluator)
    except (ValueError, RuntimeError):  # too few trials for its estimate
        return {}
    return found


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
