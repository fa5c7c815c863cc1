"""Pictures, snapshots and statistics of a training: what they show, what they warn of, and that they change nothing."""

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from cnn_lightning.callbacks import Pictures, Snapshots, Statistics, pictures, snapshots
from cnn_lightning.classifier import Classifier
from cnn_lightning.cli import main
from cnn_lightning.data import Digits

FAST = ["--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "2"]
BRIEF = ["--trainer.limit_train_batches", "2", "--trainer.limit_test_batches", "1"]


def trained(folder: Path, *callbacks: Any, model: Classifier | None = None, logger: Any = None) -> Classifier:
    """Two epochs on digits."""
    torch.manual_seed(0)
    model = Classifier(image_size=8, channels=(4,), hidden=16, schedule="none", lr=1e-3) if model is None else model
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*GPU available but not used.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")
        warnings.filterwarnings("ignore", ".*Experiment logs directory.*exists and is not empty.*")
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=CSVLogger(folder, name="", version="") if logger is None else logger,
            callbacks=list(callbacks),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
        )
        trainer.fit(model, Digits())
    return model


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights after a training without these callbacks."""
    return trained(tmp_path_factory.mktemp("plain")).state_dict()


# ---- pictures and snapshots


def test_fit_draws_and_keeps_unless_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *FAST]) == 0
    run = tmp_path / "runs/digits/version_0"
    for name in ("filters", "confusion", "mistakes"):
        with Image.open(run / f"pictures/{name}.png") as image:
            assert min(image.size) > 20
    assert sorted(path.name for path in (run / "snapshots").iterdir()) == [f"epoch_000{n}.pt" for n in range(3)]
    assert main(["fit", *FAST, *BRIEF, "--pictures", "false"]) == 0
    assert not any((tmp_path / "runs/digits/version_1" / name).exists() for name in ("pictures", "snapshots"))


def test_watching_changes_nothing(tmp_path: Path, plain: dict[str, torch.Tensor]) -> None:
    seen = trained(tmp_path, Pictures(), Snapshots(), Statistics(dead=1.0)).state_dict()
    for name, value in plain.items():
        assert torch.equal(value, seen[name]), name


def test_tensorboard_gets_the_pictures_of_every_epoch(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    trained(tmp_path / "own", Pictures())
    trained(tmp_path / "theirs", Pictures(), logger=TensorBoardLogger(tmp_path / "theirs", name="", version=""))
    for folder in (tmp_path / "own/tensorboard", tmp_path / "theirs"):
        events = accumulator(str(folder)).Reload()
        for name in ("filters", "confusion", "mistakes"):
            assert [event.step for event in events.Images(name)] == [1, 2]
        assert "val_acc" in events.Tags()["scalars"]
    assert not (tmp_path / "theirs/tensorboard").exists()


def spied(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """The first arguments of all calls of a function of `pictures`."""
    seen: list[Any] = []
    original = getattr(pictures, name)

    def spy(first: Any, *rest: Any) -> Any:
        seen.append(first)
        return original(first, *rest)

    monkeypatch.setattr(pictures, name, spy)
    return seen


def test_the_counts_are_those_of_the_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = spied(monkeypatch, "confusion")
    worst = spied(monkeypatch, "mistakes")
    model = trained(tmp_path, Pictures())
    data = Digits()
    data.setup()
    model.eval()
    expected = torch.zeros(10, 10)
    losses = []
    for images, labels in data.val_dataloader():
        with torch.no_grad():
            logits = model(images)
        for label, guess in zip(labels, logits.argmax(1), strict=True):
            expected[label, guess] += 1
        each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        losses += each[logits.argmax(1) != labels].tolist()
    assert np.array_equal(drawn[-1], expected.numpy())
    assert worst[-1][:, 0].tolist() == pytest.approx(sorted(losses, reverse=True)[: pictures.WORST], rel=1e-4)
    assert all(fact[1] != fact[2] for fact in worst[-1].tolist())


def test_of_equal_mistakes_the_first_in_the_split_come_first() -> None:
    """Whatever process has seen them."""
    facts = torch.tensor([[2.0, 0, 1, 0.5]]).repeat(40, 1)
    facts[30, 0] = 3.0
    places = torch.arange(40)
    everything = facts, places[:, None, None, None].float(), places
    expected = [30, *range(15)]
    assert Pictures._first([everything])[2].tolist() == expected
    for n in (2, 3):
        shares = [tuple(each[rank::n] for each in everything) for rank in range(n)]
        worst = [Pictures._first([share]) for share in reversed(shares)]  # type: ignore[list-item]
        assert Pictures._first(worst)[2].tolist() == Pictures._first(worst)[1].flatten().tolist() == expected


def test_no_mistakes_are_a_sentence() -> None:
    image = pictures.mistakes(torch.zeros(0, 4), torch.zeros(0, 1, 8, 8), ("a",), ((), ()))
    assert np.asarray(image).min() < 128
    colour = pictures.mistakes(
        torch.zeros(3, 4), torch.rand(3, 3, 8, 8), ("a name that is too long",), ((0.5,) * 3, (1.0,) * 3)
    )
    assert colour.mode == "RGB"


def test_pictures_that_can_t_be_written_are_reported(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("in the way")
    with pytest.warns(UserWarning, match=r"pictures/\w+.png: not written: (Not a directory|File exists)"):
        trained(tmp_path, Pictures())


def test_snapshots_are_the_weights_and_few(tmp_path: Path) -> None:
    model = trained(tmp_path, Snapshots())
    last = torch.load(tmp_path / "snapshots/epoch_0002.pt", weights_only=True)
    assert last["global_step"] == 2 * len(_digits().train_dataloader())
    for name, value in model.net.state_dict().items():
        assert torch.equal(value, last["state_dict"][f"net.{name}"])
    trained(tmp_path / "none", Snapshots(megabytes=1e-6))
    assert not (tmp_path / "none/snapshots").exists()
    folder = tmp_path / "many"
    folder.mkdir()
    for epoch in range(101):
        (folder / f"epoch_{epoch:04}.pt").touch()
        snapshots._thin(folder, epoch)
    kept = sorted(int(path.stem[-4:]) for path in folder.iterdir())
    assert kept == list(range(0, 101, 8))


def _digits() -> Digits:
    data = Digits()
    data.setup()
    return data


# ---- statistics


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "statistics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_numbers_are_those_of_the_layers(tmp_path: Path) -> None:
    model = trained(tmp_path, Statistics(dead=1.0))
    found = {(int(row["epoch"]), row["layer"]): row for row in rows(tmp_path)}
    assert {epoch for epoch, _ in found} == {1, 2}
    model.eval()
    outputs = []
    handle = model.net.get_submodule("relu1").register_forward_hook(lambda _, __, y: outputs.append(y.detach()))
    with torch.no_grad():
        for images, _ in _digits().val_dataloader():
            model(images)
    handle.remove()
    whole = torch.cat(outputs)
    row = found[2, "relu1"]
    assert float(row["mean"]) == pytest.approx(whole.mean().item(), rel=1e-4)
    assert float(row["deviation"]) == pytest.approx(whole.std().item(), rel=1e-3)
    assert float(row["zeros"]) == pytest.approx((whole == 0).float().mean().item(), abs=1e-4)
    assert int(row["dead"]) == int((whole.amax((0, 2, 3)) == 0).sum())
    assert 0 < float(found[2, "conv1"]["gradient"]) <= float(found[2, "conv1"]["gradient_max"])
    assert found[2, "relu1"]["gradient"] == found[2, "conv1"]["dead"] == ""


def test_a_dead_relu_is_reported_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier(image_size=8, channels=(4,), hidden=16, schedule="none", lr=1e-3)
    with torch.no_grad():
        model.net.get_parameter("conv1.bias")[1] = -1000.0
    with pytest.warns(UserWarning, match="dead") as warned:
        trained(tmp_path, Statistics(dead=0.2), model=model)
    texts = [str(each.message) for each in warned if "relu1" in str(each.message)]
    assert len(texts) == 1
    assert texts[0].startswith("1 of 4 units of 'relu1' are dead after epoch 1")
    assert [row["dead"] for row in rows(tmp_path) if row["layer"] == "relu1"] == ["1", "1"]


class Jump(Classifier):
    """Its loss is a million times as large in one step."""

    def training_step(self, batch: Any, index: int) -> dict[str, torch.Tensor]:
        outputs = super().training_step(batch, index)
        return outputs | {"loss": outputs["loss"] * (1e6 if self.trainer.global_step == 30 else 1)}


def test_an_exploding_gradient_is_reported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Jump(image_size=8, channels=(4,), hidden=16, schedule="none", lr=1e-3)
    with pytest.warns(UserWarning, match=r"in step 30 the gradient of layer '\w+' explodes \(so do 2 others\)"):
        trained(tmp_path, Statistics(dead=1.0), model=model)


def test_statistics_by_flag_and_bad_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["--trainer.callbacks", "cnn_lightning.callbacks.Statistics", "--trainer.callbacks.dead", "1.0"]
    assert main(["fit", *FAST, *BRIEF, *args]) == 0
    assert (tmp_path / "runs/digits/version_0/statistics.csv").is_file()
    with pytest.raises(ValueError, match="exploded: expected a number above 1, got 1"):
        Statistics(exploded=1)
    with pytest.raises(ValueError, match="dead: expected a fraction"):
        Statistics(dead=0)
