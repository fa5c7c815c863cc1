"""The optimizer and the schedule of the learning rate, by the options of the Classifier."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from cnn_lightning.classifier.schedule import steps_of_training

MOMENTUM = 0.9
"""Of "sgd"."""


def make_optimizer(options: Mapping[str, Any], parameters: Sequence[Tensor]) -> Optimizer:
    """The optimizer that ``options`` name, over the parameters to train."""
    common = {"lr": options["lr"], "weight_decay": options["weight_decay"]}
    if options["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, momentum=MOMENTUM, **common)
    # float16 has no 1e-8, and squares of gradients below 0.005 become 0 in Adam's average: 0 / 0, or a huge step.
    epsilon = 1e-3 if any(parameter.dtype == torch.float16 for parameter in parameters) else 1e-8
    kind: type[Optimizer] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[options["optimizer"]]
    return kind(parameters, eps=epsilon, **common)  # type: ignore[call-arg]  # both have it


def make_scheduler(options: Mapping[str, Any], optimizer: Optimizer, steps: int) -> LRScheduler:
    """The schedule that ``options`` name, "one_cycle" or "cosine", over the steps of the whole training."""
    if options["schedule"] == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    return OneCycleLR(optimizer, options["lr"], total_steps=steps)


def schedule_steps(options: Mapping[str, Any], trainer: Trainer) -> int:
    """The length of the schedule in steps, at least 2: one cycle goes up and down."""
    return max(2, steps_of_training(trainer, options["schedule"]))


def apply_options(options: Mapping[str, Any], trainer: Trainer, known: Mapping[str, Any]) -> None:
    """Give the optimizer and the schedule that a checkpoint restored the options of this run.

    If the schedule is another one now, or has another length, the training continues at the same step of the new one.

    Args:
        options: Of this run.
        trainer: With the restored optimizer and schedule.
        known: The checkpoint's options, and its `steps_of_schedule` as ``steps``.
    """
    optimizer = trainer.optimizers[0]
    for group in optimizer.param_groups:
        group["weight_decay"] = options["weight_decay"]
        if options["schedule"] == "none":
            group["lr"] = options["lr"]
        if options["schedule"] != known.get("schedule"):  # one_cycle changes these values, too
            group.update({key: optimizer.defaults[key] for key in ("betas", "momentum") if key in group})
    if not any(isinstance(config.scheduler, OneCycleLR | CosineAnnealingLR) for config in trainer.lr_scheduler_configs):
        return  # no schedule, or that of Lightning's LearningRateFinder, which trains for itself
    steps = schedule_steps(options, trainer)
    if (options["lr"], options["schedule"], steps) == (known.get("lr"), known.get("schedule"), known["steps"]):
        return
    for group in optimizer.param_groups:
        group.pop("initial_lr", None)
        group["lr"] = options["lr"]
    scheduler = make_scheduler(options, optimizer, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # asks for as many optimizer steps, which the checkpoint has
        for _ in range(trainer.global_step):
            scheduler.step()
    trainer.lr_scheduler_configs[0].scheduler = scheduler


def steps_of_schedule(checkpoint: Mapping[str, Any]) -> int | None:
    """The length of a checkpoint's schedule; None if it has none."""
    found = (state.get("total_steps", state.get("T_max")) for state in checkpoint.get("lr_schedulers", []))
    return next(found, None)
