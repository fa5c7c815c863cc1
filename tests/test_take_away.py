"""A network as one file that needs NumPy alone: the same numbers, the same training, and nothing of torch."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from cnn_lightning.classifier import Classifier, from_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.data import Digits
from cnn_lightning.data.pictures import read_picture
from cnn_lightning.errors import UserError
from cnn_lightning.model import least_image_size, net_names, total_loss
from cnn_lightning.portable import __main__ as start
from cnn_lightning.portable import archive, command, optimizers, pictures, training
from cnn_lightning.portable import plan as plans
from cnn_lightning.portable.layers import table
from cnn_lightning.portable.layers.shape import reduced
from cnn_lightning.portable.network import Network
from cnn_lightning.tools.export.numpy import build, sources
from cnn_lightning.tools.export.program import Unequal, export

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*lr_scheduler.step.*", "ignore:.*`isinstance.treespec.*"
)


def trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **options,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained checkpoint, its archive, a folder with NumPy and Pillow alone, and some pictures."""
    root = tmp_path_factory.mktemp("taken")
    torch.manual_seed(0)
    fitting = trainer(max_steps=3)
    fitting.fit(Classifier(image_size=8, channels=(4, 8), hidden=16), Digits())
    fitting.save_checkpoint(root / "best.ckpt")
    export(from_checkpoint(root / "best.ckpt"), root / "net.pyz", "numpy")
    only = root / "only"
    only.mkdir()
    packages = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs", "PIL", "pillow.libs"):
        if (packages / name).exists():
            (only / name).symlink_to(packages / name)
    assert Path(PIL.__file__).parents[1] == packages
    random = np.random.default_rng(0)
    for name in ("3", "7"):
        (root / "set" / name).mkdir(parents=True)
        for index in range(4):
            Image.fromarray(random.integers(0, 256, (9, 12), np.uint8)).save(root / "set" / name / f"{index}.png")
    return root


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the archive."""
    monkeypatch.chdir(tmp_path)
    for name in ("net.pyz", "best.ckpt"):
        shutil.copy(folder / name, tmp_path / name)
    return tmp_path


def process(folder: Path, *args: str, file: str = "net.pyz", **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python that finds NumPy and Pillow alone."""
    environment = {"PYTHONPATH": str(folder / "only"), "PATH": os.environ["PATH"], **variables}
    line = [sys.executable, "-S", file, *args]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=60, check=False)


def call(*args: str, file: str = "net.pyz") -> int:
    """The command in this process."""
    return command.main(Path(file).resolve(), args)


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The pictures of the digits' training, as the Trainer sees them."""
    data = Digits()
    data.setup("fit")
    images, labels = data._splits["train"]
    assert isinstance(images, torch.Tensor)
    return images.numpy(), labels.numpy()


# ---- one file, NumPy alone


def test_a_process_without_torch_predicts_as_the_project_does(folder: Path, here: Path) -> None:
    blocked = subprocess.run(
        [sys.executable, "-S", "-c", "import torch"], env={"PYTHONPATH": str(folder / "only")}, check=False
    )
    assert blocked.returncode == 1
    done = process(folder, "predict", str(folder / "set"), "--top", "2", "--logits", "logits.npy")
    assert (done.returncode, done.stderr) == (0, "")
    files = sorted((folder / "set").rglob("*.png"))
    images = np.stack([read_picture(path, 8, grey=True) for path in files])
    model = from_checkpoint(here / "best.ckpt", "numpy").eval()
    normalised = (torch.from_numpy(images).float() / 255 - model.mean[0]) / model.std[0]
    with torch.no_grad():
        expected = model(normalised)
    np.testing.assert_allclose(np.load("logits.npy"), expected, atol=1e-5)
    best, second = expected.softmax(1).topk(2).values[0].tolist()
    first, other = expected.topk(2).indices[0].tolist()
    assert done.stdout.splitlines()[0] == f"{files[0]}: {first} {best:.2%}, {other} {second:.2%}"


