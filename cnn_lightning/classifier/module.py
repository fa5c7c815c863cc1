"""The LightningModule: any network, any implementation of its layers, one training step."""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

from cnn_lightning.aten import Report, numpy_ops
from cnn_lightning.checkpoints import FOR_TRAINER, read_checkpoint
from cnn_lightning.classifier.ema import WeightAverage, separate
from cnn_lightning.classifier.memory import chosen
from cnn_lightning.classifier.metrics import MeanLoss, classes_of
from cnn_lightning.classifier.nonfinite import StopAtNonFinite
from cnn_lightning.classifier.optimizer import (
    apply_options,
    make_optimizer,
    make_scheduler,
    schedule_steps,
    steps_of_schedule,
)
from cnn_lightning.classifier.options import NOT_KEPT, checked
from cnn_lightning.classifier.scores import TestScores
from cnn_lightning.classifier.weights import ClassWeights, checked_weights, weights_from
from cnn_lightning.data.pictures import Fit
from cnn_lightning.data.record import DataRecord
from cnn_lightning.data.sides import Sides
from cnn_lightning.data.values import Range
from cnn_lightning.errors import EverywhereError, UserError, one_line
from cnn_lightning.layers.memory import Memory, MemoryFormat, arranged
from cnn_lightning.model import build_net, heads, last_layers, total_loss
from cnn_lightning.notices import tell
from cnn_lightning.ops.fast import blocks, chooser
from cnn_lightning.processes import from_all, leave_at_exit, sum_of_all, unpadded
from cnn_lightning.swap import SwapReport, swap_layers

Layers = Literal["numpy", "torch"] | dict[str, str]
Batch = tuple[Tensor, Tensor]
STAGES = ("train", "val", "test")
_WEIGHTS = "loss.weight"
"""The weights of the classes among the values of a checkpoint's ``state_dict``."""


