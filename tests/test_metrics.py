"""What `test` says and writes, against scikit-learn, and for every split that has something missing."""

import csv
import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn import metrics as sklearn_metrics
from torch import Tensor
from torchmetrics.functional.classification import confusion_matrix, multiclass_calibration_error

from cnn_lightning.callbacks.evaluation import DRAWN, SHOWN, Result, table_of, worst, write
from cnn_lightning.classifier import Classifier, from_checkpoint
from cnn_lightning.classifier.scores import (
    TOP,
    Calibration,
    Ranks,
    Scores,
    TestScores,
    macro_precision_recall,
    macro_roc,
    mean_of,
    per_class,
)
from cnn_lightning.cli import main
from cnn_lightning.data import Digits

CASES = [(2, 300, None), (3, 500, None), (12, 2000, None), (12, 700, 5), (2, 40, 1)]
"""Numbers of classes and of pictures, and a class without a picture."""


def pictures(classes: int, n: int, without: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits and labels: far from 0 and not always right."""
    generator = torch.Generator().manual_seed(classes + n)
    labels = torch.randint(classes, (n,), generator=generator)
    if without is not None:
        labels[labels == without] = (without + 1) % classes
    logits = 3 * torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += 5 * torch.rand(n, generator=generator)
    return logits, labels


def scores_of(logits: Tensor, labels: Tensor, batch: int = 64) -> Scores:
    found = TestScores(logits.shape[1])
    for start in range(0, len(labels), batch):
        found.update(logits[start : start + batch], labels[start : start + batch])
    return found.compute()


def result_of(logits: Tensor, labels: Tensor, loss: float = 0.5) -> Result:
    classes = logits.shape[1]
    counts = confusion_matrix(logits, labels, "multiclass", num_classes=classes).numpy()
    return Result([f"class {index}" for index in range(classes)], counts, loss, scores_of(logits, labels))


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


# ---- numbers


@pytest.mark.parametrize(("classes", "n", "without"), CASES)
def test_precision_recall_and_f1_are_those_of_scikit_learn(classes: int, n: int, without: int | None) -> None:
    logits, labels = pictures(classes, n, without)
    guesses = logits.argmax(1)
    result = result_of(logits, labels)
    there = sorted(set(labels.tolist()))
    expected = sklearn_metrics.precision_recall_fscore_support(labels, guesses, labels=there, zero_division=0.0)
    for found, values in zip(result.per_class, expected[:3], strict=True):
        np.testing.assert_allclose(found[there], values, atol=1e-6)
        assert np.isnan(np.delete(found, there)).all()
    macro = sklearn_metrics.precision_recall_fscore_support(
        labels, guesses, labels=there, average="macro", zero_division=0.0
    )
    values = result.values()
    means = [values[f"macro_{name}"] for name in ("precision", "recall", "f1")]
    np.testing.assert_allclose(means, macro[:3], atol=1e-6)
    assert values["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, guesses))


def test_a_class_that_is_never_predicted_has_precision_0() -> None:
    counts = np.array([[3, 0, 1], [2, 0, 0], [0, 0, 0]])
    precision, recall, f1 = per_class(counts)
    np.testing.assert_allclose(precision, [3 / 5, 0, np.nan], atol=1e-6)
    np.testing.assert_allclose(recall, [3 / 4, 0, np.nan])
    assert mean_of(recall) == pytest.approx(3 / 8)
    assert mean_of(f1) == pytest.approx((2 * 3 / (2 * 3 + 2 + 1) + 0) / 2)


@pytest.mark.parametrize(("classes", "n", "without"), CASES)
def test_areas_are_those_of_scikit_learn(classes: int, n: int, without: int | None) -> None:
    """To rounding for probabilities that are rounded to thresholds, and for others within a hundredth."""
    logits, labels = pictures(classes, n, without)
    probabilities = logits.double().softmax(1)
    curves = scores_of(logits, labels).curves
    rounded = torch.bucketize(probabilities, Ranks(classes).thresholds, right=True)
    for index in range(classes):
        own = labels == index
        if not 0 < own.sum() < n:
            assert np.isnan([curves.auroc[index], curves.average_precision[index], curves.tpr[index, 3]]).all()
            continue
        for area, expected in (
            (curves.auroc, sklearn_metrics.roc_auc_score),
            (curves.average_precision, sklearn_metrics.average_precision_score),
        ):
            assert area[index] == pytest.approx(expected(own, rounded[:, index]), abs=1e-6)
            assert area[index] == pytest.approx(expected(own, probabilities[:, index]), abs=1e-2)


def test_each_curve_begins_where_no_picture_is_reached() -> None:
    """Also if many probabilities are exactly 1."""
    logits, labels = pictures(3, 500)
    curves = scores_of(100 * logits.round(), labels).curves
    probabilities = (100 * logits.round()).double().softmax(1)
    assert (probabilities == 1).any(1).sum() > 200
    for index in range(3):
        assert (curves.fpr[index, 0], curves.tpr[index, 0], curves.precision[index, 0]) == (0, 0, 1)
        expected = sklearn_metrics.roc_auc_score(labels == index, probabilities[:, index].clamp(1e-16, 1))
        assert curves.auroc[index] == pytest.approx(expected, abs=1e-6)


def same_points(found: Any, expected: Any) -> bool:
    """Whether each point of either curve is one of the other's."""
    distance = np.abs(np.stack(found)[:, :, None] - np.stack(expected)[:, None]).max(0)
    return bool(max(distance.min(0).max(), distance.min(1).max()) < 1e-6)


def test_curves_are_those_of_scikit_learn() -> None:
    logits, labels = pictures(3, 500)
    curves = scores_of(logits, labels).curves
    rounded = torch.bucketize(logits.double().softmax(1), Ranks(3).thresholds, right=True)
    for index in range(3):
        fpr, tpr, _ = sklearn_metrics.roc_curve(labels == index, rounded[:, index], drop_intermediate=False)
        assert same_points((curves.fpr[index], curves.tpr[index]), (fpr, tpr))
        precision, recall, _ = sklearn_metrics.precision_recall_curve(labels == index, rounded[:, index])
        assert same_points((curves.tpr[index], curves.precision[index]), (recall, precision))
    grid, mean = macro_roc(curves)
    assert np.trapezoid(mean, grid) == pytest.approx(mean_of(curves.auroc), abs=2e-3)
    grid, mean = macro_precision_recall(curves)
    assert np.mean(mean[1:]) == pytest.approx(mean_of(curves.average_precision), abs=5e-3)


@pytest.mark.parametrize(("classes", "n", "without"), CASES)
def test_calibration_is_that_of_torchmetrics(classes: int, n: int, without: int | None) -> None:
    logits, labels = pictures(classes, n, without)
    probabilities = logits.double().softmax(1)
    bins = scores_of(logits, labels).bins
    assert bins.error == pytest.approx(float(multiclass_calibration_error(probabilities, labels, classes)), abs=1e-6)
    confidence, guess = probabilities.max(1)
    inside = (confidence * 15).long() == 13
    assert bins.pictures[13] == inside.sum()
    assert bins.confidence[13] == pytest.approx(confidence[inside].mean().item(), abs=1e-9)
    assert bins.accuracy[13] == pytest.approx((guess == labels)[inside].double().mean().item())


def test_a_certain_network_is_in_the_last_bin() -> None:
    calibration = Calibration()
    calibration.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64), torch.tensor([0, 0]))
    bins, _ = calibration.compute()
    assert bins.pictures.tolist() == [0] * 14 + [2]
    assert (bins.confidence[-1], bins.accuracy[-1], bins.error) == (1.0, 0.5, 0.5)


