"""``metrics.csv``: the numbers of a run, whole after every write and going on where a resumed run goes on."""

import csv
import hashlib
import io
import json
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from cnn_lightning.errors import UserError
from cnn_lightning.files import write_or_warn
from cnn_lightning.notices import tell


class RunLogger(CSVLogger):
    """Lightning's CSVLogger, except that it never deletes rows and never leaves half a file."""

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsFile":
        """The file, made when it is first asked for."""
        if self._experiment is None:
            self._experiment = MetricsFile(self.log_dir)
        assert isinstance(self._experiment, MetricsFile)
        return self._experiment

    def resume_at(self, step: int, digest: str | None = None) -> None:
        """Forget what was logged from ``step`` on, and the test: the run that goes on logs both again.

        Args:
            step: Of the checkpoint.
            digest: Of the rows before it, where the checkpoint knows it; other rows are told.

        Raises:
            UserError: A damaged file.
        """
        file = MetricsFile(self.log_dir)
        file.rows = _before(step, file.rows)
        if digest not in (None, _digest(file.rows)):
            tell(f"{file.metrics_file_path} holds other rows than when the checkpoint was written; they are kept")
        file.write()

    def digest(self, step: int) -> str:
        """Of the rows that `resume_at` would keep."""
        return _digest(_before(step, [*self.experiment.rows, *self.experiment.pending()]))


class MetricsFile(ExperimentWriter):
    """The rows of ``folder/metrics.csv``; what an earlier part of the run wrote stays.

    Args:
        log_dir: The run's folder.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.rows = read_rows(Path(log_dir) / self.NAME_METRICS_FILE, needed=["step"])

    def _check_log_dir_exists(self) -> None:
        """Lightning's own would delete the file of the run that goes on."""

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write ``hparams.yaml``."""
        self.hparams.update(params)
        path = Path(self.log_dir) / self.NAME_HPARAMS_FILE
        write_or_warn(path, partial(save_hparams_to_yaml, hparams=self.hparams))

    def save(self) -> None:
        """Write the rows; a full disk is said, and they are kept for the next time."""
        if self.metrics:
            self.rows += self.pending()
            self.metrics = []
            self.write()

    def pending(self) -> list[dict[str, str]]:
        """The rows that are not in the file yet."""
        return [{key: str(value) for key, value in row.items()} for row in self.metrics]

    def write(self) -> None:
        """Replace the file by one with the rows."""
        names = sorted({name for row in self.rows for name in row})

        def table(path: Path) -> None:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(self.rows)

        write_or_warn(self.metrics_file_path, table)


def read_rows(path: Path, words: Collection[str] = (), needed: Collection[str] = ()) -> list[dict[str, str]]:
    """The file's rows, each with the values it has; none where there is no file.

    Args:
        path: A table with a header.
        words: Columns that hold words; all others hold numbers, and ``epoch`` and ``step`` whole ones.
        needed: Columns that the file must have.

    Raises:
        UserError: A damaged file; the line is named.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UserError(f"{path}: expected a table, but can't read it: {reason}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = next(reader, [])
        for name in needed:
            if name not in names and any(names):
                raise ValueError(f"expected a column {name}")
        return [_row(names, values, words) for values in reader]
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: line {reader.line_num} is damaged ({error}): mend it, or move the file away"
        ) from None


def _row(names: list[str], values: list[str], words: Collection[str]) -> dict[str, str]:
    if len(values) != len(names):
        raise ValueError(f"expected {len(names)} values, got {len(values)}")
    row = {name: value for name, value in zip(names, values, strict=True) if name and value}
    for name, value in row.items():
        if name not in words and not _is_number(value, whole=name in ("epoch", "step")):
            raise ValueError(f"expected a number for {name[:40]}, got {value[:40]!r}")
    return row


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Each metric that is logged once an epoch, as pairs of the epoch (from 1 on) and its value.

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


def _is_number(text: str, whole: bool) -> bool:
    try:
        number = float(text)
    except ValueError:
        return False
    return number.is_integer() or not whole


def _number(text: Any) -> float:
    return float(text) if text is not None else -1.0
