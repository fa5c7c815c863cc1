"""Digests of source files, to compare the files that run with those that were proven (``proven.json``).

The text comes from the loader of the file, so that a wheel, a zip file and a checkout have the same digests. Line ends,
comments, docstrings and empty lines do not change a digest. They are removed by their positions in the text, because
byte code and tokens differ between versions of Python.
"""

import ast
import io
import json
import tokenize
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec

LOCK = "proven.json"
PACKAGE = "cnn_lightning.ops"
SHARED = frozenset({f"{PACKAGE}.expect", f"{PACKAGE}.types"})
"""Modules that formulas and fast functions both call: an edit there changes both."""


@cache
def proven() -> dict[str, str]:
    """The digests of the modules that were proven."""
    found: dict[str, str] = json.loads(files(__package__).joinpath(LOCK).read_text(encoding="utf-8"))
    return found


def holds(modules: Iterable[str]) -> bool:
    """Whether the modules are those that were proven; one without source counts as unedited."""
    return all(digest(module) in (None, proven().get(module)) for module in modules)


def digest(module: str) -> str | None:
    """Digest of the file and of all files of `cnn_lightning.ops` that it imports; None if there is no source."""
    texts: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in texts and name not in SHARED:
            read = _read(name)
            if read is None:
                return None
            texts[name], imports = read
            todo += imports
    return sha256("\n".join(f"{name}\n{texts[name]}" for name in sorted(texts)).encode()).hexdigest()


def bare(text: str) -> str:
    """The text without comments, docstrings and other strings that are statements, and empty lines."""
    text = "\n".join(text.splitlines())
    lines = [line.encode() for line in text.split("\n")]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = token.line[:column].encode()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
            after = lines[last][node.end_col_offset :]
            lines[first : last + 1] = [lines[first][: node.col_offset] + after, *[b""] * (last - first)]
    return "\n".join(filter(None, (line.decode().rstrip() for line in lines)))


@cache
def _read(module: str) -> tuple[str, list[str]] | None:
    """The bare text of a module, and the modules of `cnn_lightning.ops` that it imports."""
    text = _source(module)
    return None if text is None else (bare(text), _imports(text))


def _source(module: str) -> str | None:
    spec = find_spec(module)
    get_source = getattr(spec.loader, "get_source", None) if spec is not None else None
    found: str | None = get_source(module) if get_source is not None else None
    return found


def _imports(text: str) -> list[str]:
    """The modules of `cnn_lightning.ops` that the text imports, in any form of import."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith(PACKAGE):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in (node.module, *names) if name != PACKAGE and _is_file(name)]
    return found


def _is_file(name: str) -> bool:
    """Whether this is the name of a module, not of a value in a module."""
    parent = find_spec(name.rpartition(".")[0])
    if parent is None or parent.submodule_search_locations is None:
        return False
    found = find_spec(name)
    return found is not None and found.submodule_search_locations is None
