"""Classes of which some are rare: weights in the loss, and a sampler that draws every class equally often."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from torch import nn

from cnn_lightning.classifier import Classifier, from_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.data import CIFAR10, MNIST, Digits, FashionMNIST, ImageFolder
from cnn_lightning.data.loader import Batches
from cnn_lightning.data.order import balanced
from cnn_lightning.errors import UserError
from cnn_lightning.model import total_loss
from tests.processes import ranks
from tests.short_runs import QUIET, Few, Losses, Rare, classifier, trainer
from tests.stand_ins import write_pictures
from tests.test_ddp import FIT, _alone, _batch, _end, _left, _same, odd_digits

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
        class_counts = [3, 0, 1, 2, 1, 1, 0, 1, 1, 1]  # noqa: RUF012

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
        assert given is None or model.loss.weight.tolist() == given  # type: ignore[operator]
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


def test_a_finder_that_puts_back_what_was_before_it_keeps_the_weights(tmp_path: Path) -> None:
    model = classifier(class_weights="auto")
    finder = LearningRateFinder(num_training_steps=4)
    trainer(finder, max_epochs=1, default_root_dir=tmp_path).fit(model, Few(batch_size=16))
    torch.testing.assert_close(model.loss.weight, _auto())


def test_auto_needs_data_that_count() -> None:
    with pytest.raises(ValueError, match="class_weights: expected auto or a list of numbers, got 'balanced'"):
        classifier(class_weights="balanced")
    loader = Few()
    loader.setup()
    with pytest.raises(UserError, match="class_weights: expected a list of numbers with no DataModule, got auto"):
        trainer().fit(classifier(class_weights="auto"), loader.train_dataloader(), loader.val_dataloader())


@pytest.mark.ddp
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--model.class_weights", str(WEIGHTS), "--model.label_smoothing", "0.1"], id="weights"),
        pytest.param(
            ["--data.mixup", "0.3", "--data.cutmix", "1", "--data.sampler", "balanced", "--data.augment", "trivial"],
            id="mixed",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_several_processes_train_on_the_global_batch_as_one_does(flags: list[str], tmp_path: Path) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()
    runs = ranks(2, [*FIT, *flags, *_batch(50)], together, odd_digits)
    expected = _alone(100, alone, [*FIT, *flags])
    _end(runs)
    _same(_left(together), expected)


# ---- the balanced sampler


def _loader(n: int = 40, **options: Any) -> Batches:
    """Pictures that are their number everywhere, of three classes with 1, 9 and 30 of them."""
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 6, 6).contiguous()
    labels = torch.tensor([0] + [1] * 9 + [2] * 30)
    settings: dict[str, Any] = {"batch_size": 12, "mean": (0.0,), "std": (1 / 255,), "seed": 3, "sampler": "balanced"}
    return Batches(images, labels, **settings | options)


def test_every_class_is_drawn_equally_often() -> None:
    labels = np.array([0] + [1] * 9 + [2] * 990)
    order = balanced(labels, 0, 0)
    assert len(order) == 1000
    assert np.abs(np.bincount(labels[order]) / 1000 - 1 / 3).max() < 0.04
    assert set(np.flatnonzero(labels == 1)) <= set(order)
    assert np.array_equal(order, balanced(labels, 0, 0))
    assert not np.array_equal(order, balanced(labels, 0, 1))
    assert not np.array_equal(order, balanced(labels, 1, 0))
    assert set(balanced(np.array([4, 4, 7]), 0, 5)) <= {0, 1, 2}
    assert len(balanced(np.empty(0, np.int64), 0, 0)) == 0


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_balanced_batch_of_one_process(world_size: int) -> None:
    options: dict[str, Any] = {"augment": True, "flip": True}
    whole = _loader(**options)
    ranks = [
        _loader(**options, batch_size=12 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for expected, *own in zip(whole, *ranks, strict=True):
        for index in range(2):
            assert torch.equal(torch.cat([each[index] for each in own]), expected[index])


def test_a_picture_that_is_drawn_twice_is_augmented_in_two_ways() -> None:
    loader = _loader(augment=True, batch_size=40)
    loader.images = loader.images + 1  # type: ignore[operator, assignment]  # so that the border shows the shift
    images, labels = next(iter(loader))
    same = images[labels == 0]  # of one picture
    assert len(same) > 5
    assert len(torch.unique(same.flatten(1), dim=0)) > 3


def test_the_balanced_order_goes_on_inside_an_epoch() -> None:
    whole = [batch[1].tolist() for batch in _loader()]
    loader = _loader()
    iterator = iter(loader)
    begun = [next(iterator)[1].tolist() for _ in range(2)]
    fresh = _loader()
    fresh.load_state_dict(loader.state_dict())
    assert [*begun, *(labels.tolist() for _, labels in fresh)] == whole
    with pytest.raises(UserError, match=r"expected balanced as sampler, as in the epoch that .*, got shuffled"):
        _loader(sampler="shuffled").load_state_dict(loader.state_dict())
    before = {name: value for name, value in loader.state_dict().items() if name != "as sampler"}  # of version 0.1
    _loader(sampler="shuffled").load_state_dict(before)
    with pytest.raises(UserError, match=r"expected shuffled as sampler, .*, got balanced"):
        _loader().load_state_dict(before)


def test_every_data_set_takes_it_and_workers_draw_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Digits, MNIST, FashionMNIST, CIFAR10):
        assert kind(sampler="balanced").sampler == "balanced"
        with pytest.raises(UserError, match=r"data\.sampler: expected shuffled or balanced, got 'even'"):
            kind(sampler="even")  # type: ignore[arg-type]
    write_pictures(tmp_path / "pictures")
    found = []
    for memory, workers in ((2**30, 0), (0, 2)):
        monkeypatch.setattr("cnn_lightning.data.pictures.MEMORY", memory)
        data = ImageFolder(str(tmp_path / "pictures"), 4, image_size=8, num_workers=workers, sampler="balanced")
        data.setup("fit")
        loader = data.train_dataloader()
        assert loader.num_workers == workers
        found.append(list(loader))
    for (images, labels), (expected, expected_labels) in zip(*found, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


@pytest.mark.usefixtures("empty_folder")
def test_an_unknown_sampler_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--data.sampler", "even"]) == 2
    assert "data.sampler: expected shuffled or balanced, got 'even'" in capsys.readouterr().err


# ---- what both gain


def _macro_recall(epochs: int, seed: int, sampler: Any = "shuffled", **options: Any) -> float:
    torch.manual_seed(seed)
    model, data = Classifier(layers="torch", image_size=8, **options), Rare(batch_size=128, seed=seed, sampler=sampler)
    trainer(max_epochs=epochs, limit_val_batches=0).fit(model, data)
    batches = list(data.test_dataloader())
    images, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    with torch.no_grad():
        right = model.eval()(images).argmax(1) == labels
    return 100 * torch.stack([right[labels == label].float().mean() for label in range(10)]).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [12, 30])
def test_rare_classes_gain_at_least_five_points(epochs: int) -> None:
    """Half of the classes have one in 20 of their pictures; means of three seeds."""
    ways: dict[str, Any] = {"none": {}, "weights": {"class_weights": "auto"}, "sampler": {"sampler": "balanced"}}
    found = {name: np.mean([_macro_recall(epochs, seed, **way) for seed in range(3)]) for name, way in ways.items()}
    print(f"{epochs} epochs, macro recall:", *(f"{name} {value:.1f}" for name, value in found.items()))
    assert found["weights"] - found["none"] >= 5
    assert found["sampler"] - found["none"] >= 5
