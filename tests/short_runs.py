"""Short runs for tests: few digits, some classes rare, and a network that is trained in Python."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from cnn_lightning.callbacks.resume import Resumable
from cnn_lightning.checkpoints import WholeFiles
from cnn_lightning.classifier import Classifier
from cnn_lightning.data import Digits
from cnn_lightning.data.readers import ImageSet, Split, read_digits

QUIET = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*lr_scheduler.step.*",
    "ignore:.*in eval mode.*",
    "ignore:.*Checkpoint directory.*",
    "ignore:.*Be aware that when using `ckpt_path`.*",
)
N = 104
"""Training pictures of `Few`."""


def rare(found: ImageSet, one_in: int = 20) -> ImageSet:
    """The set with one in 20 of the training pictures of the even classes."""
    labels = found.train.labels
    kept = np.ones(len(labels), bool)
    for label in np.unique(labels)[::2]:
        of_class = np.flatnonzero(labels == label)
        kept[of_class] = False
        kept[of_class[::one_in]] = True
    return found._replace(train=_some(found.train, np.flatnonzero(kept)))


def _some(split: Split, indices: Any) -> Split:
    return Split(split.images[indices], split.labels[indices])


class Rare(Digits):
    """The digits, even ones rare."""

    def read(self) -> ImageSet:
        return rare(read_digits())


class Few(Digits):
    """104 training pictures, 50 for validation and 50 for the test; even digits are rare."""

    def read(self) -> ImageSet:
        found = rare(read_digits())
        numbers = np.linspace(0, len(found.train.labels) - 1, N).astype(int)
        return found._replace(
            train=_some(found.train, numbers), val=_some(found.val, slice(50)), test=_some(found.test, slice(50))
        )


class Losses(Callback):
    """The loss of each step, and the loss and accuracy of each validation."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.val: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.train.append(float(outputs["loss"]))

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        metrics = trainer.callback_metrics
        self.val.append((float(metrics["val_loss"]), float(metrics["val_acc"])))


def classifier(layers: Any = "torch", **options: Any) -> Classifier:
    """A small network with fixed first weights."""
    torch.manual_seed(0)
    return Classifier(layers=layers, image_size=8, channels=(4, 8), hidden=16, **options)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    """A Trainer without files and pictures."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "max_epochs": 2}
    if not any(isinstance(callback, Resumable) for callback in callbacks):
        quiet["enable_checkpointing"] = False
    return Trainer(callbacks=list(callbacks), plugins=[WholeFiles()], **{**quiet, **options})


def stopped_and_resumed(folder: Path, model: dict[str, Any], data: dict[str, Any], **options: Any) -> list[Any]:
    """The last checkpoints of a run that is not stopped, and of one that is stopped inside its second epoch."""
    found = []
    for name, stops in (("whole", ()), ("stopped", (11,))):
        path = folder / name / "last.ckpt"
        for steps in (*stops, -1):
            begun = path if path.exists() else None
            run = trainer(Resumable(path.parent), max_steps=steps, **options)
            torch.manual_seed(0 if begun is None else 1)
            run.fit(Classifier(image_size=8, channels=(4, 8), hidden=16, **model), Few(**data), ckpt_path=begun)
            assert run.global_step == (14 if steps < 0 else steps)
        found.append(torch.load(path, weights_only=True))
    return found
