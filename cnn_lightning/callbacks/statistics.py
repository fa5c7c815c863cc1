"""Statistics of each layer's outputs and gradients, and warnings of dead units and exploding gradients."""

import math
import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from cnn_lightning.callbacks.folder import folder_to_write
from cnn_lightning.callbacks.tables import read_rows, write_rows
from cnn_lightning.model import net_of
from cnn_lightning.processes import from_all
from cnn_lightning.swap import native_type

RECTIFIERS = ("ReLU", "ReLU6")
"""Layers whose units can die: their gradient is 0 wherever their output is 0."""
EXPLODED = 100.0
"""A gradient explodes at this many times its usual norm."""
DEAD = 0.05
"""The fraction of dead units in a layer that causes a warning."""
USUAL = 50
"""The usual norm is the median of so many steps; there is none before a fifth of them."""

NUMBERS = ("mean", "deviation", "zeros", "dead", "gradient", "gradient_max")
"""The columns of the file, besides epoch and layer."""


@dataclass
class _Seen:
    """Sums over a layer's outputs in one validation."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    zeros: float = 0.0
    alive: Tensor | None = None
    """Whether each channel, or unit, was above 0 at least once."""

    def add(self, other: "_Seen") -> None:
        """Add the sums of other outputs of the layer."""
        for name in ("count", "total", "squares", "zeros"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if self.alive is None:
            self.alive = other.alive
        elif other.alive is not None:
            self.alive = self.alive | other.alive

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def deviation(self) -> float:
        return math.sqrt(max(0.0, self.squares / self.count - self.mean**2))

    @property
    def units(self) -> int:
        return 0 if self.alive is None else len(self.alive)

    @property
    def dead(self) -> int:
        """The number of units that were never above 0."""
        return 0 if self.alive is None else int((~self.alive).sum())


class Statistics(Callback):
    """Writes ``statistics.csv`` in the run's folder, and warns of dead ReLUs and exploding gradients.

    The file has a line for each epoch and layer: mean, standard deviation and fraction of zeros of its outputs on the
    validation split, its dead units, and the median and largest norm of its parameters' gradients over the epoch's
    steps. Layers have hooks during validation only, so that the training is bit-equal to one without this callback.
    Use it by ``--trainer.callbacks cnn_lightning.callbacks.Statistics``.

    Args:
        exploded: Warn of a gradient of this many times its usual norm, the median of the last 50 steps.
        dead: Warn of a layer with this fraction of dead units.
    """

    def __init__(self, exploded: float = EXPLODED, dead: float = DEAD) -> None:
        if not exploded > 1:
            raise ValueError(f"exploded: expected a number above 1, got {exploded}")
        if not 0 < dead <= 1:
            raise ValueError(f"dead: expected a fraction above 0 and up to 1, got {dead}")
        self.exploded, self.dead = exploded, dead
        self._seen: dict[str, _Seen] = {}
        self._norms: dict[str, list[float]] = {}
        self._usual: dict[str, deque[float]] = {}
        self._exploded = False
        self._warned: set[str] = set()
        self._handles: list[Any] = []

    # ---- gradients

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure each layer's gradient, and warn once of the first step in which one explodes."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # the gradients are scaled
        found = list(_gradients(net_of(pl_module)))
        if not found:
            return
        norms = torch.stack([norm for _, norm in found]).tolist()
        exploding: list[tuple[float, str, str]] = []
        for (name, _), norm in zip(found, norms, strict=True):
            usual = self._usual.setdefault(name, deque(maxlen=USUAL))
            size = statistics.median(usual) if len(usual) >= USUAL // 5 else 0.0
            if norm > self.exploded * size > 0:
                text = f"is {norm:.3g}, {norm / size:.0f} times its usual {size:.3g}"
                exploding.append((norm / size, name, text))
            usual.append(norm)
            self._norms.setdefault(name, []).append(norm)
        if exploding and not self._exploded:
            self._exploded = True
            _, name, text = max(exploding)
            others = f" (so do {len(exploding) - 1} others)" if len(exploding) > 1 else ""
            rank_zero_warn(
                f"in step {trainer.global_step} the gradient of layer {name!r} explodes{others}: it {text}. Its "
                "weights will jump. A lower --model.lr or --trainer.gradient_clip_val 1 often helps"
            )

    # ---- outputs

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a hook to every layer."""
        self._seen = {}
        if not _fits(trainer):
            return
        for name, module in net_of(pl_module).named_modules():
            if next(module.children(), None) is None:
                self._handles.append(module.register_forward_hook(self._watch(name)))

    def _watch(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
                self._take(name, module, output.detach())

        return hook

    def _take(self, name: str, module: nn.Module, output: Tensor) -> None:
        seen = self._seen.setdefault(name, _Seen())
        values = output.float()
        exact = torch.float64  # so that size and order of the batches and the number of processes don't matter
        sums = torch.stack([each.sum(dtype=exact) for each in (values, values.square(), values == 0)])
        total, squares, zeros = sums.tolist()
        alive = None
        if native_type(module).__name__ in RECTIFIERS and values.dim() > 1:
            alive = (values > 0).transpose(0, 1).flatten(1).any(1).cpu()
        seen.add(_Seen(values.numel(), total, squares, zeros, alive))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the hooks; write the statistics, and warn of dead units."""
        self._unwatch()
        if not _fits(trainer):
            return
        seen = _of_all(self._seen)
        for name, each in seen.items():
            if each.dead and each.dead >= self.dead * each.units and name not in self._warned:
                self._warned.add(name)
                rank_zero_warn(_dead_units(name, each, trainer.current_epoch + 1))
        rows = list(self._rows(trainer.current_epoch + 1, seen))
        self._norms = {}
        folder = folder_to_write(trainer)
        if folder is not None:
            _write(folder / "statistics.csv", rows)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.log_metrics(
                        {f"{row['layer']}/{key}": row[key] for row in rows for key in NUMBERS if row[key] != ""},
                        trainer.global_step,
                    )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hooks."""
        self._unwatch()

    def _unwatch(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _rows(self, epoch: int, seen: dict[str, _Seen]) -> Iterator[dict[str, Any]]:
        for name in dict.fromkeys([*seen, *self._norms]):
            each, norms = seen.get(name, _Seen()), self._norms.get(name, [])
            yield {
                "epoch": epoch,
                "layer": name,
                "mean": _digits(each.mean) if each.count else "",
                "deviation": _digits(each.deviation) if each.count else "",
                "zeros": _digits(each.zeros / each.count) if each.count else "",
                "dead": each.dead if each.alive is not None else "",
                "gradient": _digits(statistics.median(norms)) if norms else "",
                "gradient_max": _digits(max(norms)) if norms else "",
            }


def _digits(value: float) -> float:
    """Six significant digits, those that do not depend on the order of a float32 summation."""
    return float(f"{value:.6g}")


def _fits(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def _dead_units(name: str, seen: _Seen, epoch: int) -> str:
    return (
        f"{seen.dead} of {seen.units} units of {name!r} are dead after epoch {epoch}: for every picture of the "
        "validation split their output is 0, and so is their gradient, so that they can't learn any more. A lower "
        "--model.lr, or LeakyReLU instead of ReLU, keeps units alive"
    )


def _gradients(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each layer with the norm of the gradients of its own parameters."""
    for name, module in net.named_modules():
        own = [parameter.grad for parameter in module.parameters(recurse=False) if parameter.grad is not None]
        if own:
            yield name, nn.utils.get_total_norm(own)


def _of_all(mine: dict[str, _Seen]) -> dict[str, _Seen]:
    """The sums of all processes. A collective call."""
    found: dict[str, _Seen] = {}
    for each in from_all(mine):
        for name, seen in each.items():
            found.setdefault(name, _Seen()).add(seen)
    return found


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add the rows of an epoch; earlier rows of the same epoch are replaced."""
    before = read_rows(path, words=["layer"], needed=["epoch", "layer"]) if rows else []
    kept = [row for row in before if float(row.get("epoch", -1)) < rows[0]["epoch"]]
    write_rows(path, ["epoch", "layer", *NUMBERS], [*kept, *rows])
