"""The weights after each epoch, in small files, so that a page can show how they changed during the training."""

import io
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from cnn_lightning.callbacks.folder import folder_to_write
from cnn_lightning.digest import seal
from cnn_lightning.files import write_or_warn

MOST = 16
"""The most snapshots of a run; with more epochs only every second, every fourth and so on stays."""
MEGABYTES = 4.0


class Snapshots(Callback):
    """Writes ``snapshots/epoch_NNNN.pt``: the network before training and after each epoch, without the optimizer.

    ``cnn-lightning explain`` runs a picture through them. There are none for a network whose weights take more than
    ``megabytes``, nor for weights that are sharded over processes.

    Args:
        megabytes: The size of the largest network; the snapshots of a run take at most 16 times as much.
    """

    def __init__(self, megabytes: float = MEGABYTES) -> None:
        self.megabytes = megabytes

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the first weights."""
        if trainer.global_step == 0:
            self._keep(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the weights of the epoch."""
        self._keep(trainer, pl_module, trainer.current_epoch + 1)

    def _keep(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        run = folder_to_write(trainer)
        net = getattr(pl_module, "net", None)
        if run is None or not isinstance(net, nn.Module) or not holds_all(trainer):
            return
        weights = {f"net.{name}": value.detach().cpu() for name, value in net.state_dict().items()}
        if sum(value.nbytes for value in weights.values()) > self.megabytes * 1e6:
            return
        progress = {"fit_loop": {"epoch_progress": {"current": {"processed": epoch}}}}  # as in checkpoints
        content = io.BytesIO()  # torch.save to a full disk raises a RuntimeError without the reason
        torch.save({"state_dict": weights, "global_step": trainer.global_step, "loops": progress}, content)
        seal(content)
        folder = run / "snapshots"
        write_or_warn(folder / f"epoch_{epoch:04}.pt", lambda path: path.write_bytes(content.getbuffer()))
        _thin(folder, epoch)


def holds_all(trainer: Trainer) -> bool:
    """Whether every process has all the weights; to collect sharded ones would be a collective call."""
    return type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)


def _thin(folder: Path, last: int) -> None:
    """Keep every epoch, or every second, fourth ... of them, so that at most `MOST` stay."""
    every = 1
    while last // every >= MOST:
        every *= 2
    for path in folder.glob("epoch_*.pt"):
        number = path.stem.rpartition("_")[2]
        if number.isdecimal() and int(number) % every:
            path.unlink()
