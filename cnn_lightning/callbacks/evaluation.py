"""What ``test`` says and writes: one table on the screen, and tables and pictures in the run's folder."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cnn_lightning.callbacks.confusion import confusion
from cnn_lightning.callbacks.folder import folder_to_write
from cnn_lightning.callbacks.score_pictures import draw_scores
from cnn_lightning.callbacks.tables import write_table
from cnn_lightning.classifier import Classifier
from cnn_lightning.classifier.metrics import MeanLoss
from cnn_lightning.classifier.scores import (
    BINS,
    TOP,
    Floats,
    PerClass,
    Scores,
    macro_precision_recall,
    macro_roc,
    mean_of,
    per_class,
)
from cnn_lightning.files import write_or_warn
from cnn_lightning.notices import tell

SHOWN = 30
"""The most classes on the screen; of more, those with the lowest F1."""
DRAWN = 20
"""The most classes in the tables and the picture of curves; of more, those with the smallest area below the ROC."""
MACRO = "mean of classes"
NUMBERS = 63
"""The columns of the screen that the numbers of a class and the spaces between them take."""


class Result(NamedTuple):
    """A whole test.

    Args:
        names: Of the classes.
        counts: The confusion matrix; rows are the true classes.
        loss: The mean over the pictures.
        scores: What needs the logits.
    """

    names: Sequence[str]
    counts: NDArray[np.int64]
    loss: float
    scores: Scores

    @property
    def per_class(self) -> PerClass:
        """Precision, recall and F1."""
        return per_class(self.counts)

    def values(self) -> dict[str, float]:
        """Each number of the whole split by its name in ``results.csv``; NaN if it is undefined."""
        total, found, curves = int(self.counts.sum()), self.per_class, self.scores.curves
        return {
            "pictures": total,
            "accuracy": np.trace(self.counts) / total if total else math.nan,
            f"top_{TOP}_accuracy": self.scores.top,
            "loss": self.loss,
            "macro_precision": mean_of(found.precision),
            "macro_recall": mean_of(found.recall),
            "macro_f1": mean_of(found.f1),
            "macro_auroc": mean_of(curves.auroc),
            "macro_average_precision": mean_of(curves.average_precision),
            "calibration_error": self.scores.bins.error,
        }

    def columns(self) -> list[Floats]:
        """Precision, recall, F1, AUROC and average precision of the classes."""
        return [*self.per_class, self.scores.curves.auroc, self.scores.curves.average_precision]


class Evaluation(Callback):
    """One table on the screen; ``confusion``, ``results``, ``classes`` and curves in the folder.

    Args:
        pictures: Whether to draw the curves.
        loud: Whether to print the table.
    """

    def __init__(self, pictures: bool = True, loud: bool = True) -> None:
        self.pictures, self.loud = pictures, loud
        self.last: Result | None = None

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up the counts of all processes, print and write them."""
        assert isinstance(pl_module, Classifier)
        counts = pl_module.confusion.compute().cpu().numpy()
        mean_loss = pl_module.test_loss
        assert isinstance(mean_loss, MeanLoss)
        loss = float(mean_loss.compute()) if counts.any() else math.nan
        result = self.last = Result(pl_module.class_names, counts, loss, pl_module.scores.compute())
        pl_module.confusion.reset()
        pl_module.scores.reset()
        folder = folder_to_write(trainer)
        if folder is not None:
            write(result, folder, self.pictures)
        if self.loud and trainer.is_global_zero:
            console = Console()
            console.print(table_of(result, console.width), highlight=False)
            if folder is not None:
                print(f"confusion: {folder / 'confusion.png'}, {folder / 'confusion.csv'}")
                print(f"results: {folder / 'results.csv'}, {folder / 'classes.csv'}, and curves beside them")
        if result.scores.left_out:
            tell(
                f"test: {result.scores.left_out:,} of {int(counts.sum()):,} pictures have probabilities that are not "
                "finite; calibration and curves are without them"
            )


# ---- the screen


