"""The folder of a sweep: its description, its trials, and which process runs which of them.

A trial belongs to the process that has locked its folder, as any run's folder; the kernel releases the lock when the
process ends, however it ends. Optuna's own remedy, a heartbeat, doesn't exist for journals. A trial that has begun and
is locked by nobody was left by a process that ended, and the next process continues it. Whoever takes or gives up a
trial holds the lock of the sweep meanwhile.
"""

import itertools
import re
import shutil
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock

from cnn_lightning.checkpoints import FOR_FIT, read_checkpoint, shown
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import whole
from cnn_lightning.tools.sweep.options import Options
from cnn_lightning.tools.sweep.settings import Settings
from cnn_lightning.tools.sweep.space import flag
from cnn_lightning.train.configs import SWEEP
from cnn_lightning.train.run_folder import LOCK, OWNER, RunFolder

if TYPE_CHECKING:
    from optuna.storages.journal import JournalStorage
    from optuna.trial import FrozenTrial, Trial

DESCRIPTION, BASE, JOURNAL = "sweep.yaml", "base.yaml", "journal.log"
REASON, PRUNED = "reason", "pruned"
"""Attributes of a trial in the journal: why it has no value, and after which epoch it was stopped."""


def find(options: Options, folder: Path | None) -> Path:
    """The folder of the sweep with this description, so that the same command always means the same sweep.

    Args:
        options: The description.
        folder: The folder that the user names; None for ``runs/DATA/sweep_N``, with the first N that fits or is free.

    Raises:
        UserError: The named folder has another sweep, or the folder can't be written to.
    """
    description = {SWEEP: options.settings.plain, **options.base}
    parent = folder.parent if folder is not None else options.root / options.data
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / ".sweeps.lock"):
            if folder is not None:
                if not _is_free(folder) and _description(folder) != description:
                    raise UserError(f"--folder: expected the folder of this sweep or none, got {shown(folder)}")
            else:
                folder = next(
                    path
                    for path in (parent / f"sweep_{number}" for number in itertools.count())
                    if _is_free(path) or _description(path) == description
                )
            if _is_free(folder):
                folder.mkdir(exist_ok=True)
                for name, content in ((BASE, options.base), (DESCRIPTION, description)):
                    with whole(folder / name) as temporary:
                        temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise UserError(f"sweep: can't write to {shown(folder or parent)}: {one_line(error)}") from None
    return folder


def _is_free(folder: Path) -> bool:
    """Whether there is no folder, or one in which a process was killed before it wrote the description."""
    return not folder.exists() or (folder.is_dir() and {path.name for path in folder.iterdir()} <= {BASE})


