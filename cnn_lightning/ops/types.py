"""Types of arguments of the operations."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""A NumPy array, or another array that implements NumPy's dispatch (a CuPy array)."""

Pair = int | Sequence[int]
"""One number for all axes (rows and columns; of volumes also frames), or one for each."""
Padding = Pair | Literal["same", "valid"]
"""Pixels on every side; "valid" for none, "same" for as many as keep the image's size."""