def table_of(result: Result, width: int = 80) -> Table:
    """The numbers of the split above those of its classes; on a narrow screen names are cut, and no number is."""
    values = result.values()
    words = [f"accuracy {_decimal(values['accuracy'])}"]
    if len(result.names) > TOP:
        words.append(f"top-{TOP} accuracy {_decimal(result.scores.top)}")
    words += [f"loss {_decimal(result.loss)}", f"calibration error {_decimal(result.scores.bins.error)}"]
    total, n = int(result.counts.sum()), len(result.names)
    title = f"test: {total:,} picture{'s' * (total != 1)}, {n:,} classes\n{', '.join(words)}"
    table = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, show_footer=True)
    footers = [_percent(values[f"macro_{name}"]) for name in ("precision", "recall", "f1")]
    footers += [_decimal(values["macro_auroc"]), _decimal(values["macro_average_precision"])]
    table.add_column("class", MACRO, no_wrap=True, overflow="ellipsis", max_width=max(len(MACRO), width - NUMBERS))
    for header, footer in zip(("precision", "recall", "F1", "AUROC", "AP"), footers, strict=True):
        table.add_column(header, footer, justify="right", no_wrap=True)
    table.add_column("pictures", f"{total:,}", justify="right", no_wrap=True)
    columns, support = result.columns(), result.counts.sum(1)
    rows = worst(result.per_class.f1, SHOWN)
    for index in rows:
        first, second = [_percent(column[index]) for column in columns[:3]], columns[3:]
        name = Text(result.names[index])  # as it is: square brackets are markup elsewhere
        table.add_row(name, *first, *(_decimal(column[index]) for column in second), f"{support[index]:,}")
    if len(rows) < n:
        table.caption = f"the {len(rows)} classes of {n:,} with the lowest F1; classes.csv has all"
        table.caption_justify = "left"
    return table


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _decimal(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


# ---- the folder


def write(result: Result, folder: Path, pictures: bool = True) -> None:
    """Write the tables, and the pictures of the confusion and of the curves."""
    names, scores, curves = result.names, result.scores, result.scores.curves
    write_confusion(result.counts, names, folder)
    write_table(
        folder / "results.csv",
        [["metric", "value"], *([name, _cell(value)] for name, value in result.values().items())],
    )
    header = ["class", "precision", "recall", "f1", "auroc", "average_precision", "pictures"]
    columns = [map(_cell, column) for column in result.columns()]
    write_table(folder / "classes.csv", [header, *zip(names, *columns, result.counts.sum(1).tolist(), strict=True)])
    shown = worst(curves.auroc, DRAWN)
    header = ["class", "threshold", "false_positive_rate", "true_positive_rate"]
    rows = _points(result, shown, curves.fpr, curves.tpr, macro_roc(curves))
    write_table(folder / "roc.csv", [header, *rows])
    header = ["class", "threshold", "recall", "precision"]
    rows = _points(result, shown, curves.tpr, curves.precision, macro_precision_recall(curves))
    write_table(folder / "precision_recall.csv", [header, *rows])
    edges = np.linspace(0, 1, BINS + 1)
    header = ["from", "to", "confidence", "accuracy", "pictures"]
    bins = zip(edges[:-1], edges[1:], scores.bins.confidence, scores.bins.accuracy, strict=True)
    counted = [[*map(_cell, row), int(n)] for row, n in zip(bins, scores.bins.pictures, strict=True)]
    write_table(folder / "calibration.csv", [header, *counted])
    if pictures:
        write_or_warn(folder / "scores.png", partial(draw_scores, scores, names, shown))


def write_confusion(counts: NDArray[np.int64], names: Sequence[str], folder: Path) -> None:
    """Write the matrix as CSV and as a picture: rows are the true classes, columns the predicted ones."""
    rows = [[name, *row] for name, row in zip(names, counts.tolist(), strict=True)]
    write_table(folder / "confusion.csv", [["true \\ predicted", *names], *rows])
    image = confusion(counts, names, "test")
    write_or_warn(folder / "confusion.png", partial(image.save, format="PNG"))


def _points(
    result: Result, shown: Sequence[int], x: Floats, y: Floats, macro: tuple[Floats, Floats]
) -> Iterator[list[str]]:
    """The rows of a table of curves: the mean of all classes, then each class; a point that repeats one is left out."""
    for across, up in zip(*macro, strict=True):
        yield [MACRO, "", _cell(across), _cell(up)]
    for index in shown:
        before = None
        for threshold, *point in zip(result.scores.curves.thresholds, x[index], y[index], strict=True):
            if point != before and not math.isnan(point[0]):
                yield [result.names[index], _cell(threshold), *map(_cell, point)]
            before = point


def worst(values: Floats, most: int) -> list[int]:
    """All classes in their order; of more than ``most``, those with the lowest values, the lowest first."""
    if len(values) <= most:
        return list(range(len(values)))
    known = np.flatnonzero(~np.isnan(values))
    return [int(index) for index in known[np.argsort(values[known], kind="stable")][:most]]


def _cell(value: float) -> str:
    """A number as the tables have it; empty if it is undefined."""
    return "" if math.isnan(value) else f"{value:.6g}"
