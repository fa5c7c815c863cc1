"""Classes of which some are rare: weights in the loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cnn_lightning.classifier import Classifier, from_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.errors import UserError
from cnn_lightning.model import total_loss
from tests.short_runs import QUIET, Few, Losses, classifier, trainer
from tests.test_ddp import FIT, _alone, _batch, _end, _left, _same, odd_digits, ranks

pytestmark = QUIET
WEIGHTS = [1.0, 3.0, 0.5, 2.0, 1.0, 1.0, 0.25, 4.0, 1.0, 1.5]


# ---- weights of classes


def _auto() -> torch.Tensor:
    labels = np.bincount(Few().read().train.labels, minlength=10)
    return torch.tensor(labels.sum() / (10 * labels), dtype=torch.float32)


@pytest.mark.parametrize("targets", ["indices", "probabilities"])
def test_the_weighted_loss_is_that_of_torch(targets: str) -> None:
    logits = torch.randn(12, 10, dtype=torch.float64)
    labels: Any = torch.arange(12) % 10
    if targets == "probabilities":
        labels = torch.rand(12, 10, dtype=torch.float64).softmax(1)
    expected = nn.CrossEntropyLoss(torch.tensor(WEIGHTS).double(), label_smoothing=0.1)(logits, labels)
    for layers in ("numpy", "torch"):
        model = classifier(layers, class_weights=WEIGHTS, label_smoothing=0.1).double()
        assert model.loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-14)
        net = nn.Module()
        net.auxiliary_weights = (0.3, 0.2)  # type: ignore[assignment]
        loss, _ = total_loss(net, model.loss, (logits, logits, logits), labels)
        assert loss.item() == pytest.approx(1.5 * expected.item(), rel=1e-14)


def test_auto_is_inverse_to_the_number_of_pictures() -> None:
    model, data = classifier(class_weights="auto"), Few(batch_size=16)
    trainer(max_epochs=1).fit(model, data)
    weights: Any = model.loss.weight
    torch.testing.assert_close(weights, _auto())
    labels = torch.cat([labels for _, labels in data.train_dataloader()])
    assert weights[labels].mean().item() == pytest.approx(1)
    assert weights.max() / weights.min() > 9


def test_a_class_without_a_picture_has_weight_one(capsys: pytest.CaptureFixture[str]) -> None:
    class Missing(Few):
        class_counts = [3, 0, 1, 2, 1, 1, 0, 1, 1, 1]  # type: ignore[assignment]  # noqa: RUF012

    model = classifier(class_weights="auto")
    trainer(max_epochs=1, limit_val_batches=0).fit(model, Missing())
    assert capsys.readouterr().err.count("no training picture of 1, 6; the weight is 1") == 1
    n, k = 11, 8
    expected = [n / (k * count) if count else 1 for count in Missing.class_counts]
    torch.testing.assert_close(model.loss.weight, torch.tensor(expected))


def test_the_mean_over_an_epoch_is_the_weighted_mean_over_all_pictures() -> None:
    losses = Losses()
    model, data = classifier(class_weights=WEIGHTS), Few(batch_size=16)
    run = trainer(losses, max_epochs=1)
    run.fit(model, data)
    batches = list(data.val_dataloader())
    assert len({len(labels) for _, labels in batches}) == 2
    images, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model.eval()(images), labels, torch.tensor(WEIGHTS))
    assert losses.val[-1][0] == pytest.approx(expected.item(), rel=1e-6)


def test_a_batch_of_classes_without_weight_is_no_loss() -> None:
    alone = [0.0] * 9 + [1.0]
    losses = Losses()
    model = classifier(class_weights=alone)
    trainer(losses, max_epochs=1).fit(model, Few(batch_size=2))
    assert 0.0 in losses.train
    assert all(np.isfinite([*losses.train, *losses.val[0]]))
    assert losses.val[0][0] > 0


def test_weights_are_in_the_checkpoint(tmp_path: Path) -> None:
    path, data = tmp_path / "auto.ckpt", Few(batch_size=16)
    run = trainer(max_epochs=1)
    run.fit(classifier(class_weights="auto"), data)
    run.save_checkpoint(path)
    (expected,) = run.test(datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
    torch.testing.assert_close(from_checkpoint(path).loss.weight, _auto(), rtol=0, atol=0)

    class Other(Few):
        class_counts = range(1, 11)  # type: ignore[assignment]

    def tested(**options: Any) -> float:
        model = Classifier.load_from_checkpoint(path, layers="numpy", **options)
        return float(trainer().test(model, Other(batch_size=16), verbose=False)[0]["test_loss"])

    assert tested() == pytest.approx(expected["test_loss"], rel=1e-5)
    for given in (None, WEIGHTS):  # of this run, and no longer of the checkpoint
        model = Classifier.load_from_checkpoint(path, class_weights=given)
        assert (model.loss.weight is None) == (given is None)
        assert given is None or model.loss.weight.tolist() == given  # type: ignore[union-attr, operator]
        assert abs(tested(class_weights=given) - expected["test_loss"]) > 1e-3


BAD_WEIGHTS = {
    "[1,2]": "model.class_weights: expected 10 numbers, one for each class, got 2",
    "[1,1,1,1,1,1,1,1,1,-1]": "model.class_weights: expected finite numbers of at least 0, got -1.0",
    "[1,1,1,1,1,1,1,1,1,.nan]": "model.class_weights: expected finite numbers of at least 0, got nan",
    "[1,1,1,1,1,1,1,1,1,.inf]": "model.class_weights: expected finite numbers of at least 0, got inf",
    "[0,0,0,0,0,0,0,0,0,0]": "model.class_weights: expected at least one number above 0, got zeros alone",
    "balanced": "model.class_weights: expected auto, a list of numbers or null, got 'balanced'",
    "[a]": "model.class_weights: expected auto, a list of numbers or null, got ",
}


@pytest.mark.parametrize("given", BAD_WEIGHTS)
@pytest.mark.usefixtures("empty_folder")
def test_weights_that_are_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", f"--model.class_weights={given}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"cnn-lightning: error: {BAD_WEIGHTS[given]}")
    assert not Path("runs").exists()


def test_auto_needs_data_that_count() -> None:
    with pytest.raises(ValueError, match="class_weights: expected auto or a list of numbers, got 'balanced'"):
        classifier(class_weights="balanced")
    loader = Few()
    loader.setup()
    with pytest.raises(UserError, match="class_weights: expected a list of numbers with no DataModule, got auto"):
        trainer().fit(classifier(class_weights="auto"), loader.train_dataloader(), loader.val_dataloader())


@pytest.mark.ddp
def test_several_processes_weigh_the_global_batch_as_one_does(tmp_path: Path) -> None:
    flags = [*FIT, "--model.class_weights", str(WEIGHTS), "--model.label_smoothing", "0.1"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()
    runs = ranks(2, [*flags, *_batch(50)], together, odd_digits)
    expected = _alone(100, alone, flags)
    _end(runs)
    _same(_left(together), expected)
