"""The average of the weights: a hand-written one is equal, checkpoints have it, and runs go on with both."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

import cnn_lightning.classifier.module
from cnn_lightning.callbacks.best import BestModelCheckpoint
from cnn_lightning.callbacks.resume import Resumable
from cnn_lightning.classifier import Classifier, from_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.errors import UserError
from tests.processes import ranks
from tests.short_runs import QUIET, Few, Losses, classifier, stopped_and_resumed, trainer
from tests.test_ddp import FIT, _alone, _batch, _end, _event, _left, _same, odd_digits
from tests.test_resume import build, differences, prepare, result

pytestmark = QUIET


@pytest.fixture(autouse=True)
def _with_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cnn_lightning.classifier.module, "build_net", build)


class ByHand(Callback):
    """The average of what a training has after each of its steps."""

    def __init__(self, decay: float) -> None:
        self.decay, self.n = decay, 0
        self.average: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        now = {f"net.{name}": value.double().clone() for name, value in pl_module.net.state_dict().items()}
        d = min(self.decay, (1 + self.n) / (10 + self.n)) if self.n else 0.0
        self.average = {name: d * self.average.get(name, 0) + (1 - d) * value for name, value in now.items()}
        self.n += 1


@pytest.mark.parametrize("layers", ["numpy", "torch"])
def test_a_checkpoint_has_the_average_that_one_computes_by_hand(layers: str, tmp_path: Path) -> None:
    byhand, path = ByHand(0.6), tmp_path / "last.ckpt"
    model = classifier(layers, ema=0.6, class_weights="auto")
    trainer(byhand, Resumable(tmp_path)).fit(model, Few(batch_size=16))
    assert byhand.n == 14
    found = torch.load(path, weights_only=True)
    assert found["average"]["updates"] == 14
    counted = {"net.conv1.1.num_batches_tracked"}
    assert found["average"]["training"].keys() == byhand.average.keys() - counted
    assert "net.conv1.1.running_var" in found["average"]["training"]
    for name in byhand.average.keys() - counted:
        torch.testing.assert_close(found["state_dict"][name].double(), byhand.average[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(found["state_dict"][name], found["average"]["training"][name])
        assert torch.equal(model.state_dict()[name], found["state_dict"][name])  # what is tested after a training
    assert found["state_dict"]["net.conv1.1.num_batches_tracked"] == 14


def test_the_best_checkpoint_has_the_weights_of_its_accuracy(tmp_path: Path) -> None:
    losses, best = Losses(), BestModelCheckpoint(tmp_path)
    data = Few(batch_size=16)
    run = trainer(losses, best, Resumable(tmp_path), max_epochs=3)
    run.fit(classifier(ema=0.9), data)
    assert best.best_model_score is not None
    assert float(best.best_model_score) == max(accuracy for _, accuracy in losses.val)
    model = from_checkpoint(best.best_model_path)
    (found,) = trainer().validate(model, data, verbose=False)
    assert found["val_acc"] == float(best.best_model_score)
    assert any(found["val_loss"] == pytest.approx(loss, rel=1e-5) for loss, _ in losses.val)
    state = torch.load(best.best_model_path, weights_only=True)
    model.load_state_dict({**state["state_dict"], **state["average"]["training"]})
    (other,) = trainer().validate(model, data, verbose=False)
    assert other["val_loss"] != pytest.approx(found["val_loss"], rel=1e-3)


def test_the_training_is_that_without_an_average() -> None:
    curves = []
    for ema in (None, 0.7):
        losses = Losses()
        run = trainer(losses, precision="64-true", val_check_interval=2)
        run.fit(classifier("torch", ema=ema), Few(batch_size=16))
        curves.append(losses)
    assert curves[0].train == curves[1].train  # a validation gives the weights back, to the last bit
    assert curves[0].val != curves[1].val


def test_a_run_goes_on_with_both(tmp_path: Path) -> None:
    whole, resumed = stopped_and_resumed(tmp_path, {"ema": 0.7, "layers": "numpy"}, {"batch_size": 16})
    for key in ("state_dict", "average", "optimizer_states", "lr_schedulers", "global_step"):
        assert differences(whole[key], resumed[key]) == []


def test_a_run_with_more_epochs_goes_on_with_the_weights_of_its_training(tmp_path: Path) -> None:
    found, plain = [], {"schedule": "none", "optimizer": "sgd"}
    for name, lengths in (("whole", (2,)), ("longer", (1, 2))):
        path = tmp_path / name / "last.ckpt"
        for epochs in lengths:
            model = classifier(ema=0.7, lr=0.01, **plain)
            begun = path if path.exists() else None
            trainer(Resumable(path.parent), max_epochs=epochs).fit(model, Few(batch_size=16), ckpt_path=begun)
        found.append(torch.load(path, weights_only=True))
    assert differences(found[0]["state_dict"], found[1]["state_dict"]) == []
    assert differences(found[0]["average"], found[1]["average"]) == []

    model = classifier(ema=0.7, **plain)  # the run is over: nothing is left to train
    trainer(Resumable(tmp_path)).fit(model, Few(batch_size=16), ckpt_path=tmp_path / "whole/last.ckpt")
    assert differences(dict(model.state_dict()), dict(found[0]["state_dict"])) == []

    model = classifier(lr=0.0, **plain)  # on without an average
    run = trainer(max_epochs=3, limit_train_batches=1)
    run.fit(model, Few(batch_size=16), ckpt_path=tmp_path / "whole/last.ckpt")
    assert torch.equal(model.state_dict()["net.conv2.weight"], found[0]["average"]["training"]["net.conv2.weight"])


def test_a_file_of_weights_alone_has_the_average(tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
                trainer.save_checkpoint(tmp_path / "all.ckpt")

    model = classifier(ema=0.7)
    run = trainer(Save(), max_epochs=1)
    # After the average's own hook, as callbacks that save come.
    model.configure_callbacks = lambda: [*Classifier.configure_callbacks(model), *run.callbacks[:1]]  # type: ignore
    run.fit(model, Few(batch_size=16))
    weights, everything = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("weights", "all"))
    assert "average" not in weights
    assert differences(weights["state_dict"], everything["state_dict"]) == []
    of_training = everything["average"]["training"]
    assert not torch.equal(everything["state_dict"]["net.conv2.weight"], of_training["net.conv2.weight"])


def test_shared_weights_are_averaged_once(tmp_path: Path) -> None:
    model = classifier(ema=0.5)
    model.net.linear1.bias = model.net.conv1[0].bias = nn.Parameter(torch.zeros(4))  # type: ignore[index, union-attr]
    model.net.linear1.weight = nn.Parameter(torch.randn(4, 32) / 6)  # type: ignore[union-attr]
    model.net.linear2[1] = nn.Linear(4, 10)  # type: ignore[operator, assignment]
    trainer(Resumable(tmp_path), max_epochs=1).fit(model, Few(batch_size=16))
    found = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for state in (found["state_dict"], found["average"]["training"]):
        assert torch.equal(state["net.linear1.bias"], state["net.conv1.0.bias"])
    assert not torch.equal(found["state_dict"]["net.linear1.bias"], found["average"]["training"]["net.linear1.bias"])


@pytest.mark.parametrize("given", ["0", "1", "1.5", "-0.1", ".nan"])
@pytest.mark.usefixtures("empty_folder")
def test_a_decay_that_is_none(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model.ema", given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "model.ema: expected a number between 0 and 1, or null, got " in line


def test_what_an_average_refuses() -> None:
    with pytest.raises(UserError, match=r"model.ema: expected null with trainer.callbacks EMAWeightAveraging, got 0.9"):
        trainer(EMAWeightAveraging(decay=0.9)).fit(classifier(ema=0.9), Few())
    with pytest.raises(UserError, match=r"model.ema: expected weights in float32 or float64, got bfloat16"):
        trainer(precision="bf16-true").fit(classifier("torch", ema=0.9), Few())


@pytest.mark.ddp
def test_several_processes_average_as_one_does(tmp_path: Path) -> None:
    flags = [*FIT, "--model.ema", "0.8"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()
    runs = ranks(2, [*flags, *_batch(100)], together, odd_digits)
    expected = _alone(200, alone, flags)
    _end(runs)
    _same(_left(together), expected)


@pytest.mark.ddp
@pytest.mark.slow
def test_several_processes_go_on_with_the_statistics_of_the_first(tmp_path: Path) -> None:
    """Each process has other running statistics; a resumed run has the first one's from the checkpoint."""
    flags = [*FIT, *_batch(130), "--model.ema", "0.8"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    _end(ranks(2, flags, whole, prepare))
    _end(ranks(2, [*flags, *_event(signal.SIGTERM, 8, 1)], stopped, prepare), 128 + signal.SIGTERM)
    _end(ranks(2, [*flags, "--ckpt_path", "last"], stopped, prepare))
    assert differences(result(whole), result(stopped)) == []
