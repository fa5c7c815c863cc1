"""The two programs without Lightning: from one seed, four ways to train give the same weights."""

import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from cnn_lightning.classifier import Classifier
from cnn_lightning.data import Digits
from cnn_lightning.plain import flags, images, train_numpy, train_torch

STEPS = -(-1258 // 64)
"""Of an epoch of digits in batches of 64."""


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))


def lightning(layers: Any, optimizer: Any, lr: float, start: Path, end: Path) -> list[float]:
    model = Classifier(
        layers=layers, image_size=8, optimizer=optimizer, lr=lr, weight_decay=0.0, schedule="none"
    ).double()
    model.net.load_state_dict({name: torch.from_numpy(value) for name, value in np.load(start).items()})
    losses = Losses()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        precision="64-true",
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, Digits(batch_size=64, seed=3))
    np.savez(end, **{name: value.numpy() for name, value in model.net.state_dict().items()})
    return losses.values


@pytest.mark.filterwarnings("ignore:.*does not have many workers|.*LeafSpec.*|.*smaller than the logging interval")
@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 0.01), ("sgd", 0.05)])
def test_four_ways_are_one(optimizer: str, lr: float, tmp_path: Path) -> None:
    start = tmp_path / "init.npz"
    start_state: dict[str, Any] = train_numpy.SimpleCNN(image_size=8, seed=5).state_dict()
    np.savez(start, **start_state)
    ends = {way: tmp_path / f"{way}.npz" for way in ("numpy", "torch", "lightning torch", "lightning numpy")}
    options = ["--epochs", "2", "--batch_size", "64", "--lr", str(lr), "--seed", "3", "--dtype", "float64"]
    options += ["--optimizer", optimizer, "--weights", str(start)]
    curves = {
        "numpy": train_numpy.train([*options, "--save", str(ends["numpy"])]),
        "torch": train_torch.train([*options, "--save", str(ends["torch"])]),
        "lightning torch": lightning("torch", optimizer, lr, start, ends["lightning torch"]),
        "lightning numpy": lightning("numpy", optimizer, lr, start, ends["lightning numpy"]),
    }
    first = np.array(curves["numpy"])
    assert first.shape == (2 * STEPS,)
    assert first[-1] < first[0] / 4
    for way, curve in curves.items():
        np.testing.assert_allclose(curve, first, rtol=0, atol=1e-9, err_msg=way)
    found = {way: dict(np.load(end)) for way, end in ends.items()}
    for way, state in found.items():
        assert list(state) == list(found["numpy"])
        for name, value in state.items():
            np.testing.assert_allclose(value, found["numpy"][name], rtol=0, atol=1e-9, err_msg=f"{way} {name}")


def test_weights_go_from_any_to_any(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).standard_normal((4, 1, 28, 28)).astype(np.float32)
    ours = train_numpy.SimpleCNN(seed=1)
    for net in (train_torch.SimpleCNN(), Classifier(layers="torch").net, Classifier(layers="numpy").net):
        net.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
        predictions = net(torch.from_numpy(pictures)).detach().numpy()
        np.testing.assert_allclose(predictions, ours.forward(pictures), rtol=1e-5, atol=1e-6)


# ---- the NumPy program by itself


def test_the_loop_by_hand() -> None:
    data = images.read("digits", "", "float32")
    model, optimizer = train_numpy.SimpleCNN(image_size=8), train_numpy.Adam(lr=0.01)
    pictures, labels = (array[:50] for array in data.train)
    losses = []
    for _ in range(15):
        predictions = model.forward(pictures)
        loss, grad = train_numpy.cross_entropy_loss(predictions, labels)
        model.backward(grad)
        optimizer.step(model)
        losses.append(loss)
    assert losses[-1] < 0.2 < losses[0]
    assert model.conv1.grad_weights.shape == model.conv1.weights.shape
    assert len(model.layers) == 10


