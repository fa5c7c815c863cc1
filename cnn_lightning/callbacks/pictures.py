"""Pictures during the training: filters, confusion matrix, and the worst mistakes.

Pillow draws them, in a few milliseconds; a plotting library takes longer than an epoch of a small network.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from cnn_lightning import draw
from cnn_lightning.callbacks.folder import folder_to_write
from cnn_lightning.callbacks.snapshots import holds_all
from cnn_lightning.classifier import Classifier
from cnn_lightning.files import write_or_warn
from cnn_lightning.processes import from_all

WORST = 16
"""The number of mistakes shown."""
TILE = 72
"""Width and height of a mistake's picture, in pixels."""
MOST_IN_A_BATCH = 1 << 32
"""More pictures than any batch has: batch number times this, plus the index in the batch, orders all pictures."""

Mistakes = tuple[Tensor, Tensor, Tensor]
"""Facts (N, 4), as in `mistakes`, pictures (N, C, H, W) and positions in the split (N,)."""


class Pictures(Callback):
    """After each validation writes filters.png, confusion.png and mistakes.png into ``pictures`` in the run's folder.

    The filters are those of the first convolution. The confusion matrix and the mistakes are of the validation split,
    the mistakes in the order of their loss. TensorBoard shows the same for each epoch: a ``TensorBoardLogger`` gets
    them; without one, if TensorBoard is installed, events with the epochs' metrics go to ``tensorboard`` in the run's
    folder.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(0, 0)
        self._worst: Mistakes | None = None
        self._writer: Any = None

    # ---- counting

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counts."""
        self._worst = None
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
        place = (batch_idx * trainer.world_size + trainer.global_rank) * MOST_IN_A_BATCH
        places = place + torch.arange(len(labels), device=labels.device)
        entries = [(facts, pictures.float(), places)]
        self._worst = self._first(entries if self._worst is None else [self._worst, *entries])

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
        counts, facts, pictures = self._of_all(trainer, pl_module)
        folder = folder_to_write(trainer)
        if folder is None:
            return
        names = pl_module.class_names
        found = {"confusion": confusion(counts.cpu().numpy().astype(np.int64), names)}
        first = next((module for module in pl_module.net.modules() if isinstance(module, nn.Conv2d)), None)
        if first is not None and holds_all(trainer):
            found["filters"] = filters(first.weight.detach().float().cpu())
        if facts is not None and pictures is not None:
            normalisation = pl_module.mean, pl_module.std
            found["mistakes"] = mistakes(facts.cpu(), pictures.cpu(), names, normalisation)
        for name, image in found.items():
            write_or_warn(folder / "pictures" / f"{name}.png", partial(image.save, format="PNG", compress_level=1))
            for writer in self._writers(trainer, folder):
                axes = "HW" if image.mode == "L" else "HWC"
                writer.add_image(name, np.asarray(image), trainer.current_epoch + 1, dataformats=axes)

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

    def _of_all(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The counts and the worst mistakes of all processes."""
        counts, worst = self._counts, self._worst
        if trainer.world_size > 1:
            own = None if worst is None else tuple(each.cpu() for each in worst)
            everywhere = from_all((counts.cpu(), own))
            counts = torch.stack([each for each, _ in everywhere]).sum(0)
            seen = [each for _, each in everywhere if each is not None]
            worst = self._first(seen) if seen else None
        if worst is None:
            return counts, None, None
        facts, pictures, _ = worst
        wrong = facts[:, 0] > -torch.inf
        return counts, facts[wrong], pictures[wrong]

    def _writers(self, trainer: Trainer, folder: Path) -> list[Any]:
        found = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not found and self._writer is None and find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            with suppress(OSError):  # for a full disk the writers of other files have warned already
                self._writer = SummaryWriter(folder / "tensorboard")
        return found or ([] if self._writer is None else [self._writer])


def _draws(trainer: Trainer, pl_module: LightningModule) -> bool:
    fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
    return fitting and isinstance(pl_module, Classifier)


# ---- the pictures


def filters(weight: Tensor) -> Image.Image:
    """Draw kernels (O, C, h, w) as maps, those of one output channel side by side; brighter is larger."""
    maps = weight.numpy().reshape(-1, *weight.shape[2:])[:256]
    columns = 8 if weight.shape[1] == 1 else max(1, 12 // weight.shape[1]) * weight.shape[1]
    image, width, _ = draw.sheet(maps, columns=columns, side=32)
    zoom = max(1, 40 // width)
    return image.convert("RGB").resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def confusion(counts: NDArray[np.int64], names: Sequence[str]) -> Image.Image:
    """Draw the counts: rows are the true classes, columns the predicted ones; darker is a larger fraction of a row."""
    n = len(counts)
    cell = max(1, min(34, 900 // n))
    texts = cell >= 20
    font: Any = ImageFont.load_default(11)
    left = 24 + (int(max(font.getlength(name) for name in names)) if texts else 0)
    top = 40 if texts else 22
    image = Image.new("L", (left + n * cell + 8, top + n * cell + 8), "white")
    fractions = counts / np.maximum(1, counts.sum(1, keepdims=True))
    levels = (255 - 225 * fractions).astype(np.uint8).repeat(cell, 0).repeat(cell, 1)
    image.paste(Image.fromarray(levels), (left, top))
    pen = ImageDraw.Draw(image)
    pen.rectangle((left - 1, top - 1, left + n * cell, top + n * cell), outline=136)
    pen.text((left, 4), "columns: predicted, rows: true", "black", font)
    if texts:
        for index, name in enumerate(names):
            pen.text((left - 8, top + (index + 0.5) * cell), name, "black", font, anchor="rm")
            short = _fitting(name, font, cell - 2)
            pen.text((left + (index + 0.5) * cell, top - 8), short, "black", font, anchor="mm")
        for row, column in zip(*np.nonzero(counts), strict=True):
            place = left + (column + 0.5) * cell, top + (row + 0.5) * cell
            color = "white" if fractions[row, column] > 0.5 else "black"
            pen.text(place, str(counts[row, column]), color, font, anchor="mm")
    return image


def mistakes(
    facts: Tensor, pictures: Tensor, names: Sequence[str], normalisation: tuple[Sequence[float], Sequence[float]]
) -> Image.Image:
    """Draw pictures (N, C, H, W) with their true and predicted classes; a sentence if there are none.

    ``facts`` (N, 4) has for each picture the loss, the true class, the predicted class, and its probability.
    """
    font: Any = ImageFont.load_default(11)
    n, columns = len(facts), 8
    if not n:
        image = Image.new("L", (260, 30), "white")
        ImageDraw.Draw(image).text((8, 8), "no mistakes in the validation split", "black", font)
        return image
    mean, std = (
        torch.tensor(values or [default])[:, None, None]
        for values, default in zip(normalisation, (0.0, 1.0), strict=True)
    )
    pixels = ((pictures * std + mean).clamp(0, 1) * 255).round().byte().numpy().transpose(0, 2, 3, 1)
    height = TILE + 34
    mode = "RGB" if pixels.shape[3] == 3 else "L"
    image = Image.new(mode, (min(n, columns) * (TILE + 8) + 8, -(-n // columns) * height + 8), "white")
    pen = ImageDraw.Draw(image)
    for index, (pixel, (_, label, predicted, probability)) in enumerate(zip(pixels, facts.tolist(), strict=True)):
        x, y = 8 + index % columns * (TILE + 8), 8 + index // columns * height
        tile = Image.fromarray(pixel if mode == "RGB" else pixel[:, :, 0])
        image.paste(tile.resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + TILE + 1), _fitting(f"is {names[int(label)]}", font, TILE), "black", font)
        says = f" {probability:.0%}"
        width = TILE - font.getlength(says)
        pen.text((x, y + TILE + 14), _fitting(f"says {names[int(predicted)]}", font, width) + says, "black", font)
    return image


def _fitting(text: str, font: Any, width: float) -> str:
    """The text, shortened to the width."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
