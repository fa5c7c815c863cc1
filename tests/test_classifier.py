"""The LightningModule: equal curves from either implementation, and what its options do."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from cnn_lightning.classifier import Classifier
from cnn_lightning.data import Digits
from cnn_lightning.errors import UserError


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.values.append(float(outputs["loss"]))


def train(model: Classifier, steps: int, precision: Any = "32-true", **options: Any) -> list[float]:
    losses = Losses()
    trainer = Trainer(
        max_steps=steps,
        precision=precision,
        callbacks=[losses],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **options,
    )
    trainer.fit(model, Digits())
    return losses.values


def classifier(layers: Any, **options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(layers=layers, image_size=8, **options)


MIXES = ["numpy", {"conv1": "numpy", "*": "torch"}, {"loss": "numpy", "pool*": "numpy", "*": "torch"}]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*lr_scheduler.step.*",
    "ignore:.*in eval mode.*",
)


@pytest.mark.parametrize("layers", MIXES, ids=["numpy", "conv1", "loss and pools"])
@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-9), ("32-true", 1e-3)])
def test_loss_curves_are_those_of_torch(layers: Any, precision: Any, tolerance: float) -> None:
    expected = train(classifier("torch"), 100, precision)
    found = train(classifier(layers), 100, precision)
    assert len(found) == 100
    assert expected[-1] < expected[0] / 2
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < tolerance


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "none"])
def test_every_optimizer_and_schedule_learns(optimizer: Any, schedule: Any) -> None:
    lr = 0.05 if optimizer == "sgd" else 0.01
    losses = train(classifier("numpy", optimizer=optimizer, schedule=schedule, lr=lr), 60)
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16), ("16-true", torch.float16)]
)
def test_low_precisions_train(precision: Any, dtype: torch.dtype) -> None:
    # Adam's epsilon is zero in float16, for torch's layers too.
    options = {"lr": 1e-3, "optimizer": "sgd"}
    model = classifier("numpy", **options)
    losses = train(model, 40, precision)
    reference = train(classifier("torch", **options), 40, precision)
    assert next(model.net.parameters()).dtype == dtype
    assert max(abs(a - b) for a, b in zip(losses, reference, strict=True)) < 0.1


def test_float32_never_becomes_float64() -> None:
    model = classifier("numpy")
    seen: set[torch.dtype] = set()
    for parameter in model.net.parameters():
        parameter.register_hook(lambda gradient: seen.add(gradient.dtype))
    train(model, 3)
    assert seen == {torch.float32}


def test_layers_are_not_among_the_saved_hyper_parameters() -> None:
    assert "layers" not in classifier("numpy").hparams


def test_the_report_covers_the_loss() -> None:
    model = classifier({"loss": "numpy", "*": "torch"})
    assert model.report.swapped == ["loss"]
    assert type(model.loss).__module__.startswith("cnn_lightning")


def test_freeze_trains_the_last_layer_alone() -> None:
    model = classifier("numpy", freeze=True)
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    train(model, 5)
    changed = {name for name, value in model.net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"linear2.weight", "linear2.bias"}


def test_predict_yields_class_name_and_confidence() -> None:
    model = classifier("numpy").eval()
    model.class_names = tuple("abcdefghij")
    found = model.predict_step((torch.randn(4, 1, 8, 8), torch.zeros(4)), 0)
    assert found["name"] == ["abcdefghij"[index] for index in found["class"].tolist()]
    assert ((found["confidence"] > 0.1) & (found["confidence"] <= 1)).all()


@pytest.mark.parametrize("name", ["conv1", "linear1"])
def test_a_loss_that_is_no_number_names_step_and_layer(name: str) -> None:
    model = classifier("numpy")

    class Poison(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                with torch.no_grad():
                    getattr(model.net, name).bias[0] = float("nan")

    losses = Poison()
    trainer = Trainer(
        max_steps=5,
        callbacks=[losses],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(UserError, match=rf"step 3: expected a finite loss, got nan; first seen in .*'{name}'"):
        trainer.fit(model, Digits())


def test_weights_and_optimizer_move_between_implementations_in_mid_training() -> None:
    class Swap(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, index: int) -> None:
            pl_module.swap("torch" if trainer.global_step % 10 < 5 else "numpy")

    torch.manual_seed(0)
    expected = train(classifier("torch"), 40, "64-true")
    model = classifier("numpy")
    losses = Losses()
    trainer = Trainer(
        max_steps=40,
        precision="64-true",
        callbacks=[Swap(), losses],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, Digits())
    assert max(abs(a - b) for a, b in zip(losses.values, expected, strict=True)) < 1e-9


def test_auxiliary_heads_take_part_in_the_loss() -> None:
    model = Classifier("googlenet", "torch", num_classes=3, in_channels=3, image_size=64).train()
    outputs = model.net(torch.randn(2, 3, 64, 64))
    labels = torch.tensor([0, 2])
    losses = [model.loss(output, labels) for output in outputs]
    from cnn_lightning.model import total_loss

    total, _ = total_loss(model.net, model.loss, outputs, labels)
    assert isinstance(total, Tensor)
    torch.testing.assert_close(total, losses[0] + 0.3 * losses[1] + 0.3 * losses[2])
