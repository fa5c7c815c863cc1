"""Writes the page of a run: when it begins, after each epoch, at its end, and after the test."""

import math
import shlex
import warnings
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.trainer.states import TrainerFn

from cnn_lightning.callbacks.evaluation import Evaluation
from cnn_lightning.callbacks.folder import folder_to_write
from cnn_lightning.callbacks.layer_sizes import Size
from cnn_lightning.callbacks.layer_table import short
from cnn_lightning.callbacks.metrics import read_metrics
from cnn_lightning.callbacks.pictures import Pictures, first_filters, small_filters
from cnn_lightning.callbacks.report import LayerReport, trained_parameters
from cnn_lightning.callbacks.run_page.content import Content, read_content
from cnn_lightning.callbacks.run_page.render import render
from cnn_lightning.callbacks.run_page.validation import confusion_of, mistakes_of
from cnn_lightning.checkpoints import shown
from cnn_lightning.classifier import Classifier
from cnn_lightning.classifier.scores import mean_of
from cnn_lightning.draw import as_uri
from cnn_lightning.errors import Stopped, UserError, one_line
from cnn_lightning.files import write_or_warn

NAME = "index.html"
"""The page's file in the run's folder."""


class RunPage(Callback):
    """Writes ``index.html`` into the run's folder, whole, in the first process alone.

    The page of a run that is resumed goes on with its curves and its filters. A page that can't be written, or numbers
    that can't be read, give a warning and end no training.

    Args:
        layers: Gives the table of layers.
        pictures: Gives confusion, mistakes and filters; None for a page without them.
        evaluation: Gives the numbers of the test beside the accuracy; None for a page without them.
    """

    def __init__(self, layers: LayerReport, pictures: Pictures | None, evaluation: Evaluation | None = None) -> None:
        self.layers, self.pictures, self.evaluation = layers, pictures, evaluation
        self._content: Content | None = None
        self._folder: Path | None = None

    # ---- when

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page of a run that begins or goes on."""
        self._content, self._folder = None, folder_to_write(trainer)
        if self._folder is None or not isinstance(pl_module, Classifier):
            return
        self._content = self._begin(trainer, pl_module, self._folder)
        if trainer.global_step == 0:
            self._add_filters(trainer, pl_module, self._content, 0)
        self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch that ends."""
        metrics = trainer.callback_metrics  # a collective call
        if self._content is None:
            return
        assert isinstance(pl_module, Classifier)
        epoch = trainer.current_epoch + 1
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        numbers = {name: float(value) for name, value in metrics.items()}
        self._content.add(epoch, {**numbers, "lr": float(rate)})
        self._content.epoch = epoch
        self._add_filters(trainer, pl_module, self._content, epoch)
        last = None if self.pictures is None else self.pictures.last
        if last is not None:
            self._content.confusion = confusion_of(last, pl_module.class_names)
            self._content.mistakes = mistakes_of(last, pl_module.class_names, (pl_module.mean, pl_module.std))
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how the run ended."""
        if self._content is not None:
            self._content.state, self._content.reason = _end_of(trainer)
            self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what ended the training; without a collective call, because other processes may be gone."""
        if self._content is None or trainer.state.fn != TrainerFn.FITTING:
            return
        if isinstance(exception, Stopped | KeyboardInterrupt):
            self._content.state = "interrupted"
            self._content.reason = f"by a signal, after step {trainer.global_step}"
        else:
            self._content.state = "failed"
            self._content.reason = f"after step {trainer.global_step}: {one_line(exception)}"
        self._write(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the accuracy of the test that follows a training."""
        accuracy = trainer.callback_metrics.get("test_acc")  # a collective call
        folder = folder_to_write(trainer)
        if folder is None or accuracy is None:
            return
        if self._content is None:  # the training ran in processes of its own
            self._content, self._folder = read_content(folder / NAME), folder
        if self._content is not None:
            self._content.test, self._content.test_recall = float(accuracy), self._macro_recall()
            self._write(trainer)

    # ---- what

    def _macro_recall(self) -> float | None:
        result = None if self.evaluation is None else self.evaluation.last
        recall = math.nan if result is None else mean_of(result.per_class.recall)
        return None if math.isnan(recall) else recall

    def _begin(self, trainer: Trainer, module: Classifier, folder: Path) -> Content:
        data = getattr(trainer, "datamodule", None)
        content = Content(
            net=str(module.hparams["net"]),
            data=type(data).__name__ if data is not None else "",
            folder=shown(folder),
            epoch=trainer.current_epoch,
            epochs=trainer.max_epochs if trainer.max_epochs not in (None, -1) else None,
            parameters=trained_parameters(module),
            layers=_layers(self.layers),
        )
        with suppress(OSError, UnicodeDecodeError):
            content.config = (folder / "config.yaml").read_text(encoding="utf-8")
        if trainer.global_step > 0:
            try:
                content.begin_with(read_metrics(folder / "metrics.csv"))
            except UserError as error:
                warnings.warn(f"{error}; the curves of {NAME} begin here", stacklevel=2)
            before = read_content(folder / NAME)
            if before is not None:
                content.go_on_from(before, trainer.current_epoch)
        return content

    def _add_filters(self, trainer: Trainer, module: Classifier, content: Content, epoch: int) -> None:
        weight = first_filters(trainer, module) if self.pictures is not None else None
        if weight is not None:
            image, zoom, scale = small_filters(weight)
            size = {"width": image.width * zoom, "height": image.height * zoom}
            content.add_frame({"epoch": epoch, "uri": as_uri(image), "scale": scale, **size})

    def _write(self, trainer: Trainer) -> None:
        content, folder = self._content, self._folder
        assert content is not None
        assert folder is not None
        content.step = trainer.global_step if trainer.state.fn == TrainerFn.FITTING else content.step
        content.written = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        content.where, content.checkpoint = str(Path.cwd()), _checkpoint(folder)
        content.commands = _commands(folder, content)
        text = render(content)
        write_or_warn(folder / NAME, partial(_write_text, text))


def _write_text(text: str, path: Path) -> None:
    path.write_bytes(text.encode("utf-8", "replace"))  # a path can have bytes that are no UTF-8


def _layers(report: LayerReport) -> list[dict[str, Any]]:
    """The rows of the table."""
    rows = []
    for row in report.rows:
        size = report.sizes.get(row.name, Size())
        rows.append(
            {
                "name": row.name or "(the network)",
                "type": row.type,
                "shape": "×".join(map(str, size.shape)),
                "parameters": size.parameters,
                "flops": short(size.flops),
                "implementation": row.implementation,
                "note": row.note,
            }
        )
    return rows


def _end_of(trainer: Trainer) -> tuple[str, str]:
    """How a training ended that no error ended: its state, and if it stopped the reason in words."""
    if trainer.max_epochs not in (None, -1) and trainer.current_epoch >= int(trainer.max_epochs or 0):
        return "finished", ""
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return "stopped", f"trainer.max_steps, after step {trainer.global_step}"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.wait_count >= callback.patience:
            return "stopped", f"{callback.monitor} had no gain for {callback.patience} validations"
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0:
            return "stopped", f"trainer.max_time, after step {trainer.global_step}"
    return "stopped", f"after step {trainer.global_step}"


def _commands(folder: Path, content: Content) -> list[dict[str, str]]:
    """What can be done with the checkpoints that are there, each with its command."""
    if not content.checkpoint:
        return []
    config, best = ["--config", shown(folder / "config.yaml")], ["--ckpt_path", content.checkpoint]
    found: list[tuple[str, list[str]]] = []
    if content.config:
        found.append(("test it again", ["test", *config, *best]))
        found.append(
            ("predict the test split; with --data.predict_dir the pictures of a folder", ["predict", *config, *best])
        )
        last = folder / "checkpoints/last.ckpt"
        if last.is_file() and content.state == "finished" and content.epochs is not None:
            longer = ["--trainer.max_epochs", str(2 * content.epochs)]
            found.append(("train longer, in a new folder", ["fit", *config, "--ckpt_path", shown(last), *longer]))
        elif last.is_file():
            found.append(("go on, while this is the newest run", ["fit", *config, "--ckpt_path", "last"]))
    found.append(("see a picture on its way through the network", ["explain", *best]))
    found.append(("export it as ONNX", ["export", *best]))
    return [{"what": what, "command": shlex.join(["cnn-lightning", *words])} for what, words in found]


def _checkpoint(folder: Path) -> str:
    paths = [folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    return next((shown(path) for path in paths if path.is_file()), "")
