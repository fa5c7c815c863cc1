"""Pictures for the loggers that the user adds to a run: TensorBoard, Weights & Biases and MLflow."""

import warnings
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from cnn_lightning.errors import one_line


class Boards:
    """Sends the pictures of a run to those of its loggers that take pictures.

    A logger that fails gives one warning and gets no more pictures, so that no training is lost for a picture.
    """

    def __init__(self) -> None:
        self._failed: set[int] = set()

    def add(self, trainer: Trainer, name: str, image: Image.Image, epoch: int) -> None:
        """Send a picture to all loggers, in the first process.

        Args:
            trainer: Has the loggers.
            name: The name of the picture, the same in every epoch.
            image: The picture.
            epoch: The epoch that it shows, from 1 on.
        """
        for logger in trainer.loggers:
            if id(logger) in self._failed:
                continue
            try:
                _send(logger, name, image, epoch, trainer.global_step)
            except Exception as error:  # a client of a server may raise anything
                self._failed.add(id(logger))
                kind = type(logger).__name__
                warnings.warn(f"{kind}: the pictures of this run are not logged: {one_line(error)}", stacklevel=2)


def _send(logger: Logger, name: str, image: Image.Image, epoch: int, step: int) -> None:
    client: Any
    if isinstance(logger, TensorBoardLogger):
        write_image(logger.experiment, name, image, epoch)
    elif isinstance(logger, WandbLogger):
        logger.log_image(key=name, images=[image], step=step, caption=[f"epoch {epoch}"])
    elif isinstance(logger, MLFlowLogger):
        client = logger.experiment
        client.log_image(logger.run_id, image, artifact_file=f"pictures/{name}/epoch_{epoch:04}.png")


def write_image(writer: Any, name: str, image: Image.Image, epoch: int) -> None:
    """Write a picture as an event of TensorBoard.

    Args:
        writer: A ``SummaryWriter``.
        name: The name of the picture.
        image: The picture.
        epoch: The step of the event.
    """
    writer.add_image(name, np.asarray(image), epoch, dataformats="HW" if image.mode == "L" else "HWC")


def has_tensorboard(trainer: Trainer) -> bool:
    """Whether a logger of the user writes events of TensorBoard."""
    return any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