def _description(folder: Path) -> Any:
    try:
        return yaml.safe_load((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError, yaml.YAMLError):
        return None  # the folder of something else


@dataclass(frozen=True)
class Taken:
    """A trial that this process alone runs, until it ends.

    Args:
        number: The number of the trial.
        folder: Its folder.
        lock: Holds the lock of the folder.
        args: The command line of ``cnn-lightning`` that runs it.
        resumed: Whether it is continued from a checkpoint.
    """

    number: int
    folder: Path
    lock: RunFolder
    args: list[str]
    resumed: bool


class Sweep:
    """The trials in a folder; several processes may have one each.

    Args:
        path: The folder.
        settings: What is searched.

    Raises:
        UserError: The journal is damaged.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.settings = path, settings
        self._lock = FileLock(path / LOCK)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the folder again in a process that a strategy such as ddp_spawn starts."""
        return _unpickled, (self.path, self.settings)

    @cached_property
    def storage(self) -> "JournalStorage":
        """Optuna's view of the journal."""
        import optuna
        from optuna.storages.journal import JournalStorage

        from cnn_lightning.tools.sweep.journal import Journal

        storage = JournalStorage(Journal(self.path / JOURNAL))
        with self._lock:
            if not storage.get_all_studies():
                direction: Any = "maximize" if self.settings.direction == "max" else "minimize"
                optuna.create_study(storage=storage, study_name=SWEEP, direction=direction)
        return storage

    def study(self, number: int = 0) -> Any:
        """Optuna's study, with the sampler of one trial."""
        import optuna

        sampler, pruner = self.settings.make_sampler(number), self.settings.make_pruner()
        return optuna.load_study(study_name=SWEEP, storage=self.storage, sampler=sampler, pruner=pruner)

    def trials(self) -> "list[FrozenTrial]":
        """All trials, in the order of their numbers."""
        found: list[FrozenTrial] = self.study().get_trials(deepcopy=False)
        return found

    def folder(self, number: int) -> Path:
        """The folder of a trial."""
        return self.path / f"trial_{number}"

    # ---- which process runs which trial

    def work(self) -> str:
        """``some`` if there is a trial to run, ``others`` if other processes run the last ones, else ``none``."""
        with self._lock:
            trials = self.trials()
            running = [trial for trial in trials if trial.state.name == "RUNNING"]
            if len(trials) < self.settings.trials or any(self._is_left(trial.number) for trial in running):
                return "some"
            return "others" if running else "none"

    def _is_left(self, number: int) -> bool:
        folder = RunFolder()
        self.folder(number).mkdir(exist_ok=True)
        folder.take(self.folder(number))
        folder.leave(empty=False)
        return not folder.refused

    def take(self) -> Taken | None:
        """A trial that another process left, or else a new one; None if there is none to run."""
        import optuna

        with self._lock:
            trials = self.trials()
            for trial in trials:
                if trial.state.name == "RUNNING":
                    lock = self._locked(trial.number)
                    if not lock.refused:
                        return self._taken(optuna.trial.Trial(self.study(trial.number), trial._trial_id), lock)
            if len(trials) >= self.settings.trials:
                return None
            trial = self.study(len(trials)).ask()
            return self._taken(trial, self._locked(trial.number))

    def _locked(self, number: int) -> RunFolder:
        lock = RunFolder()
        self.folder(number).mkdir(exist_ok=True)
        lock.take(self.folder(number))
        return lock

    def _taken(self, trial: "Trial", lock: RunFolder) -> Taken:
        # A process that was killed here may have left a trial without some of its options; they are drawn now.
        values = {option: values.draw(trial, option) for option, values in self.settings.space.items()}
        folder = self.folder(trial.number)
        args = ["fit", f"--config={self.path / BASE}", *(flag(option, value) for option, value in values.items())]
        last = folder / "checkpoints" / "last.ckpt"
        try:
            read_checkpoint(last, FOR_FIT)
        except UserError:  # there is none yet, or it is damaged: the trial begins anew
            _empty(folder)
            return Taken(trial.number, folder, lock, args, resumed=False)
        return Taken(trial.number, folder, lock, [*args, f"--ckpt_path={last}"], resumed=True)

    # ---- what a trial says

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Write the best value of an epoch, counted from 0; whether to stop the trial there."""
        trial = self.trials()[number]
        best = self.settings.better(value, trial.intermediate_values.get(epoch, value))
        self.storage.set_trial_intermediate_value(trial._trial_id, epoch, best)
        study = self.study(number)
        prune: bool = study.pruner.prune(study, self.trials()[number])
        if prune:
            self.storage.set_trial_user_attr(trial._trial_id, PRUNED, epoch)
        return prune

    def end(self, number: int, reason: str = "") -> None:
        """Write that a trial has ended: with the best of its values, pruned, or failed for a reason."""
        from optuna.trial import TrialState

        trial = self.trials()[number]
        values = list(trial.intermediate_values.values())
        if not reason and not values:
            reason = f"no epoch gave {self.settings.metric}"
        if reason:
            self.storage.set_trial_user_attr(trial._trial_id, REASON, reason)
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            return
        value = values[0]
        for each in values:
            value = self.settings.better(value, each)
        epoch = trial.user_attrs.get(PRUNED)
        state = TrialState.COMPLETE if epoch is None else TrialState.PRUNED
        self.storage.set_trial_state_values(trial._trial_id, state, [value])

    def end_if_left(self, number: int, reason: str) -> None:
        """Write that a trial has failed if its process ended without a word, and no other process has taken it."""
        with self._lock:
            if self.trials()[number].state.name == "RUNNING" and self._is_left(number):
                self.end(number, reason)

    def values_of(self, trial: "FrozenTrial") -> dict[str, Any]:
        """The options that a trial has of the space, in its order."""
        space = self.settings.space
        return {option: space[option].value(trial.params[option]) for option in space if option in trial.params}


def _unpickled(path: Path, settings: Settings) -> Sweep:
    keep_optuna_quiet()
    return Sweep(path, settings)


def _empty(folder: Path) -> None:
    """Remove what a trial without a checkpoint has written: it begins anew, and rows of metrics would be doubled."""
    for path in folder.iterdir():
        if path.name not in (LOCK, OWNER):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def keep_optuna_quiet() -> None:
    """Have Optuna say nothing: the command says what matters."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.filterwarnings("ignore", module=re.escape("optuna") + r"\..*")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