@pytest.mark.parametrize(
    ("ours", "native", "shape"),
    [
        (train_numpy.Conv2D(2, 3, 3, padding=1), torch.nn.Conv2d(2, 3, 3, padding=1), (2, 2, 5, 6)),
        (train_numpy.ReLU(), torch.nn.ReLU(), (2, 3)),
        (train_numpy.MaxPool2D(2), torch.nn.MaxPool2d(2), (2, 3, 5, 4)),
        (train_numpy.Flatten(), torch.nn.Flatten(), (2, 3, 4, 5)),
        (train_numpy.Linear(4, 3), torch.nn.Linear(4, 3), (2, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_layer_is_torchs(ours: Any, native: torch.nn.Module, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal(shape).astype(np.float32)
    if hasattr(ours, "weights"):
        native.load_state_dict({"weight": torch.from_numpy(ours.weights), "bias": torch.from_numpy(ours.bias)})
    there = torch.from_numpy(x).requires_grad_()
    expected = native(there)
    y = ours.forward(x)
    grad = random.standard_normal(y.shape).astype(np.float32)
    expected.backward(torch.from_numpy(grad))
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-5, atol=1e-6)
    assert there.grad is not None
    np.testing.assert_allclose(ours.backward(grad), there.grad, rtol=1e-5, atol=1e-6)
    for name, parameter in native.named_parameters():
        found = ours.grad_weights if name == "weight" else ours.grad_bias
        assert parameter.grad is not None
        np.testing.assert_allclose(found, parameter.grad, rtol=1e-5, atol=1e-6)


def test_the_same_batches_as_the_data_module() -> None:
    module = Digits(batch_size=100, seed=4)
    module.setup()
    loader = module.train_dataloader()
    loader.set_epoch(2)
    ours = images.Batches(images.read("digits", "", "float32").train, 100, 4, 2)
    assert len(ours) == len(loader)
    for (pictures, labels), (expected, expected_labels) in zip(ours, loader, strict=True):
        np.testing.assert_array_equal(pictures, expected.numpy())
        np.testing.assert_array_equal(labels, expected_labels.numpy())


def test_torch_is_never_loaded() -> None:
    code = (
        "import sys; from cnn_lightning.plain import train_numpy; train_numpy.train(['--epochs', '1']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'torchvision')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "test_acc: 0." in done.stdout


# ---- flags and files


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A tiny MNIST."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for prefix, n in (("train", 240), ("t10k", 40)):
        labels = np.arange(n, dtype=np.uint8) % 10
        pictures = (random.integers(0, 40, (n, 28, 28)) + labels[:, None, None] * 20).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, n, 28, 28) + pictures.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, n) + labels.tobytes())
    return tmp_path


PROGRAMS = [train_numpy, train_torch]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__.rpartition(".")[2])
def test_mnist_without_torchvision(program: types.ModuleType, mnist: Path, capsys: Any) -> None:
    losses = program.train(["--data", "mnist", "--root", str(mnist), "--epochs", "3", "--lr", "0.003"])
    assert len(losses) == 3 * -(-220 // 32)
    assert "epoch 3: loss" in capsys.readouterr().out


BAD = [
    (["--epochs", "0"], "--epochs: expected a whole number of at least 1, got '0'"),
    (["--lr", "nan"], "--lr: expected a number above 0"),
    (["--seed", "-1"], "--seed: expected a whole number from 0"),
    (["--data", "letters"], "--data: invalid choice: 'letters'"),
    (["--bogus"], "unrecognized arguments: --bogus"),
    (["--weights", "nowhere.npz"], "--weights: expected an .npz file of weights, got nowhere.npz"),
    (["--weights", "text.npz"], "--weights: expected an .npz file"),
    (["--weights", "single.npy"], "--weights: expected an .npz file"),
    (["--weights", "cut.npz"], "--weights: expected an .npz file"),
    (["--weights", "flipped.npz"], "--weights: expected an .npz file"),
    (["--weights", "other.npz"], "--weights: expected conv1.weight, conv1.bias"),
    (["--weights", "large.npz"], "--weights: expected floating (16, 1, 3, 3) for conv1.weight"),
    (["--save", "weights.pt"], "--save: expected a name that ends in .npz, got 'weights.pt'"),
    (["--save", "no/such/weights.npz"], "--save: expected a file in a folder that exists, got"),
    (["--data", "mnist", "--root", "."], "expected a folder that holds MNIST/raw"),
    (["--device", "cuda"], "--device: expected"),
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__.rpartition(".")[2])
@pytest.mark.parametrize(("args", "message"), BAD, ids=[" ".join(args) for args, _ in BAD])
def test_a_mistake_is_one_line_and_exit_2(
    program: types.ModuleType, args: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    if args[0] == "--device" and program is train_torch and torch.cuda.is_available():
        pytest.skip("torch sees a GPU here")
    monkeypatch.chdir(tmp_path)
    Path("text.npz").write_text("no archive")
    np.save("single.npy", np.zeros(3))
    np.savez("other.npz", a=np.zeros(3))
    whole = bytearray(Path("other.npz").read_bytes())
    Path("cut.npz").write_bytes(whole[: len(whole) // 2])
    whole[150] ^= 255
    Path("flipped.npz").write_bytes(whole)
    large: dict[str, Any] = {
        name: np.zeros((2, *value.shape)) for name, value in train_numpy.SimpleCNN().state_dict().items()
    }
    np.savez("large.npz", **large)
    with pytest.raises(SystemExit) as stop:
        flags.run(program.train, args)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_the_flags_are_the_same(capsys: Any) -> None:
    texts = []
    for program in PROGRAMS:
        with pytest.raises(SystemExit) as stop:
            program.train(["--help"])
        assert stop.value.code == 0
        texts.append(capsys.readouterr().out.partition("options:")[2])
    of_numpy, of_torch = texts
    assert of_numpy.startswith(of_torch.rstrip())
    assert of_numpy.removeprefix(of_torch.rstrip()).split()[0] == "--fast"


def test_interrupted() -> None:
    def train(args: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        flags.run(train)
    assert stop.value.code == 130
