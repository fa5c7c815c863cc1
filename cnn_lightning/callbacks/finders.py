"""Lightning's finders of a learning rate and a batch size: what they found when a run began holds to its end."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder


def without_finders(
    trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any], place: dict[str, Any]
) -> list[Callback]:
    """The Trainer's callbacks but for the finders, whose findings are taken from the checkpoint to go on from.

    A search would start where the first one did not, and forget optimizer and place on the way: it restores a
    checkpoint of its own.

    Args:
        trainer: Of the run that goes on.
        pl_module: Gets the learning rate.
        checkpoint: Of the run so far.
        place: The training loader's, with the size of its batches.
    """
    callbacks: list[Callback] = list(trainer.callbacks)  # type: ignore[attr-defined]
    kept = []
    for callback in callbacks:
        if _searches(callback, LearningRateFinder):
            pl_module.hparams["lr"] = checkpoint["hyper_parameters"]["lr"]
            _tell(trainer, f"LearningRateFinder: not run again; model.lr stays {pl_module.hparams['lr']:.3g}")
        elif _searches(callback, BatchSizeFinder) and "pictures in a global batch" in place:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            data.batch_size = place["pictures in a global batch"] // trainer.world_size
            _tell(trainer, f"BatchSizeFinder: not run again; data.batch_size stays {data.batch_size}")
        else:
            kept.append(callback)
    return kept


def _searches(callback: Callback, kind: type[Callback]) -> bool:
    """Whether it does so when a run begins; a subclass may have a time of its own."""
    return isinstance(callback, kind) and type(callback).on_fit_start is kind.on_fit_start


def _tell(trainer: Trainer, text: str) -> None:
    if trainer.is_global_zero:
        print(text)