def test_top_5_is_that_of_scikit_learn_and_is_left_out_where_it_says_nothing() -> None:
    logits, labels = pictures(12, 700, 5)
    expected = sklearn_metrics.top_k_accuracy_score(labels, logits, k=TOP, labels=range(12))
    assert scores_of(logits, labels).top == pytest.approx(expected)
    assert np.isnan(scores_of(*pictures(5, 50)).top)


# ---- what adds up


def test_processes_and_batches_add_up_to_the_same_bits() -> None:
    logits, labels = pictures(12, 2000)
    whole, order = TestScores(12), torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    whole.update(logits, labels)
    shares = [TestScores(12) for _ in range(3)]  # the last one gets no picture
    for share, indices in zip(shares, (order[:700], order[700:], order[:0]), strict=True):
        for part in indices.split(31) or (indices,):
            share.update(logits[part], labels[part])
    for name in ("calibration", "ranks"):
        for state, value in getattr(whole, name).metric_state.items():
            parts = [getattr(share, name).metric_state[state] for share in shares]
            assert value.dtype == torch.int64
            assert torch.equal(sum(parts[1:], parts[0]), value)
            assert value.any() or state == "left_out"
    whole.reset()
    assert not whole.ranks.counts.any()
    assert not whole.calibration.sums.any()


