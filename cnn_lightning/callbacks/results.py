"""What ``test`` and ``predict`` leave in their folder: confusion matrix, predictions, the doubtful pictures."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cnn_lightning.classifier import Classifier

DOUBTFUL = 25
"""Pictures in the grid of the most uncertain ones."""


class Confusion(Callback):
    """Accuracy per class on the screen; ``confusion.csv`` and ``confusion.png`` in the folder.

    Args:
        loud: Whether the screen is told.
    """

    def __init__(self, loud: bool = True) -> None:
        self.loud = loud

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the counts of all processes and write them."""
        assert isinstance(pl_module, Classifier)
        counts = pl_module.confusion.compute().cpu().numpy()
        pl_module.confusion.reset()
        log_dir = trainer.log_dir  # asks the first process, so that every process has to come by here
        if trainer.is_global_zero and log_dir:
            folder = Path(log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_confusion(counts, pl_module.class_names, folder)
            if self.loud:
                Console().print(_accuracy_table(counts, pl_module.class_names))
                print(f"confusion: {folder / 'confusion.png'}, {folder / 'confusion.csv'}")


class Predictions(Callback):
    """``predictions.csv`` and a grid of the pictures that the network is least sure of."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float]] = []
        self.images: list[tuple[float, str, NDArray[np.float32]]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note the answers, and keep the most doubtful pictures."""
        confidences = outputs["confidence"].tolist()
        for name, confidence, image in zip(outputs["name"], confidences, batch[0], strict=True):
            self.rows.append((name, confidence))
            self.images.append((confidence, f"{len(self.rows) - 1}: {name} {confidence:.0%}", image.cpu().numpy()))
        self.images = sorted(self.images, key=lambda entry: entry[0])[:DOUBTFUL]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both."""
        log_dir = trainer.log_dir  # asks the first process, as above
        if not log_dir or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Classifier)
        data: Any = getattr(trainer, "datamodule", None)
        files: Sequence[Any] = data.predict_files() if data is not None else []
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # A file may be named in no encoding; the same bytes are then in the table.
        with (folder / "predictions.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["file" if files else "index", "class", "confidence"])
            for index, (name, confidence) in enumerate(self.rows):
                writer.writerow([files[index] if files else index, name, f"{confidence:.6f}"])
        draw_grid(self.images, (pl_module.mean, pl_module.std), folder / "uncertain.png")
        print(f"predictions: {folder / 'predictions.csv'}\nuncertain: {folder / 'uncertain.png'}")


def write_confusion(counts: NDArray[np.int64], names: Sequence[str], folder: Path) -> None:
    """The matrix as CSV and as a picture: rows are the true classes, columns the predicted ones."""
    with (folder / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        for name, row in zip(names, counts.tolist(), strict=True):
            writer.writerow([name, *row])
    size = max(4.0, 0.5 * len(names) + 1.5)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    ax = figure.subplots()
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ax.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 2 else 0, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    if len(names) <= 30:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if share[row, column] > 0.5 else "black"
            ax.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    figure.savefig(folder / "confusion.png", dpi=150)


def draw_grid(
    entries: Sequence[tuple[float, str, NDArray[np.float32]]],
    normalisation: tuple[Sequence[float], Sequence[float]],
    path: Path,
) -> None:
    """Pictures with a line of text below each, their normalisation undone."""
    columns = 5
    rows = max(1, -(-len(entries) // columns))
    figure = Figure(figsize=(columns * 1.7, rows * 1.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    mean, std = (np.array(values or [0.0])[:, None, None] for values in normalisation)
    for ax in axes:
        ax.axis("off")
    for ax, (_, text, image) in zip(axes, entries, strict=False):
        shown = (image * std + mean).clip(0, 1) if len(mean) == len(image) else image
        ax.imshow(shown.transpose(1, 2, 0).squeeze(), cmap="gray")
        ax.set_title(text, fontsize=8)
    figure.savefig(path, dpi=130)


def _accuracy_table(counts: NDArray[np.int64], names: Sequence[str]) -> Table:
    table = Table(title="accuracy per class", title_justify="left")
    table.add_column("class")
    table.add_column("accuracy", justify="right")
    table.add_column("pictures", justify="right")
    for index, name in enumerate(names):
        total = int(counts[index].sum())
        table.add_row(name, f"{counts[index, index] / total:.1%}" if total else "", str(total))
    return table
