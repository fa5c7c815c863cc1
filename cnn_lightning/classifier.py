"""The LightningModule: any network, any implementation of its layers, one training step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import ConfusionMatrix
from torchmetrics.classification import MulticlassAccuracy

from cnn_lightning.errors import UserError
from cnn_lightning.model import build_net, total_loss
from cnn_lightning.ops import _blocks
from cnn_lightning.swap import SwapReport, swap_layers

Layers = Literal["numpy", "torch"] | dict[str, str]
Batch = tuple[Tensor, Tensor]


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
        freeze: Train the last layer alone.
        optimizer: "adamw", "adam" or "sgd" (with momentum 0.9).
        lr: Learning rate, the highest of the schedule.
        weight_decay: Pull of the weights towards zero.
        schedule: "one_cycle", "cosine" or "none".
        label_smoothing: Share of the target spread over all classes while training.
        threads: Threads of the NumPy layers; None for this process's share of the cores.
        compile: Compile the network with ``torch.compile``.
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
    ) -> None:
        super().__init__()
        channels = tuple(channels)
        self.save_hyperparameters(ignore=["layers", "threads", "compile"])
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
        if threads is not None:
            _blocks.set_num_threads(threads)
        if freeze:
            self._freeze_all_but_the_last()
        if compile:
            self.net.compile()
        self.class_names = tuple(map(str, range(num_classes)))
        self.mean: tuple[float, ...] = ()
        self.std: tuple[float, ...] = ()
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
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

    def _step(self, batch: Batch, stage: str) -> Tensor:
        images, labels = batch
        loss, logits = total_loss(self.net, self.loss, self.net(images), labels)
        accuracy: MulticlassAccuracy = getattr(self, f"{stage}_accuracy")
        n = len(labels)
        if n:
            accuracy(logits.detach(), labels)
        else:
            loss = logits.sum()  # a rank without a sample of the last batch: zero, with a graph for the others' sake
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "prog_bar": True, "batch_size": n}
        self.log(f"{stage}_loss", loss.detach(), sync_dist=True, **options)
        self.log(f"{stage}_acc", accuracy, **options)
        if stage == "test" and n:
            self.confusion.update(logits, labels)
        return loss

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of a batch; every sample of the global batch counts the same, however ranks share it."""
        loss = self._step(batch, "train")
        if loss.device.type == "cpu" and not torch.isfinite(loss):
            raise UserError(self._explain_nonfinite(loss, batch[0]))
        return loss * self._share(len(batch[1]))

    def validation_step(self, batch: Batch, index: int) -> None:
        """Loss and accuracy of a batch."""
        self._step(batch, "val")

    def test_step(self, batch: Batch, index: int) -> None:
        """Loss, accuracy and confusion of a batch."""
        self._step(batch, "test")

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """For each picture its class, the class's name and the probability given to it."""
        probabilities = self(batch[0]).softmax(1)
        confidence, classes = probabilities.max(1)
        names = [self.class_names[index] for index in classes.tolist()]
        return {"class": classes, "name": names, "confidence": confidence}

    def _share(self, n: int) -> float | Tensor:
        """What DDP's mean over ranks must be multiplied by where ranks hold batches of different size."""
        if self.trainer.world_size == 1:
            return 1.0
        total = torch.tensor(float(n), device=self.device)
        torch.distributed.all_reduce(total)
        return n * self.trainer.world_size / total

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
            optimizer = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[h["optimizer"]](parameters, **options)
        if h["schedule"] == "none":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler: torch.optim.lr_scheduler.LRScheduler
        if h["schedule"] == "cosine":
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        else:
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, h["lr"], total_steps=max(2, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _freeze_all_but_the_last(self) -> None:
        *others, last = [module for module in self.net.modules() if list(module.parameters(recurse=False))]
        for module in others:
            module.requires_grad_(False)
        last.requires_grad_(True)

    # ---- what a checkpoint knows of its data

    def setup(self, stage: str) -> None:
        """Take the names of the classes and the normalisation from the data."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and stage == "fit":
            self.class_names, self.mean, self.std = tuple(data.class_names), tuple(data.mean), tuple(data.std)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the classes' names and the normalisation."""
        checkpoint["data"] = {"class_names": self.class_names, "mean": self.mean, "std": self.std}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back; pictures of any data are then normalised as those it was trained on."""
        found = checkpoint.get("data")
        if found:
            self.class_names, self.mean, self.std = (tuple(found[key]) for key in ("class_names", "mean", "std"))
            data = getattr(self._trainer, "datamodule", None)
            if data is not None and self.mean:
                data.mean, data.std = self.mean, self.std

    # ---- where a loss that is no number comes from

    def _explain_nonfinite(self, loss: Tensor, images: Tensor) -> str:
        for name, parameter in self.net.named_parameters():
            if not parameter.isfinite().all():
                where = f"first seen in the weights of layer {name.rpartition('.')[0]!r} ({name})"
                break
        else:
            where = f"first seen in the output of layer {self._first_nonfinite(images)!r}"
        return (
            f"step {self.global_step}: expected a finite loss, got {loss.item()}; {where}. A lower --model.lr or "
            "--trainer.gradient_clip_val 1 often helps; damaged input is another cause"
        )

    def _first_nonfinite(self, images: Tensor) -> str:
        if not images.isfinite().all():
            return "input"
        with _first_output(self.net) as found, torch.no_grad():
            self.net(images)
        return found[0] if found else "loss"


@contextmanager
def _first_output(net: nn.Module) -> Iterator[list[str]]:
    """Collects the names of layers whose output holds a value that is not finite, in the order they run."""
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
