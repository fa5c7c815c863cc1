"""Lines of code of a Python file, or of some of its functions."""

import ast
import io
import tokenize
from collections.abc import Collection, Iterator
from pathlib import Path


def count_lines(path: Path, functions: Collection[int] | None = None) -> int:
    """Lines of a Python file with code on them: no blank lines, comments or docstrings.

    Args:
        path: The file.
        functions: Only lines of the functions that begin on these lines, with their decorators.
    """
    source = path.read_text(encoding="utf-8")
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    if functions is not None:
        lines &= {line for first, last in _functions(tree) if first in functions for line in range(first, last + 1)}
    return len(lines)


def _functions(tree: ast.AST) -> Iterator[tuple[int, int]]:
    """The first and last line of each function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield first, node.end_lineno or first
