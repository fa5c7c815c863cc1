"""`check --kinks`: the gradient taken at kinks, ties and NaN next to torch's; and a watch for changes in torch."""

import json
import random
import re
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnn_lightning import layers
from cnn_lightning.cli import main
from cnn_lightning.layers import catalog
from cnn_lightning.ops import activation
from cnn_lightning.tools.check import kinks, places
from cnn_lightning.tools.check.answers import Answer, ask, slopes, text
from cnn_lightning.tools.check.kinks import Row
from cnn_lightning.tools.check.scan import scan
from tests import kinks_of_torch as watch


@pytest.fixture(scope="module")
def catalogue() -> list[Row]:
    return kinks.catalogue()


def at(rows: list[Row], place: str) -> Row:
    (row,) = [row for row in rows if row.at == place]
    return row


# ---- the catalogue


def test_every_layer_of_the_catalogue_is_asked_and_none_differs_from_torch(catalogue: list[Row]) -> None:
    asked = {row.layer.partition("(")[0] for row in catalogue}
    assert asked == {entry.native.__name__ for entry in catalog.entries().values()}
    assert [row for row in catalogue if row.differs] == []
    refused = {(row.layer.partition("(")[0], row.at) for row in catalogue if row.torch and row.torch.refused}
    assert refused == {("BCELoss", "nan")}


def test_every_declared_kink_is_a_place_and_a_kink(catalogue: list[Row]) -> None:
    declared = [setting for setting in places.settings() if setting.entry.kinks]
    assert len(declared) > 8
    for setting in declared:
        for kink in setting.entry.kinks_of(setting.entry.native(**setting.options)):
            row = at([row for row in catalogue if row.layer == setting.name], text((kink,)))
            assert row.left != row.right, (setting.name, kink)


@pytest.mark.parametrize(
    ("layer", "place", "cells"),
    [
        ("ReLU()", "0", ("0 | 1", "0 → 0")),
        ("Hardtanh()", "1", ("1 | 0", "1 → 0")),
        ("Threshold(threshold=1, value=5)", "1", ("0 | jump", "5 → 0")),
        ("L1Loss(reduction=none) target 0", "0", ("-1 | 1", "0 → 0")),
        ("MaxPool1d(kernel_size=(3,))", "1 1 1", ("0 0 0 | 1 1 1", "1 → 1 0 0")),
        ("MaxPool1d(kernel_size=(3,))", "1 nan nan", ("", "nan → 0 0 1")),
        ("AdaptiveMaxPool2d(output_size=1)", "0 1 1", ("0 0 0 | 0 1 1", "1 → 0 1 0")),
        ("CrossEntropyLoss(reduction=none) target 0", "-inf 0", ("", "inf → -1 1")),
    ],
)
def test_the_side_taken_stands_beside_both_slopes(
    catalogue: list[Row], layer: str, place: str, cells: tuple[str, str]
) -> None:
    row = at([row for row in catalogue if row.layer == layer], place)
    assert row.cells()[1:4] == (*cells, cells[1])


