"""What a formula is: short, its forward above its backward, on any array, without memory, threads or tuning."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from cnn_lightning import ops
from cnn_lightning.ops import conv, norm, pool
from cnn_lightning.ops.fast import chooser

FOLDER = Path(ops.__file__).parent
MOST = 15
"""Lines of a body, without signature, docstring and the call of `expect`."""
TREES = {file: ast.parse((FOLDER / f"{file}.py").read_text()) for file in (*chooser.formulas(), "taps", "special")}
FUNCTIONS = [
    pytest.param(node, id=f"{file}.{node.name}")
    for file, tree in TREES.items()
    for node in tree.body
    if isinstance(node, ast.FunctionDef)
]


def body(function: ast.FunctionDef) -> list[ast.stmt]:
    """The statements that compute: without the docstring and calls of `expect`."""
    statements = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return [statement for statement in statements if not is_expectation(statement)]


def is_expectation(statement: ast.stmt) -> bool:
    value = getattr(statement, "value", None)
    return isinstance(value, ast.Call) and ast.unparse(value.func).startswith("expect.")


def lines(function: ast.FunctionDef) -> int:
    return sum((statement.end_lineno or statement.lineno) - statement.lineno + 1 for statement in body(function))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_formula_is_short(function: ast.FunctionDef) -> None:
    assert lines(function) <= MOST


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_formula_mentions_no_memory_and_no_kind_of_array(function: ast.FunctionDef) -> None:
    for node in ast.walk(function):
        assert not isinstance(node, ast.keyword) or node.arg not in ("out", "where")
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("isinstance", "type", "np.pad", "np.einsum", "np.asarray", "np.array")


@pytest.mark.parametrize("file", chooser.formulas())
def test_the_forward_stands_above_its_backward(file: str) -> None:
    names = [node.name for node in TREES[file].body if isinstance(node, ast.FunctionDef)]
    for index, name in enumerate(names):
        forward = name.partition("_backward")[0]
        if name.startswith("_") or "_backward" not in name:
            continue
        assert forward in names[:index], f"{name}: its forward comes first"
        between = names[names.index(forward) + 1 : index]
        assert all(other.startswith(forward) or other.startswith("_") for other in between), between


@pytest.mark.parametrize("file", chooser.formulas())
def test_what_is_checked_is_checked_first(file: str) -> None:
    for node in TREES[file].body:
        if isinstance(node, ast.FunctionDef):
            statements = node.body[ast.get_docstring(node) is not None :]
            places = [index for index, statement in enumerate(statements) if is_expectation(statement)]
            assert places == list(range(len(places))), node.name


# ---- how much one has to read


def executed(call: Callable[[], Any]) -> tuple[int, int, int]:
    """Lines, functions and files of `ops` that a call goes through, without `expect`."""
    seen: set[tuple[str, int]] = set()
    functions: set[tuple[str, str]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        path = Path(frame.f_code.co_filename)
        if path.parent != FOLDER or path.name in ("expect.py", "types.py"):
            return None
        if not frame.f_code.co_name.startswith("<"):
            functions.add((path.name, frame.f_code.co_name))
        if event == "line":
            seen.add((path.name, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return len(seen), len(functions), len({file for file, _ in functions})


CALLS: dict[str, Callable[[], Any]] = {
    "conv2d_backward": lambda: conv.conv2d_backward(ones(2, 3, 4, 4), ones(2, 2, 4, 4), ones(3, 2, 3, 3), padding=1),
    "max_pool2d_backward": lambda: pool.max_pool2d_backward(ones(2, 3, 2, 2), ones(2, 3, 4, 4), kernel_size=2),
    "batch_norm_backward": lambda: norm.batch_norm_backward(ones(2, 3, 2), ones(2, 3, 2), ones(3), ones(3), ones(3)),
}


def ones(*shape: int) -> Any:
    return np.ones(shape)


@pytest.mark.parametrize("name", CALLS)
def test_a_gradient_takes_few_lines_to_read(name: str) -> None:
    found = executed(CALLS[name])
    assert all(a <= b for a, b in zip(found, (30, 5, 3), strict=True)), found


@pytest.mark.parametrize("file", chooser.formulas())
def test_every_formula_is_documented(file: str) -> None:
    for name, function in chooser.formulas()[file].items():
        assert function.__doc__, name
        assert import_module(function.__module__).__doc__
