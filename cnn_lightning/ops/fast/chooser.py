"""Choose between a formula of `cnn_lightning.ops` and the fast function of the same name.

Each fast function was proven equal to its formula, file by file; ``proven.json`` has the digests of the proven files.
It runs while fast is on, and while its file and the file of the formula are those. If a formula is edited, all formulas
of its file run themselves.

At run time, too, a formula or a helper runs as it is if it is replaced where it is called (``conv.conv2d = mine``,
``conv.padded = mine``) or if its code is exchanged (autoreload of a notebook). Then the formulas that call it run
themselves, and all of its file from the next report on (`why_formula`).

The variable ``CNN_LIGHTNING_FAST=0`` turns fast functions off for the process. ``CNN_LIGHTNING_FAST=unproven`` ignores
the digests, for work on a fast file.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import CodeType, FunctionType, ModuleType
from typing import Any

from cnn_lightning.errors import UserError
from cnn_lightning.ops.fast import proof

Function = Callable[..., Any]
FILES = (
    "activation",
    "attention",
    "conv",
    "conv_transpose",
    "dropout",
    "linear",
    "loss",
    "norm",
    "padding",
    "pool",
    "product",
    "softmax",
)
FORMULAS_ALONE: tuple[str, ...] = ("response", "upsample")
"""Files of formulas that have no fast functions, since no fast function was seen to gain."""
CHAINS = {"fused": ("conv", "activation", "pool")}
"""Fast files that compute several formulas as one, and the files of those."""


def _functions(module: ModuleType) -> dict[str, FunctionType]:
    """The public functions that are defined in the module's own text."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__globals__ is vars(module) and not name.startswith("_")
    }


class _Choice:
    """A formula, its fast function, and the functions that the formula is made of, as they were at import.

    Only these are compared at a call. All functions of its file would be 48 for ReLU, which takes 9 us where their
    memory has left the processor's cache.
    """

    def __init__(self, file: str, op: FunctionType) -> None:
        self.file, self.op = file, op
        self.parts = tuple(_parts(op))
        self.home: dict[str, Any] | None = None

    def holds(self) -> bool:
        """Whether no function was replaced, and none has other code."""
        for home, name, function, code in self.parts:
            if home.get(name) is not function or function.__code__ is not code:
                return False
        return True

    def found(self) -> Function:
        """The fast function, or the formula where the process does not use it."""
        if self.home is None:
            is_off = self.file in FORMULAS_ALONE or _setting() == "0" or _edited(self.file)
            self.home = {} if is_off else vars(_fast(self.file))
        function: Function = self.home.get(self.op.__name__, self.op)
        return function


def _parts(op: FunctionType) -> Iterator[tuple[dict[str, Any], str, FunctionType, CodeType]]:
    """The function and the functions of `cnn_lightning.ops` that it calls by name, by each name, and their code."""
    todo, seen = [(op.__globals__, op.__name__)], set()
    while todo:
        home, name = todo.pop()
        function = home.get(name)
        if (id(home), name) in seen or not isinstance(function, FunctionType):
            continue
        seen.add((id(home), name))
        if function.__module__.startswith(proof.PACKAGE):
            yield home, name, function, function.__code__
            todo += [(function.__globals__, each) for each in _names(function.__code__)]


def _names(code: CodeType) -> Iterator[str]:
    """The names that the code and the functions inside it look up."""
    yield from code.co_names
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _names(value)


_modules = {file: import_module(f"cnn_lightning.ops.{file}") for file in (*FILES, *FORMULAS_ALONE)}
_formulas = {file: _functions(module) for file, module in _modules.items()}
_choices: dict[Function, _Choice] = {
    op: _Choice(file, op) for file, functions in _formulas.items() for op in functions.values()
}
_replaced: set[str] = set()
"""The files in which `why_formula` saw a replaced function when it was last asked."""
_wishes = [True]
"""The setting of the process, see `set_fast`, then those of the open `fast` blocks: the last one counts."""


def formulas() -> Mapping[str, Mapping[str, Function]]:
    """All formulas, by file and name, as they were at import."""
    return _formulas


def chosen(op: Function) -> Function:
    """The fast function that replaces ``op`` on NumPy arrays, or ``op`` itself."""
    choice = _choices.get(op)
    if choice is None or not _wishes[-1] or not choice.holds():
        return op
    if _replaced and choice.file in _replaced and why_formula(choice.file):
        return op  # so that all formulas of a file run as the report of layers says
    return choice.found()


def is_formula(op: Function) -> bool:
    """Whether this is one of `formulas`, not a function that replaced one."""
    return op in _choices


def is_fast(op: Function) -> bool:
    """Whether this is a function of `cnn_lightning.ops.fast`, which manages threads and memory itself."""
    return getattr(op, "__module__", "").startswith(f"{__package__}.")


def is_chain(file: str) -> bool:
    """Whether the chains of this fast file may replace their formulas."""
    return not _edited(file) and not any(map(why_formula, CHAINS[file]))


def why_formula(file: str) -> str:
    """Why the formulas of this file run themselves: "off", "edited", "replaced", or "no fast functions".

    Empty if fast functions run.
    """
    if file in FORMULAS_ALONE:
        return "no fast functions"
    if not all(choice.holds() for choice in _choices.values() if choice.file == file):
        _replaced.add(file)
        return "replaced"
    _replaced.discard(file)
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
