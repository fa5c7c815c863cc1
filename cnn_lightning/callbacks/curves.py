"""Learning curves: loss and accuracy, of training and validation, as a picture in the run folder."""

from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cnn_lightning.callbacks.folder import folder_to_write
from cnn_lightning.callbacks.metrics import read_metrics
from cnn_lightning.files import write_or_warn

TRAIN, VAL = "#3b6fb6", "#c0504d"


class LearningCurves(Callback):
    """Draws ``curves.png`` from ``metrics.csv`` when training ends, however it ends."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the whole run, also the epochs before it was resumed."""
        folder = folder_to_write(trainer)
        if folder is not None and (folder / "metrics.csv").is_file():
            draw_curves(folder / "metrics.csv", folder / "curves.png")


def draw_curves(source: Path, target: Path) -> None:
    """Draw losses on the left and accuracies on the right; the legend shows each curve's last value.

    The title of the accuracies has the best one of the validation.
    """
    metrics = read_metrics(source)
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, metric, title in ((axes[0], "loss", "loss"), (axes[1], "acc", "accuracy")):
        for stage, name, color, style in (("train", "training", TRAIN, "-"), ("val", "validation", VAL, "--")):
            _curve(ax, metrics.get(f"{stage}_{metric}", []), name, color, style)
        ax.set_title(title, loc="left", fontweight="bold")
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.9")
        ax.set_axisbelow(True)
        ax.margins(x=0.03)
    axes[0].set_ylim(bottom=0)
    axes[1].set_title(_best(metrics), loc="right", fontsize="medium")
    axes[1].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if value <= 1 else "")
    write_or_warn(target, partial(figure.savefig, dpi=150))


def _best(metrics: dict[str, list[tuple[int, float]]]) -> str:
    """The best accuracy in validation in words; empty if there is none."""
    points = metrics.get("val_acc")
    if not points:
        return ""
    epoch, value = max(points, key=lambda point: point[1])
    return f"validation at best {value:.1%}, epoch {epoch}"


def _curve(ax: Any, points: list[tuple[int, float]], name: str, color: str, style: str) -> None:
    if points:
        epochs, values = zip(*points, strict=True)
        last = f"{values[-1]:.1%}" if ax.get_subplotspec().colspan.start else f"{values[-1]:.3g}"
        marker = "o" if len(points) < 15 else None
        ax.plot(epochs, values, style, color=color, label=f"{name}, last {last}", marker=marker, markersize=4)
        ax.legend(frameon=False)
