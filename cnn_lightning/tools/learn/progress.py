"""Which exercises were graded, and with what result: a small file in the learner's folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cnn_lightning.errors import UserError
from cnn_lightning.files import whole

NAME = "learn_progress.json"
_MEND = "move the file away to begin anew"


@dataclass(frozen=True)
class Last:
    """The last grade of an exercise.

    Attributes:
        passed: Whether it passed.
        score: The part of the rules that passed, from 0 to 1.
        failures: How often it has been graded and failed since it was opened or passed.
    """

    passed: bool
    score: float
    failures: int


def read(folder: Path) -> dict[int, Last]:
    """The last grades by the number of the exercise; empty without a file.

    Raises:
        UserError: The file can't be read, or holds something else.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {int(number): _last(row) for number, row in found["exercises"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{NAME}: expected the grades of exercises, got {type(error).__name__}; {_MEND}") from None


def write(folder: Path, grades: Mapping[int, Last]) -> None:
    """Write the last grades.

    Raises:
        OSError: The file can't be written; the old one stays.
    """
    rows = {str(number): asdict(last) for number, last in sorted(grades.items())}
    with whole(folder / NAME) as path:
        path.write_text(json.dumps({"exercises": rows}, indent=2) + "\n", encoding="utf-8")


def _last(row: Mapping[str, object]) -> Last:
    passed, score, failures = row["passed"], row["score"], row["failures"]
    if not (isinstance(passed, bool) and isinstance(score, int | float) and isinstance(failures, int)):
        raise TypeError(row)
    return Last(passed, float(score), failures)
