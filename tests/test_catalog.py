"""The list of layers: a layer is entered at its class, and an error at import names what is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cnn_lightning
from cnn_lightning import layers
from cnn_lightning.layers import catalog
from cnn_lightning.layers.bridge import layout
from cnn_lightning.ops.fast import chooser
from tests.cases import load

FIELDS: dict[str, Any] = {
    "native": nn.Tanhshrink,
    "formulas": "activation",
    "functions": ("tanhshrink",),
    "kinks": (),
    "choices": None,
    "page": ("y = x", "g"),
    "memory": {},
    "flops": None,
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(field: str) -> None:
    fields = {name: value for name, value in FIELDS.items() if name != field}
    with pytest.raises(TypeError, match=f"missing 1 required keyword-only argument: '{field}'"):
        catalog.layer(**fields)


def test_a_class_of_another_native_type_and_a_second_class_are_refused() -> None:
    with pytest.raises(TypeError, match="Identity: native: expected a base of the class, got Tanhshrink"):
        catalog.layer(**FIELDS)(nn.Identity)
    with pytest.raises(TypeError, match="ReLU: native: ReLU has ReLU already"):
        catalog.layer(**FIELDS | {"native": nn.ReLU})(layers.ReLU)
    assert nn.Tanhshrink not in catalog.entries()


def test_a_layer_that_is_not_entered_is_named_at_import(tmp_path: Path) -> None:
    package = tmp_path / "cnn_lightning"
    shutil.copytree(Path(cnn_lightning.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "layers/shape.py").open("a") as file:
        file.write(
            "\n\nfrom cnn_lightning.layers.base import Layer\n\n\nclass Mine(Layer, torch.nn.Tanhshrink):\n    pass\n"
        )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import cnn_lightning.layers"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("expected @catalog.layer above each class, found none above ['Mine']")


def test_every_layer_has_a_row() -> None:
    rows = {case.native: case.layer for case in load()}
    without = [entry.layer.__name__ for native, entry in catalog.entries().items() if native not in rows]
    assert not without, f"tests/cases: expected a row for each layer of the catalogue, found none for {without}"
    for native, layer in rows.items():
        assert catalog.entries()[native].layer is layer


@pytest.mark.parametrize("entry", catalog.entries().values(), ids=lambda entry: entry.layer.__name__)
def test_what_an_entry_names_exists(entry: catalog.Entry) -> None:
    assert getattr(layers, entry.layer.__name__) is entry.layer
    assert entry.formulas in ("", *chooser.formulas())
    homes = (nn.functional, torch, torch.Tensor)
    assert all(any(hasattr(home, name) for home in homes) for name in entry.functions)
    assert all(entry.page)
    named = {name for functions in chooser.formulas().values() for name in functions}
    assert named >= set(entry.memory)


def test_layers_that_share_a_formula_agree_on_its_memory() -> None:
    every = [pair for entry in catalog.entries().values() for pair in entry.memory.items()]
    assert dict(every) == dict(reversed(every))
    assert all(layout.MEMORY.get(name) == memory for name, memory in every)
    assert "linear" not in layout.MEMORY


def test_a_kink_may_be_an_option_of_the_layer() -> None:
    assert catalog.entries()[nn.Hardtanh].kinks_of(nn.Hardtanh(-2, 0.5)) == [-2, 0.5]
    assert catalog.entries()[nn.ReLU6].kinks_of(nn.ReLU6()) == [0, 6]
