"""Training stops at the first loss or gradient that is not finite; the message names the layer that made it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from cnn_lightning.errors import EverywhereError
from cnn_lightning.model import net_of
from cnn_lightning.processes import from_all, no_sum, sum_of_all

ADVICE = "A lower --model.lr or --trainer.gradient_clip_val 1 often helps; damaged input is another cause"


class StopAtNonFinite(Callback):
    """Stops before an optimizer step that would write NaN or infinity into the weights.

    It checks the loss with each backward pass, and the gradients after it. If one of them is not finite, it runs the
    batch once more and checks the output of every layer. With a gradient scaler (``16-mixed``) it does not check
    gradients: the scaler handles those that overflow.

    Raises:
        EverywhereError: Names the step, what was not finite, and the layer where the first such value appeared.
    """

    def __init__(self) -> None:
        self._batch: Any = None
        self._loss = torch.zeros(())
        self._number_bad: Callable[[], Tensor] = no_sum

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss, and begin to add up over all processes how many losses are bad."""
        self._loss = loss.detach()
        self._number_bad = sum_of_all(~torch.isfinite(self._loss), loss.device)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop all processes if a loss was not finite in any of them: one alone would wait for the others for ever."""
        if not self._number_bad():
            return
        found = ""
        if not torch.isfinite(self._loss):
            where = _bad_weight(pl_module) or _bad_output(pl_module, self._batch[0])
            found = f"expected a finite loss, got {self._loss.item()}; first seen in {where}"
        _stop(trainer, found)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the gradients."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        if not torch.isfinite(nn.utils.get_total_norm(gradients)):
            found = _bad_gradient(pl_module)  # the same in all processes: gradients are the mean over them
            if found is not None:  # the norm alone can overflow
                _stop(trainer, f"expected finite gradients, got NaN or infinity; first seen in {found}")


def _stop(trainer: Trainer, found: str) -> NoReturn:
    """Raise the finding of the first process that has one. A collective call."""
    found = next(filter(None, from_all(found)))
    raise EverywhereError(f"step {trainer.global_step}: {found}. {ADVICE}")


def _bad_weight(module: LightningModule) -> str | None:
    for name, parameter in net_of(module).named_parameters():
        if not parameter.isfinite().all():
            return f"the weights of layer {name.rpartition('.')[0]!r} ({name})"
    return None


def _bad_gradient(module: LightningModule) -> str | None:
    """The first bad gradient in the order of the backward pass, which is that of the layers reversed."""
    for name, parameter in reversed(list(net_of(module).named_parameters())):
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of layer {name.rpartition('.')[0]!r} ({name})"
    return None


def _bad_output(module: LightningModule, images: Tensor) -> str:
    if not images.isfinite().all():
        return "the input"
    net = net_of(module)
    with _watched(net) as found, torch.no_grad():
        net(images)
    return f"the output of layer {found[0]!r}" if found else "the loss of outputs that are all finite"


@contextmanager
def _watched(net: nn.Module) -> Iterator[list[str]]:
    """Collects the names of layers with a value in their output that is not finite, in the order they run."""
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            found.append(name)

    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: look(name, output))
        for name, module in net.named_modules()
        if next(module.children(), None) is None
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
