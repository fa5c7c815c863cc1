"""The folder of a run: what the command itself writes there, and what could not be written."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from cnn_lightning.callbacks.folder import folder_to_write
from cnn_lightning.checkpoints import shown
from cnn_lightning.digest import seal_text
from cnn_lightning.errors import UserError
from cnn_lightning.files import unwritten, whole


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` whole, and into a run folder only: Lightning's own also writes into the current folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it, once.

        Raises:
            UserError: It can't be written: nothing is lost yet.
        """
        if self.already_saved:
            return
        self.already_saved = True
        folder = folder_to_write(trainer)
        if folder is None:
            return
        path = folder / self.config_filename
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with whole(path) as temporary:
                self.parser.save(self.config, temporary, skip_none=False, overwrite=True, multifile=self.multifile)
                seal_text(temporary)
        except OSError as error:
            raise UserError(f"{shown(path)}: not written: {error.strerror or error}") from error


def expect_written() -> None:
    """Nothing, where every file of the run was written.

    Raises:
        UserError: The files that were not, and why.
    """
    if not unwritten:
        return
    paths = sorted(unwritten, key=lambda path: (path.suffix != ".ckpt", path))
    text = f"{', '.join(map(shown, paths))}: not written: {unwritten[paths[0]]}"
    if paths[0].suffix == ".ckpt":
        text += "; the numbers above are right, but can't be gone on from"
    raise UserError(text)
