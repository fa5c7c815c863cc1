"""The line of a formula in which the first NaN or infinity appears, found by running it line by line."""

import ast
import inspect
import linecache
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from cnn_lightning import ops
from cnn_lightning.aten.kernels import OPERATORS, Native
from cnn_lightning.layers import bridge
from cnn_lightning.nonfinite.recorder import Event, Formula

OPS = Path(ops.__file__).parent
MACHINERY = ("expect.py", "types.py")
"""Files without mathematics."""
LONGEST = 90
SAME_ARGUMENTS = {"cudnn_batch_norm": "native_batch_norm"}
"""Operators of the GPU that take what an operator of the CPU takes."""


def line_of(event: Event) -> str:
    """``file:number: the line`` of the formula; empty if the operation has none, or no line of it is at fault."""
    for formula in event.formulas or _formulas(event):
        found = _first_bad_line(formula)
        if found:
            return found
    return ""


def _formulas(event: Event) -> list[Formula]:
    """The formulas that `numpy_ops` would compute an operator of torch by."""
    name, overload = event.function._schema.name.partition("::")[2], event.function._schema.overload_name
    names = (f"{name}.{overload}" if overload else name, name, SAME_ARGUMENTS.get(name, ""))
    operator = next((OPERATORS[each] for each in names if each in OPERATORS), None)
    if operator is None or not event.unchanged:
        return []
    values = {key: tree_map(_on_the_cpu, value) for key, value in event.values.items()}
    args, kwargs = event.arguments(values)
    calls = _Calls()
    try:
        with torch.no_grad(), bridge.watch(calls):
            operator.adapter(*args, **kwargs)
    except (Native, TypeError, ValueError, RuntimeError, IndexError):
        pass  # without a formula for these arguments; what ran before the error counts
    return calls.formulas


def _on_the_cpu(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


class _Calls(bridge.Listener):
    """Keeps the formulas that run."""

    def __init__(self) -> None:
        self.formulas: list[Formula] = []

    def enter(self, op: bridge.Operation, arrays: Any, options: dict[str, Any]) -> None:
        """Keep a call; later operators may write into its arrays."""
        self.formulas.append(Formula(op, [None if each is None else each.copy() for each in arrays], options))


def _first_bad_line(formula: Formula) -> str:
    if any(array is not None and not isinstance(array, np.ndarray) for array in formula.arrays):
        return ""  # on a GPU
    tracer = _Tracer(formula)
    options = {key: value for key, value in formula.options.items() if key in _keywords(formula.op)}
    before = sys.gettrace()
    with np.errstate(all="ignore"):
        sys.settrace(tracer.calls)
        try:
            formula.op(*formula.arrays, **options)
        except Exception:  # of a user's own formula, on numbers that are not finite
            pass
        finally:
            sys.settrace(before)
    return tracer.found


def _keywords(op: bridge.Operation) -> set[str]:
    """The options that a formula takes; the bridge keeps ``needs`` from those that don't."""
    return set(inspect.signature(op).parameters)


class _Tracer:
    """Looks at the variables of a formula, and of the functions of `ops` that it calls, after each line.

    If an argument is infinite, only NaN is looked for.
    """

    def __init__(self, formula: Formula) -> None:
        finite = all(_is_good(array, False) for array in formula.arrays)
        self.only_nan = not finite
        self.file = getattr(getattr(formula.op, "__code__", None), "co_filename", "")
        self.found = ""
        self._line: dict[FrameType, int] = {}
        self._bad: dict[FrameType, set[str]] = {}

    def calls(self, frame: FrameType, event: str, _: Any) -> Any:
        """Trace the lines of a function of mathematics."""
        path = Path(frame.f_code.co_filename)
        if self.found or not (frame.f_code.co_filename == self.file or path.parent == OPS) or path.name in MACHINERY:
            return None
        self._bad[frame] = self._names(frame)
        return self._lines

    def _lines(self, frame: FrameType, event: str, result: Any) -> Any:
        if not self.found and frame in self._line and event in ("line", "return"):
            new = self._names(frame) - self._bad[frame]
            if new or (event == "return" and not self._bad[frame] and not _is_good(result, self.only_nan)):
                self.found = _shown(frame.f_code.co_filename, self._line[frame])
        self._line[frame] = frame.f_lineno
        return self._lines

    def _names(self, frame: FrameType) -> set[str]:
        return {name for name, value in frame.f_locals.items() if not _is_good(value, self.only_nan)}


def _is_good(value: Any, only_nan: bool) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_good(each, only_nan) for each in value)
    if not isinstance(value, np.ndarray | np.floating) or value.dtype.kind != "f":
        return True
    return not np.isnan(value).any() if only_nan else bool(np.isfinite(value).all())


def _shown(file: str, number: int) -> str:
    """The statement at a line, on one line."""
    text = "".join(linecache.getlines(file))
    try:
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt) and not hasattr(node, "body")]
    except SyntaxError:
        nodes = []
    node = next((node for node in nodes if node.lineno <= number <= (node.end_lineno or node.lineno)), None)
    line = linecache.getline(file, number) if node is None else ast.get_source_segment(text, node) or ""
    line = " ".join(line.split())
    short = line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
    folder = "ops/" if Path(file).parent == OPS else ""
    return f"{folder}{Path(file).name}:{number if node is None else node.lineno}: {short}"
