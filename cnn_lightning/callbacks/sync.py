"""Batch normalisation over all processes' batches: ``--trainer.sync_batchnorm true``, on any device."""

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnn_lightning.errors import UserError
from cnn_lightning.layers import norm
from cnn_lightning.processes import are_several, leave_at_exit

OURS: dict[type[nn.Module], type[nn.Module]] = {
    norm.BatchNorm1d: norm.SyncBatchNorm1d,
    norm.BatchNorm2d: norm.SyncBatchNorm2d,
    norm.BatchNorm3d: norm.SyncBatchNorm3d,
}
ON_THE_CPU: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: norm.SyncBatchNorm1d,
    nn.BatchNorm2d: norm.SyncBatchNorm2d,
    nn.BatchNorm3d: norm.SyncBatchNorm3d,
}
"""torch's own synchronised layer needs a GPU: without one, ours also replaces native layers."""


class SyncBatchNorm(TorchSyncBatchNorm):
    """Makes NumPy's batch normalisation use all processes' batches during `Trainer.fit`.

    With ``sync_batchnorm=True`` alone Lightning would replace our layers by torch's. So give this plugin to the
    Trainer: ``Trainer(sync_batchnorm=True, plugins=[SyncBatchNorm()])``. The command line does so.

    Native layers become torch's ``SyncBatchNorm`` if the processes communicate by NCCL, and ours otherwise.
    """

    def __init__(self) -> None:
        self._classes: dict[nn.Module, type[nn.Module]] = {}
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the layers for the training.

        Raises:
            UserError: A batch normalisation that neither torch's layer nor ours can replace.
        """
        leave_at_exit()
        gpus = are_several() and "nccl" in distributed.get_backend()
        for name, module in list(model.named_modules()):
            stand_in = OURS.get(type(module)) or (None if gpus else ON_THE_CPU.get(type(module)))
            if stand_in is not None:
                self._classes[module] = type(module)
                module.__class__ = stand_in
            elif isinstance(module, _BatchNorm) and not isinstance(module, tuple(OURS.values())):
                if not gpus:
                    raise UserError(
                        f"trainer.sync_batchnorm: {name}: expected BatchNorm1d, 2d or 3d where there is no GPU, "
                        f"got {type(module).__name__}"
                    )
                self._replace(model, name, module)
        return model

    def _replace(self, model: nn.Module, name: str, module: nn.Module) -> None:
        parent, _, last = name.rpartition(".")
        self._replaced.append((model.get_submodule(parent), last, module))
        native = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        setattr(model.get_submodule(parent), last, native)

    def revert(self, model: nn.Module) -> nn.Module:
        """Put back the layers, which share parameters and buffers with their replacements."""
        for module, kind in self._classes.items():
            module.__class__ = kind
        for parent, name, module in self._replaced:
            setattr(parent, name, module)
        self._classes, self._replaced = {}, []
        return model
