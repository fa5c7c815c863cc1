"""The source of a layer's formulas: a call is traced with fast functions off, and each function listed with its lines.

If a fast function runs in training, it was proven equal to the formula that is listed here.
"""

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from cnn_lightning import ops
from cnn_lightning.ops.fast import chooser

OPS = Path(ops.__file__).parent
MACHINERY = ("expect.py", "types.py")
"""Files without mathematics."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Line:
    """One line of a function, and whether it ran."""

    number: int
    text: str
    ran: bool


@dataclass(frozen=True)
class Listing:
    """A function as in its file, without its docstring."""

    name: str
    file: str
    lines: tuple[Line, ...]


def traced(call: Callable[[], _T]) -> tuple[_T, list[Listing]]:
    """The result of ``call``, and the functions of `cnn_lightning.ops` that it called, in order."""
    ran: dict[str, dict[int, None]] = {}
    order: list[tuple[str, int]] = []

    def lines(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            ran[frame.f_code.co_filename][frame.f_lineno] = None
        return lines

    def calls(frame: FrameType, event: str, _: Any) -> Any:
        path = Path(frame.f_code.co_filename)
        if path.parent != OPS or path.name in MACHINERY:
            return None
        ran.setdefault(frame.f_code.co_filename, {})
        order.append((frame.f_code.co_filename, frame.f_code.co_firstlineno))
        return lines

    before = sys.gettrace()
    with chooser.fast(False):
        sys.settrace(calls)
        try:
            result = call()
        finally:
            sys.settrace(before)
    return result, list(_listings(order, ran))


def _listings(order: list[tuple[str, int]], ran: dict[str, dict[int, None]]) -> Iterator[Listing]:
    seen: set[tuple[str, int]] = set()
    for name, first in order:
        text, tree = _parsed(name)
        function = _enclosing(tree, first)
        if function is None or (name, function.lineno) in seen:
            continue
        seen.add((name, function.lineno))
        yield _listing(function, text, Path(name).name, set(ran[name]))


@cache
def _parsed(name: str) -> tuple[list[str], ast.Module]:
    text = Path(name).read_text(encoding="utf-8")
    return text.splitlines(), ast.parse(text)


def _enclosing(tree: ast.Module, line: int) -> ast.FunctionDef | None:
    """The function of the module, or the method of a class, that contains the line."""
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    for body in bodies:
        for node in body:
            if isinstance(node, ast.FunctionDef):
                start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if start <= line <= (node.end_lineno or node.lineno):
                    return node
    return None


def _listing(function: ast.FunctionDef, text: list[str], file: str, ran: set[int]) -> Listing:
    ran = ran | {line for node in ast.walk(function) for line in _whole(node, ran)}
    end = function.end_lineno or function.lineno
    hidden: set[int] = set()
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        hidden = set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    shown = [number for number in range(function.lineno, end + 1) if number not in hidden]
    block = inspect.cleandoc("\n".join(["", *(text[number - 1] for number in shown)])).splitlines()
    return Listing(
        function.name,
        f"ops/{file}",
        tuple(Line(number, line, number in ran) for number, line in zip(shown, block, strict=True)),
    )


def _whole(node: ast.AST, ran: set[int]) -> range:
    """All lines of a simple statement if one of them ran: the tracer reports only some lines of a long one."""
    compound = (ast.FunctionDef, ast.For, ast.While, ast.If, ast.With, ast.Try)
    if isinstance(node, ast.stmt) and not isinstance(node, compound):
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if any(line in ran for line in lines):
            return lines
    return range(0)
