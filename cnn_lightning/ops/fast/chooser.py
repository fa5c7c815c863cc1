"""Which of the two runs: a formula of `cnn_lightning.ops`, or the fast function of the same name.

A fast function was proven equal to its formula, file by file; ``proven.json`` holds the digests of what was proven. It
runs while fast is on, and while its file and the formula's file are still those: an edited formula runs itself, and so
does everything else of its file. A function replaced at run time (``conv.conv2d = mine``) runs as it is. A replaced
*helper* (``taps.padded = mine``) is not seen where fast functions run: edit the file, or switch fast off.

Off for the process with the variable ``CNN_LIGHTNING_FAST=0``; ``CNN_LIGHTNING_FAST=unproven`` doesn't look at digests,
for who works on a fast file.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.resources import files
from types import FunctionType, ModuleType
from typing import Any

from cnn_lightning.ops.fast.digest import digest

Function = Callable[..., Any]
FILES = ("activation", "conv", "conv_transpose", "dropout", "linear", "loss", "norm", "padding", "pool", "softmax")
CHAINS = {"fused": ("conv", "activation", "pool")}
"""Fast files that compute several formulas as one, and the files of those."""
LOCK = "proven.json"


def _functions(module: ModuleType) -> dict[str, Function]:
    """The public functions that are defined in the module's own text."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__globals__ is vars(module) and not name.startswith("_")
    }


_modules = {file: import_module(f"cnn_lightning.ops.{file}") for file in FILES}
_formulas = {file: _functions(module) for file, module in _modules.items()}
_file_of = {function: file for file, functions in _formulas.items() for function in functions.values()}
_setting = os.environ.get("CNN_LIGHTNING_FAST", "1")
_wishes = [True]
"""The process's own, see `set_fast`, and those of the `fast` blocks that it is inside of: the last one counts."""


def formulas() -> dict[str, dict[str, Function]]:
    """The formulas that have a fast function, by file and name, as they were when first imported."""
    return _formulas


def chosen(op: Function) -> Function:
    """The fast function that stands in for ``op`` on NumPy arrays, or ``op`` itself."""
    file = _file_of.get(op)
    return op if file is None or why_formula(file) else getattr(_fast(file), op.__name__, op)


def is_formula(op: Function) -> bool:
    """Whether this is one of `formulas`, and no function that took its place."""
    return op in _file_of


def is_fast(op: Function) -> bool:
    """Whether this is a function of `cnn_lightning.ops.fast`, which looks after threads and memory itself."""
    return getattr(op, "__module__", "").startswith(f"{__package__}.")


def is_chain(file: str) -> bool:
    """Whether the chains of this fast file may stand in for their formulas."""
    return not _edited(file) and not any(map(why_formula, CHAINS[file]))


def why_formula(file: str) -> str:
    """Why the formulas of this file run themselves: "off", "edited", "replaced"; empty where fast functions run."""
    now = vars(_modules[file])
    if any(now.get(name) is not function for name, function in _pairs(file)):
        return "replaced"
    return "off" if not _is_on() else "edited" if _edited(file) else ""


def tier() -> str:
    """Which tier runs in this process, in a few words: for reports and checkpoints."""
    reasons = {file: why_formula(file) for file in FILES}
    formulas = [f"{file} ({why})" for file, why in reasons.items() if why]
    if not formulas:
        return "fast functions"
    return "formulas" if len(formulas) == len(FILES) else f"fast functions, but formulas of {', '.join(formulas)}"


@contextmanager
def fast(on: bool = True) -> Iterator[None]:
    """Fast functions, or with ``False`` formulas throughout, in all threads of the process while inside."""
    _wishes.append(on)
    try:
        yield
    finally:
        _wishes.pop()


def set_fast(on: bool) -> None:
    """Fast functions or formulas in this process from now on, outside of `fast` blocks."""
    _wishes[0] = on


def _is_on() -> bool:
    return _wishes[-1] and _setting != "0"


@cache
def _pairs(file: str) -> list[tuple[str, Function | None]]:
    """The names of a file's fast functions, and the formulas that they stand for."""
    return [(name, _formulas[file].get(name)) for name in _functions(_fast(file))]


@cache
def _fast(file: str) -> ModuleType:
    return import_module(f"cnn_lightning.ops.fast.{file}")


@cache
def _edited(file: str) -> bool:
    """Whether the formulas or the fast functions are other ones than those of the proof; no source counts as not."""
    if _setting == "unproven":
        return False
    return any(found not in (None, proven().get(name)) for name, found in digests(file).items())


@cache
def proven() -> dict[str, str]:
    """The digests of the files that were proven."""
    found: dict[str, str] = json.loads(files(__package__).joinpath(LOCK).read_text(encoding="utf-8"))
    return found


def digests(file: str) -> dict[str, str | None]:
    """What the proof of a file is about: the formulas and the fast functions."""
    names = [f"ops.{file}"] * (file in FILES) + [f"ops.fast.{file}"]
    return {name: digest(f"cnn_lightning.{name}") for name in names}
