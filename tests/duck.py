"""An array that answers NumPy's dispatch as CuPy's does, and refuses what CuPy hasn't and every trip to the host.

What is allowed is written down in `FUNCTIONS`, `METHODS`, `UFUNC_OPTIONS` and `ATTRIBUTES`, from the signatures that
CuPy 14.2 itself reports (``inspect.signature(cupy.stack)`` and the like, and its docstrings for compiled methods).
Left out on purpose, because CuPy waits for the device or goes to the host in them: ``nonzero`` and all that needs the
number of true values, ``item``, ``tolist``, ``sliding_window_view`` (it loops over an array of window sizes).
"""

from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

FUNCTIONS: dict[str, set[str]] = {
    "arange": {"start", "stop", "step", "dtype"},
    "broadcast_to": {"array", "shape"},
    "concatenate": {"axis", "out", "dtype", "casting"},
    "copyto": {"casting", "where"},
    "empty": {"shape", "dtype", "order"},
    "empty_like": {"dtype", "order", "shape"},
    "full": {"shape", "fill_value", "dtype", "order"},
    "full_like": {"fill_value", "dtype", "order", "shape"},
    "may_share_memory": set(),
    "moveaxis": {"source", "destination"},
    "ones": {"shape", "dtype", "order"},
    "ones_like": {"dtype", "order", "shape"},
    "put_along_axis": {"axis"},
    "stack": {"axis", "out", "dtype", "casting"},
    "take_along_axis": {"indices", "axis"},
    "where": set(),
    "zeros": {"shape", "dtype", "order"},
    "zeros_like": {"dtype", "order", "shape"},
}
"""Functions, and the keywords that they have there besides ``like``, which NumPy takes away before it dispatches."""

METHODS: dict[str, set[str]] = {
    "all": {"axis", "out", "keepdims"},
    "any": {"axis", "out", "keepdims"},
    "argmax": {"axis", "out", "dtype", "keepdims"},
    "argmin": {"axis", "out", "dtype", "keepdims"},
    "astype": {"dtype", "order", "casting", "subok", "copy"},
    "copy": {"order"},
    "cumsum": {"axis", "dtype", "out"},
    "fill": {"value"},
    "max": {"axis", "out", "keepdims"},
    "mean": {"axis", "dtype", "out", "keepdims"},
    "min": {"axis", "out", "keepdims"},
    "prod": {"axis", "dtype", "out", "keepdims"},
    "ravel": {"order"},
    "reshape": {"order", "copy"},
    "squeeze": {"axis"},
    "std": {"axis", "dtype", "out", "ddof", "keepdims"},
    "sum": {"axis", "dtype", "out", "keepdims"},
    "swapaxes": set(),
    "transpose": set(),
    "var": {"axis", "dtype", "out", "ddof", "keepdims"},
    "view": {"dtype"},
}

UFUNCS = {
    *("add", "subtract", "multiply", "divide", "floor_divide", "remainder", "power", "negative", "positive"),
    *("absolute", "reciprocal", "sign", "square", "sqrt", "exp", "expm1", "log", "log1p", "tanh", "matmul"),
    *("copysign", "signbit", "maximum", "minimum", "fmax", "fmin", "isnan", "isinf", "isfinite"),
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
    *("logical_and", "logical_or", "logical_not"),
    *("invert", "bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift"),
}
UFUNC_OPTIONS = {"out", "dtype", "casting"}
"""No ``where``; and of a ufunc's methods (``reduce``, ``at``, ...) none."""

ATTRIBUTES = {"T", "dtype", "itemsize", "mT", "nbytes", "ndim", "shape", "size", "strides"}


class NotOnTheDevice(TypeError):
    """CuPy has nothing of the kind, or would wait for the device."""


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


def _check(name: str, options: Any, allowed: set[str]) -> None:
    if unknown := set(options) - allowed:
        raise NotOnTheDevice(f"{name}: CuPy has no {', '.join(sorted(unknown))}")


def _check_index(index: Any, reading: bool) -> None:
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, np.ndarray):
            raise NotOnTheDevice("a device array was indexed with a host array")
        if reading and isinstance(part, Duck) and part.dtype == bool:
            raise NotOnTheDevice("how many values a mask picks is known on the device only")


class Flags:
    """Of the flags, those that CuPy has."""

    def __init__(self, array: np.ndarray) -> None:
        self.c_contiguous, self.f_contiguous = array.flags.c_contiguous, array.flags.f_contiguous
        self.owndata = array.flags.owndata


class Duck(NDArrayOperatorsMixin):
    """A device array in disguise: NumPy functions run on it, ``numpy.asarray`` and truth values do not."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    @property
    def flags(self) -> Flags:
        return Flags(self.array)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        if method != "__call__" or ufunc.__name__ not in UFUNCS:
            raise NotOnTheDevice(f"{ufunc.__name__}.{method}: not among what CuPy was seen to have")
        _check(ufunc.__name__, options, UFUNC_OPTIONS)
        if not all(isinstance(value, Duck | int | float | bool | complex | np.generic) for value in inputs):
            raise NotOnTheDevice(
                f"{ufunc.__name__}: mixes a device array with {[type(value).__name__ for value in inputs]}"
            )
        if out and not all(isinstance(value, Duck) for value in out):
            raise NotOnTheDevice(f"{ufunc.__name__}: writes a device array into a host array")
        results = ufunc(*_inside(inputs), **({"out": _inside(out)} if out else {}), **_inside(options))
        return (out[0] if len(out) == 1 else out) if out else _outside(results)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        options = {key: value for key, value in options.items() if key != "like"}
        if not function.__module__ == "numpy" or function.__name__ not in FUNCTIONS:
            raise NotOnTheDevice(f"{function.__module__}.{function.__name__}: not among what CuPy was seen to have")
        _check(function.__name__, options, FUNCTIONS[function.__name__])
        if not all(issubclass(kind, Duck) for kind in types):
            raise NotOnTheDevice(f"{function.__name__}: mixes a device array with {[kind.__name__ for kind in types]}")
        result = function(*_inside(args), **_inside(options))
        out = options.get("out")
        return out if out is not None else _outside(result)

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise NotOnTheDevice("a device array was converted to a host array")

    def __bool__(self) -> bool:
        raise NotOnTheDevice("the truth of a device array waits for the device")

    __float__ = __int__ = __index__ = __complex__ = __bool__

    def __iter__(self) -> Any:
        if self.array.ndim < 2:
            raise NotOnTheDevice("a device array was gone through value by value")
        return map(Duck, self.array)  # rows are views, and wait for nothing

    def __contains__(self, value: Any) -> bool:
        raise NotOnTheDevice("whether a device array holds a value is known on the device only")

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> "Duck":
        _check_index(index, reading=True)
        return Duck(np.asarray(self.array[_inside(index)]))

    def __setitem__(self, index: Any, value: Any) -> None:
        _check_index(index, reading=isinstance(value, Duck))
        if isinstance(value, np.ndarray | list | tuple):
            raise NotOnTheDevice("host values were written into a device array")
        self.array[_inside(index)] = _inside(value)

    def __getattr__(self, name: str) -> Any:
        if name in ATTRIBUTES:
            found = getattr(self.array, name)
            return Duck(found) if isinstance(found, np.ndarray) else found
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in METHODS:
            raise NotOnTheDevice(f"{name}: not among what a CuPy array was seen to have")
        method = getattr(self.array, name)

        def call(*args: Any, **options: Any) -> Any:
            _check(name, options, METHODS[name])
            return _outside(method(*_inside(args), **_inside(options)))

        return call
