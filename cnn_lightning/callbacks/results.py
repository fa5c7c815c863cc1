"""The files of ``test`` and ``predict``: confusion matrix, predictions, and the pictures of least confidence."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cnn_lightning.callbacks.folder import folder_to_write
from cnn_lightning.callbacks.tables import write_table
from cnn_lightning.classifier import Classifier
from cnn_lightning.data.loader import Batches
from cnn_lightning.errors import EverywhereError
from cnn_lightning.files import write_or_warn
from cnn_lightning.processes import from_all

DOUBTFUL = 25
"""The number of pictures in the grid of the most uncertain ones."""


class Confusion(Callback):
    """Accuracy per class on the screen; ``confusion.csv`` and ``confusion.png`` in the folder.

    Args:
        loud: Whether to print the accuracies.
    """

    def __init__(self, loud: bool = True) -> None:
        self.loud = loud

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up the counts of all processes and write them."""
        assert isinstance(pl_module, Classifier)
        counts = pl_module.confusion.compute().cpu().numpy()
        pl_module.confusion.reset()
        folder = folder_to_write(trainer)
        if folder is not None:
            write_confusion(counts, pl_module.class_names, folder)
        if self.loud and trainer.is_global_zero:
            Console().print(_accuracy_table(counts, pl_module.class_names))
            if folder is not None:
                print(f"confusion: {folder / 'confusion.png'}, {folder / 'confusion.csv'}")


class Predictions(Callback):
    """``predictions.csv``, and a grid of the pictures with the least confidence.

    Each prediction is kept by the index of its picture in the data set. The loader gives the indices, as
    `Batches.indices`, or as Lightning's sampler of an ordinary ``DataLoader``. For another loader, with one process,
    pictures are numbered in their order.

    Raises:
        EverywhereError: Several processes, and a loader that does not give the indices of its pictures.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.rows: dict[int, tuple[str, float]] = {}
        self.images: dict[int, NDArray[np.float32]] = {}
        self._batches: Sequence[Sequence[int]] | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop earlier predictions, and get the indices of the batches."""
        self._forget()
        loader = _loader(trainer)
        if isinstance(loader, Batches):
            self._batches = [batch.tolist() for batch in loader.indices()]

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the predictions of a batch, and the pictures of least confidence so far."""
        loader = _loader(trainer)
        # Lightning's sampler for prediction makes a new list with each iterator.
        batches = self._batches or getattr(getattr(loader, "batch_sampler", None), "seen_batch_indices", None)
        if batches:
            indices = batches[batch_idx]
        else:
            if trainer.world_size > 1:
                raise EverywhereError(
                    "data: expected a predict loader that gives the indices of its pictures, which several processes "
                    "need (a DataLoader over a map-style data set), got "
                    f"{type(loader).__name__}; --trainer.devices 1 needs none"
                )
            indices = range(len(self.rows), len(self.rows) + len(outputs["name"]))
        confidences = outputs["confidence"].tolist()
        for index, name, confidence, image in zip(indices, outputs["name"], confidences, batch[0], strict=True):
            self.rows[index] = (name, confidence)
            self.images[index] = image.float().cpu().numpy()
        self.images = {index: self.images[index] for index in _doubtful(self.rows, self.images)}

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table and the grid, in the first process."""
        of_all = from_all((self.rows, self.images))
        folder = folder_to_write(trainer)
        if folder is None:
            if trainer.is_global_zero:
                print("predictions: not written, because without a logger there is no folder for them", flush=True)
            return
        rows = {index: row for each, _ in of_all for index, row in each.items()}
        images = {index: image for _, each in of_all for index, image in each.items()}
        assert isinstance(pl_module, Classifier)
        predict_files = getattr(getattr(trainer, "datamodule", None), "predict_files", list)
        files: Sequence[Any] = predict_files()
        table: list[Sequence[Any]] = [["file" if files else "index", "class", "confidence"]]
        for index, (name, confidence) in sorted(rows.items()):
            table.append([files[index] if files else index, name, f"{confidence:.6f}"])
        write_table(folder / "predictions.csv", table)
        entries = [("{}: {} {:.0%}".format(index, *rows[index]), images[index]) for index in _doubtful(rows, images)]
        draw_grid(entries, (pl_module.mean, pl_module.std), folder / "uncertain.png")
        print(f"predictions: {folder / 'predictions.csv'}\nuncertain: {folder / 'uncertain.png'}")


def _loader(trainer: Trainer) -> Any:
    """The loader of predict; a DataModule may give it in a list of one."""
    found = trainer.predict_dataloaders
    return found[0] if isinstance(found, list | tuple) and len(found) == 1 else found


def _doubtful(rows: Mapping[int, tuple[str, float]], among: Iterable[int]) -> list[int]:
    """The indices of the pictures with the least confidence, the least first, then in the order of the data set."""
    return sorted(among, key=lambda index: (rows[index][1], index))[:DOUBTFUL]


def write_confusion(counts: NDArray[np.int64], names: Sequence[str], folder: Path) -> None:
    """Write the matrix as CSV and as a picture: rows are the true classes, columns the predicted ones."""
    rows = [[name, *row] for name, row in zip(names, counts.tolist(), strict=True)]
    write_table(folder / "confusion.csv", [["true \\ predicted", *names], *rows])
    size = max(4.0, 0.5 * len(names) + 1.5)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    ax = figure.subplots()
    fractions = counts / np.maximum(1, counts.sum(1, keepdims=True))
    ax.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    ax.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 2 else 0, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    if len(names) <= 30:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if fractions[row, column] > 0.5 else "black"
            ax.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    write_or_warn(folder / "confusion.png", partial(figure.savefig, dpi=150))


def draw_grid(
    entries: Sequence[tuple[str, NDArray[np.float32]]],
    normalisation: tuple[Sequence[float], Sequence[float]],
    path: Path,
) -> None:
    """Draw pictures, without their normalisation, each with a line of text above."""
    columns = 5
    rows = max(1, -(-len(entries) // columns))
    figure = Figure(figsize=(columns * 1.7, rows * 1.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    mean, std = (np.array(values or [0.0])[:, None, None] for values in normalisation)
    for ax in axes:
        ax.axis("off")
    for ax, (text, image) in zip(axes, entries, strict=False):
        shown = (image * std + mean).clip(0, 1) if len(mean) == len(image) else image
        ax.imshow(shown.transpose(1, 2, 0).squeeze(), cmap="gray")
        ax.set_title(text, fontsize=8)
    write_or_warn(path, partial(figure.savefig, dpi=130))


def _accuracy_table(counts: NDArray[np.int64], names: Sequence[str]) -> Table:
    table = Table(title="accuracy per class", title_justify="left")
    table.add_column("class")
    table.add_column("accuracy", justify="right")
    table.add_column("pictures", justify="right")
    for index, name in enumerate(names):
        total = int(counts[index].sum())
        table.add_row(name, f"{counts[index, index] / total:.1%}" if total else "", str(total))
    return table