class Classifier(LightningModule):
    """Trains a network to classify pictures.

    Args:
        net: ``simple_cnn``, the name of a torchvision classification network, or ``timm/NAME`` for one of timm.
        layers: The implementation of the layers: "numpy", "torch", or a mapping of patterns of layer names to either
            (the first match decides; the loss is named ``loss``). Checkpoints do not keep it: they load into any
            implementation.
        num_classes: Number of classes, by default the data's.
        in_channels: 1 for grey, 3 for colour, by default the data's.
        image_size: Height and width, by default the data's.
        channels: Output channels of each of SimpleCNN's convolutions.
        hidden: Outputs of SimpleCNN's first linear layer.
        weights: torchvision's or timm's pretrained weights by name, such as "DEFAULT".
        freeze: Train the last layer alone; the others keep their weights and their running statistics.
        optimizer: "adamw", "adam" or "sgd" (with momentum 0.9).
        lr: Learning rate; with a schedule its highest.
        weight_decay: The optimizer's weight decay.
        schedule: "one_cycle", "cosine" or "none".
        label_smoothing: Fraction of the target that all classes get in equal amounts.
        class_weights: A factor for each class in the loss, or "auto" for factors inverse to the numbers of training
            pictures, see `weights_from`, which checkpoints keep. As in torch's CrossEntropyLoss, the mean of a batch
            divides by the sum of its pictures' weights, and by their number if the targets are probabilities (mixup);
            the losses of validation and test are weighted, too.
        functions: What computes torch's own operators on the CPU, of layers and of functions: "torch", or "numpy" for
            `numpy_ops` in each step. Layers that ``layers`` leaves native are computed by NumPy with it, too.
        fast: Use the fast functions for NumPy layers on the CPU; with false the formulas run.
        ema: The decay of an exponential moving average of the weights, between 0 and 1, such as 0.999, see
            `WeightAverage`; validation, test and checkpoints use the average. None for no average.
        tta: "flip" for the mean of the probabilities of a picture and of its mirror, in every validation, test and
            prediction. Checkpoints do not keep it.
        threads: Threads of the NumPy layers; None for the cores of the machine divided by its processes.
        compile: Compile the network with ``torch.compile``.
        memory_format: Of the batches, and with "channels_last" of the weights too. "auto" is batch-last if NumPy layers
            gain by it on the CPU and a trial step in it equals the contiguous one, see `choose_memory`.

    Raises:
        ValueError: A number out of its range, or an unknown network or layer.
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
        memory_format: MemoryFormat = "auto",
        functions: Literal["torch", "numpy"] = "torch",
        class_weights: ClassWeights = None,
        ema: float | None = None,
        tta: Literal["none", "flip"] = "none",
    ) -> None:
        super().__init__()
        channels = tuple(channels)
        if num_classes < 2:
            raise ValueError(f"num_classes: expected at least 2 classes to tell apart, got {num_classes}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing: expected a number from 0 to 1, got {label_smoothing}")
        class_weights = checked_weights(class_weights, num_classes)
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
        if ema is not None and not 0 < ema < 1:
            raise ValueError(f"ema: expected a number between 0 and 1, or null, got {ema}")
        if tta not in ("none", "flip"):
            raise ValueError(f"tta: expected none or flip, got {tta!r}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        if compile and functions == "numpy":
            raise ValueError(
                "functions: expected torch with compile, whose compiler writes kernels of its own, got numpy"
            )
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
        known = [1.0] * num_classes if class_weights == "auto" else class_weights
        weight = None if known is None else torch.tensor(known)
        self.loss: nn.Module = nn.CrossEntropyLoss(weight, label_smoothing=label_smoothing)
        self._has_zeros = known is not None and 0 in known
        self._counted = class_weights != "auto"
        self.report = self.swap(layers)
        self.functions, self.computed = functions, Report()
        self.tta = tta
        self.fast = fast
        chooser.set_fast(fast)
        if threads is not None:
            blocks.set_num_threads(threads)
        if freeze:
            self._freeze_all_but_the_last()
            self.train()
        if compile:
            self.net.compile()
        if memory_format == "channels_last":
            self.net.to(memory_format=torch.channels_last)
        self.memory_format: MemoryFormat = memory_format
        self.memory = Memory("contiguous" if memory_format == "auto" else memory_format)
        self._memory_of: Any = None
        self._epoch_so_far: list[list[dict[str, Tensor]]] = []
        self._trained_with: dict[str, Any] = {}
        self.class_names = tuple(map(str, range(num_classes)))
        self.mean: tuple[float, ...] = ()
        self.std: tuple[float, ...] = ()
        self.value_range: Range | None = None
        self.picture_fit: Fit | None = None
        self._sides: Sides = {}
        for stage in STAGES:
            setattr(self, f"{stage}_loss", MeanLoss())
            setattr(self, f"{stage}_acc", MulticlassAccuracy(num_classes, average="micro"))
        self.confusion = ConfusionMatrix(task="multiclass", num_classes=num_classes)
        self.scores = TestScores(num_classes)

    def swap(self, layers: Layers) -> SwapReport:
        """Choose the implementation of the network's layers and of the loss."""
        return swap_layers(self.net, layers, beside={"loss": self.loss})

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, C, H, W)."""
        return heads(self._outputs(x))[0]

    def _outputs(self, images: Tensor) -> Any:
        """The network's outputs for images, which are brought into the memory format."""
        return self.net(arranged(images, self.memory.format))

    def _judged(self, images: Tensor) -> Tensor:
        """Logits of images outside the training; with ``tta`` the logarithms of mean probabilities, which are logits.

        ``log((p + p') / 2)``: their softmax is the mean, and their cross-entropy is that of the mean.
        """
        logits: Tensor = self(images)
        if self.tta == "none":
            return logits
        pair = torch.stack([logits, self(images.flip(3))]).log_softmax(2)
        return pair.logsumexp(0) - math.log(2)

    # ---- one step

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """A part of a step, by the functions of this run; a block of the user's own stays on."""
        if self.functions == "torch":
            yield
            return
        with numpy_ops() as report:
            yield
        self.computed.add(report)

    def backward(self, loss: Tensor, *args: Any, **options: Any) -> None:
        """The gradients of the loss."""
        with self._computing():
            super().backward(loss, *args, **options)

    def _step(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        """Loss and logits of a batch; also updates the metrics of the stage."""
        images, labels = batch
        if len(labels) or stage == "train":
            with self._computing():
                outputs = self._outputs(images) if stage == "train" else self._judged(images)
                loss, logits = total_loss(self.net, self.loss, outputs, labels)
        else:
            loss, logits = images.new_zeros(()), self._no_logits(images)
        weight = self._weight(labels)
        if not len(labels) or (self._has_zeros and not weight):
            # A rank without a sample of the last batch, or samples that don't count: zero, not 0 / 0.
            loss = logits.new_zeros(())
            if stage == "train":  # with a graph of every head, as DDP requires
                loss = sum((head[:0].sum() for head in heads(outputs)), loss)
        mean, accuracy = self._metrics(stage)
        if len(labels):
            mean.update(loss, weight)
            accuracy.update(logits.detach(), classes_of(labels))
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "prog_bar": True, "batch_size": len(labels)}
        self.log(f"{stage}_loss", mean, **options)
        self.log(f"{stage}_acc", accuracy, **options)
        return {"loss": loss, "logits": logits.detach()}

    def _weight(self, labels: Tensor) -> float | Tensor:
        """What the mean loss of a batch divides by: the sum of its samples' weights, or their number."""
        weight = self.loss.weight
        if not isinstance(weight, Tensor) or labels.is_floating_point():
            return len(labels)
        return weight.double()[labels].sum()

    def _no_logits(self, images: Tensor) -> Tensor:
        """The logits of a process without a picture of the last batch: some networks refuse an empty batch."""
        return images.new_zeros(0, self.hparams["num_classes"])

    def _metrics(self, stage: str) -> tuple[MeanLoss, MulticlassAccuracy]:
        return getattr(self, f"{stage}_loss"), getattr(self, f"{stage}_acc")

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """The loss of a batch; a sample of the global batch has the same weight, whichever rank has it."""
        own = self._weight(batch[1])
        total = sum_of_all(own, self.device)
        outputs = self._step(batch, "train")
        if self.trainer.world_size > 1:  # DDP takes the mean over ranks, whose batches can differ in weight
            whole = total().clamp(min=torch.finfo(torch.float64).tiny)  # it is 0 if no sample counts
            outputs["loss"] = outputs["loss"] * (own * self.trainer.world_size / whole)
        return outputs

    def validation_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """Loss and logits of a batch."""
        return self._step(unpadded(batch, index, self.trainer.val_dataloaders), "val")

    def test_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """Loss and logits of a batch, and its confusion and scores."""
        batch = unpadded(batch, index, self.trainer.test_dataloaders)
        outputs = self._step(batch, "test")
        self.confusion.update(outputs["logits"], batch[1])
        self.scores.update(outputs["logits"], batch[1])
        return outputs

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """The class of each picture, the name of the class, and its probability."""
        with self._computing():
            logits = self._judged(batch[0]) if len(batch[0]) else self._no_logits(batch[0])
        probabilities = logits.softmax(1)
        confidence, classes = probabilities.max(1)
        names = [self.class_names[index] for index in classes.tolist()]
        return {"class": classes, "name": names, "confidence": confidence}

    def on_train_start(self) -> None:
        """Apply the options of this run to what a checkpoint restored, and continue the sums of an unfinished epoch."""
        self._count_classes()
        known, self._trained_with = self._trained_with, {}
        if known:
            apply_options(self.hparams, self.trainer, known)
        of_all, self._epoch_so_far = self._epoch_so_far, []
        if len(of_all) == self.trainer.world_size:  # sums the batches in the same order
            of_all = of_all[self.trainer.global_rank :][:1]
        elif not self.trainer.is_global_zero:
            of_all = []
        for states in of_all:
            for metric, state in zip(self._metrics("train"), states, strict=True):
                for name, value in state.items():
                    setattr(metric, name, getattr(metric, name) + value.to(self.device))

    # ---- optimizer and frozen layers

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the parameters that are not frozen, and a schedule that steps with every batch."""
        parameters = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(self.hparams, parameters)
        if self.hparams["schedule"] == "none":
            return optimizer
        scheduler = make_scheduler(self.hparams, optimizer, schedule_steps(self.hparams, self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _freeze_all_but_the_last(self) -> None:
        self.net.requires_grad_(False)
        for layer in last_layers(self.net):
            layer.requires_grad_(True)

    def train(self, mode: bool = True) -> "Classifier":
        """Training mode; frozen layers stay in evaluation mode, so that no batch changes their running statistics."""
        super().train(mode)
        for module in self.net.modules():
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self

    def configure_callbacks(self) -> list[Callback]:
        """Callbacks of every training of a network."""
        ema: float | None = self.hparams["ema"]
        return [StopAtNonFinite(), *([] if ema is None else [WeightAverage(ema)])]

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **options: Any) -> Self:  # type: ignore[override]
        """As Lightning's, for an undamaged file of this package; `NOT_KEPT` options come from ``options`` alone.

        Raises:
            UserError: No such file, a damaged one, one with code, or one with options that no checkpoint keeps.
        """
        hyper_parameters(read_checkpoint(checkpoint_path, FOR_TRAINER), checkpoint_path)
        defaults = {name: inspect.signature(cls).parameters[name].default for name in NOT_KEPT}
        # Checkpoints of the command line name LightningCLI's parser as builder: it would warn, and do no more.
        own = {**defaults, "weights_only": True, "_instantiator": None}
        return super().load_from_checkpoint(checkpoint_path, *args, **{**own, **options})

    # ---- the record of the data, in checkpoints

    @property
    def data_record(self) -> DataRecord:
        """The record of the data that the network was trained with."""
        names = self.class_names if self.mean else ()
        return DataRecord(names, self.mean, self.std, self._sides, self.value_range, self.picture_fit)

    def setup(self, stage: str) -> None:
        """Take class names and normalisation from the data, or give the network's to the data; reset the metrics."""
        leave_at_exit()
        device = self.trainer.strategy.root_device
        if self.functions == "numpy" and device.type != "cpu":
            raise EverywhereError(
                f"--model.functions: expected torch on {device.type}, got numpy, which computes operators of the CPU; "
                "--model.layers numpy computes the layers there"
            )
        self.choose_memory()
        for metric in (module for module in self.modules() if isinstance(module, Metric)):
            metric.reset()  # spawned processes share the memory of tensors that are no parameters
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit":
            DataRecord(sides=self._sides).apply_to(data)  # the weights can come from an earlier training
            self._take_from(data)
            self._counted = self.hparams["class_weights"] != "auto"
            self._count_classes()  # now: a finder puts back the values that it found when the training began
        elif self.mean and not self.data_record.differs_from(data):
            # If they differ, the checkpoint that comes next may fit; `on_validation_start` refuses what still differs.
            self.data_record.apply_to(data)

    def _count_classes(self) -> None:
        """Compute the weights of "auto", unless they are known: those of the training, which a checkpoint gave."""
        if not self._counted:
            weights = weights_from(getattr(self.trainer, "datamodule", None), self.class_names)
            cast(Tensor, self.loss.weight).copy_(torch.tensor(weights, dtype=torch.float64))
            self._counted = True

    def choose_memory(self) -> Memory:
        """The memory format of the run that begins, the same in all processes. A collective call.

        With "auto" it is chosen again only if a layer, its implementation or the device has changed.
        """
        chooser.set_fast(self.fast)  # also in processes that were spawned
        device = self.trainer.strategy.root_device
        of = (device.type, chooser.tier(), [type(module) for module in self.net.modules()])
        if self.memory_format == "auto" and self._memory_of != of:
            size = self.hparams["image_size"]
            compiled = any(module._compiled_call_impl for module in (self, *self.net.modules())) or self._compiler_ctx
            found = chosen(self.net, device, (self.hparams["in_channels"], size, size), compiled=bool(compiled))
            self.memory, self._memory_of = from_all(found)[0], of
        return self.memory

    def _take_from(self, data: Any) -> None:
        if data is not None:
            self.class_names, self.mean, self.std = tuple(data.class_names), tuple(data.mean), tuple(data.std)
            self.value_range, self._sides = getattr(data, "value_range", None), getattr(data, "sides", {})
            self.picture_fit = getattr(data, "fit", None)

    def on_validation_start(self) -> None:
        """Refuse data with other classes than the network was trained with."""
        difference = self.data_record.differs_from(getattr(self.trainer, "datamodule", None))
        if difference:
            raise EverywhereError(difference)
        if self.trainer.state.fn != TrainerFn.PREDICTING:
            self._count_classes()

    on_test_start = on_predict_start = on_validation_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record of the data, the tier, the average of the weights, and the sums of an unfinished epoch."""
        checkpoint["data"] = self.data_record.plain()
        checkpoint["tier"] = chooser.tier()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAverage):
                callback.save(self, checkpoint)
        if not self.trainer.is_last_batch:
            own = [
                {name: cast(Tensor, value).cpu().clone() for name, value in metric.metric_state.items()}
                for metric in self._metrics("train")
            ]
            checkpoint["epoch_so_far"] = from_all(own)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what `on_save_checkpoint` added; pictures are then normalised as in the training."""
        if self._trainer is not None and isinstance(self._trainer.precision_plugin, DoublePrecision):
            for module in (self.net, self.loss):
                module.double()  # Lightning does so after it has read the weights, which would round them
        self._take_class_weights(checkpoint)
        self._epoch_so_far = checkpoint.get("epoch_so_far", [])
        self._trained_with = {**checkpoint.get("hyper_parameters", {}), "steps": steps_of_schedule(checkpoint)}
        record = DataRecord.of(checkpoint)
        self.class_names, self.mean, self.std = record.class_names or self.class_names, record.mean, record.std
        self.value_range, self._sides, self.picture_fit = record.value_range, record.sides, record.fit
        trainer = self._trainer
        data = getattr(trainer, "datamodule", None)
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            separate(checkpoint)
            _tell_tiers(checkpoint.get("tier"))
        if trainer is None or data is None:
            return
        fits = trainer.state.fn == TrainerFn.FITTING
        record.apply_to(data, to_train=fits)
        if fits:
            self._take_from(data)
            if trainer.strategy.restore_checkpoint_after_setup:  # the loader was made before the record was known
                trainer.fit_loop._combined_loader = None

    def _take_class_weights(self, checkpoint: dict[str, Any]) -> None:
        """Keep the checkpoint's weights of "auto"; otherwise those of this run's option replace the checkpoint's."""
        state, kept = checkpoint["state_dict"], checkpoint.get("hyper_parameters", {}).get("class_weights")
        if self.hparams["class_weights"] == kept == "auto" and _WEIGHTS in state:
            self._counted = True
            return
        self._counted = self.hparams["class_weights"] != "auto"
        state.pop(_WEIGHTS, None)
        if self.loss.weight is not None:
            state[_WEIGHTS] = cast(Tensor, self.loss.weight)


def _tell_tiers(before: str | None) -> None:
    """Tell the user that other code continues the run: results are equal up to rounding, not bit for bit."""
    if before is not None and before != chooser.tier():
        tell(f"model.fast: the run was computed by {before}, and continues by {chooser.tier()}: equal up to rounding")


def from_checkpoint(path: str | Path, layers: Layers = "torch") -> Classifier:
    """The classifier of a checkpoint, on the CPU, its layers run by ``layers``.

    Raises:
        UserError: No such file, a damaged one, one with code, or one that fits no classifier.
    """
    try:
        # The file has all weights: pretrained ones need no download.
        return Classifier.load_from_checkpoint(path, map_location="cpu", layers=layers, weights=None)
    except UserError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, MemoryError) as error:
        raise UserError(f"ckpt_path: {path} does not fit: {one_line(error, 200)}") from error


def hyper_parameters(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """`options.checked` for `Classifier`."""
    return checked(Classifier, checkpoint, path)
