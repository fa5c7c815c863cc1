"""CSV files of a run: written whole, and read with every value checked."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import write_or_warn


def write_table(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as CSV in UTF-8; bytes of a file's name that are no UTF-8 are written unchanged."""

    def table(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows(rows)

    write_or_warn(path, table)


def write_rows(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows, each a mapping, below a header of the columns' names; missing values are empty."""
    write_table(path, [names, *([row.get(name, "") for name in names] for row in rows)])


def read_rows(path: Path, words: Collection[str] = (), needed: Collection[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file, each as a mapping without its empty values; no rows if there is no file.

    Args:
        path: A table with a header.
        words: Columns of text; all others have numbers, and ``epoch`` and ``step`` whole ones.
        needed: Columns that the file must have.

    Raises:
        UserError: A damaged file; the message names the line.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = one_line(error) if isinstance(error, OSError) else "it is no text in UTF-8"
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


def _is_number(text: str, whole: bool) -> bool:
    try:
        number = float(text)
    except ValueError:
        return False
    return number.is_integer() or not whole
