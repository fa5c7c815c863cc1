"""Exercises that are solved, and the mistakes that students make in them."""

from pathlib import Path
from textwrap import dedent

from cnn_lightning.tools.learn.course import EXERCISES


def write(folder: Path, number: int, code: str) -> Path:
    """Write the file of an exercise with functions that replace those of the template; give its path."""
    exercise = EXERCISES[number]
    path = folder / f"{exercise.stem}.py"
    path.write_text(f"{exercise.template.read_text()}\n\n{dedent(code)}")
    return path
