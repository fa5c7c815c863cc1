"""The comparison is measured: in processes of their own, from the files that ran, with what was tried."""

import json
from pathlib import Path
from typing import Any

import pytest

from cnn_lightning import cli
from cnn_lightning.tools.compare import command
from cnn_lightning.tools.compare.lines import count_lines
from cnn_lightning.tools.compare.measure import Measured, RunError, measure
from cnn_lightning.tools.compare.ways import (
    LIGHTNING_NUMPY,
    LIGHTNING_TORCH,
    PLAIN_NUMPY,
    PLAIN_TORCH,
    PROGRAMS,
    WAYS,
    Run,
    Setting,
)
from cnn_lightning.tools.machine import FORCED, forced_kernel


def test_plain_numpy_is_measured() -> None:
    told: list[tuple[str, int, int]] = []
    found = measure(Setting(epochs=2), 1, lambda *values: told.append(values), ways=[PLAIN_NUMPY])[PLAIN_NUMPY]
    (run,) = found.runs
    assert len(run.epochs) == 2
    assert 0 < found.epoch < 60
    assert found.first_batch > found.epoch / 20
    assert 20e6 < found.peak_bytes < 2e9
    assert 0.3 < run.test_acc <= 1
    assert run.backward == "manual"
    assert "numpy" in run.packages
    assert not {"torch", "lightning", "pytest"} & set(run.packages)
    assert found.gpu == "no"
    assert found.lines["cnn_lightning/plain/train_numpy.py"] > 100
    assert found.lines["cnn_lightning/ops/conv.py"] > 50
    assert 20 < found.called["cnn_lightning/ops/conv.py"] < found.lines["cnn_lightning/ops/conv.py"]
    assert not any(name.startswith(("cnn_lightning/layers", "cnn_lightning/tools")) for name in found.lines)
    assert [(done, total) for _, done, total in told] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.slow
