"""Training stops at the first loss or gradient that is not finite; the message names the operation that made it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torchmetrics import Metric

from cnn_lightning.checkpoints import shown
from cnn_lightning.classifier.options import NOT_KEPT
from cnn_lightning.errors import EverywhereError, one_line
from cnn_lightning.model import net_of
from cnn_lightning.nonfinite import Finding, saved, search
from cnn_lightning.processes import from_all, no_sum, rank, sum_of_all
from cnn_lightning.swap.native import NATIVE

ADVICE = "a lower --model.lr or --trainer.gradient_clip_val 1 often helps; damaged input is another cause"
FILE = "nonfinite.pt"
"""The file in the run's folder with which the step runs again."""


class StopAtNonFinite(Callback):
    """Stops before an optimizer step that would write NaN or infinity into the weights.

    It checks the loss with each backward pass, and the gradients after it. If one of them is not finite, it runs the
    step once more, with the same random numbers, and looks at every operator; see `cnn_lightning.nonfinite`. It writes
    what the step needs into `FILE` in the run's folder, for ``cnn-lightning replay``. With a gradient scaler
    (``16-mixed``) it does not check gradients: the scaler handles those that overflow. With manual optimization it
    names no operation, because the step would change the weights.

    Args:
        file: The file to write instead. Without it and without a logger there is no folder of the run, and no file.

    Raises:
        EverywhereError: Names the step, what was not finite, and the operation that made the first such number.
    """

    def __init__(self, file: str | None = None) -> None:
        self.file = file
        self._batch: Any = None
        self._index = 0
        self._random: list[Tensor] = []
        self._loss = torch.zeros(())
        self._number_bad: Callable[[], Tensor] = no_sum

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch, and the state of the random numbers that its step draws."""
        self._batch, self._index = batch, batch_idx
        self._random = _random_state(pl_module.device)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss, and begin to add up over all processes how many losses are bad."""
        self._loss = loss.detach()
        self._number_bad = sum_of_all(~torch.isfinite(self._loss), loss.device)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop all processes if a loss was not finite in any of them: one alone would wait for the others for ever."""
        if not self._number_bad():
            return
        own = not torch.isfinite(self._loss)
        text = f"expected a finite loss, got {self._loss.item()}" if own else ""
        self._stop(trainer, pl_module, text, backward=False)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the gradients."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        if not torch.isfinite(nn.utils.get_total_norm(gradients)):
            found = _bad_gradient(pl_module)  # the same in all processes: gradients are the mean over them
            if found is not None:  # the norm alone can overflow
                text = f"expected finite gradients, got NaN or infinity; first seen in {found}"
                self._stop(trainer, pl_module, text, backward=True)

    def _stop(self, trainer: Trainer, module: LightningModule, text: str, *, backward: bool) -> NoReturn:
        """Raise the finding of the first process that has one, or else its text. A collective call.

        All processes run the step again, since layers that synchronise them make collective calls.
        """
        path = self._path(trainer)
        try:
            finding = self._again(trainer, module, backward)
        except Exception as error:  # of the user's own step, which may raise anything when it runs a second time
            finding, text = None, text and f"{text}; the step could not run again: {one_line(error, 200)}"
        of_all = from_all((text, finding))
        first = next((index for index, (_, found) in enumerate(of_all) if found), None)
        if first is None:
            text = next(text for text, _ in of_all if text)
            raise EverywhereError(f"step {trainer.global_step}: {text}. {ADVICE[0].upper()}{ADVICE[1:]}")
        found = of_all[first][1]
        again = self._save(trainer, module, found, path) if rank() == first and path is not None else ""
        again = from_all(again)[first]
        details = (*found.details, *filter(None, [again]), f"remedy: {ADVICE}")
        raise EverywhereError(f"step {trainer.global_step}: {found.head}", details)

    def _path(self, trainer: Trainer) -> Path | None:
        """The file to write; None for none. A collective call."""
        folder = trainer.log_dir if trainer.loggers else None
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            return None  # no process has all weights
        if self.file is not None:
            return Path(self.file)
        return Path(folder) / FILE if folder else None

    def _again(self, trainer: Trainer, module: LightningModule, backward: bool) -> Finding | None:
        """What is found when the step runs again; None if it can't, or if all is finite then."""
        if not module.automatic_optimization or self._batch is None:
            return None
        takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        given = (self._batch, self._index) if takes_index else (self._batch,)
        model = trainer.strategy.model
        with ExitStack() as stack:
            stack.enter_context(model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext())
            stack.enter_context(_unchanged(module))
            stack.enter_context(_drawing_from(self._random, module.device))
            return search(
                module,
                self._batch,
                lambda: _loss_of(trainer.strategy.training_step(*given)),
                module.backward if backward else None,
            )

    def _save(self, trainer: Trainer, module: LightningModule, finding: Finding, path: Path) -> str:
        """Write the file; the line of the message about it."""
        try:
            saved.write(path, self._saved(trainer, module, finding))
        except OSError as error:
            return f"{shown(path)}: not written: {one_line(error)}"
        return f"again: cnn-lightning replay {shown(path)}"

    def _saved(self, trainer: Trainer, module: LightningModule, finding: Finding) -> saved.Saved:
        kind = type(module)
        layers = {name: layer for name, layer in [*net_of(module).named_modules(), *_beside(module)] if name}
        hyper_parameters = {name: value for name, value in module.hparams.items() if name not in NOT_KEPT}
        return saved.Saved(
            step=trainer.global_step,
            module=f"{kind.__module__}.{kind.__qualname__}",
            batch=self._batch,
            state_dict=dict(module.state_dict()),
            hyper_parameters={name: value for name, value in hyper_parameters.items() if not name.startswith("_")},
            layers={name: "numpy" for name, layer in layers.items() if type(layer) in NATIVE},
            functions=getattr(module, "functions", "torch"),
            fast=bool(getattr(module, "fast", True)),
            memory_format=getattr(getattr(module, "memory", None), "format", "contiguous"),
            precision=str(trainer.precision_plugin.precision),
            device=module.device.type,
            random_state=self._random,
            found=str(finding),
        )