# ---- what is missing


def printed(result: Result, width: int = 80) -> list[str]:
    screen = io.StringIO()
    Console(width=width, file=screen).print(table_of(result, width), highlight=False)
    return [line.rstrip() for line in screen.getvalue().splitlines()]


def test_a_class_without_a_picture_is_a_dash_and_in_no_mean(tmp_path: Path) -> None:
    logits, labels = pictures(12, 700, 5)
    result = result_of(logits, labels)
    (line,) = (line for line in printed(result) if " class 5 " in line)
    assert line.split() == ["class", "5", "-", "-", "-", "-", "-", "0"]
    recalls = [(logits.argmax(1) == labels)[labels == index].double().mean() for index in range(12) if index != 5]
    assert result.values()["macro_recall"] == pytest.approx(np.mean(recalls), abs=1e-6)
    write(result, tmp_path)
    row = table(tmp_path / "classes.csv")[5]
    assert list(row.values()) == ["class 5", "", "", "", "", "", "0"]
    assert all(value for value in table(tmp_path / "classes.csv")[6].values())
    assert {line["class"] for line in table(tmp_path / "roc.csv")} == {
        "mean of classes",
        *(f"class {index}" for index in range(12) if index != 5),
    }


@pytest.mark.parametrize("classes", [2, 12])
def test_an_empty_split(classes: int, tmp_path: Path) -> None:
    result = result_of(torch.zeros(0, classes), torch.zeros(0, dtype=torch.int64), float("nan"))
    assert [name for name, value in result.values().items() if not np.isnan(value)] == ["pictures"]
    lines = printed(result)
    assert "0 pictures" in lines[0]
    assert "nan" not in "".join(lines)
    write(result, tmp_path)
    assert table(tmp_path / "roc.csv") == []
    assert {row["value"] for row in table(tmp_path / "results.csv")} == {"0", ""}


def test_numbers_that_are_not_finite_are_counted_and_left_out() -> None:
    logits, labels = pictures(12, 700)
    expected = scores_of(logits[2:], labels[2:])
    logits[0, 3], logits[1, 4] = float("nan"), float("inf")
    found = scores_of(logits, labels)
    assert found.left_out == 2
    assert found.bins.error == expected.bins.error
    assert np.array_equal(found.curves.auroc, expected.curves.auroc)
    nothing = scores_of(torch.full((9, 12), float("nan")), labels[:9])
    assert nothing.left_out == 9
    assert np.isnan([nothing.bins.error, *nothing.curves.auroc]).all()


def test_minus_infinity_is_a_probability_of_0() -> None:
    logits, labels = pictures(12, 700)
    logits[:, 0] = -torch.inf
    found = scores_of(logits, labels)
    assert found.left_out == 0
    assert found.curves.auroc[0] == pytest.approx(0.5)


# ---- the screen and the folder


def test_many_classes_stay_small_and_narrow(tmp_path: Path) -> None:
    logits, labels = pictures(1000, 4000)
    result = result_of(logits, labels)
    result.names[0:1] = ["[bold]a $name$ of many letters[/bold] that no line has space for"]  # type: ignore[index]
    lines = printed(result)
    assert len(lines) < SHOWN + 12
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(line for line in lines if "[bold]" not in line)
    assert lines[-1].startswith(f"the {SHOWN} classes of 1,000 with the lowest F1")
    write(result, tmp_path)
    assert len(table(tmp_path / "classes.csv")) == 1000
    assert len({row["class"] for row in table(tmp_path / "roc.csv")}) == DRAWN + 1
    assert (tmp_path / "scores.png").stat().st_size < 400_000
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4_000_000