def test_all_four(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", "--epochs=2", "--rounds=1", "--threads=1", "--json=c.json"]) == 0
    ways = json.loads(Path("c.json").read_text())["ways"]
    accuracies = [way["runs"][0]["test_acc"] for way in ways.values()]
    assert max(accuracies) - min(accuracies) < 0.01
    backwards = [way["runs"][0]["backward"] for way in ways.values()]
    assert backwards == ["manual", "automatic", "automatic", "manual, called by autograd"]
    lines = {way: set(found["lines"]) for way, found in ways.items()}
    assert "cnn_lightning/layers/bridge/calls.py" in lines[LIGHTNING_NUMPY] - lines[LIGHTNING_TORCH]
    assert "lightning" in ways[LIGHTNING_TORCH]["runs"][0]["packages"]
    assert "lightning" not in ways[PLAIN_TORCH]["runs"][0]["packages"]


def test_a_way_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected a folder that holds MNIST/raw"):
        measure(Setting(data="mnist", root=str(tmp_path)), 1)


# ---- lines of code


SOURCE = '''"""A docstring
of two lines."""

import math  # a comment beside code

# a comment alone
VALUE = """a string
that is code"""


def half(x):
    """One more."""

    return (
        x  # the half
        / 2
    )
'''


def test_lines_of_code(tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(SOURCE)
    assert count_lines(path) == 1 + 2 + 1 + 4
    first = SOURCE.splitlines().index("def half(x):") + 1
    assert count_lines(path, [first]) == 1 + 4
    assert count_lines(path, [first + 1]) == 0


def test_lines_of_decorated_functions(tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text("@property\ndef one(self):\n    return 1\n\n\ndef two():\n    return 2\n")
    assert count_lines(path, [1]) == 3


# ---- the table


def measured(seconds: float, gpu: str) -> Measured:
    program = dict.fromkeys(PROGRAMS.values(), 70)
    run = Run(2.5, [9.0, seconds, seconds], 0.97, 300_000_000, ["numpy", "rich"], {}, "manual", "")
    conv = "cnn_lightning/ops/conv.py"
    return Measured([run, run], {**program, conv: 1000}, {**dict.fromkeys(program, 20), conv: 10}, gpu)


@pytest.fixture
def known(monkeypatch: Any) -> list[Setting]:
    asked = []

    def work(setting: Setting, rounds: int, tick: Any) -> dict[str, Measured]:
        asked.append(setting)
        tick("plain NumPy: run 1", 0, 1)
        return {way: measured(0.5 * (1 + index), "yes") for index, way in enumerate(WAYS)}

    monkeypatch.setattr(command, "measure", work)
    return asked


def test_markdown_json_and_png(known: list[Setting], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--data", "MNIST", "--data.root", "there", "--data.batch_size", "32", "--threads", "2", "--epochs", "3"]
    assert cli.main(["compare", *flags, "--markdown", "c.md", "--json", "c.json", "--png", "c.png"]) == 0
    assert known == [Setting("mnist", "there", 3, 32, 3e-3, 0, 2)]
    screen = capsys.readouterr().out
    assert "|" not in screen
    assert max(map(len, screen.splitlines())) <= 80
    out = Path("c.md").read_text()
    table, _, below = out.partition("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == ["", *WAYS]
    assert all(len(row) == 5 for row in rows)
    cells = {row[0]: row[1:] for row in rows}
    assert cells["ratio to plain torch"] == ["0.50", "1.00", "1.50", "2.00"]
    assert cells["time per epoch"] == ["0.5 s", "1 s", "1.5 s", "2 s"]
    assert cells["peak memory"] == ["300 MB"] * 4
    assert cells["test accuracy after 3 epochs"] == ["97.00%"] * 4
    assert cells["lines of code, the program"] == ["70"] * 4
    assert cells["lines of code, our functions that ran"] == ["70"] * 4
    assert cells["lines of code, all of their files"] == ["1,210"] * 4
    assert "2 threads" in below
    assert "mnist" in below
    assert cli.main(["compare", *flags, "--markdown"]) == 0
    assert capsys.readouterr().out == out
    assert cli.main(["compare", "--markdown", *flags]) == 0
    assert capsys.readouterr().out == out
    assert json.loads(Path("c.json").read_text())["ways"][PLAIN_TORCH]["runs"][0]["test_acc"] == 0.97
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("width", ["60", "80", "200"])
def test_the_table_for_people(width: str, known: list[Setting], monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert cli.main(["compare"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= min(80, int(width))
    words = " ".join(" ".join(lines).split())
    for figure in ("70 70 70 70", "1,210 1,210 1,210 1,210", "0.5 s 1 s 1.5 s 2 s", "0.50 1.00 1.50 2.00"):
        assert figure in words
    assert "each in a process of its own." in words
    assert "\x1b" not in words


@pytest.mark.parametrize("forced", ["Haswell", "", None])
def test_a_forced_kernel_is_told_beside_the_table(
    forced: str | None, known: list[Setting], monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.delenv(FORCED, raising=False)
    if forced is not None:
        monkeypatch.setenv(FORCED, forced)
    assert cli.main(["compare"]) == 0
    out, err = capsys.readouterr()
    assert "BLAS kernel openblas" in " ".join(out.split())
    assert ("(forced)" in out) == bool(forced)
    warnings = [line for line in err.splitlines() if FORCED in line]
    assert warnings == ([f"cnn-lightning: {forced_kernel()}"] if forced else [])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--rounds", "-1"], "--rounds: expected at least 1"),
        (["--data.batch_size", "0"], "--data.batch_size: expected at least 1"),
        (["--threads", "0"], "--threads: expected at least 1"),
        (["--lr", "0"], "--lr: expected a rate above 0, got 0.0"),
        (["--json", "no/such/c.json"], "--json: expected a file in a folder that exists"),
        (["--data", "CIFAR10"], "--data: expected Digits or MNIST, got 'CIFAR10'"),
        (["--bogus"], "bogus"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(args: list[str], message: str, known: list[Setting], capsys: Any) -> None:
    assert cli.main(["compare", *args]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