def test_the_file_is_small_and_holds_what_it_needs_alone(here: Path) -> None:
    with zipfile.ZipFile("net.pyz") as file:
        weights = sum(info.compress_size for info in file.infolist() if info.filename.startswith("weights/"))
        names = file.namelist()
        formula = file.read("cnn_lightning/ops/conv.py")
        text = file.read("README.txt").decode()
    assert (here / "net.pyz").stat().st_size - weights < 100_000
    assert formula == (Path(build.__file__).parents[3] / "ops" / "conv.py").read_bytes()
    assert "cnn_lightning/ops/norm.py" not in names
    assert "cnn_lightning/portable/layers/norm.py" not in names
    assert not [name for name in names if "fast" in name or "swap" in name]
    assert "simple_cnn: a trained network of cnn-lightning" in text
    assert "8 x 8 pixels" in text
    assert "LICENSE" in names


def test_all_that_is_loaded_is_in_the_file(folder: Path, here: Path) -> None:
    """Also what is imported inside of functions."""
    done = process(folder, "train", str(folder / "set"), "--batch_size", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("epoch 1: loss ")
    assert done.stdout.splitlines()[-1] == f"file: {here / 'net_trained.pyz'}"
    done = process(folder, "test", str(folder / "set"), file="net_trained.pyz")
    assert done.stdout.startswith("accuracy: ")
    assert done.stdout.endswith(" of 8 pictures\n")


def test_unpacked_it_runs_as_edited(folder: Path, here: Path) -> None:
    with zipfile.ZipFile("net.pyz") as file:
        file.extractall("unpacked")
    (here / "unpacked" / "notes.txt").write_text("mine")
    picture = str(folder / "set" / "3" / "0.png")
    assert process(folder, "predict", picture, file="unpacked").stdout == process(folder, "predict", picture).stdout
    formula = here / "unpacked" / "cnn_lightning" / "ops" / "linear.py"
    formula.write_text(formula.read_text().replace("y = (_rows(x)", "y = 0 * (_rows(x)"))
    args = ["predict", picture, "--logits", "logits.npy"]
    assert process(folder, *args, file="unpacked").returncode == 0
    bias = np.load("unpacked/weights/linear2.bias.npy")
    np.testing.assert_array_equal(np.load("logits.npy")[0], bias)
    assert process(folder, "train", str(folder / "set"), file="unpacked").returncode == 0
    with zipfile.ZipFile("unpacked_trained.pyz") as file:
        assert "notes.txt" not in file.namelist()
        assert b"y = 0 * (_rows(x)" in file.read("cnn_lightning/ops/linear.py")


def test_an_edited_formula_is_exported_as_edited(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the file is compared with the project's layers, which this edit did not reach."""
    read = sources._read

    def edited(module: str) -> bytes:
        text = read(module)
        return text.replace(b"y + bias", b"y - bias") if module == "cnn_lightning.ops.linear" else text

    monkeypatch.setattr(sources, "_read", edited)
    assert main(["export", "--ckpt_path", "best.ckpt", "--format", "numpy", "--output", "net.pyz"]) == 1
    assert "failed: the exported network's logits differ" in capsys.readouterr().out
    assert call("layers") == 0  # the file before is still there
    with pytest.raises(Unequal):
        export(from_checkpoint("best.ckpt"), here / "other.pyz", "numpy")
    assert not (here / "other.pyz").exists()


def test_the_command_says_what_it_did(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--ckpt_path", "best.ckpt", "--format", "numpy"]) == 0
    checked, file = capsys.readouterr().out.splitlines()
    assert checked.startswith("checked: a process with NumPy alone gives the NumPy layers' logits up to ")
    assert file == "file: best.pyz"
    again = Path("best.pyz").read_bytes()
    assert main(["export", "--ckpt_path", "best.ckpt", "--format", "numpy"]) == 0
    assert Path("best.pyz").read_bytes() == again


# ---- what it prints


def test_layers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("layers") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["conv1", "conv2d", "N", "x", "4", "x", "8", "x", "8", "40", "cnn_lightning/ops/conv.py"]
    assert lines[2][:2] == ["relu1", "relu"]
    assert lines[7] == ["flatten", "reshape", "N", "x", "32", "-", "-"]
    assert lines[-1][:3] == ["simple_cnn:", "1,034", "parameters,"]


def test_without_a_command_it_says_what_it_can(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    shown = capsys.readouterr().out
    assert "python net.pyz predict picture.png --top 3" in shown
    assert "go on training, and write a new file" in shown


def test_layers_loads_neither_pillow_nor_the_project(folder: Path, here: Path) -> None:
    code = "import sys, runpy; sys.argv = ['net.pyz', 'layers']\ntry: runpy.run_path('net.pyz', run_name='__main__')\n"
    code += "except SystemExit: print(sorted(name for name in sys.modules if name in ('PIL', 'torch', 'lightning')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("fit", ["squeeze", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_those_of_the_project(fit: Any, channels: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"L": (9, 14), "RGB": (9, 14, 3), "RGBA": (14, 9, 4), "LA": (7, 7, 2)}
    files = []
    for mode, shape in shapes.items():
        files.append(tmp_path / f"{mode}.png")
        Image.fromarray(random.integers(0, 256, shape, np.uint8), mode).save(files[-1])
    files.append(tmp_path / "wide.png")
    Image.fromarray(random.integers(0, 5000, (9, 9), np.uint16)).save(files[-1])
    files.append(tmp_path / "turned.jpg")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(random.integers(0, 256, (9, 14, 3), np.uint8)).save(files[-1], exif=turned)
    plan = a_plan(in_channels=channels, fit=fit, value_range=(0.0, 4095.0), image_size=8)
    expected = [read_picture(path, 8, channels == 1, (0.0, 4095.0), fit) for path in files]
    np.testing.assert_array_equal(pictures.read(files, plan), np.stack(expected))


# ---- training goes on


def test_twenty_steps_are_those_of_the_trainer(here: Path) -> None:
    """One epoch of the digits, 20 batches of 64 in the same order."""
    images, labels = digits()
    np.savez("digits.npz", images=images, labels=labels)
    options: Any = {"optimizer": "sgd", "lr": 0.02, "weight_decay": 1e-3, "schedule": "none"}
    model = Classifier(image_size=8, channels=(4, 8), hidden=16, **options)
    model.load_state_dict(from_checkpoint("best.ckpt").state_dict())
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    fitting = trainer(max_epochs=1)
    fitting.fit(model, Digits(batch_size=64))
    assert fitting.global_step == 20
    line = "train digits.npz --epochs 1 --batch_size 64 --optimizer sgd --lr 0.02 --weight_decay 1e-3 --output new.pyz"
    assert call(*line.split()) == 0
    _, arrays, _ = archive.load(here / "new.pyz")
    for name, value in model.net.state_dict().items():
        moved = float((value - before[name]).abs().max())
        assert moved > 1e-3, name
        np.testing.assert_allclose(arrays[name], value, rtol=0, atol=1e-4 * moved, err_msg=name)
    _, old, _ = archive.load(here / "net.pyz")
    np.testing.assert_array_equal(old["conv1.weight"], before["conv1.weight"])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_are_torchs(name: str) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((4, 5))
    theirs = torch.from_numpy(weight.copy()).requires_grad_()
    kinds: dict[str, tuple[Any, Callable[..., torch.optim.Optimizer]]] = {
        "sgd": (optimizers.SGD(0.1, 0.01, 0.9), lambda p, **o: torch.optim.SGD(p, momentum=0.9, **o)),
        "adam": (optimizers.Adam(0.1, 0.01, decoupled=False), torch.optim.Adam),
        "adamw": (optimizers.Adam(0.1, 0.01, decoupled=True), torch.optim.AdamW),
    }
    ours, make = kinds[name]
    optimizer = make([theirs], lr=0.1, weight_decay=0.01)
    for _ in range(5):
        gradient = random.standard_normal((4, 5))
        theirs.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        ours.step({"w": weight}, {"w": gradient})
    np.testing.assert_allclose(weight, theirs.detach(), rtol=1e-12)


def test_a_kill_leaves_the_old_file_and_a_whole_new_one(folder: Path, here: Path) -> None:
    images, labels = digits()
    np.savez("digits.npz", images=images[:256], labels=labels[:256])
    old = (here / "net.pyz").read_bytes()
    environment = {"PYTHONPATH": str(folder / "only"), "PATH": os.environ["PATH"]}
    line = [sys.executable, "-S", "net.pyz", "train", "digits.npz", "--epochs", "1000", "--output", "new.pyz"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, env=environment, text=True) as running:
        assert running.stdout is not None
        for _ in range(3):
            assert running.stdout.readline().startswith("epoch ")
        running.send_signal(signal.SIGKILL)
    assert (here / "net.pyz").read_bytes() == old
    assert start.problem(str(here / "new.pyz")) == ""
    assert process(folder, "layers", file="new.pyz").returncode == 0


def test_a_full_disk_leaves_the_file_before(
    folder: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archive, "fill", full)
    (here / "new.pyz").write_text("the one before")
    assert call("train", str(folder / "set"), "--output", "new.pyz") == 2
    assert capsys.readouterr().err == "error: --output: can't write to new.pyz: No space left on device\n"
    assert (here / "new.pyz").read_text() == "the one before"
    assert not list(here.glob(".*"))


def test_ctrl_c_says_what_is_kept(
    here: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, count = training.step, iter(range(100))

    def interrupted(*args: Any) -> float:
        if next(count) == 3:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(training, "step", interrupted)
    assert call("train", str(folder / "set"), "--epochs", "9", "--batch_size", "4", "--output", "new.pyz") == 130
    assert "stopped: new.pyz has the weights after epoch 1" in capsys.readouterr().err
    monkeypatch.setattr(training, "step", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert call("train", str(folder / "set"), "--output", "newer.pyz") == 130
    assert "stopped: nothing was written" in capsys.readouterr().err


def test_frozen_layers_stay() -> None:
    model = normalised("simple_cnn", 8, channels=(4,), hidden=8, freeze=True)
    model.net.get_parameter("linear2.bias").requires_grad_(False)
    plan, arrays = build.plan_of(model)
    assert plan.trainable == ("linear2.weight",)
    network = Network(plan, {name: array.copy() for name, array in arrays.items()})
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    training.step(network, optimizers.SGD(0.1, 0.0, 0.9), images, np.arange(4), np.random.default_rng(0))
    changed = {name for name, array in network.arrays.items() if not np.array_equal(array, arrays[name])}
    assert changed == set(plan.trainable)


def test_dropout_is_seeded_and_keeps_the_mean() -> None:
    for along, shape in (("all", (200, 50)), ("batch", (4000, 2)), ("none", (3, 2))):
        layer = table.make("dropout", {"p": 0.25, "along": along}, {})
        layer.training, results = True, []
        for seed in (0, 0, 1):
            layer.random = np.random.default_rng(seed)
            results.append(layer.forward(np.ones(shape)))
        assert np.array_equal(results[0], results[1])
        assert set(np.unique(results[0])) <= {0, 1 / 0.75}
        if along != "none":
            assert abs(results[0].mean() - 1) < 0.05
            assert not np.array_equal(results[0], results[2])
        (grad,) = layer.backward(np.ones(shape))
        assert np.array_equal(grad, results[2])
        layer.training = False
        assert np.array_equal(layer.forward(np.ones(shape)), np.ones(shape))


# ---- networks of torchvision


def normalised(name: str, size: int, **options: Any) -> Classifier:
    """A Classifier with random weights everywhere, and nothing that is drawn in training."""
    torch.manual_seed(0)
    model = Classifier(name, "torch", num_classes=5, in_channels=3, image_size=size, **options)
    model.mean, model.std = (0.5,) * 3, (0.25,) * 3
    with torch.no_grad():
        for key, parameter in model.net.named_parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)  # heads that begin as zeros
            if key.endswith("layer_scale"):
                parameter.fill_(0.3)
        module: Any
        for module in model.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.7, 1.4)
            if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
                module.p = 0.0
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
    return model


def compare(name: str, size: int) -> None:
    """Logits, loss, every gradient and the running statistics in float64, against native layers."""
    model = normalised(name, size).double()
    plan, arrays = build.plan_of(model)
    network = Network(plans.read(plan.text()), {key: array.copy() for key, array in arrays.items()})
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    labels = torch.tensor([1, 4, 0])
    with torch.no_grad():
        expected = model.eval()(images).numpy()
    np.testing.assert_allclose(network.logits(images.numpy()), expected, rtol=0, atol=1e-10 * np.abs(expected).max())

    model.train()
    loss, _ = total_loss(model.net, model.loss, model.net(images), labels)
    loss.backward()
    found: dict[str, NDArray[Any]] = {}

    class Kept:
        def step(self, arrays: dict[str, Any], gradients: dict[str, Any]) -> None:
            found.update(gradients)

    value = training.step(network, Kept(), images.numpy(), labels.numpy(), np.random.default_rng(0))
    assert value == pytest.approx(loss.item(), rel=1e-7)
    gradients = {key: p.grad.numpy() for key, p in model.net.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for key, gradient in gradients.items():
        scale = max(np.abs(gradient).max(), 1e-3 * largest)
        np.testing.assert_allclose(found[key], gradient, rtol=0, atol=1e-6 * scale, err_msg=key)
    for key, buffer in model.net.state_dict().items():
        if "running" in key or "num_batches" in key:
            np.testing.assert_allclose(network.arrays[key], buffer, rtol=0, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(("name", "size"), [("resnet18", 32), ("mobilenet_v3_small", 32)])
def test_networks_compute_torchs_numbers(name: str, size: int) -> None:
    compare(name, size)


def test_a_step_with_class_weights_is_torchs() -> None:
    weights = [0.5, 0.0, 2.0, *[1.0] * 7]
    model = Classifier(
        image_size=8, channels=(4,), hidden=8, class_weights=weights, label_smoothing=0.1, layers="torch"
    )
    model.mean, model.std = (0.5,), (0.5,)
    model.double()
    plan, arrays = build.plan_of(model)
    network = Network(plan, {name: array.copy() for name, array in arrays.items()})
    ours, theirs = optimizers.SGD(0.1, 0.0, 0.9), torch.optim.SGD(model.parameters(), 0.1, 0.9)
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    loss = model.loss(model.net(images), torch.tensor([0, 1, 2, 2]))
    loss.backward()
    theirs.step()
    random = np.random.default_rng(0)
    assert training.step(network, ours, images.numpy(), np.array([0, 1, 2, 2]), random) == pytest.approx(loss.item())
    for name, value in model.net.state_dict().items():
        np.testing.assert_allclose(network.arrays[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
    # Pictures of which none counts: no loss, and no gradient.
    assert training.step(network, optimizers.SGD(0.1, 0.0, 0.0), images.numpy(), np.array([1] * 4), random) == 0
    for name, value in model.net.state_dict().items():
        np.testing.assert_allclose(network.arrays[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_two_steps_are_torchs() -> None:
    """In float64, because normalisation of a small batch enlarges what rounding changes."""
    model = normalised("mobilenet_v3_small", 32).double()
    plan, arrays = build.plan_of(model)
    network = Network(plan, {name: array.copy() for name, array in arrays.items()})
    ours, theirs = optimizers.SGD(0.01, 1e-4, 0.9), torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)
    for _ in range(2):
        images, labels = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
        theirs.zero_grad()
        loss = model.loss(model.net(images), labels)
        loss.backward()
        theirs.step()
        value = training.step(network, ours, images.numpy(), labels.numpy(), np.random.default_rng(0))
        assert value == pytest.approx(loss.item(), rel=1e-9)
    for name, value_now in model.net.state_dict().items():
        np.testing.assert_allclose(network.arrays[name], value_now, rtol=1e-7, atol=1e-9, err_msg=name)


class Odd(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x.flatten(1), 1)[:, :10]


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)[:, :10]
        return x if x.sum() > 0 else -x


class Rows(nn.Module):
    index: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 10))
        self.register_buffer("index", torch.tensor([[3, 1]]))
        self.plain = torch.randn(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.table[self.index.view(-1)]
        return x.flatten(1)[:, :10] * rows[0] + rows[1] * self.plain


def test_tensors_that_are_no_parameters_are_taken_and_leave_no_trace(here: Path) -> None:
    model = from_checkpoint("best.ckpt")
    model.net = nn.Sequential(Rows())
    first, second = build.plan_of(model), build.plan_of(model)
    assert first[0] == second[0]
    assert not [name for name in vars(model.net) if name.startswith("_tensor_constant")]
    plan, arrays = first
    assert plan.trainable == ("0.table",)
    images = torch.randn(3, 1, 8, 8)
    network = Network(plan, arrays)
    with torch.no_grad():
        np.testing.assert_allclose(network.logits(images.numpy()), model.net(images), rtol=1e-6)
    model.net(images).sum().backward()
    (y,) = network.outputs(images.numpy(), np.random.default_rng(0))
    gradients = network.gradients([np.ones_like(y)])
    expected = model.net.get_parameter("0.table").grad
    assert expected is not None
    np.testing.assert_allclose(gradients["0.table"], expected, rtol=1e-5)


NETS: list[tuple[nn.Module, str]] = [
    (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.RReLU()), r"the layer 2 \(RReLU\)"),
    (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")), "padding_mode 'circular' in 0"),
    (nn.Sequential(Odd(), nn.Linear(10, 10)), "the function cumsum in 0"),
    (nn.Sequential(Branching(), nn.Linear(10, 10)), "can't be exported"),
]


@pytest.mark.parametrize(("net", "words"), NETS, ids=[words for _, words in NETS])
def test_other_networks_are_refused_in_one_line(net: nn.Module, words: str, here: Path) -> None:
    model = from_checkpoint("best.ckpt")
    model.net = net
    with pytest.raises(UserError, match=rf"^--format: .*{words}") as error:
        build.plan_of(model)
    assert "\n" not in str(error.value)


def test_a_training_with_data_of_its_own_is_refused() -> None:
    with pytest.raises(UserError, match=r"^--format: expected for numpy a checkpoint that keeps the normalisation"):
        build.plan_of(Classifier(image_size=8))


LARGE = 60e6
"""Networks with more parameters are recorded alone."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [name for name in net_names() if name != "simple_cnn"])
def test_all_networks_of_torchvision(name: str) -> None:
    least = least_image_size(name)
    size = 224 if name == "maxvit_t" else 2 * least if name.startswith("vit") else max(32, least)
    size = 64 if name.startswith(("swin", "shufflenet", "regnet")) else size  # smaller ones enlarge rounding
    if name.startswith("swin_v2"):
        with pytest.raises(
            UserError,
            match=r"^--format: numpy has no formula for shifted_window_attention with logit_scale in features",
        ):
            build.plan_of(normalised(name, size))
        return
    model = normalised(name, size)
    if sum(parameter.numel() for parameter in model.parameters()) > LARGE:
        plan, arrays = build.plan_of(model)
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            expected = model.eval()(images).numpy()
        found = Network(plan, arrays).logits(images.numpy())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    else:
        compare(name, size)


@pytest.mark.slow
def test_a_cold_start_takes_at_most_half_a_second(folder: Path, here: Path) -> None:
    """Of the processor's time, which other programs don't change."""
    import resource

    for args in (["layers"], ["predict", str(folder / "set" / "3" / "0.png")]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert process(folder, *args).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_an_array_that_was_broadcast_gets_the_sum() -> None:
    grad = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(reduced(grad, (3, 1)), grad.sum((0, 2))[:, None])
    assert reduced(grad, (2, 3, 4)) is grad


# ---- bad input: one line, exit code 2


def a_plan(**values: Any) -> plans.Plan:
    known: dict[str, Any] = {
        "nodes": (plans.Node("relu", "activation", (0,), {}, {"function": "relu"}),),
        "outputs": (1,),
        "weights": (1.0,),
        "trainable": (),
        "net": "simple_cnn",
        "class_names": ("a", "b"),
        "mean": (0.5,),
        "std": (0.5,),
        "in_channels": 1,
        "image_size": 8,
        "fit": "squeeze",
        "value_range": None,
        "label_smoothing": 0.0,
        "class_weights": None,
        "written_by": "a test",
    }
    return plans.Plan(**{**known, **values})


MISTAKES: list[tuple[Sequence[str], str]] = [
    (["predict", "no.png"], "picture: expected a file or a folder, found none at 'no.png'"),
    (["predict", "text.png"], "text.png: expected a picture, but it is none that can be read"),
    (["predict", "empty"], "picture: expected pictures in the folder 'empty', found none"),
    (["predict", "colour.npz"], "images: expected uint8 (N, 1, 8, 8), got uint8 (2, 3, 8, 8)"),
    (["predict", "picture.png", "--top", "0"], "--top: expected a whole number of at least 1, got '0'"),
    (["predict", "picture.png", "--logits", "no/l.npy"], "--logits: expected a file in a folder that exists"),
    (["predict"], "PICTURE"),
    (["fly"], "invalid choice: 'fly'"),
    (["test", "empty"], "data: expected a folder for each class in 'empty', found none"),
    (["train", "no"], "data: expected a folder with a folder for each class, or a .npz file, got 'no'"),
    (["train", "cats"], "data: expected folders with the names of classes (0, 1, 2, 3, 4, 5, 6, 7, ...), got 'cat'"),
    (["train", "hollow"], "data: expected pictures in the class folders of 'hollow', found none"),
    (["train", "no.npz"], "expected a file, found none"),
    (["train", "text.npz"], "text.npz: expected a .npz file of arrays"),
    (["train", "objects.npz"], "objects.npz: expected a .npz file of arrays"),
    (["train", "unlabelled.npz"], "expected the arrays images and labels, found no labels"),
    (["train", "eleven.npz"], "labels: expected classes from 0 to 9, got 10"),
    (["train", "floats.npz"], "labels: expected 2 integers, got float64 (2,)"),
    (["train", "good.npz", "--lr", "nan"], "--lr: expected a number above 0, got 'nan'"),
    (["train", "good.npz", "--lr", "1e30"], "--lr: expected a rate with which the loss stays finite"),
    (["train", "good.npz", "--momentum", "1"], "--momentum: expected a number from 0 to 1, without 1, got '1'"),
    (["train", "good.npz", "--epochs", "0"], "--epochs: expected a whole number of at least 1, got '0'"),
    (["train", "good.npz", "--seed", "-1"], "--seed: expected a whole number"),
    (["train", "good.npz", "--optimizer", "lion"], "--optimizer: invalid choice: 'lion'"),
    (["train", "good.npz", "--output", "new.zip"], "--output: expected a name that ends in .pyz"),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("args", "line"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_a_mistake_is_one_line(args: Sequence[str], line: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("empty", "hollow/3", "cats/cat"):
        (here / name).mkdir(parents=True)
    for name in ("text.png", "text.npz"):
        (here / name).write_text("no picture")
    grey = np.zeros((2, 1, 8, 8), np.uint8)
    Image.new("L", (8, 8)).save("picture.png")
    np.savez("colour.npz", images=np.zeros((2, 3, 8, 8), np.uint8))
    np.savez("unlabelled.npz", images=grey)
    np.savez("eleven.npz", images=grey, labels=np.array([0, 10]))
    np.savez("floats.npz", images=grey, labels=np.array([0.0, 1.0]))
    np.savez("objects.npz", images=np.array([print], object), labels=np.array([0]))
    np.savez("good.npz", images=np.arange(128, dtype=np.uint8).reshape(2, 1, 8, 8), labels=np.array([0, 1]))
    before = sorted(path.name for path in here.iterdir())
    extra = ["--epochs", "9"] if "1e30" in args else []
    assert call(*args, *extra) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert line in shown.err
    assert shown.err.count("\n") == 1
    left = sorted(path.name for path in here.iterdir())
    assert left == before if "1e30" not in args else set(left) - set(before) <= {"net_trained.pyz"}


def test_any_changed_byte_is_found(folder: Path, here: Path) -> None:
    content = bytearray((here / "net.pyz").read_bytes())
    with zipfile.ZipFile("net.pyz") as file:
        places = {info.filename: info.header_offset + 200 for info in file.infolist()}
    for name in ("plan.json", "weights/conv2.weight.npy", "cnn_lightning/ops/conv.py"):
        changed = bytearray(content)
        changed[places[name]] ^= 4
        (here / "changed.pyz").write_bytes(changed)
        assert "it is damaged" in start.problem(str(here / "changed.pyz")), name
    done = process(folder, "layers", file="changed.pyz")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("its SHA-256 is not the one that was written with it\n")
    assert done.stderr.count("\n") == 1


def test_old_versions_and_missing_packages_are_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(here / "net.pyz")
    assert start.problem(file) == ""
    with monkeypatch.context() as patch:
        patch.setattr(np, "__version__", "1.26.4")
        assert start.problem(file) == "NumPy: expected 2.1 or newer, got 1.26.4"
        patch.setitem(sys.modules, "numpy", None)
        assert start.problem(file) == "NumPy: expected 2.1 or newer, found none; pip install numpy"
        patch.setattr(start, "LEAST_PYTHON", (99, 1))
        assert start.problem(file).startswith("Python: expected 99.1 or newer, got 3.")
    Image.new("L", (8, 8)).save("picture.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert call("predict", "picture.png") == 2
    assert capsys.readouterr().err == "error: Pillow: expected it, to read pictures, found none; pip install pillow\n"


BAD_PLANS = {
    "an operation that is not in the table": (("activation", "os.system"), "expected a known operation"),
    "an input that comes later": (('"inputs": [0]', '"inputs": [7]'), "expected inputs from nodes before it"),
    "another format": (('"format": 1', '"format": 2'), "expected format 1"),
    "an unknown field": (('"net":', '"run": "rm", "net":'), "unexpected keyword argument"),
    "no JSON": (("{", ""), "Extra data"),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_a_plan_is_data(name: str) -> None:
    (before, after), words = BAD_PLANS[name]
    text = a_plan().text()
    assert plans.read(text) == a_plan()
    with pytest.raises(ValueError, match=words):
        plans.read(text.replace(before, after, 1))


def test_other_numbers_of_channels_take_arrays() -> None:
    with pytest.raises(UserError, match=r"^picture: expected a \.npz file for a network of 4 channels, got a picture$"):
        pictures.read([Path("a.png")], a_plan(in_channels=4))


def test_one_value_for_a_channel_has_no_variance() -> None:
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layer = table.make("batch_norm", {"eps": 1e-5, "momentum": 0.1}, dict.fromkeys(names, np.ones(3)))
    assert np.isfinite(layer.forward(np.ones((1, 3, 1, 1)))).all()
    layer.training = True
    with pytest.raises(UserError, match=r"^--batch_size: expected more than one value for each channel"):
        layer.forward(np.ones((1, 3, 1, 1)))


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_of_classes_in_any_language(encoding: str, folder: Path, here: Path) -> None:
    plan, arrays, files = archive.load(here / "net.pyz")
    archive.fill(here / "other.pyz", files, replace(plan, class_names=("Äpfel", "猫") * 5), arrays)
    picture = str(folder / "set" / "3" / "0.png")
    done = process(folder, "predict", picture, "--top", "10", file="other.pyz", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("猫" if encoding == "utf-8" else r"\u732b") in done.stdout


def test_an_archive_that_lacks_something_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, arrays, files = archive.load(here / "net.pyz")
    arrays.pop("conv1.bias")
    archive.fill(here / "less.pyz", files, plan, arrays)
    assert call("layers", file="less.pyz") == 2
    assert "it is damaged: expected the array conv1.bias, found none" in capsys.readouterr().err
    (here / "cut.pyz").write_bytes((here / "net.pyz").read_bytes()[:5000])
    assert call("layers", file="cut.pyz") == 2
    assert "it is damaged: File is not a zip file" in capsys.readouterr().err


def test_batch_is_for_the_other_formats(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--ckpt_path", "best.ckpt", "--format", "numpy", "--batch", "3"]) == 2
    assert "--batch: expected dynamic with --format numpy, which takes any number, got 3" in capsys.readouterr().err
    assert main(["export", "--ckpt_path", "best.ckpt", "--format", "numpy", "--output", "net.zip"]) == 2
    assert "--output: expected a name that ends in .pyz" in capsys.readouterr().err
