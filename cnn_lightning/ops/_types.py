"""Types shared by the operations."""

from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""A NumPy array, or anything that answers NumPy's dispatch as one (a CuPy array)."""
