"""How many optimizer steps a schedule of the learning rate is long."""

import math

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from cnn_lightning.errors import UserError


def steps_of_training(trainer: Trainer, schedule: str) -> int:
    """Optimizer steps from the first to the end of the last epoch: those that were made, and those to come.

    The end is ``max_epochs``. ``max_steps`` and ``max_time`` may stop a run on its way there: the steps before the stop
    are those of the run that goes on. Only without a number of epochs (-1) is the end ``max_steps``.

    Args:
        trainer: With its place in the training, where that was begun before.
        schedule: Its name, for the message.

    Raises:
        UserError: Training has no end that is known.
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
    """Batches of an epoch whose gradients make one optimizer step."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches
