"""Checkpoints to go on from: often enough, whole, and with every random state."""

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

EVERY_N_STEPS = 500
EVERY_SECONDS = 60.0


class Resumable(Callback):
    """Keeps ``checkpoints/last.ckpt`` at most 500 steps or 60 seconds behind, and at the end of every epoch.

    A file is written under another name and renamed when it is whole, so that a run killed at any moment leaves the
    last good one. With the random states in it and the loader's place in the epoch, the run that goes on from it ends
    with the very weights of the run that was never stopped.

    Args:
        folder: Of the checkpoints.
        every_n_steps: Optimizer steps between two checkpoints at most.
        every_seconds: Time between two checkpoints at most.
    """

    def __init__(self, folder: Path, every_n_steps: int = EVERY_N_STEPS, every_seconds: float = EVERY_SECONDS) -> None:
        self.folder, self.every_n_steps, self.every_seconds = folder, every_n_steps, every_seconds
        self._step, self._time = 0, time.monotonic()
        self._states: dict[str, Any] = {}

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.folder / "last.ckpt"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self._step, self._time = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when enough steps or time went by."""
        steps = trainer.global_step - self._step
        late = time.monotonic() - self._time >= self.every_seconds
        if trainer.world_size > 1:
            late = trainer.strategy.reduce_boolean_decision(late, all=False) if steps % 50 == 0 else False
        if steps and (steps >= self.every_n_steps or late):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch's validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the finished run."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint; a full disk or an unwritable folder keeps the one before, and is said."""
        self._step, self._time = trainer.global_step, time.monotonic()
        try:
            trainer.save_checkpoint(self.path)
        except OSError as error:
            rank_zero_warn(f"{self.path}: not written, the checkpoint before stays: {error.strerror or error}")

    def state_dict(self) -> dict[str, Any]:
        """Torch's, Python's and NumPy's random states."""
        version, numbers, gauss = random.getstate()
        state: Any = np.random.get_state(legacy=True)  # noqa: NPY002 -- users may draw from it
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": (version, numbers, gauss),
            "numpy": (state[0], torch.from_numpy(state[1].astype(np.int64)), *state[2:]),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep them until training starts: what comes before it may draw."""
        self._states = state_dict

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put the random states back before the first batch after a resume."""
        states, self._states = self._states, {}
        if not states:
            return
        torch.set_rng_state(states["torch"].cpu())
        if states["cuda"]:
            torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
        version, numbers, gauss = states["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, place, has_gauss, cached = states["numpy"]
        np.random.set_state(  # noqa: NPY002
            (name, keys.numpy().astype(np.uint32), place, has_gauss, cached)
        )