def test_a_name_of_any_letters_is_printed_and_drawn_as_it_is(tmp_path: Path) -> None:
    result = result_of(*pictures(3, 60))._replace(names=["[red]", "$x_{", "_hidden"])
    assert "[red]" in "".join(printed(result))
    write(result, tmp_path)


def test_the_worst_of_many() -> None:
    values = np.array([0.5, np.nan, 0.1, 0.9, 0.1])
    assert worst(values, 5) == [0, 1, 2, 3, 4]
    assert worst(values, 3) == [2, 4, 0]


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run and its test: the folder, and the screens of both."""
    folder = tmp_path_factory.mktemp("tested")
    screens = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "80")
        for command in (["fit", "--trainer.max_epochs", "2"], ["test", "--ckpt_path", "last"]):
            screen = io.StringIO()
            with redirect_stdout(screen):
                assert main([*command, "--trainer.enable_progress_bar", "false"]) == 0
            screens.append(screen.getvalue())
    return folder, screens[0], screens[1]


def test_the_command_prints_one_table(tested: tuple[Path, str, str]) -> None:
    folder, of_fit, of_test = tested
    (accuracy,) = re.findall(r"^test_acc: (.*)$", of_fit, re.MULTILINE)
    assert of_test.count(f"accuracy {accuracy},") == 1
    assert len(re.findall(r"^ +class .*precision .*recall .*F1 .*AUROC .*AP .*pictures", of_test, re.MULTILINE)) == 1
    assert "Test metric" not in of_test
    assert "calibration error" not in of_fit
    lines = [line for line in of_test.splitlines() if not line.startswith(("confusion: ", "results: ", "config"))]
    assert max(map(len, lines)) <= 80, lines
    assert "mean recall of the classes" in (folder / "runs/digits/version_0/index.html").read_text()


def test_the_files_hold_the_numbers_of_the_network(tested: tuple[Path, str, str]) -> None:
    folder, _, _ = tested
    model = from_checkpoint(folder / "runs/digits/version_0/checkpoints/best.ckpt", layers="numpy").eval()
    data = Digits()
    data.setup()
    with torch.no_grad():
        batches = [(model(images), labels) for images, labels in data.test_dataloader()]
    logits, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    for run in ("digits", "digits-test"):
        here = folder / "runs" / run / "version_0"
        values = {row["metric"]: float(row["value"]) for row in table(here / "results.csv")}
        expected = result_of(logits, labels).values()
        assert values.keys() == expected.keys()
        for name in expected.keys() - {"loss"}:
            assert values[name] == pytest.approx(expected[name], abs=1e-5), name
        assert values["macro_recall"] == pytest.approx(
            sklearn_metrics.balanced_accuracy_score(labels, logits.argmax(1)), abs=1e-5
        )
        areas = [float(row["auroc"]) for row in table(here / "classes.csv")]
        expected_areas = sklearn_metrics.roc_auc_score(
            labels, logits.double().softmax(1), multi_class="ovr", average=None
        )
        assert areas == pytest.approx(expected_areas, abs=2e-3)
        assert sum(int(row["pictures"]) for row in table(here / "calibration.csv")) == len(labels)
        assert {row["class"] for row in table(here / "roc.csv")} == {"mean of classes", *map(str, range(10))}
        rows = table(here / "metrics.csv")
        (loss,) = (float(row["test_loss"]) for row in rows if row.get("test_loss"))
        assert values["loss"] == pytest.approx(loss, abs=1e-5)
        assert (here / "scores.png").is_file()


def test_numbers_that_are_not_finite_give_one_line(
    tested: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder, _, _ = tested
    monkeypatch.chdir(folder)
    forward = Classifier._outputs

    def broken(self: Classifier, images: Tensor) -> Any:
        logits = forward(self, images)
        logits[0] = float("nan")
        return logits

    monkeypatch.setattr(Classifier, "_outputs", broken)
    args = ["--ckpt_path", "last", "--trainer.enable_progress_bar", "false", "--data.batch_size", "400"]
    assert main(["test", *args, "--pictures", "false"]) == 0
    out, error = capsys.readouterr()
    assert "loss -" in out
    assert "nan" not in out
    assert error.count("test: 1 of 359 pictures have probabilities that are not finite") == 1
    assert not (folder / "runs/digits-test/version_1/scores.png").exists()
