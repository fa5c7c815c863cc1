"""The layout of a help text: an option a row, its flag on the left and what it does on the right."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

WIDTH = 79
"""The letters of a line, so that it fits into a terminal of 80 columns."""
COLUMN = 29
"""Where the texts begin."""

AS_IT_IS: Any = {"break_on_hyphens": False, "break_long_words": False}
"""A name or a flag is never cut."""


@dataclass(frozen=True)
class Row:
    """One option.

    Args:
        flag: The option as it is typed.
        value: What stands for its value; empty for an option without one.
        text: What it does.
        default: Its default, as it is typed; empty for none.
    """

    flag: str
    value: str = ""
    text: str = ""
    default: str = ""

    def lines(self) -> Iterator[str]:
        """The lines of the row; a text that the flag leaves no room for begins below it."""
        left = f"  {self.flag} {self.value}".rstrip()
        default = self.default if self.default.startswith("[") else f"[{self.default}]" if self.default else ""
        text = f"{self.text} {default}".strip()
        if len(left) < COLUMN:
            yield from wrap(text, WIDTH, initial_indent=left.ljust(COLUMN), subsequent_indent=" " * COLUMN, **AS_IT_IS)
        elif len(left) + 1 + len(text) <= WIDTH:
            yield f"{left} {text}".rstrip()
        else:
            yield left
            yield from wrap(text, WIDTH, initial_indent=" " * COLUMN, subsequent_indent=" " * COLUMN, **AS_IT_IS)


def section(title: str, rows: Iterable[Row]) -> list[str]:
    """The title and the rows; nothing if there is no row."""
    lines = [line for row in rows for line in row.lines()]
    return [f"{title}:", *lines] if lines else []


def paragraph(text: str) -> list[str]:
    """The text in lines of `WIDTH` letters."""
    return wrap(text, WIDTH, **AS_IT_IS)


def usage(command: str, arguments: str = "[options]") -> list[str]:
    """The first line of a help text, which also says what the brackets mean."""
    left = f"usage: cnn-lightning {command} {arguments}"
    return [f"{left}{'in brackets: the default':>{max(WIDTH - len(left), 0)}}"]