def test_the_table_fits_80_columns(catalogue: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    kinks.show(catalogue, Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-2].startswith(f"{len({row.layer for row in catalogue})} layers, {len(catalogue)} places; torch")


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    kept = [setting for setting in places.settings() if setting.entry.native.__name__ in names]
    monkeypatch.setattr(kinks, "settings", lambda: kept)


def test_a_formula_with_another_subgradient_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    only(monkeypatch, "ReLU")
    assert main(["check", "--kinks"]) == 0
    assert kinks.DIFFERS not in capsys.readouterr().out
    monkeypatch.setattr(activation, "relu_backward", lambda grad_y, x: grad_y * (x >= 0))
    assert main(["check", "--kinks", "--json", str(tmp_path / "kinks.json")]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"^0 +0 \| 1 +0 → 1 +0 → 0 +DIFFERS", shown, re.MULTILINE)
    assert "torch 2" in shown
    # The formula is given the output, which is 0 at -inf, too.
    assert "differs at 4: ReLU() at -0, ReLU() at 0, ReLU() at nan, ReLU() at -inf" in " ".join(shown.split())
    found = json.loads((tmp_path / "kinks.json").read_text())
    assert found["torch"] == torch.__version__
    row = found["places"][1]
    assert row["layer"] == "ReLU()"
    assert (row["formula"], row["torch"]) == ({"y": ["0"], "dx": ["1"]}, {"y": ["0"], "dx": ["0"]})
    assert row["differs"]


def test_tiers_that_differ_are_both_shown() -> None:
    zero, minus, one = (Answer(((value,),), ((1.0,),)) for value in (0.0, -0.0, 1.0))
    row = Row("ReLU", "0", "0", "1", zero, minus, minus)
    assert row.cells()[2:] == ("formula 0 → 1, fast -0 → 1", "-0 → 1", "0 / -0")
    assert Row("ReLU", "0", "0", "1", zero, one, zero).cells()[2:] == ("formula 0 → 1, fast 1 → 1", "0 → 1", "DIFFERS")


# ---- one place of one function


def test_results_that_depend_on_the_number_of_copies_are_alternatives() -> None:
    def function(x: Tensor) -> Tensor:
        return x * (0 if len(x) == 1 else nan)

    answer = ask([function], (1.0,))
    assert (answer.value, answer.gradient) == ("0 or nan", "0 or nan")
    assert ask([lambda x: 0 * x], (1.0,)).within(answer)
    assert not ask([torch.clone], (1.0,)).within(answer)
    assert not answer.within(ask([lambda x: 0 * x], (1.0,)))


def test_an_exception_and_a_missing_graph_are_answers() -> None:
    def refuses(x: Tensor) -> Tensor:
        raise ValueError("no")

    assert str(ask([refuses], (1.0,))) == "ValueError → -"
    assert str(ask([Tensor.detach], (1.0,))) == "1 → none"
    assert not ask([Tensor.detach], (1.0,)).within(ask([torch.clone], (1.0,)))


def test_slopes_are_taken_on_either_side() -> None:
    assert slopes(torch.abs, (0.0,)) == ("-1", "1")
    assert slopes(torch.round, (0.5,)) == ("0", "jump")
    assert slopes(lambda x: x.amax(1, keepdim=True), (1.0, 1.0)) == ("0 0", "1 1")
    assert slopes(torch.abs, (nan,)) == ("", "")


def test_long_results_are_shortened() -> None:
    assert text((nan, nan, nan, 1.0, 1.0)) == "nan×3 1×2"
    assert text((1.0, 1.0, 1.0, 1.0)) == "1 1 1 1"


# ---- a layer of one's own


class SoftThreshold(nn.Module):
    """A kink at an attribute, and at its negative."""

    def __init__(self, width: float = 0.37) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.sign() * (x.abs() - self.width).clamp_min(0)


class Hidden(nn.Module):
    """A kink and a jump that no attribute names, in one channel of three."""

    def forward(self, x: Tensor) -> Tensor:
        bent = (x - 1.2345).abs() + (x > -2.75).to(x.dtype)
        return torch.cat([x[:, :1].sin(), x[:, 1:2] ** 3, bent[:, 2:]], 1)


class OneAtZero(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, 0 * x, x)


class Sharing(nn.MaxPool2d):
    """The maximum, whose gradient equal inputs have in equal parts."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).amax((-1, -3))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Far(nn.Module):
    """Kinks at 0 and, far from it, at an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 300

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, self.most)


class Probability(nn.Module):
    """It takes numbers from 0 to 1 alone."""

    def forward(self, x: Tensor) -> Tensor:
        if (x < 0).any() or (x > 1).any():
            raise ValueError("expected a probability")
        return (x - 0.25).abs()


