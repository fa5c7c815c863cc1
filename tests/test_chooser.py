"""The formula that one reads is the one that runs, however the package is installed; fast functions need a proof."""

import compileall
import inspect
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cnn_lightning
from cnn_lightning.layers import bridge
from cnn_lightning.layers.conv import Conv2d
from cnn_lightning.layers.pool import MaxPool2d
from cnn_lightning.ops import activation, conv, pool, taps
from cnn_lightning.ops.fast import chooser, proof
from cnn_lightning.ops.fast.proof import bare
from tests import prove
from tests.calls import OPERATIONS, Operation, name_of, recorded, results

PACKAGE = Path(cnn_lightning.__file__).parent
REPORT = """
from cnn_lightning.ops.fast import chooser
print(*(f"{file}={chooser.why_formula(file)}" for file in chooser.FILES), f"chain={chooser.is_chain('fused')}")
"""
ALL_FAST = dict.fromkeys(chooser.FILES, "") | {"chain": "True"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be edited."""
    shutil.copytree(PACKAGE, tmp_path / "cnn_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "cnn_lightning"


def python(code: str, folder: Path, **variables: str) -> str:
    """What the code prints, with the package of that folder (or zip file)."""
    environment = os.environ | {"PYTHONPATH": str(folder)} | variables
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder if folder.is_dir() else None, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def why(folder: Path, **variables: str) -> dict[str, str]:
    """Why the formulas of each file run themselves."""
    pairs = (pair.partition("=") for pair in python(REPORT, folder, **variables).split())
    return {name: reason for name, _, reason in pairs}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new))


# ---- the proof


def test_the_proof_is_of_these_files() -> None:
    assert proof.proven() == prove.digests(), "a formula or a fast function was edited: run python -m tests.prove"


@pytest.mark.parametrize("op", prove.PROVEN, ids=name_of)
def test_a_fast_function_equals_its_formula(op: Operation) -> None:
    prove.prove(op)


def test_a_chain_equals_its_formulas() -> None:
    prove.prove_chains()


@pytest.mark.parametrize("change", [lambda y: y * 1.001, lambda y: y.astype(np.float16), lambda y: y[..., ::-1]])
def test_the_proof_can_fail(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    fast = import_module("cnn_lightning.ops.fast.conv")
    original = fast.conv2d
    monkeypatch.setattr(fast, "conv2d", lambda *arrays, **options: change(original(*arrays, **options)))
    with pytest.raises(AssertionError):
        prove.prove(conv.conv2d)


def test_the_proof_of_chains_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = import_module("cnn_lightning.ops.fast.fused")
    original = fast.conv_relu_pool_backward

    def wrong(*arrays: Any, **options: Any) -> Any:
        grad_x, *others = original(*arrays, **options)
        return (1.001 * grad_x, *others)

    monkeypatch.setattr(fast, "conv_relu_pool_backward", wrong)
    with pytest.raises(AssertionError):
        prove.prove_chains()


@pytest.mark.parametrize("file", chooser.FILES)
def test_fast_functions_have_names_and_signatures_of_their_formulas(file: str) -> None:
    formulas = import_module(f"cnn_lightning.ops.{file}")
    for name, function in vars(import_module(f"cnn_lightning.ops.fast.{file}")).items():
        if inspect.isfunction(function) and function.__module__.endswith(f"fast.{file}") and not name.startswith("_"):
            parameters = dict(inspect.signature(function).parameters)
            for added in ("needs", "out"):
                parameters.pop(added, None)
            assert list(parameters.values()) == list(inspect.signature(getattr(formulas, name)).parameters.values())


@pytest.mark.parametrize("op", prove.PROVEN, ids=name_of)
def test_results_of_fast_functions_are_new_arrays_of_the_arguments_dtype(op: Operation) -> None:
    """The bridge makes tensors of them without a look: one that shared memory would change with an argument."""
    for arrays, options in recorded()[name_of(op)]:
        for given in prove.variants(op, arrays):
            with np.errstate(all="ignore"):
                found = results(prove.fast_function(op)(*given, **options))
            floats = {array.dtype for array in given if array is not None and array.dtype.kind == "f"}
            for result in found:
                if result is not None and not isinstance(result, np.generic):
                    assert type(result) is np.ndarray
                    assert result.flags.writeable
                    assert min(result.strides, default=0) >= 0
                    assert not any(np.may_share_memory(result, array) for array in given if array is not None)
                    assert result.dtype.kind != "f" or result.dtype in floats | {np.dtype(np.float64)}


# ---- what is edited runs


def test_an_untouched_copy_is_fast(package: Path) -> None:
    assert why(package.parent) == ALL_FAST


def test_an_edited_formula_runs_and_so_does_its_file(package: Path) -> None:
    edit(package / "ops/conv.py", "+ bias[:, None, None]", "- bias[:, None, None]")
    expected = ALL_FAST | {"conv": "edited", "conv_transpose": "edited", "chain": "False"}
    assert why(package.parent) == expected
    edit(package / "ops/conv.py", "- bias[:, None, None]", "+ bias[:, None, None]")
    assert why(package.parent) == ALL_FAST


def test_an_edited_helper_ends_the_proof_of_every_file_that_uses_it(package: Path) -> None:
    edit(package / "ops/taps.py", "i * dy,", "(i + 1) * dy,")
    edited = dict.fromkeys(("conv", "conv_transpose", "pool"), "edited")
    assert why(package.parent) == ALL_FAST | edited | {"chain": "False"}


def test_an_edited_fast_function_or_helper_does_not_run(package: Path) -> None:
    edit(package / "ops/fast/softmax.py", "np.exp", "np.exp2")
    edit(package / "ops/fast/stage.py", "class StageMemory", "unused = 1\n\n\nclass StageMemory")
    assert why(package.parent) == ALL_FAST | {"attention": "edited", "softmax": "edited", "chain": "False"}
    assert why(package.parent, CNN_LIGHTNING_FAST="unproven") == ALL_FAST


def test_line_ends_comments_and_docstrings_make_no_difference(package: Path) -> None:
    path = package / "ops/linear.py"
    text = (
        path.read_text()
        .replace('"""Linear: ', '"""A comment on: ')
        .replace("    expect.linear", "    # why\n\n    expect.linear")
    )
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert why(package.parent) == ALL_FAST


def test_the_bare_text_keeps_what_is_code() -> None:
    text = 'def f(x):\n    """Docs."""  # why\n    y = "# no comment"  # but this\n\n    return """no docs"""\n'
    assert bare(text) == 'def f(x):\n    y = "# no comment"\n    return """no docs"""'
    assert bare('"""é"""; x = 1\n') == "; x = 1"


def test_in_a_zip_file_and_without_source(package: Path, tmp_path: Path) -> None:
    archive = tmp_path / "package.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in package.rglob("*"):
            file.write(path, path.relative_to(tmp_path))
    assert why(archive) == ALL_FAST
    compileall.compile_dir(package / "ops", quiet=2, legacy=True)
    for path in (package / "ops").rglob("*.py"):
        path.unlink()
    assert why(package.parent) == ALL_FAST  # without source there is nothing to edit


@pytest.mark.slow
def test_in_a_wheel(tmp_path: Path) -> None:
    """What pip makes of the project and unpacks into site-packages holds sources and proof; an edit there is seen."""
    project, site = tmp_path / "project", tmp_path / "site"
    project.mkdir()
    for name in ("pyproject.toml", "README.md", "cnn_lightning", "configs"):
        path = PACKAGE.parent / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, project / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(project)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    assert why(site) == ALL_FAST
    edit(site / "cnn_lightning/ops/linear.py", "return y if bias is None", "return 2 * y if bias is None")
    assert why(site) == ALL_FAST | {"linear": "edited"}


def test_switched_off(package: Path) -> None:
    assert why(package.parent, CNN_LIGHTNING_FAST="0") == dict.fromkeys(chooser.FILES, "off") | {"chain": "False"}
    with cnn_lightning.fast(False):
        assert chooser.why_formula("conv") == "off"
        assert chooser.chosen(conv.conv2d) is conv.conv2d
        with cnn_lightning.fast():
            assert chooser.chosen(conv.conv2d) is not conv.conv2d
    assert chooser.why_formula("conv") == ""


def test_another_value_of_the_variable_is_refused_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cnn_lightning", "fit", "--data", "Digits", "--trainer.max_epochs", "1"]
    environment = os.environ | {"CNN_LIGHTNING_FAST": "false", "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "cnn-lightning: error: CNN_LIGHTNING_FAST: expected 0, 1 or unproven, got 'false'\n"


def test_a_function_replaced_at_run_time_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Conv2d(1, 2, 3, bias=False), torch.randn(1, 1, 5, 5)
    expected = layer(x)
    formula = conv.conv2d
    monkeypatch.setattr(conv, "conv2d", lambda *arrays, **options: 2 * formula(*arrays, **options))
    torch.testing.assert_close(layer(x), 2 * expected)
    assert chooser.why_formula("conv") == "replaced"
    assert not chooser.is_chain("fused")


def test_a_replaced_function_that_a_formula_calls_ends_its_fast_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "max_pool2d_with_indices", lambda x, **options: (0 * x[..., ::2, ::2], None))
    assert chooser.chosen(pool.max_pool2d) is pool.max_pool2d
    assert not MaxPool2d(2)(torch.randn(1, 1, 4, 4)).any()


def test_a_helper_replaced_where_it_is_called_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Conv2d(1, 2, 3, padding=1), torch.randn(1, 1, 5, 5)
    expected = layer(x)
    original = taps.padded
    monkeypatch.setattr(conv, "padded", lambda x, pad, value=0: 2 * original(x, pad, value))
    assert chooser.why_formula("conv") == "replaced"
    assert chooser.why_formula("pool") == ""
    assert layer.bias is not None
    bias = layer.bias[:, None, None]
    torch.testing.assert_close(layer(x) - bias, 2 * (expected - bias))


def test_a_report_of_a_replaced_function_holds_for_all_formulas_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "gelu", lambda x, **options: x)
    assert chooser.chosen(activation.relu) is not activation.relu
    assert chooser.why_formula("activation") == "replaced"
    assert chooser.chosen(activation.relu) is activation.relu
    monkeypatch.undo()
    assert chooser.chosen(activation.relu) is not activation.relu


@pytest.mark.parametrize("home", [conv, taps])
def test_code_that_is_exchanged_in_place_runs(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a notebook's autoreload does after the file was edited: functions stay the same objects."""
    text = inspect.getsource(home).replace("y += w[..., i, j]", "y += 2 * w[..., i, j]")
    text = text.replace("left : left + width] = x", "left : left + width] = 2 * x")
    new: dict[str, Any] = {}
    exec(compile(text, home.__file__, "exec"), new)
    layer, x = Conv2d(1, 2, 3, padding=1, bias=False), torch.randn(1, 1, 5, 5)
    expected = layer(x)
    for name in ("conv2d", "padded"):
        if name in vars(home) and getattr(home, name).__module__ == home.__name__:
            monkeypatch.setattr(getattr(home, name), "__code__", new[name].__code__)
    torch.testing.assert_close(layer(x), 2 * expected)
    assert chooser.why_formula("conv") == "replaced"
    monkeypatch.undo()
    assert torch.equal(layer(x), expected)


RAISING = """
import pickle, sys
from importlib import import_module
import torch
from cnn_lightning.layers import bridge

torch.set_grad_enabled(False)
calls = pickle.load(open("calls.pickle", "rb"))
for name, (arrays, options) in calls.items():
    file, _, function = name.partition(".")
    tensors = [None if array is None else torch.from_numpy(array) for array in arrays]
    try:
        bridge.call(getattr(import_module(f"cnn_lightning.ops.{file}"), function), *tensors, mixed=True, **options)
    except ZeroDivisionError as error:
        print(error)
"""


def test_no_formula_can_be_edited_without_effect(package: Path) -> None:
    """One call of each through the bridge, in a copy where each raises an error that names it."""
    for file in chooser.formulas():
        path = package / f"ops/{file}.py"
        lines = path.read_text().split("\n")
        source = import_module(f"cnn_lightning.ops.{file}")
        for name, function in chooser.formulas()[file].items():
            text, first = inspect.getsourcelines(getattr(source, name))
            body = next(i for i, line in enumerate(text) if line.startswith("    ") and '"""' in line)
            lines[first - 1 + body] = f'    raise ZeroDivisionError("{file}.{name}")\n' + lines[first - 1 + body]
            assert inspect.isfunction(function)
        path.write_text("\n".join(lines))
    calls = {name: found[0] for name, found in recorded().items()}
    (package.parent / "calls.pickle").write_bytes(pickle.dumps(calls))
    assert set(python(RAISING, package.parent).split()) == {name_of(op) for op in OPERATIONS}


FIT = """
import os, sys
from cnn_lightning.cli import main
options = "--data Digits --trainer.max_epochs 1 --trainer.limit_train_batches 4 --model.channels [4,8]"
sys.exit(main(["fit", *options.split(), "--trainer.default_root_dir", sys.argv[1]]))
"""


def fitted(folder: Path, run: str) -> tuple[str, dict[str, torch.Tensor]]:
    """What a fit with the package in the folder prints, and its last weights."""
    printed = python(FIT.replace("sys.argv[1]", repr(run)), folder)
    (path,) = (folder / run).rglob("last.ckpt")
    return printed, torch.load(path, weights_only=False)["state_dict"]


EDITS = {
    "a factor": ("conv", "return y if bias is None", "y = 1.5 * y\n    return y if bias is None", ("conv1", "conv2")),
    "a sign": ("conv", "grad_pixels += (w[", "grad_pixels -= (w[", ("conv1", "conv2")),
    "a helper": ("taps", "i * dy, i * dy + sy * (height - 1) + 1", "0, sy * (height - 1) + 1", ("conv1", "pool1")),
    "a tie": ("pool", "won = (pixels > y)", "won = (pixels >= y)", ("pool1", "pool2")),
}


def change(package: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights of a fit with the package as it is, after one with an edit, which the layer report must name."""
    printed, before = fitted(package.parent, "before")
    assert "(formula: edited)" not in printed
    file, old, new, edited_layers = EDITS[name]
    edit(package / f"ops/{file}.py", old, new)
    printed, edited = fitted(package.parent, "edited")
    layers = {line.split()[0]: line for line in printed.splitlines() if "numpy" in line}
    assert all("(formula: edited)" in layers[layer] for layer in edited_layers)
    assert "(formula: edited)" not in layers["linear1"]
    assert not all(torch.equal(before[key], edited[key]) for key in before)
    edit(package / f"ops/{file}.py", new, old)
    return before


def test_an_edited_formula_trains(package: Path) -> None:
    """Other weights, said in the layer report; undone, it is fast again."""
    change(package, "a factor")
    assert why(package.parent) == ALL_FAST


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITS)
def test_an_undone_edit_leaves_no_trace(name: str, package: Path) -> None:
    """The same bits as before."""
    before = change(package, name)
    printed, undone = fitted(package.parent, "undone")
    assert "(formula: edited)" not in printed
    assert all(torch.equal(before[key], undone[key]) for key in before)


def test_parity_names_an_edited_helper(package: Path) -> None:
    edit(
        package / "ops/taps.py",
        "wide[:, :, top : top + height, left : left + width] = x",
        "wide[:, :, :height, :width] = x",
    )
    code = """
from cnn_lightning.cli import main
print(main("parity --model.image_size 8 --model.channels [3] --steps 1 --data.batch_size 2".split()))
"""
    lines = python(code, package.parent).splitlines()
    assert lines[-1] == "1"
    (line,) = (line for line in lines if line.startswith("parity: DIFFERENT"))
    assert "layer conv1, output: " in line
    assert "this layer is wrong: its formula, which is what runs (formula: edited)" in line
    assert "(formula: edited): conv1 pool1" in lines


# ---- needs


def test_the_bridge_drops_needs_for_formulas_and_gives_none_for_what_is_not_needed() -> None:
    x, weight = torch.randn(1, 1, 5, 5), torch.randn(2, 1, 3, 3)
    grad_y = torch.randn(1, 2, 3, 3)
    for on in (True, False):
        with cnn_lightning.fast(on), torch.no_grad():
            found = bridge.call(conv.conv2d_backward, grad_y, x, weight, needs=(False, True, False))
        assert [gradient is not None for gradient in found] == [False, True, False]
