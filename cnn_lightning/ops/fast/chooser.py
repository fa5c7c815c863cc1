"""Choose between a formula of `cnn_lightning.ops` and the fast function of the same name.

Each fast function was proven equal to its formula, file by file; ``proven.json`` has the digests of the proven files.
It runs while fast is on, and while its file and the file of the formula are those. If a formula is edited, all formulas
of its file run themselves. The same holds at run time: a formula or a helper runs as it is if it is replaced where it
is called (``conv.conv2d = mine``, ``conv.padded = mine``) or if its code is exchanged (autoreload of a notebook).

The variable ``CNN_LIGHTNING_FAST=0`` turns fast functions off for the process. ``CNN_LIGHTNING_FAST=unproven`` ignores
the digests, for work on a fast file.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from operator import attrgetter, itemgetter
from types import FunctionType, ModuleType
from typing import Any

from cnn_lightning.errors import UserError
from cnn_lightning.ops.fast import proof

Function = Callable[..., Any]
FILES = ("activation", "conv", "conv_transpose", "dropout", "linear", "loss", "norm", "padding", "pool", "softmax")
CHAINS = {"fused": ("conv", "activation", "pool")}
"""Fast files that compute several formulas as one, and the files of those."""


def _functions(module: ModuleType) -> dict[str, Function]:
    """The public functions that are defined in the module's own text."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__globals__ is vars(module) and not name.startswith("_")
    }


class _AsWritten:
    """The functions of a module and of the modules from which it imports functions, as they were at import.

    Compared at every call, so by tuples: 2 us for the 60 functions of activations, 9 us one by one.
    """

    def __init__(self, module: ModuleType) -> None:
        named = [value for value in vars(module).values() if isinstance(value, FunctionType)]
        ours = [function for function in named if function.__module__.startswith(proof.PACKAGE)]
        self.homes = []
        self.functions: list[FunctionType] = []
        for home in {id(function.__globals__): function.__globals__ for function in ours}.values():
            names = [name for name, value in home.items() if isinstance(value, FunctionType)]
            values = itemgetter(*names, names[0])  # of at least two names: the result is a tuple
            self.homes.append((home, values, values(home)))
            self.functions += [home[name] for name in names]
        self.codes = [*map(_CODE, self.functions)]

    def holds(self) -> bool:
        """Whether no function was replaced, and none has other code."""
        try:
            same = all(values(home) == functions for home, values, functions in self.homes)
        except KeyError:  # one was deleted
            return False
        return same and [*map(_CODE, self.functions)] == self.codes


_CODE = attrgetter("__code__")
_modules = {file: import_module(f"cnn_lightning.ops.{file}") for file in FILES}
_formulas = {file: _functions(module) for file, module in _modules.items()}
_as_written = {file: _AsWritten(module) for file, module in _modules.items()}
_file_of = {function: file for file, functions in _formulas.items() for function in functions.values()}
_wishes = [True]
"""The setting of the process, see `set_fast`, then those of the open `fast` blocks: the last one counts."""


def formulas() -> dict[str, dict[str, Function]]:
    """The formulas that have a fast function, by file and name, as they were at import."""
    return _formulas


def chosen(op: Function) -> Function:
    """The fast function that replaces ``op`` on NumPy arrays, or ``op`` itself."""
    file = _file_of.get(op)
    return op if file is None or why_formula(file) else getattr(_fast(file), op.__name__, op)


def is_formula(op: Function) -> bool:
    """Whether this is one of `formulas`, not a function that replaced one."""
    return op in _file_of


def is_fast(op: Function) -> bool:
    """Whether this is a function of `cnn_lightning.ops.fast`, which manages threads and memory itself."""
    return getattr(op, "__module__", "").startswith(f"{__package__}.")


def is_chain(file: str) -> bool:
    """Whether the chains of this fast file may replace their formulas."""
    return not _edited(file) and not any(map(why_formula, CHAINS[file]))


def why_formula(file: str) -> str:
    """Why the formulas of this file run themselves: "off", "edited", "replaced"; empty if fast functions run."""
    if not _as_written[file].holds():
        return "replaced"
    return "off" if not _is_on() else "edited" if _edited(file) else ""


def tier() -> str:
    """The tier that runs in this process, in a few words, for reports and checkpoints."""
    reasons = {file: why_formula(file) for file in FILES}
    formulas = [f"{file} ({why})" for file, why in reasons.items() if why]
    if not formulas:
        return "fast functions"
    return "formulas" if len(formulas) == len(FILES) else f"fast functions, but formulas of {', '.join(formulas)}"


@contextmanager
def fast(on: bool = True) -> Iterator[None]:
    """Use fast functions, or with ``False`` only formulas, in all threads of the process while inside."""
    _wishes.append(on)
    try:
        yield
    finally:
        _wishes.pop()


def set_fast(on: bool) -> None:
    """Use fast functions or formulas in this process from now on, outside of `fast` blocks."""
    _wishes[0] = on


def _is_on() -> bool:
    return _wishes[-1] and _setting() != "0"


@cache
def _setting() -> str:
    given = os.environ.get("CNN_LIGHTNING_FAST", "1")
    if given not in ("0", "1", "unproven"):
        raise UserError(f"CNN_LIGHTNING_FAST: expected 0, 1 or unproven, got {given!r}")
    return given


@cache
def _fast(file: str) -> ModuleType:
    return import_module(f"cnn_lightning.ops.fast.{file}")


@cache
def _edited(file: str) -> bool:
    """Whether the formulas or the fast functions differ from those of the proof."""
    return _setting() != "unproven" and not proof.holds(modules(file))


def modules(file: str) -> list[str]:
    """The modules of the proof of a file: its formulas (a file of chains has none) and its fast functions."""
    return [f"cnn_lightning.ops.{file}"] * (file in FILES) + [f"cnn_lightning.ops.fast.{file}"]
