"""``metrics.csv``: the numbers of a run. The file is whole after every write, and a resumed run continues it."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from cnn_lightning.callbacks.tables import read_rows, write_rows
from cnn_lightning.files import write_or_warn
from cnn_lightning.notices import tell


class RunLogger(CSVLogger):
    """Lightning's CSVLogger, except that it never deletes rows and never leaves a partial file."""

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsFile":
        """The file, created at first use."""
        if self._experiment is None:
            self._experiment = MetricsFile(self.log_dir)
        assert isinstance(self._experiment, MetricsFile)
        return self._experiment

    def resume_at(self, step: int, digest: str | None = None) -> None:
        """Drop the rows from ``step`` on and those of the test: the resumed run logs both again.

        Args:
            step: The step of the checkpoint.
            digest: The digest of the rows before it, if the checkpoint has one; a notice says if the rows differ.

        Raises:
            UserError: A damaged file.
        """
        file = MetricsFile(self.log_dir)
        file.rows = _before(step, file.rows)
        if digest not in (None, _digest(file.rows)):
            tell(f"{file.metrics_file_path} holds other rows than when the checkpoint was written; they are kept")
        file.write()

    def digest(self, step: int) -> str:
        """The digest of the rows that `resume_at` would keep."""
        return _digest(_before(step, [*self.experiment.rows, *self.experiment.pending()]))


class MetricsFile(ExperimentWriter):
    """The rows of ``metrics.csv``; rows from before a resume stay.

    Args:
        log_dir: The run's folder.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.rows = read_rows(Path(log_dir) / self.NAME_METRICS_FILE, needed=["step"])

    def _check_log_dir_exists(self) -> None:
        """Do nothing: Lightning's own would delete the file of a resumed run."""

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write ``hparams.yaml``."""
        self.hparams.update(params)
        path = Path(self.log_dir) / self.NAME_HPARAMS_FILE
        write_or_warn(path, partial(save_hparams_to_yaml, hparams=self.hparams))

    def save(self) -> None:
        """Write the rows; on a full disk, warn and keep them for the next write."""
        if self.metrics:
            self.rows += self.pending()
            self.metrics = []
            self.write()

    def pending(self) -> list[dict[str, str]]:
        """The rows that are not written yet."""
        return [{key: str(value) for key, value in row.items()} for row in self.metrics]

    def write(self) -> None:
        """Replace the file by one with all rows."""
        names = sorted({name for row in self.rows for name in row})
        write_rows(Path(self.metrics_file_path), names, self.rows)


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Each metric that is logged once an epoch, as pairs of the epoch (from 1 on) and the value.

    Raises:
        UserError: A damaged file.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for row in read_rows(path):
        if "epoch" in row:
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    found.setdefault(name, []).append((int(float(row["epoch"])) + 1, float(value)))
    return found


def _is_of_the_test(name: str) -> bool:
    return name.startswith("test_")


def _before(step: int, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in rows if _number(row.get("step")) < step and not any(map(_is_of_the_test, row))]


def _digest(rows: list[dict[str, str]]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _number(text: Any) -> float:
    return float(text) if text is not None else -1.0
