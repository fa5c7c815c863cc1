"""An array that answers NumPy's dispatch as CuPy's does, and refuses every trip to the host."""

from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin


def _inside(value: Any) -> Any:
    if isinstance(value, Duck):
        return value.array
    if isinstance(value, list | tuple):
        return type(value)(map(_inside, value))
    if isinstance(value, dict):
        return {key: _inside(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(_inside(value.start), _inside(value.stop), _inside(value.step))
    return value


def _outside(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return Duck(np.asarray(value))
    return tuple(map(_outside, value)) if isinstance(value, tuple) else value


class Duck(NDArrayOperatorsMixin):
    """A device array in disguise: NumPy functions run on it, ``numpy.asarray`` and truth values do not."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        if not all(isinstance(value, Duck | int | float | bool | complex | np.generic) for value in inputs):
            raise TypeError(f"{ufunc.__name__}: mixes a device array with {[type(value).__name__ for value in inputs]}")
        if out and not all(isinstance(value, Duck) for value in out):
            raise TypeError(f"{ufunc.__name__}: writes a device array into a host array")
        results = getattr(ufunc, method)(*_inside(inputs), **({"out": _inside(out)} if out else {}), **_inside(options))
        return (out[0] if len(out) == 1 else out) if out else _outside(results)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if not all(issubclass(kind, Duck) for kind in types):
            raise TypeError(f"{function.__name__}: mixes a device array with {[kind.__name__ for kind in types]}")
        options = {key: value for key, value in options.items() if key != "like"}
        result = function(*_inside(args), **_inside(options))
        out = options.get("out")
        return out if out is not None else _outside(result)

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise TypeError("a device array was converted to a host array")

    def __bool__(self) -> bool:
        raise TypeError("the truth of a device array waits for the device")

    __float__ = __int__ = __index__ = __bool__  # type: ignore[assignment]

    def item(self) -> Any:
        raise TypeError("item() waits for the device")

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> "Duck":
        return Duck(self.array[_inside(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            raise TypeError("a host array was written into a device array")
        self.array[_inside(index)] = _inside(value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self.array, name)
        if not callable(found):
            return _outside(found) if name in ("T", "mT", "real", "flat") else found
        return lambda *args, **options: _outside(found(*_inside(args), **_inside(options)))
