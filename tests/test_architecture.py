"""Imports point one way, and what needs no torch loads none."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cnn_lightning

RULES = [
    ("cnn_lightning", "torch"),
    ("cnn_lightning.ops.conv", "torch"),
    ("cnn_lightning.ops", "torch"),
    ("cnn_lightning.data.readers", "torch"),
    ("cnn_lightning.plain.train_numpy", "torch"),
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
    """The dotted names that a file of the package imports from the package."""
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in found for alias in node.names if node.module} - {""}


def ours() -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Of each import inside the package: the components of the file's own name, and of the imported name."""
    for path in PACKAGE.rglob("*.py"):
        for name in imports(path.read_text()):
            first, *parts = name.split(".")
            if first == "cnn_lightning":
                yield path.relative_to(PACKAGE).with_suffix("").parts, parts


def circles(edges: set[tuple[str, str]]) -> set[str]:
    """The nodes that lie on a circle."""
    reach = {a: {b for source, b in edges if source == a} for a, _ in edges}
    for _ in reach:
        reach = {a: found | {c for b in found for c in reach.get(b, ())} for a, found in reach.items()}
    return {a for a, found in reach.items() if a in found}


def test_folders_import_one_another_in_one_direction() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir()} - {"__init__", "__main__"}
    edges = {
        (place[0], parts[0]) for place, parts in ours() if parts and parts[0] in rooms and place[0] not in ("__init__",)
    }
    assert circles({(a, b) for a, b in edges if a != b}) == set()
    assert circles({("a", "b"), ("b", "c"), ("c", "b")}) == {"b", "c"}


def test_private_modules_stay_in_their_folder() -> None:
    private = [
        (place, parts)
        for place, parts in ours()
        for index, part in enumerate(parts)
        if part.startswith("_") and not part.startswith("__") and tuple(parts[:index]) != place[:-1]
    ]
    assert private == []
