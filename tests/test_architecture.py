"""Imports point one way, and what needs no torch loads none."""

import subprocess
import sys

import pytest

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
def test_stays_on_its_storey(module: str, other: str) -> None:
    assert not loads(module, other)


def test_the_rule_can_fail() -> None:
    assert loads("cnn_lightning.layers", "torch")
