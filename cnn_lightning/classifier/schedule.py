"""The length of a learning rate schedule, in optimizer steps."""

import math

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from cnn_lightning.errors import UserError


def steps_of_training(trainer: Trainer, schedule: str) -> int:
    """Optimizer steps from the first to the end of the last epoch: those made so far plus those to come.

    ``max_epochs`` decides the end. ``max_steps`` and ``max_time`` only stop a run before it, so that the steps before
    the stop are those of a run without it. Without a number of epochs (-1) ``max_steps`` decides.

    Args:
        trainer: If the training is resumed, with its progress restored.
        schedule: The name of the schedule, for the message.

    Raises:
        UserError: The end of the training is unknown.
    """
    loop = trainer.fit_loop
    loop.setup_data()
    batches = trainer.num_training_batches
    last = trainer.max_epochs
    if last is None or last == -1 or (batches == math.inf and trainer.limit_train_batches != 0):
        if trainer.max_steps == -1:
            raise UserError(
                f"model.schedule: expected none where the end of training is unknown (set trainer.max_epochs or "
                f"trainer.max_steps), got {schedule!r}"
            )
        return trainer.max_steps
    if trainer.limit_train_batches == 0:
        return 0
    epoch = trainer.current_epoch
    to_come = sum(math.ceil(batches / accumulated(trainer, number)) for number in range(epoch, last))
    progress = loop.epoch_loop.batch_progress
    if loop.restarting and not progress.is_last_batch:  # inside an epoch
        to_come -= progress.current.ready // accumulated(trainer, epoch)
    return trainer.global_step + max(0, to_come)


def accumulated(trainer: Trainer, epoch: int) -> int:
    """The number of batches of an epoch whose gradients make one optimizer step."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches
