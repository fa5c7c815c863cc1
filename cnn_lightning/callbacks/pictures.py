"""Pictures during the training: filters, confusion matrix, and the worst mistakes.

Pillow draws them, in a few milliseconds; a plotting library takes longer than an epoch of a small network.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cnn_lightning import draw
from cnn_lightning.callbacks.boards import Boards, has_tensorboard, write_image
from cnn_lightning.callbacks.confusion import confusion
from cnn_lightning.callbacks.folder import folder_to_write
from cnn_lightning.callbacks.snapshots import holds_all
from cnn_lightning.callbacks.tiles import Normalisation, is_class, pixels, says, tiles
from cnn_lightning.classifier import Classifier
from cnn_lightning.data.loader import Batches
from cnn_lightning.files import write_or_warn
from cnn_lightning.processes import from_all

WORST = 16
"""The number of mistakes shown."""
MOST_FILTERS, MOST_MAPS = 64, 256
"""The most filters in colours, and the most maps, in a picture."""
MOST_IN_A_BATCH = 1 << 32
"""More pictures than any batch has: batch number times this, plus the index in the batch, orders all pictures."""

Mistakes = tuple[Tensor, Tensor, Tensor]
"""Facts (N, 4), as in `mistakes`, pictures (N, C, H, W) and places in the split (N,)."""


@dataclass(frozen=True)
class Validation:
    """What a validation has shown, of all processes.

    Args:
        epoch: The epoch, from 1 on.
        counts: The confusion, (classes, classes); rows are the true classes.
        facts: Of the worst mistakes, (N, 4), as in `mistakes`.
        pictures: Their pictures, (N, C, H, W), normalised.
        indices: Their numbers in the validation split, in the order of the loader; None if it doesn't tell.
    """

    epoch: int
    counts: NDArray[np.int64]
    facts: Tensor
    pictures: Tensor
    indices: list[int] | None


class Pictures(Callback):
    """After each validation writes filters.png, confusion.png and mistakes.png into ``pictures`` in the run's folder.

    The filters are those of the first convolution. The confusion matrix and the mistakes are of the validation split,
    the mistakes in the order of their loss. The run's loggers for TensorBoard, Weights & Biases and MLflow get the same
    for each epoch. Without a ``TensorBoardLogger``, if TensorBoard is installed, events with the epochs' metrics go to
    ``tensorboard`` in the run's folder.

    Attributes:
        last: What the last validation has shown; None before the first.
    """

    def __init__(self) -> None:
        self.last: Validation | None = None
        self._indices: list[NDArray[np.int64]] | None = None
        self._counts = torch.zeros(0, 0)
        self._worst: Mistakes | None = None
        self._writer: Any = None
        self._boards = Boards()

    # ---- counting

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counts, and get the numbers of the pictures in each batch."""
        self._worst = None
        loader = trainer.val_dataloaders
        self._indices = loader.indices() if isinstance(loader, Batches) else None
        if isinstance(pl_module, Classifier):
            n = pl_module.hparams["num_classes"]
            self._counts = torch.zeros(n, n, device=pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the predictions of a batch, and keep the worst mistakes."""
        if not _draws(trainer, pl_module) or not len(batch[1]):
            return
        logits = outputs["logits"].float()
        pictures, labels = (each[: len(logits)] for each in batch)  # without repeated pictures at the end
        predicted = logits.argmax(1)
        self._counts.index_put_((labels, predicted), torch.ones_like(labels, dtype=torch.float32), accumulate=True)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        losses = losses.masked_fill(predicted == labels, -torch.inf)
        facts = torch.stack([losses, labels.float(), predicted.float(), logits.softmax(1).amax(1)], 1)
        entries = [(facts, pictures.float(), self._places(trainer, batch_idx, len(labels)).to(labels.device))]
        self._worst = self._first(entries if self._worst is None else [self._worst, *entries])

    def _places(self, trainer: Trainer, batch: int, n: int) -> Tensor:
        """The numbers of a batch's pictures in the split; of a loader that doesn't tell, numbers in the same order."""
        if self._indices is not None:
            return torch.from_numpy(self._indices[batch][:n].astype(np.int64))
        return (batch * trainer.world_size + trainer.global_rank) * MOST_IN_A_BATCH + torch.arange(n)

    @staticmethod
    def _first(entries: Sequence[Mistakes]) -> Mistakes:
        """The worst mistakes; of equal ones the first in the split, independent of the number of processes."""
        facts, pictures, places = (torch.cat(each) for each in zip(*entries, strict=True))
        order = places.argsort()
        order = order[facts[order, 0].argsort(descending=True, stable=True)][:WORST]
        return facts[order], pictures[order], places[order]

    # ---- drawing

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the pictures, in the first process, from the counts of all."""
        if not _draws(trainer, pl_module):
            return
        assert isinstance(pl_module, Classifier)
        self.last = self._of_all(trainer)
        folder = folder_to_write(trainer)
        if folder is None:
            return
        names, last = pl_module.class_names, self.last
        found = {"confusion": confusion(last.counts, names, f"validation after epoch {last.epoch}")}
        weight = first_filters(trainer, pl_module)
        if weight is not None:
            found["filters"] = filters(weight)
        if last.counts.any():
            found["mistakes"] = mistakes(last.facts, last.pictures, names, (pl_module.mean, pl_module.std))
        for name, image in found.items():
            write_or_warn(folder / "pictures" / f"{name}.png", partial(image.save, format="PNG", compress_level=1))
            self._boards.add(trainer, name, image, last.epoch)
            writer = self._own_writer(trainer, folder)
            if writer is not None:
                write_image(writer, name, image, last.epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics for TensorBoard, if no `TensorBoardLogger` does."""
        metrics = trainer.callback_metrics  # a collective call
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, float(value), trainer.current_epoch + 1)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the file of events."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _of_all(self, trainer: Trainer) -> Validation:
        """The counts and the worst mistakes of all processes. A collective call."""
        own = None if self._worst is None else tuple(each.cpu() for each in self._worst)
        everywhere = from_all((self._counts.cpu(), own))
        counts = torch.stack([each for each, _ in everywhere]).sum(0).numpy().astype(np.int64)
        seen = [each for _, each in everywhere if each is not None]
        nothing = torch.zeros(0, 4), torch.zeros(0, 1, 1, 1), torch.zeros(0, dtype=torch.int64)
        facts, pictures, places = self._first(seen) if seen else nothing
        wrong = facts[:, 0] > -torch.inf
        indices = places[wrong].tolist() if self._indices is not None else None
        return Validation(trainer.current_epoch + 1, counts, facts[wrong], pictures[wrong], indices)

    def _own_writer(self, trainer: Trainer, folder: Path) -> Any:
        """Events in the run's folder, if TensorBoard is installed and no logger of the user writes some."""
        if self._writer is None and find_spec("tensorboard") and not has_tensorboard(trainer):
            from torch.utils.tensorboard import SummaryWriter

            with suppress(OSError):  # for a full disk the writers of other files have warned already
                self._writer = SummaryWriter(folder / "tensorboard")
        return self._writer


def first_filters(trainer: Trainer, module: Classifier) -> Tensor | None:
    """The weights of the first convolution, float32 on the CPU; None if there is none, or if they are sharded."""
    first = next((each for each in module.net.modules() if isinstance(each, nn.Conv2d)), None)
    return first.weight.detach().float().cpu() if first is not None and holds_all(trainer) else None


def _draws(trainer: Trainer, pl_module: LightningModule) -> bool:
    fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
    return fitting and isinstance(pl_module, Classifier)


# ---- the pictures


def filters(weight: Tensor) -> Image.Image:
    """Draw kernels (O, C, h, w): those of three channels in colours, others as maps, those of one filter side by side.

    In colours medium grey is 0, and the largest magnitude is black or white.
    """
    image, zoom, _ = small_filters(weight)
    return image.convert("RGB").resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def small_filters(weight: Tensor) -> tuple[Image.Image, int, str]:
    """As `filters`, with one pixel a weight; by how much to enlarge it; and what its colours mean, in words."""
    kernels = weight.numpy()
    if weight.shape[1] == 3:
        image, width, scale = draw.color_sheet(kernels[:MOST_FILTERS], columns=8)
        return image, max(1, 40 // width), f"grey 0, black {draw.short(-scale.high)}, white {draw.short(scale.high)}"
    maps = kernels.reshape(-1, *weight.shape[2:])[:MOST_MAPS]
    columns = 8 if weight.shape[1] == 1 else max(1, 12 // weight.shape[1]) * weight.shape[1]
    image, width, scale = draw.sheet(maps, columns=columns, side=32)
    return image, max(1, 40 // width), scale.words


def mistakes(facts: Tensor, pictures: Tensor, names: Sequence[str], normalisation: Normalisation) -> Image.Image:
    """Draw pictures (N, C, H, W) with their true and predicted classes; a sentence if there are none.

    ``facts`` (N, 4) has for each picture the loss, the true class, the predicted class, and its probability.
    """
    entries = [
        (pixels(picture, normalisation), [*is_class(names[int(label)]), *says(names[int(predicted)], probability)])
        for picture, (_, label, predicted, probability) in zip(pictures.numpy(), facts.tolist(), strict=True)
    ]
    return tiles(entries, columns=8, empty="no mistakes in the validation split")
