"""An exponential moving average of a network's weights, with which it is validated, tested and saved."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from cnn_lightning.errors import EverywhereError
from cnn_lightning.model import net_of

KEY = "average"
"""What a checkpoint has of the average, beside it: the number of updates, and the values that the training continues
with. The average itself is in ``state_dict``, so that all that reads a checkpoint gets it."""
WIDE = (torch.float32, torch.float64)


class WeightAverage(Callback):
    """Averages the weights after each optimizer step; validation, the end of the training and checkpoints use that.

    ``average += (1 - d) (weights - average)`` with ``d = min(decay, (1 + n) / (10 + n))`` after n updates, as
    TensorFlow's ExponentialMovingAverage has it: the first weights, which are random, don't stay in a short training.
    It begins as the weights after the first step. All floating values of the network that a checkpoint has are averaged
    like this, the running statistics of batch norm too. Of several processes DDP gives the first one's statistics to
    all.

    Lightning's `WeightAveraging` rounds weights of float64 to float32, and a finished run has lost its own weights.

    Args:
        decay: Of the average, between 0 and 1.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._forget()

    def _forget(self) -> None:
        self._updates, self._step, self._is_in_the_net = 0, 0, False
        self._other: dict[str, Tensor] = {}  # of the average and the weights those that are not in the network

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a new average, unless a checkpoint follows.

        Raises:
            EverywhereError: A second average, or a strategy that divides the weights.
        """
        if stage != "fit":
            return
        self._forget()
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [type(each).__name__ for each in callbacks if isinstance(each, WeightAveraging)]
        if others:
            raise EverywhereError(f"model.ema: expected null with trainer.callbacks {others[0]}, got {self.decay}")
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            kind = type(trainer.strategy).__name__
            raise EverywhereError(f"model.ema: expected null with {kind}, which divides the weights, got {self.decay}")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue the average of a training; `separate` has given the network its other values."""
        if trainer.state.fn == TrainerFn.FITTING and KEY in checkpoint:
            self._updates, self._other = checkpoint[KEY]["updates"], dict(checkpoint[KEY]["averaged"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the average to the device of the weights.

        Raises:
            EverywhereError: Weights of half precision, to which so small a change adds nothing.
        """
        self._step = trainer.global_step
        values = _averaged(pl_module)
        narrow = [value.dtype for value in values.values() if value.dtype not in WIDE]
        if narrow:
            kind = str(narrow[0]).removeprefix("torch.")
            raise EverywhereError(
                f"model.ema: expected weights in float32 or float64, got {kind}; mixed precision works"
            )
        self._other = {name: value.to(values[name], copy=True) for name, value in self._other.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average if the batch ended an optimizer step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        values = _averaged(pl_module)
        if self._updates:
            decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
            for name, average in self._other.items():
                average.lerp_(values[name].detach(), 1 - decay)
        else:
            self._other = {name: value.detach().clone() for name, value in values.items()}
        self._updates += 1

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the network."""
        if trainer.state.fn == TrainerFn.FITTING and self._updates:
            self._exchange(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights of the training back."""
        if trainer.state.fn == TrainerFn.FITTING and self._is_in_the_net:
            self._exchange(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the network; checkpoints still get the weights of the training."""
        if self._updates and not self._is_in_the_net:
            self._exchange(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do so if the run was over before its first step, and no training began."""
        if self._updates and not self._is_in_the_net:
            self._exchange(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the weights of the training back if the exception ended a validation."""
        if self._is_in_the_net and trainer.state.fn == TrainerFn.FITTING:
            self._exchange(pl_module)

    @torch.no_grad()
    def _exchange(self, module: LightningModule) -> None:
        for name, value in _averaged(module).items():
            before = value.detach().clone()
            value.copy_(self._other[name])
            self._other[name].copy_(before)
        self._is_in_the_net = not self._is_in_the_net

    def save(self, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the average the checkpoint's weights, and keep those of the training beside it.

        `Classifier` calls it for every checkpoint; of one without the state of the training Lightning asks no callback.
        """
        if not self._updates:
            return
        names = {id(value): name for name, value in _averaged(module).items()}
        live = module.state_dict(keep_vars=True)
        other = {name: self._other[names[id(value)]] for name, value in live.items() if id(value) in names}
        state: dict[str, Tensor] = checkpoint["state_dict"]
        training = other if self._is_in_the_net else {name: state[name] for name in other}
        if not self._is_in_the_net:
            checkpoint["state_dict"] = {**state, **other}
        if "optimizer_states" in checkpoint:
            checkpoint[KEY] = {"updates": self._updates, "training": training}


def separate(checkpoint: dict[str, Any]) -> None:
    """Have a checkpoint give the network the weights that its training continues with, and keep the average aside."""
    found = checkpoint.get(KEY)
    if isinstance(found, Mapping):
        state: dict[str, Tensor] = checkpoint["state_dict"]
        checkpoint[KEY] = {**found, "averaged": {name: state[name] for name in found["training"]}}
        checkpoint["state_dict"] = {**state, **found["training"]}


def _averaged(module: LightningModule) -> dict[str, Tensor]:
    """The floating values of the network that a checkpoint has, by their names in the module; shared ones once."""
    own = {id(value) for value in net_of(module).state_dict(keep_vars=True).values()}
    values = [*module.named_parameters(), *module.named_buffers()]
    return {name: value for name, value in values if id(value) in own and value.is_floating_point()}