def _beside(module: LightningModule) -> list[tuple[str, nn.Module]]:
    loss = getattr(module, "loss", None)
    return [("loss", loss)] if isinstance(loss, nn.Module) else []


def _bad_gradient(module: LightningModule) -> str | None:
    """The first bad gradient in the order of the backward pass, which is that of the layers reversed."""
    for name, parameter in reversed(list(net_of(module).named_parameters())):
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of layer {name.rpartition('.')[0]!r} ({name})"
    return None


def _loss_of(output: Any) -> Tensor:
    """The loss in what a training step returns."""
    loss = output["loss"] if isinstance(output, dict) else output
    if not isinstance(loss, Tensor):
        raise TypeError(f"expected a loss from training_step, got {type(loss).__name__}")
    return loss


# ---- a step that leaves no trace


@contextmanager
def _unchanged(module: LightningModule) -> Iterator[None]:
    """Inside, nothing is logged; afterwards, buffers and metrics are what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    metrics = [(metric, _state(metric)) for metric in module.modules() if isinstance(metric, Metric)]
    module.__dict__ |= {"log": _ignored, "log_dict": _ignored}
    try:
        yield
    finally:
        del module.__dict__["log"], module.__dict__["log_dict"]
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for metric, state in metrics:
            metric.__dict__ |= state


def _ignored(*args: Any, **options: Any) -> None:
    """In place of ``log``."""


def _state(metric: Metric) -> dict[str, Any]:
    counted = {name: metric.__dict__[name] for name in ("_update_count", "_computed")}
    return counted | {
        name: list(value) if isinstance(value, list) else value.clone() for name, value in metric.metric_state.items()
    }


def _random_state(device: torch.device) -> list[Tensor]:
    """The state of the CPU's generator, and of the GPU's."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


@contextmanager
def _drawing_from(states: list[Tensor], device: torch.device) -> Iterator[None]:
    """Inside, random numbers begin from these states."""
    with torch.random.fork_rng([device] if len(states) > 1 else []):
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], device)
        yield
