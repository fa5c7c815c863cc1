"""Tuned numbers stand in one table, each with its reason; the command prints them, measures, and changes nothing."""

import ast
import os
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest

from cnn_lightning.cli import main
from cnn_lightning.ops.fast import blocks, tuning
from cnn_lightning.ops.fast.tuning import TUNING, Tuning, tuned
from cnn_lightning.tools.benchmark import timing, tune
from cnn_lightning.tools.benchmark.tables import amount, trial_table
from cnn_lightning.tools.benchmark.timing import Timing
from cnn_lightning.tools.benchmark.tune import Found, Trial, Way

FOLDER = Path(tuning.__file__).parent
NUMBERS = [each.name for each in fields(Tuning)]
UNTUNED = {"_CACHE_LINE", "_PAUSE, _SOFT", "_K", "_MOST_TAPS", "_threads"}
"""Facts of the hardware, of OpenMP, of a formula, of bytes; and a setting of the user's."""

# ---- the table


def test_each_number_says_unit_decision_and_reason() -> None:
    (table,) = (node for node in ast.parse((FOLDER / "tuning.py").read_text()).body if isinstance(node, ast.ClassDef))
    reasons = {
        node.target.id: after
        for node, after in zip(table.body, table.body[1:], strict=False)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert list(reasons) == NUMBERS
    for number in fields(Tuning):
        reason = reasons[number.name]
        assert isinstance(reason, ast.Expr), f"{number.name} has no docstring"
        assert isinstance(reason.value, ast.Constant)
        assert number.metadata["unit"]
        assert number.metadata["decides"]
        assert number.name.endswith("_bytes") == (number.metadata["unit"] == "bytes"), "memory is in bytes"
        assert isinstance(number.default, int)
        assert number.default > 0


def test_each_number_is_used() -> None:
    text = "\n".join(path.read_text() for path in FOLDER.glob("*.py") if path.name != "tuning.py")
    assert [name for name in NUMBERS if f".{name}" not in text] == []


def stray_numbers(text: str) -> list[str]:
    """Names that a module's own text gives whole numbers, or several of them."""
    return [
        ast.unparse(target).strip("()")
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if not any(isinstance(part, ast.Call | ast.Dict | ast.List) for part in ast.walk(node.value))
        if any(isinstance(part, ast.Constant) and type(part.value) in (int, float) for part in ast.walk(node.value))
    ]


def test_no_number_is_tuned_anywhere_else() -> None:
    found = {name for path in FOLDER.glob("*.py") for name in stray_numbers(path.read_text())}
    assert found <= UNTUNED
    assert stray_numbers("_PIECE = 96, 256\n_BYTES = 4 * 2**20\nname = 'x'\n") == ["_PIECE", "_BYTES"]


def fail_with_small_blocks() -> None:
    with tuned(block_bytes=1000):
        assert replace(TUNING, block_bytes=1000) == tuning.TUNING
        assert len(blocks.blocks(8, 1000)) == 8
        raise KeyError


def test_other_numbers_hold_inside_only() -> None:
    with pytest.raises(KeyError):
        fail_with_small_blocks()
    assert tuning.TUNING is TUNING
    assert len(blocks.blocks(8, 1000)) == 1
    with pytest.raises(FrozenInstanceError):
        TUNING.block_bytes = 1  # type: ignore[misc]


# ---- what the command says of its measurements


def timed(kind: Any, ways: dict[str, list[float]]) -> Found:
    """A trial that took so many seconds in each way, a figure for each candidate: 1, 2 and 4 MiB."""
    sizes = 2**20, 2 * 2**20, 4 * 2**20
    trial = Trial("block_bytes", kind, "nothing", sizes, tuple(map(Way, ways)), lambda size: lambda: None)
    return Found(
        trial,
        {
            (way, size): Timing([figure])
            for way, figures in ways.items()
            for size, figure in zip(sizes, figures, strict=True)
        },
    )


@pytest.mark.parametrize(
    ("kind", "below", "above", "limit"),
    [
        ("from", [1, 2, 3], [2, 1, 2], 2),
        ("from", [1, 2, 3], [0, 3, 2], 4),
        ("from", [1, 2, 3], [0, 1, 2], 1),
        ("from", [1, 2, 3], [0, 1, 3], None),
        ("up to", [2, 2, 2], [1, 1, 3], 2),
        ("up to", [2, 2, 2], [1, 3, 1], 1),
        ("up to", [2, 2, 2], [1, 1, 1], 4),
        ("up to", [2, 2, 2], [3, 1, 1], None),
    ],
)
def test_a_limit_is_where_one_way_begins_to_pay(
    kind: str, below: list[float], above: list[float], limit: int | None
) -> None:
    found = timed(kind, {"below": below, "above": above})
    assert found.limit() == (None if limit is None else limit * 2**20)
    assert list(trial_table(found)[1].columns[-1].cells) == ["", {None: "none", 4: "4 MiB*"}.get(limit, f"{limit} MiB")]


def test_a_choice_is_the_fastest_in_each_way() -> None:
    heading, table = trial_table(timed("choice", {"one": [3, 1, 2], "two": [0.003, 0.1, 0.001]}))
    assert "block_bytes (bytes)" in heading
    assert [column.header for column in table.columns] == ["", "1 MiB", "2 MiB", "4 MiB*", "fastest"]
    assert list(table.columns[-1].cells) == ["2 MiB", "4 MiB*"]
    assert list(table.columns[1].cells) == ["3000", "3.000"]


def test_amounts() -> None:
    assert amount(4 * 2**20, "bytes") == ("4", "MiB")
    assert amount(2**19, "bytes") == ("512", "KiB")
    assert amount(1000, "bytes") == ("1,000", "bytes")
    assert amount(15_000_000, "multiplications") == ("15,000,000", "multiplications")


def test_without_a_second_core_no_way_has_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert tune.more_threads(1) == 1
    assert tune.more_threads(3) == 3
    alone = tune.trials(1)
    assert {way.threads for trial in alone for way in trial.ways} == {1}
    assert {trial.number for trial in alone} < {trial.number for trial in tune.trials(2)}


def test_trials_are_of_numbers_that_there_are_and_hold_the_present_choice() -> None:
    for trial in tune.trials(2):
        assert trial.number in NUMBERS
        present = getattr(TUNING, trial.number)
        assert trial.candidates[0] <= present <= trial.candidates[-1]
        if trial.kind == "choice":
            assert present in trial.candidates


def test_each_candidate_runs_with_its_own_number_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "UNTIMED", 1)
    seen = set()
    note = Trial(
        "chain_images",
        "choice",
        "nothing",
        (5, 7),
        (Way("1 thread", 1), Way("3 threads", 3)),
        lambda size: lambda: seen.add((size, tuning.TUNING.chain_images, blocks.get_num_threads())),
    )
    before = blocks.get_num_threads()
    (found,) = tune.measure([note], 1)
    assert seen == {(5, 5, 1), (7, 7, 1), (5, 5, 3), (7, 7, 3)}
    assert len(found.times) == 4
    assert blocks.get_num_threads() == before
    limit = tune._limit("norm_run", "from", "nothing", (1,), ("short", "long"), lambda size: lambda: None, 2)
    assert [(way.name, way.threads, way.numbers) for way in limit.ways] == [
        ("short", 2, {"norm_run": tune.NEVER}),
        ("long", 2, {"norm_run": 0}),
    ]


def test_the_command_prints_every_number_and_changes_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(timing, "UNTIMED", 1)
    monkeypatch.setattr(tune, "BURST_SECONDS", 0.0)
    before, threads = tuning.TUNING, blocks.get_num_threads()
    assert main(["benchmark", "--tune", "--rounds", "1", "--threads", "2"]) == 0
    assert tuning.TUNING is before
    assert blocks.get_num_threads() == threads
    assert list(tmp_path.iterdir()) == []
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "BLAS kernel" in lines[0]
    for name in NUMBERS:
        assert any(line.startswith(f"{name} ") for line in lines), name
    for trial in tune.trials(2):
        assert sum(line.startswith(f"{trial.number} (") for line in lines) == 1
    ways = [way.name for trial in tune.trials(2) for way in trial.ways]
    assert sum(line.startswith("2 threads ") for line in lines) == ways.count("2 threads")
    assert "Nothing was changed." in out
