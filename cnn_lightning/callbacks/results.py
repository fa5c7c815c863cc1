"""The files of ``predict``: predictions, and the pictures of least confidence."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from cnn_lightning.callbacks.folder import folder_to_write
from cnn_lightning.callbacks.tables import write_table
from cnn_lightning.callbacks.tiles import is_class, pixels, says, tiles
from cnn_lightning.classifier import Classifier
from cnn_lightning.data.loader import Batches
from cnn_lightning.errors import EverywhereError
from cnn_lightning.files import write_or_warn
from cnn_lightning.processes import from_all

DOUBTFUL = 25
"""The number of pictures in the grid of the most uncertain ones."""


class Predictions(Callback):
    """``predictions.csv``, and a grid of the pictures with the least confidence.

    Both show the true class where it is known: of the test split, and of files below a folder that is named as a class.

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
        self.labels: dict[int, int] = {}
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
        known = len(batch) > 1 and isinstance(batch[1], Tensor)
        labels = batch[1].tolist() if known else [-1] * len(confidences)
        for index, name, confidence, label, image in zip(
            indices, outputs["name"], confidences, labels, batch[0], strict=True
        ):
            self.rows[index], self.labels[index] = (name, confidence), label
            self.images[index] = image.float().cpu().numpy()
        self.images = {index: self.images[index] for index in _doubtful(self.rows, self.images)}

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table and the grid, in the first process."""
        of_all = from_all((self.rows, self.labels, self.images))
        folder = folder_to_write(trainer)
        if folder is None:
            if trainer.is_global_zero:
                print("predictions: not written, because without a logger there is no folder for them", flush=True)
            return
        rows = {index: row for each, _, _ in of_all for index, row in each.items()}
        labels = {index: label for _, each, _ in of_all for index, label in each.items()}
        images = {index: image for _, _, each in of_all for index, image in each.items()}
        assert isinstance(pl_module, Classifier)
        data, names = getattr(trainer, "datamodule", None), pl_module.class_names
        files: Sequence[Any] = getattr(data, "predict_files", list)()
        inside = getattr(data, "predict_dir", None)
        truths = {
            index: _class_of_folder(names, files[index], inside) if files else _class_of_label(names, labels.get(index))
            for index in rows
        }
        write_table(folder / "predictions.csv", _table(rows, truths, files))
        normalisation = pl_module.mean, pl_module.std
        entries = [
            (pixels(images[index], normalisation), _words(index, rows[index], truths[index]))
            for index in _doubtful(rows, images)
        ]
        grid = tiles(entries, columns=5, empty="no pictures")
        write_or_warn(folder / "uncertain.png", partial(grid.save, format="PNG"))
        print(f"predictions: {folder / 'predictions.csv'}\nuncertain: {folder / 'uncertain.png'}")


def _loader(trainer: Trainer) -> Any:
    """The loader of predict; a DataModule may give it in a list of one."""
    found = trainer.predict_dataloaders
    return found[0] if isinstance(found, list | tuple) and len(found) == 1 else found


def _doubtful(rows: Mapping[int, tuple[str, float]], among: Iterable[int]) -> list[int]:
    """The indices of the pictures with the least confidence, the least first, then in the order of the data set."""
    return sorted(among, key=lambda index: (rows[index][1], index))[:DOUBTFUL]


def _class_of_label(names: Sequence[str], label: int | None) -> str:
    """The name of a class; empty if it is unknown."""
    return names[label] if label is not None and 0 <= label < len(names) else ""


def _class_of_folder(names: Sequence[str], file: Path, inside: Path | None) -> str:
    """The class that is the name of a folder in which the file lies, inside a folder; empty if there is none."""
    folders = file.relative_to(inside).parts[:-1] if inside is not None else ()
    return next((name for name in reversed(folders) if name in names), "")


def _words(index: int, prediction: tuple[str, float], truth: str) -> list[str]:
    """The lines below a picture of the grid."""
    return [f"number {index}", *says(*prediction), *(is_class(truth) if truth else ())]


def _table(
    rows: Mapping[int, tuple[str, float]], truths: Mapping[int, str], files: Sequence[Path]
) -> list[Sequence[Any]]:
    """The lines of the file; with a column for the true class if it is known of any picture."""
    known = any(truths.values())
    table: list[Sequence[Any]] = [["file" if files else "index", "class", "confidence", *(["true"] if known else [])]]
    for index, (name, confidence) in sorted(rows.items()):
        line = [files[index] if files else index, name, f"{confidence:.6f}"]
        table.append([*line, truths[index]] if known else line)
    return table
