"""Mixed and augmented pictures: equal to torchvision's, the same for any number of processes, and after a resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from cnn_lightning.classifier import Classifier, from_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.data import Digits
from cnn_lightning.data.loader import Batches
from cnn_lightning.data.mixing import Mix, Mixing, mixed
from cnn_lightning.errors import UserError
from tests.short_runs import QUIET, Few, Losses, classifier, stopped_and_resumed, trainer
from tests.test_resume import differences

pytestmark = QUIET
N = 26


def loader(channels: int = 1, **options: Any) -> Batches:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (N, channels, 12, 12), np.uint8))
    settings: dict[str, Any] = {"batch_size": 12, "mean": (0.0,), "std": (1.0,), "seed": 0, "num_classes": 3}
    return Batches(images, torch.arange(N) % 3, **settings | options)


def batches(of: Batches) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(of)


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- mixup and cutmix


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_a_batch_is_mixed_as_torchvision_does(way: str) -> None:
    images, labels = torch.randn(9, 3, 10, 7), torch.arange(9) % 4
    before, known = torch.cat([images[-1:], images]), torch.cat([labels[-1:], labels])
    boxes = set()
    for seed in range(30):
        mix = Mixing(**{way: 0.7}).draw(np.random.default_rng(seed), 10, 7)
        found, probabilities = mixed(before, known, 4, mix)
        if mix.box is None:
            reference: Any = v2.MixUp(num_classes=4)
            params: dict[str, Any] = {"lam": mix.share}
        else:
            reference, params = v2.CutMix(num_classes=4), {"box": mix.box, "lam_adjusted": mix.share}
            left, top, right, bottom = mix.box
            assert mix.share == 1 - (right - left) * (bottom - top) / 70
            boxes.add(mix.box)
        params |= {"labels": labels, "batch_size": 9}
        torch.testing.assert_close(found, reference.transform(images, params), rtol=0, atol=1e-6)
        torch.testing.assert_close(probabilities, reference.transform(labels, params), rtol=0, atol=1e-6)
        assert probabilities.dtype == torch.float32
        torch.testing.assert_close(probabilities.sum(1), torch.ones(9))
    assert (len(boxes) > 20) == (way == "cutmix")


def test_the_share_has_torchvisions_distribution() -> None:
    for alpha in (0.2, 1.0, 4.0):
        shares = [Mixing(mixup=alpha).draw(np.random.default_rng(seed), 8, 8).share for seed in range(2000)]
        assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
        assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    both = [Mixing(0.2, 1.0).draw(np.random.default_rng(seed), 8, 8).box is None for seed in range(200)]
    assert 70 < sum(both) < 130


def test_a_mix_of_nothing_is_the_picture() -> None:
    images, labels = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2])
    for mix in (Mix(1.0), Mix(1.0, (2, 2, 2, 2))):
        found, probabilities = mixed(images, labels, 3, mix)
        assert torch.equal(found, images[1:])
        assert torch.equal(probabilities, torch.eye(3)[1:])
    found, probabilities = mixed(images, labels, 3, Mix(0.0, (0, 0, 4, 4)))
    assert torch.equal(found, images[:-1])
    assert torch.equal(probabilities, torch.eye(3)[:-1])


@pytest.mark.parametrize("sampler", ["shuffled", "balanced"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_mix_as_one_process_does(world_size: int, sampler: Any) -> None:
    options: dict[str, Any] = {"mixing": Mixing(0.5, 0.5), "augment": "trivial", "flip": True, "sampler": sampler}
    whole = loader(**options)
    parts = [
        loader(**options, batch_size=12 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for expected, *own in zip(whole, *parts, strict=True):
        for index in range(2):
            assert torch.equal(torch.cat([each[index] for each in own]), expected[index])
    assert [len(indices) for indices in whole.indices()] == [12, 12, 2]


def test_pictures_are_mixed_in_training_alone() -> None:
    data = Few(batch_size=16, mixup=0.4, cutmix=1.0)
    data.setup()
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (16, 1, 8, 8)
    assert labels.shape == (16, 10)
    assert ((labels > 0).sum(1) <= 2).all()
    for other in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert next(iter(other))[1].dtype == torch.int64


def test_the_accuracy_counts_the_larger_label() -> None:
    model = classifier()
    logits = torch.tensor([[5.0] + [0] * 9, [0.0, 5] + [0] * 8])
    model.forward = lambda x: logits  # type: ignore[method-assign]
    model._outputs = lambda images: logits  # type: ignore[method-assign]
    model.log = lambda *args, **options: None  # type: ignore[method-assign]
    labels = torch.zeros(2, 10)
    labels[0, [0, 1]], labels[1, [0, 1]] = torch.tensor([0.7, 0.3]), torch.tensor([0.6, 0.4])
    model._step((torch.zeros(2, 1, 8, 8), labels), "train")
    loss, accuracy = model._metrics("train")
    assert accuracy.compute() == 0.5
    assert loss.compute().item() == pytest.approx(float(model.loss(logits, labels)))


# ---- policies of torchvision


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["rand", "trivial"])
def test_a_policy_changes_each_picture_by_seed_epoch_and_picture_alone(name: Any, channels: int) -> None:
    plain, found = batches(loader(channels, augment=True)), batches(loader(channels, augment=name))
    assert found[0][0].shape == (12, channels, 12, 12)
    changed = [
        not torch.equal(a, b) for x, y in zip(plain, found, strict=True) for a, b in zip(x[0], y[0], strict=True)
    ]
    assert sum(changed) > N / 2
    state = torch.get_rng_state()
    again = batches(loader(channels, augment=name, batch_size=5))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(torch.cat([x for x, _ in again]), torch.cat([x for x, _ in found]))
    other = loader(channels, augment=name)
    other.set_epoch(1)
    order, before = torch.cat([torch.from_numpy(i) for i in other.indices()]), loader(channels).indices()
    pictures = torch.cat([x for x, _ in other])[order.argsort()]
    assert not torch.equal(
        pictures, torch.cat([x for x, _ in found])[torch.cat([*map(torch.from_numpy, before)]).argsort()]
    )


def test_true_is_shift() -> None:
    assert all(map(same, loader(augment=True, flip=True), loader(augment="shift", flip=True)))
    assert not all(map(same, loader(augment=False), loader(augment="shift")))


# ---- what is refused

BAD = {
    "--data.mixup=0": "data.mixup: expected a finite number above 0, or null, got 0.0",
    "--data.mixup=-1": "data.mixup: expected a finite number above 0, or null, got -1.0",
    "--data.cutmix=.nan": "data.cutmix: expected a finite number above 0, or null, got nan",
    "--data.cutmix=.inf": "data.cutmix: expected a finite number above 0, or null, got inf",
    "--data.mixup=much": "data.mixup: expected a number or null, got 'much'",
    "--model.tta=flop": "model.tta: expected none or flip, got 'flop'",
    "--data.augment=spin": "data.augment: expected true, false, shift, rand or trivial, got 'spin'",
}


@pytest.mark.parametrize("flag", BAD)
@pytest.mark.usefixtures("empty_folder")
def test_what_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", flag]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert BAD[flag] in line


def test_what_python_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.augment: expected true, false, shift, rand or trivial, got 'spin'"):
        Digits(augment="spin")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tta: expected none or flip, got 'flop'"):
        classifier(tta="flop")
    with pytest.raises(UserError, match=r"data\.augment: expected pictures of 1 or 3 channels for rand, got 4"):
        loader(4, augment="rand")


# ---- pictures and their mirrors, outside the training


def test_the_probabilities_are_the_mean_of_a_picture_and_its_mirror(tmp_path: Path) -> None:
    data = Few(batch_size=16)
    model = classifier("numpy", tta="flip", class_weights="auto")
    run = trainer(max_epochs=1)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "net.ckpt")
    images, labels = (torch.cat(each) for each in zip(*batches(data.test_dataloader()), strict=True))
    with torch.no_grad():
        mean = (model(images).softmax(1) + model(images.flip(3)).softmax(1)) / 2
    expected = torch.nn.functional.nll_loss(mean.log(), labels, model.loss.weight)  # type: ignore[arg-type]
    (found,) = trainer().test(model, data, verbose=False)
    assert found["test_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert found["test_acc"] == pytest.approx(float((mean.argmax(1) == labels).float().mean()))
    predicted: Any = trainer().predict(model, data)
    torch.testing.assert_close(torch.cat([each["confidence"] for each in predicted]), mean.max(1).values)

    kept = torch.load(tmp_path / "net.ckpt", weights_only=True)
    assert "tta" not in kept["hyper_parameters"]
    (plain,) = trainer().test(from_checkpoint(tmp_path / "net.ckpt"), data, verbose=False)
    assert abs(plain["test_loss"] - found["test_loss"]) > 1e-3
    model = Classifier.load_from_checkpoint(tmp_path / "net.ckpt", tta="flip")
    (again,) = trainer().test(model, data, verbose=False)
    assert again["test_loss"] == pytest.approx(found["test_loss"], rel=1e-6)


def test_mirrors_do_not_change_the_training() -> None:
    curves = []
    for tta in ("none", "flip"):
        losses = Losses()
        trainer(losses, max_epochs=1).fit(classifier(tta=tta), Few(batch_size=16))
        curves.append(losses)
    assert curves[0].train == curves[1].train
    assert curves[0].val != curves[1].val


# ---- a training with each option


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "class weights": ({"class_weights": "auto", "label_smoothing": 0.1}, {}, {}),
    "balanced": ({}, {"sampler": "balanced", "augment": True}, {}),
    "average": ({"ema": 0.8}, {}, {}),
    "mixup and cutmix": ({"class_weights": "auto"}, {"mixup": 0.4, "cutmix": 1.0}, {}),
    "rand": ({}, {"augment": "rand"}, {}),
    "trivial": ({}, {"augment": "trivial", "sampler": "balanced"}, {}),
    "mirrored": ({"tta": "flip"}, {}, {}),
    "clipped": ({}, {}, {"gradient_clip_val": 0.05}),
}
"""Of the model, the data and the Trainer."""


@pytest.mark.parametrize("option", OPTIONS)
def test_the_curves_of_numpy_and_torch_are_equal(option: str) -> None:
    model, data, more = OPTIONS[option]
    found = []
    for layers in ("numpy", "torch"):
        losses = Losses()
        trainer(losses, precision="64-true", **more).fit(classifier(layers, **model), Few(batch_size=16, **data))
        found.append([*losses.train, *(value for pair in losses.val for value in pair)])
    assert len(found[0]) == 14 + 4
    assert found[0] == pytest.approx(found[1], abs=1e-10)


def test_each_option_changes_the_training_or_the_validation() -> None:
    def curve(model: Any, data: Any, more: Any) -> Any:
        losses = Losses()
        trainer(losses, max_epochs=1, **more).fit(classifier(**model), Few(batch_size=16, **data))
        return losses.train, losses.val

    plain = curve({}, {}, {})
    assert curve({}, {}, {}) == plain
    assert all(curve(*option) != plain for option in OPTIONS.values())


@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_that_was_stopped_inside_an_epoch_ends_with_the_same_bits(option: str, tmp_path: Path) -> None:
    model, data, more = OPTIONS[option]
    whole, resumed = stopped_and_resumed(tmp_path, {"layers": "numpy", **model}, {"batch_size": 16, **data}, **more)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", *whole.keys() & {"average"}):
        assert differences(whole[key], resumed[key], key) == []
