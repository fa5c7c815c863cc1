"""The LightningModule: any network, any implementation of its layers, one training step."""

import inspect
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import ConfusionMatrix, Metric
from torchmetrics.classification import MulticlassAccuracy

from cnn_lightning.checkpoints import FOR_TRAINER, read_checkpoint
from cnn_lightning.classifier.metrics import MeanLoss
from cnn_lightning.classifier.nonfinite import StopAtNonFinite
from cnn_lightning.classifier.options import NOT_KEPT, checked
from cnn_lightning.classifier.schedule import steps_of_training
from cnn_lightning.data.record import DataRecord
from cnn_lightning.data.sides import Sides
from cnn_lightning.data.values import Range
from cnn_lightning.errors import EverywhereError, UserError, one_line
from cnn_lightning.model import build_net, total_loss
from cnn_lightning.notices import tell
from cnn_lightning.ops.fast import blocks, chooser
from cnn_lightning.processes import from_all, leave_at_exit, sum_of_all, unpadded
from cnn_lightning.swap import SwapReport, swap_layers

Layers = Literal["numpy", "torch"] | dict[str, str]
Batch = tuple[Tensor, Tensor]
STAGES = ("train", "val", "test")
SCHEDULES = (torch.optim.lr_scheduler.OneCycleLR, torch.optim.lr_scheduler.CosineAnnealingLR)


