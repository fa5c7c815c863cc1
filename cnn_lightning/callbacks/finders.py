"""Lightning's finders of a learning rate and a batch size: a resumed run keeps their first results."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from cnn_lightning.notices import tell


def without_finders(
    trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any], place: dict[str, Any]
) -> list[Callback]:
    """The Trainer's callbacks without the finders; their results are taken from the checkpoint.

    A new search would start from other weights than the first, and restore a checkpoint of its own, which has neither
    the optimizer nor the position in the epoch.

    Args:
        trainer: Of the run that is resumed.
        pl_module: Gets the learning rate.
        checkpoint: The checkpoint that the run is resumed from.
        place: The state of the training loader, with the size of its batches.
    """
    callbacks: list[Callback] = list(trainer.callbacks)  # type: ignore[attr-defined]
    kept = []
    for callback in callbacks:
        if _searches(callback, LearningRateFinder):
            pl_module.hparams["lr"] = checkpoint["hyper_parameters"]["lr"]
            tell(f"LearningRateFinder: not run again; model.lr stays {pl_module.hparams['lr']:.3g}")
        elif _searches(callback, BatchSizeFinder) and "pictures in a global batch" in place:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            data.batch_size = place["pictures in a global batch"] // trainer.world_size
            tell(f"BatchSizeFinder: not run again; data.batch_size stays {data.batch_size}")
        else:
            kept.append(callback)
    return kept


def _searches(callback: Callback, kind: type[Callback]) -> bool:
    """Whether the callback searches when a run begins; a subclass may search at another time."""
    return isinstance(callback, kind) and type(callback).on_fit_start is kind.on_fit_start
