"""Imports point one way, and what needs no torch loads none."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import cnn_lightning

RULES = [
    ("cnn_lightning", "torch"),
    ("cnn_lightning.ops.conv", "torch"),
    ("cnn_lightning.ops", "torch"),
    ("cnn_lightning.data.readers", "torch"),
    ("cnn_lightning.plain.train_numpy", "torch"),
    ("cnn_lightning.portable.command", "torch"),
    ("cnn_lightning.portable.command", "PIL"),
    ("cnn_lightning.plain.train_torch", "lightning"),
    ("cnn_lightning.layers", "lightning"),
    ("cnn_lightning.swap", "lightning"),
]
IMPORT = """
import importlib, pkgutil, sys
module = importlib.import_module(sys.argv[1])
for name in getattr(module, "__all__", []):
    if sys.argv[1] != "cnn_lightning":
        getattr(module, name)
sys.exit(sys.argv[2] in sys.modules)
"""


def loads(module: str, other: str) -> bool:
    """Whether importing ``module``, every name it offers included, loads ``other``, in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", IMPORT, module, other], check=False).returncode == 1


@pytest.mark.parametrize(("module", "other"), RULES)
def test_an_import_does_not_load(module: str, other: str) -> None:
    assert not loads(module, other)


def test_the_rule_can_fail() -> None:
    assert loads("cnn_lightning.layers", "torch")


# ---- folders


PACKAGE = Path(cnn_lightning.__file__).parent


def imports(text: str) -> set[str]:
    """The dotted names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def ours() -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Of each import inside the package: the components of the file's own name, and of the imported name."""
    for path in PACKAGE.rglob("*.py"):
        for name in imports(path.read_text()):
            first, *parts = name.split(".")
            if first == "cnn_lightning":
                yield path.relative_to(PACKAGE).with_suffix("").parts, parts


def folder(parts: Sequence[str]) -> str:
    """The folder of a module, or the module itself if it lies at the top; ``parts`` may go on with a name in it."""
    found = PACKAGE
    for part in parts:
        if not (found / part).is_dir():
            break
        found /= part
    return str(found.relative_to(PACKAGE)) if found != PACKAGE else parts[0]


def circles(edges: set[tuple[str, str]]) -> set[str]:
    """The nodes that lie on a circle."""
    reach = {a: {b for source, b in edges if source == a} for a, _ in edges}
    for _ in reach:
        reach = {a: found | {c for b in found for c in reach.get(b, ())} for a, found in reach.items()}
    return {a for a, found in reach.items() if a in found}


def test_folders_import_one_another_in_one_direction() -> None:
    """At every depth: `layers` and `layers/bridge` are two."""
    edges = {(folder(place), folder(parts)) for place, parts in ours() if parts}
    edges = {(a, b) for a, b in edges if a != b and not a.startswith("__")}
    assert {("layers", "layers/bridge"), ("tools/parity", "swap"), ("cli", "errors")} <= edges
    assert circles(edges) == set()
    assert circles(edges | {("ops", "layers")}) >= {"ops", "layers"}


def test_private_modules_stay_in_their_folder() -> None:
    private = [
        (place, parts)
        for place, parts in ours()
        for index, part in enumerate(parts)
        if part.startswith("_") and not part.startswith("__") and tuple(parts[:index]) != place[:-1]
    ]
    assert private == []