class Classifier(LightningModule):
    """Trains a network to tell classes of pictures apart.

    Args:
        net: ``simple_cnn`` or the name of a torchvision classification network.
        layers: What runs the layers: "numpy", "torch", or a mapping of patterns of layer names to either (first match
            wins; the loss is named ``loss``). Not kept in checkpoints, which load into any implementation.
        num_classes: Number of classes, by default the data's.
        in_channels: 1 for grey, 3 for colour, by default the data's.
        image_size: Height and width, by default the data's.
        channels: Of SimpleCNN's convolutions.
        hidden: Outputs of SimpleCNN's first linear layer.
        weights: torchvision's pretrained weights by name, such as "DEFAULT".
        freeze: Train the last layer alone; the others keep their weights and their running statistics.
        optimizer: "adamw", "adam" or "sgd" (with momentum 0.9).
        lr: Learning rate, the highest of the schedule.
        weight_decay: Pull of the weights towards zero.
        schedule: "one_cycle", "cosine" or "none".
        label_smoothing: Share of the target spread over all classes while training.
        fast: Let the fast functions stand in for the formulas of NumPy layers on the CPU; with false the formulas run.
        threads: Threads of the NumPy layers; None for this process's share of the cores.
        compile: Compile the network with ``torch.compile``.

    Raises:
        ValueError: A number out of its range, or a network or layers that there are not.
    """

    def __init__(
        self,
        net: str = "simple_cnn",
        layers: Layers = "numpy",
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 28,
        channels: Sequence[int] = (16, 32),
        hidden: int = 128,
        weights: str | None = None,
        freeze: bool = False,
        optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
        schedule: Literal["one_cycle", "cosine", "none"] = "one_cycle",
        label_smoothing: float = 0.0,
        threads: int | None = None,
        compile: bool = False,
        fast: bool = True,
    ) -> None:
        super().__init__()
        channels = tuple(channels)
        if num_classes < 2:
            raise ValueError(f"num_classes: expected at least 2 classes to tell apart, got {num_classes}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing: expected a number from 0 to 1, got {label_smoothing}")
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        self.save_hyperparameters(ignore=NOT_KEPT)
        self.net = build_net(
            net,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            channels=channels,
            hidden=hidden,
            weights=weights,
        )
        self.loss: nn.Module = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.report = self.swap(layers)
        self.fast = fast
        chooser.set_fast(fast)
        if threads is not None:
            blocks.set_num_threads(threads)
        if freeze:
            self._freeze_all_but_the_last()
            self.train()
        if compile:
            self.net.compile()
        self._epoch_so_far: list[list[dict[str, Tensor]]] = []
        self._trained_with: dict[str, Any] = {}
        self.class_names = tuple(map(str, range(num_classes)))
        self.mean: tuple[float, ...] = ()
        self.std: tuple[float, ...] = ()
        self.value_range: Range | None = None
        self._sides: Sides = {}
        for stage in STAGES:
            setattr(self, f"{stage}_loss", MeanLoss())
            setattr(self, f"{stage}_acc", MulticlassAccuracy(num_classes, average="micro"))
        self.confusion = ConfusionMatrix(task="multiclass", num_classes=num_classes)

    def swap(self, layers: Layers) -> SwapReport:
        """Choose the implementation of the network's layers and of the loss."""
        return swap_layers(self.net, layers, beside={"loss": self.loss})

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, C, H, W)."""
        outputs = self.net(x)
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
        return logits

    # ---- one step

    def _step(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        """Loss and logits of a batch, which the stage's metrics have taken in."""
        images, labels = batch
        if len(labels) or stage == "train":
            outputs = self.net(images)
            loss, logits = total_loss(self.net, self.loss, outputs, labels)
        else:
            loss, logits = images.new_zeros(()), self._no_logits(images)
        mean, accuracy = self._metrics(stage)
        if len(labels):
            mean.update(loss, len(labels))
            accuracy.update(logits.detach(), labels)
        elif stage == "train":
            # A rank without a sample of the last batch: zero, with a graph of every head for the other ranks' sake.
            loss = sum((head.sum() for head in _heads(outputs)), logits.new_zeros(()))
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "prog_bar": True, "batch_size": len(labels)}
        self.log(f"{stage}_loss", mean, **options)
        self.log(f"{stage}_acc", accuracy, **options)
        return {"loss": loss, "logits": logits.detach()}

    def _no_logits(self, images: Tensor) -> Tensor:
        """The logits of a process that has no picture of the last batches: not every network takes an empty batch."""
        return images.new_zeros(0, self.hparams["num_classes"])

    def _metrics(self, stage: str) -> tuple[MeanLoss, MulticlassAccuracy]:
        return getattr(self, f"{stage}_loss"), getattr(self, f"{stage}_acc")

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """The loss of a batch; every sample of the global batch counts the same, however ranks share it."""
        n = len(batch[1])
        total = sum_of_all(n, self.device)
        outputs = self._step(batch, "train")
        if self.trainer.world_size > 1:  # DDP takes the mean over ranks, whose batches may differ in size
            outputs["loss"] = outputs["loss"] * (n * self.trainer.world_size / total())
        return outputs

    def validation_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """Loss and logits of a batch."""
        return self._step(unpadded(batch, index, self.trainer.val_dataloaders), "val")

    def test_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """Loss and logits of a batch, and its confusion."""
        batch = unpadded(batch, index, self.trainer.test_dataloaders)
        outputs = self._step(batch, "test")
        self.confusion.update(outputs["logits"], batch[1])
        return outputs

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """For each picture its class, the class's name and the probability given to it."""
        logits: Tensor = self(batch[0]) if len(batch[0]) else self._no_logits(batch[0])
        probabilities = logits.softmax(1)
        confidence, classes = probabilities.max(1)
        names = [self.class_names[index] for index in classes.tolist()]
        return {"class": classes, "name": names, "confidence": confidence}

    def on_train_start(self) -> None:
        """Go on with the sums of an epoch that was left in the middle, and let this run's options win."""
        self._apply_options()
        everybodys, self._epoch_so_far = self._epoch_so_far, []
        if len(everybodys) == self.trainer.world_size:  # the same order of summation
            everybodys = everybodys[self.trainer.global_rank :][:1]
        elif not self.trainer.is_global_zero:
            everybodys = []
        for states in everybodys:
            for metric, state in zip(self._metrics("train"), states, strict=True):
                for name, value in state.items():
                    setattr(metric, name, getattr(metric, name) + value.to(self.device))

    # ---- what is trained, and how

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over what is not frozen, and a schedule that steps with every batch."""
        h = self.hparams
        parameters = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        options = {"lr": h["lr"], "weight_decay": h["weight_decay"]}
        optimizer: torch.optim.Optimizer
        if h["optimizer"] == "sgd":
            optimizer = torch.optim.SGD(parameters, momentum=0.9, **options)
        else:
            # float16 has no 1e-8, and squares of gradients below 0.005 vanish from Adam's average: 0 / 0, or a leap.
            epsilon = 1e-3 if any(parameter.dtype == torch.float16 for parameter in parameters) else 1e-8
            kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[h["optimizer"]]
            optimizer = kind(parameters, eps=epsilon, **options)
        if h["schedule"] == "none":
            return optimizer
        scheduler = self._scheduler(optimizer, self._schedule_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _schedule_steps(self) -> int:
        return max(2, steps_of_training(self.trainer, self.hparams["schedule"]))  # one cycle goes up and down

    def _scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        if self.hparams["schedule"] == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams["lr"], total_steps=steps)

    def _apply_options(self) -> None:
        """Optimizer and schedule come back from a checkpoint with their options; those of this run replace them.

        Where the schedule is another one now, or of another length, training goes on at its place in the new one.
        """
        known, self._trained_with = self._trained_with, {}
        if not known:
            return
        h = self.hparams
        optimizer = self.trainer.optimizers[0]
        for group in optimizer.param_groups:
            group["weight_decay"] = h["weight_decay"]
            if h["schedule"] == "none":
                group["lr"] = h["lr"]
            if h["schedule"] != known.get("schedule"):  # one_cycle moves them, too
                group.update({key: optimizer.defaults[key] for key in ("betas", "momentum") if key in group})
        if not any(isinstance(config.scheduler, SCHEDULES) for config in self.trainer.lr_scheduler_configs):
            return  # none, or that of Lightning's LearningRateFinder, which is training for itself
        steps = self._schedule_steps()
        if (h["lr"], h["schedule"], steps) == (known.get("lr"), known.get("schedule"), known["steps"]):
            return
        for group in optimizer.param_groups:
            group.pop("initial_lr", None)
            group["lr"] = h["lr"]
        scheduler = self._scheduler(optimizer, steps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the optimizer should step as often: it has
            for _ in range(self.trainer.global_step):
                scheduler.step()
        self.trainer.lr_scheduler_configs[0].scheduler = scheduler

    def _freeze_all_but_the_last(self) -> None:
        *_, last = (module for module in self.net.modules() if list(module.parameters(recurse=False)))
        self.net.requires_grad_(False)
        last.requires_grad_(True)

    def train(self, mode: bool = True) -> "Classifier":
        """Training mode; frozen layers stay in evaluation mode, so that no batch moves their running statistics."""
        super().train(mode)
        for module in self.net.modules():
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self

    def configure_callbacks(self) -> list[Callback]:
        """What every training of a network should have."""
        return [StopAtNonFinite()]

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **options: Any) -> Self:  # type: ignore[override]
        """Lightning's, for a file of this package's that is whole; what runs the layers is said here, not there.

        Raises:
            UserError: No such file, a damaged one, one that holds code, or one with options that are not kept in one.
        """
        hyper_parameters(read_checkpoint(checkpoint_path, FOR_TRAINER), checkpoint_path)
        defaults = {name: inspect.signature(cls).parameters[name].default for name in NOT_KEPT}
        # The command line's checkpoints ask for LightningCLI's parser to build the network: it warns, and adds nothing.
        own = {**defaults, "weights_only": True, "_instantiator": None}
        return super().load_from_checkpoint(checkpoint_path, *args, **{**own, **options})

    # ---- what a checkpoint knows of its data

    @property
    def data_record(self) -> DataRecord:
        """What is known of the data that the network was trained with."""
        return DataRecord(self.class_names if self.mean else (), self.mean, self.std, self._sides, self.value_range)

    def setup(self, stage: str) -> None:
        """Take the names of the classes and the normalisation from the data, or hand them to it; count from zero."""
        leave_at_exit()
        chooser.set_fast(self.fast)  # also in processes that were spawned
        for metric in (module for module in self.modules() if isinstance(module, Metric)):
            metric.reset()  # processes that were spawned share the memory of sums that are no parameters
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit":
            DataRecord(sides=self._sides).hand_to(data)  # the weights can come from an earlier training
            self._take_from(data)
        elif self.mean and not self.data_record.differs_from(data):
            # Where it differs, a checkpoint with these classes can still be read; otherwise it is refused at the start.
            self.data_record.hand_to(data)

    def _take_from(self, data: Any) -> None:
        if data is not None:
            self.class_names, self.mean, self.std = tuple(data.class_names), tuple(data.mean), tuple(data.std)
            self.value_range, self._sides = getattr(data, "value_range", None), getattr(data, "sides", {})

    def on_validation_start(self) -> None:
        """Refuse data of other classes than those that the network was trained with."""
        difference = self.data_record.differs_from(getattr(self.trainer, "datamodule", None))
        if difference:
            raise EverywhereError(difference)

    on_test_start = on_predict_start = on_validation_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is known of the data, and the sums of the epoch that is not over."""
        checkpoint["data"] = self.data_record.plain()
        checkpoint["tier"] = chooser.tier()
        if not self.trainer.is_last_batch:
            own = [
                {name: cast(Tensor, value).cpu().clone() for name, value in metric.metric_state.items()}
                for metric in self._metrics("train")
            ]
            checkpoint["epoch_so_far"] = from_all(own)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back; pictures of any data are then normalised as those it was trained on."""
        if self._trainer is not None and isinstance(self._trainer.precision_plugin, DoublePrecision):
            self.net.double()  # Lightning does it after it has read the weights, which would be rounded
        self._epoch_so_far = checkpoint.get("epoch_so_far", [])
        self._trained_with = {**checkpoint.get("hyper_parameters", {}), "steps": _steps(checkpoint)}
        record = DataRecord.of(checkpoint)
        self.class_names, self.mean, self.std = record.class_names or self.class_names, record.mean, record.std
        self.value_range, self._sides = record.value_range, record.sides
        trainer = self._trainer
        data = getattr(trainer, "datamodule", None)
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            _tell_tiers(checkpoint.get("tier"))
        if trainer is None or data is None:
            return
        fits = trainer.state.fn == TrainerFn.FITTING
        record.hand_to(data, to_train=fits)
        if fits:
            self._take_from(data)
            if trainer.strategy.restore_checkpoint_after_setup:  # its loader was made before this was known
                trainer.fit_loop._combined_loader = None


def _tell_tiers(before: str | None) -> None:
    """Say that a run goes on with other code than it began with: it is equal up to rounding, not to the bit."""
    if before is not None and before != chooser.tier():
        tell(f"model.fast: the run was computed by {before}, and goes on by {chooser.tier()}: equal up to rounding")


def from_checkpoint(path: str | Path, layers: Layers = "torch") -> Classifier:
    """The classifier that a checkpoint holds, on the CPU, its layers run by ``layers``.

    Raises:
        UserError: No such file, a damaged one, one that holds code, or one that fits no classifier.
    """
    try:
        # Its own weights come from the file, not from the net.
        return Classifier.load_from_checkpoint(path, map_location="cpu", layers=layers, weights=None)
    except UserError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, MemoryError) as error:
        raise UserError(f"ckpt_path: {path} does not fit: {one_line(error, 200)}") from error


def hyper_parameters(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """`options.checked` for `Classifier`."""
    return checked(Classifier, checkpoint, path)


def _heads(outputs: Any) -> list[Tensor]:
    """The logits, and those of auxiliary heads."""
    return [outputs] if isinstance(outputs, Tensor) else [head for head in outputs if isinstance(head, Tensor)]


def _steps(checkpoint: dict[str, Any]) -> int | None:
    """The length of a checkpoint's schedule."""
    found = (state.get("total_steps", state.get("T_max")) for state in checkpoint.get("lr_schedulers", []))
    return next(found, None)