class Single(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().tanh().to(x.dtype)


class FailsAtNaN(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any():
            raise KeyError("nan")
        return x.abs()


SAMPLE = (torch.ones(2, 3, 4, 4),)


def test_kinks_of_a_layer_are_found_where_they_are() -> None:
    rows = scan(SoftThreshold(), SAMPLE)
    assert [(row.at, row.left, row.right) for row in rows[:2]] == [("-0.37", "1", "0"), ("0.37", "0", "1")]
    assert [row.at for row in rows[2:]] == ["nan", "inf", "-inf"]
    assert all(row.torch is None for row in rows)


def test_kinks_and_jumps_of_one_channel_are_found() -> None:
    rows = scan(Hidden(), SAMPLE)
    assert [(row.at, row.left, row.right) for row in rows[:-3]] == [("-2.75", "-1", "jump"), ("1.234", "-1", "1")]
    assert rows[1].formula.gradient == "0"


@pytest.mark.parametrize("seed", range(6))
def test_kinks_and_jumps_at_random_places_on_a_curve_are_all_found_and_no_others(seed: int) -> None:
    """Slopes that change by a hundredth, jumps of a half, at any number of digits."""
    draw = random.Random(seed)
    bends: dict[float, Callable[[Tensor], Tensor]] = {}
    for whole in range(-9, 9, 3):
        place = round(whole + draw.uniform(0, 2.9), draw.choice([0, 1, 2, 3, 9])) + 0.0
        bends[place] = draw.choice([lambda x: 0.01 * x.abs(), lambda x: 3 * x.clamp_min(0), lambda x: 0.5 * (x >= 0)])

    class Curve(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x.sin() + 0.1 * x**2 + sum(bend(x - place) for place, bend in bends.items())

    rows = scan(Curve(), (torch.ones(2, 3),))[:-3]
    assert [row.at for row in rows if row.at != "-0"] == [text((place,)) for place in bends]
    assert all(row.left != row.right for row in rows)


def test_a_kink_far_from_0_does_not_hide_one_near_it() -> None:
    assert [row.at for row in scan(Far(), SAMPLE)[:-3]] == ["-0", "0", "300"]


def test_a_layer_of_probabilities_is_scanned_between_0_and_1() -> None:
    rows = scan(Probability(), SAMPLE)
    assert [(row.at, row.left, row.right) for row in rows[:-3]] == [("0.25", "-1", "1")]
    assert at(rows, "inf").formula.refused == ("ValueError",)


def test_an_exception_at_nan_is_an_answer() -> None:
    assert str(at(scan(FailsAtNaN(), SAMPLE), "nan").formula) == "KeyError → -"


@pytest.mark.parametrize("function", [nn.GELU, nn.Tanh, nn.Softplus, nn.Identity, lambda: nn.Conv2d(3, 4, 3)])
def test_a_smooth_layer_has_no_kinks(function: Callable[[], nn.Module]) -> None:
    assert [row.at for row in scan(function(), SAMPLE)] == ["nan", "inf", "-inf"]


@pytest.mark.parametrize("name", ["ReLU", "ReLU6", "Hardtanh", "LeakyReLU", "SELU", "Hardswish", "Hardsigmoid"])
def test_a_scan_finds_the_kinks_that_the_catalogue_declares(name: str) -> None:
    layer = getattr(layers, name)()
    rows = scan(layer, SAMPLE)
    found = {float(row.at) for row in rows} & set(range(-10, 11))
    assert found == set(catalog.entries()[getattr(nn, name)].kinks_of(layer))
    assert [row.at for row in rows if row.differs] == []


def test_the_class_of_torch_that_a_layer_subclasses_is_compared() -> None:
    rows = scan(OneAtZero(), SAMPLE)
    assert [row.at for row in rows if row.differs] == ["-0", "0", "-inf"]
    assert at(rows, "0").cells()[1:] == ("0 | 1", "0 → 1", "0 → 0", "DIFFERS")


def test_a_reference_is_compared() -> None:
    rows = scan(SoftThreshold(), SAMPLE, nn.Softshrink(0.37))
    assert at(rows, "0.37").cells()[2:] == ("0 → 0", "0 → 0", "")


def test_ties_of_a_layer_that_chooses_are_shown() -> None:
    assert at(scan(layers.MaxPool2d(2), SAMPLE), "1 1 1 1").cells()[2:] == ("1 → 1 0 0 0", "1 → 1 0 0 0", "")
    row = at(scan(Sharing(2), SAMPLE), "1 1 1 1")
    assert row.cells()[2:] == ("1 → 0.25 0.25 0.25 0.25", "1 → 1 0 0 0", "DIFFERS")


def command(*args: str) -> Any:
    return main(["check", "--kinks", *args])


def test_the_command_shows_a_layer_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"{__file__}:SoftThreshold", "--options", "width=0.25") == 0
    shown = capsys.readouterr().out
    assert re.search(r"^0\.25 +0 \| 1 +0 → 0 *$", shown, re.MULTILINE)
    assert "no class of torch to compare with: --reference names one" in " ".join(shown.split())
    assert command(f"{__file__}:OneAtZero") == 1
    assert command(f"{__file__}:OneAtZero", "--reference", f"{__file__}:OneAtZero") == 0


BAD = [
    ([], "layer: expected my_file.py:MyLayer or my_package.MyLayer, or --kinks alone, got nothing"),
    (["torch.nn.ReLU", "--json", "a.json"], "--json: expected --kinks beside it, got none"),
    (
        ["--kinks", f"{__file__}:Mean"],
        "layer: expected an output for each picture that does not depend on the others of its batch, got one that "
        "does; evaluation mode (--eval) may help",
    ),
    (["--kinks", f"{__file__}:Single"], "layer: expected results in float64 for an input in float64, got those of"),
    (
        ["--kinks", "torch.nn.L1Loss", "--shape", "2,3 2,3"],
        "layer: expected an output for each of 3 pictures, got one of shape (); for a loss: --options reduction=none",
    ),
    (
        ["--kinks", "torch.nn.Linear", "--options", "in_features=3", "out_features=2"],
        "--shape: expected one that the layer takes, got RuntimeError: ",
    ),
]


@pytest.mark.parametrize(("args", "line"), BAD)
def test_bad_input_gives_one_line(args: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *args]) == 2
    shown = capsys.readouterr().err
    assert line in shown
    assert shown.count("\n") == 1


# ---- torch


@pytest.fixture(scope="module")
def found() -> dict[str, Answer]:
    return dict(watch.answers())


def test_torch_gives_what_the_table_says(found: dict[str, Answer]) -> None:
    lines = watch.changes(watch.recorded(), found, watch.installed())
    assert not lines, "\n".join([*lines, f"where that is right, record it: {watch.COMMAND}"])


def test_the_table_has_no_other_places(found: dict[str, Answer]) -> None:
    assert set(watch.recorded()) == set(found)


def test_an_edited_table_is_a_change_of_torch(found: dict[str, Answer]) -> None:
    table, place = watch.recorded(), "clamp(x, -1, 1) at -1"
    table[place] = {"2.0": "-1 → 1"}
    del table["abs(x) at 0"]
    assert sorted(watch.changes(table, found, watch.installed())) == [
        "abs(x) at 0: not in the table, is 0 → 0",
        f"torch changed {place}: was -1 → 1, is {found[place]}",
    ]


def test_an_answer_holds_from_its_version_on() -> None:
    entry = {"2.13": "1 → 1", "2.14.1": "1 → 0"}
    assert watch.known(entry, "2.12.1") is None
    assert watch.known(entry, "2.14.0") == "1 → 1"
    assert watch.known(entry, "2.15.0") == "1 → 0"


def test_recording_keeps_what_earlier_versions_gave() -> None:
    one = {"f at 0": Answer(((0.0,),), ((1.0,),)), "f at nan": Answer(((nan,),), ((0.0,),))}
    table = {"f at 0": {"2.14.1": "0 → 0"}, "f at nan": {"2.14.1": "nan → 0 or 1"}, "f at 7": {"2.14.1": "7 → 7"}}
    assert watch.updated(table, one, "2.16.0") == {
        "f at 0": {"2.14.1": "0 → 0", "2.16.0": "0 → 1"},
        "f at nan": {"2.14.1": "nan → 0 or 1"},
    }


def test_some_of_the_recorded_alternatives_are_no_change() -> None:
    assert watch.is_within("nan → 1", "nan → 0 or 1")
    assert watch.is_within("-0 → 1 -0", "0 → 1 0")
    assert not watch.is_within("nan → 1 or 2", "nan → 0 or 1")
