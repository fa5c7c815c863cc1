"""Networks for other programs: written whole, with what they must know, and only if they equal the NumPy layers."""

import errno
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from lightning.pytorch import Trainer

import cnn_lightning.tools.export.formats as formats
import cnn_lightning.tools.export.program as exporting
from cnn_lightning.classifier import Classifier, from_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.data import Digits
from cnn_lightning.layers.bridge import host
from cnn_lightning.tools.export.program import EXTRA_FILE, Unequal, export

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*lr_scheduler.step.*"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(Classifier(image_size=8, channels=(4, 8), hidden=16), Digits())
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def here(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.ckpt").write_bytes(checkpoint.read_bytes())
    return tmp_path


def logits(path: Path, images: torch.Tensor) -> torch.Tensor:
    """Those of a file, as a program without cnn_lightning gets them."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(images)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_the_file_computes_what_the_numpy_layers_compute_for_any_batch(
    kind: Any, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--ckpt_path", "best.ckpt", "--format", kind]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in out] == ["checked", "file"]
    assert sorted(path.name for path in here.iterdir()) == sorted(["best.ckpt", f"best.{kind}"])
    model = from_checkpoint("best.ckpt", "numpy").eval()
    for n in (1, 2, 7):
        images = torch.randn(n, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(logits(here / f"best.{kind}", images), model(images), rtol=1e-4, atol=1e-5)


def test_onnx_holds_names_and_normalisation_and_is_valid(here: Path) -> None:
    assert main(["export", "--ckpt_path", "best.ckpt", "--output", "net.onnx"]) == 0
    proto = onnx.load("net.onnx")
    onnx.checker.check_model(proto)
    known = {item.key: json.loads(item.value) for item in proto.metadata_props}
    assert_known(known)
    (given,) = proto.graph.input
    assert given.name == "images"
    assert given.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [dim.dim_value for dim in given.type.tensor_type.shape.dim][1:] == [1, 8, 8]


def test_pt2_holds_names_and_normalisation(here: Path) -> None:
    assert main(["export", "--ckpt_path", "best.ckpt", "--format", "pt2", "--output", "net.pt2"]) == 0
    extra = {EXTRA_FILE: ""}
    torch.export.load("net.pt2", extra_files=extra)
    assert_known(json.loads(extra[EXTRA_FILE]))


def assert_known(known: dict[str, Any]) -> None:
    assert known["class_names"] == [str(digit) for digit in range(10)]
    data = Digits()
    data.setup()
    assert np.allclose(known["mean"], data.mean)
    assert np.allclose(known["std"], data.std)
    assert known["value_range"] is None
    assert known["fit"] == "squeeze"
    assert (known["net"], known["in_channels"], known["image_size"]) == ("simple_cnn", 1, 8)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_batch_of_one_size_alone(kind: str, here: Path) -> None:
    options = ["--format", kind, "--batch", "3", "--output", f"net.{kind}"]
    assert main(["export", "--ckpt_path", "best.ckpt", *options]) == 0
    assert logits(Path(f"net.{kind}"), torch.randn(3, 1, 8, 8)).shape == (3, 10)
    with pytest.raises(Exception, match=r"(?i)dimension|guard|size|shape"):
        logits(Path(f"net.{kind}"), torch.randn(4, 1, 8, 8))


def test_what_is_written_holds_nothing_of_ours(here: Path) -> None:
    assert main(["export", "--ckpt_path", "best.ckpt", "--format", "pt2"]) == 0
    program = torch.export.load("best.pt2")
    assert not [node for node in program.graph.nodes if "cnn_lightning" in str(node.target)]


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_difference_is_found_and_nothing_is_written(
    kind: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = host.run
    monkeypatch.setattr(host, "run", lambda *args: [y if y is None else y * 1.001 for y in run(*args)])
    (here / f"best.{kind}").write_text("the one before")
    assert main(["export", "--ckpt_path", "best.ckpt", "--format", kind]) == 1
    assert "failed: the exported network's logits differ" in capsys.readouterr().out
    assert (here / f"best.{kind}").read_text() == "the one before"
    assert len(list(here.iterdir())) == 2


def test_other_shapes_and_nan_are_differences() -> None:
    a = torch.ones(2, 3)
    assert exporting._difference([a], [a]) == 0
    assert exporting._difference([a[:1]], [a]) == float("inf")
    assert not exporting._difference([a * float("nan")], [a]) <= 1


MISTAKES = [
    ([], "ckpt_path"),
    (["--ckpt_path", "no.ckpt"], "ckpt_path: expected a checkpoint, found none at 'no.ckpt'"),
    (["--ckpt_path", "damaged.ckpt"], "ckpt_path: damaged.ckpt is damaged"),
    (["--ckpt_path", "last"], "ckpt_path: expected a run to go on with"),
    (["--ckpt_path", "best.ckpt", "--format", "h5"], "--format: expected one of onnx, pt2, numpy, got 'h5'"),
    (
        ["--ckpt_path", "best.ckpt", "--batch", "0"],
        "--batch: expected dynamic or a whole number",
    ),
    (
        ["--ckpt_path", "best.ckpt", "--output", "net.pt2"],
        "--output: expected a name that ends in .onnx",
    ),
    (["--ckpt_path", "best.ckpt", "--output", "folder.onnx"], "--output: expected a file, got the folder 'folder.o"),
    (["--ckpt_path", "best.ckpt", "--output", "no/net.onnx"], "--output: expected a file in a folder that exists, "),
    (["--ckpt_path", "best.ckpt", "--formt", "onnx"], "formt"),
]


@pytest.mark.parametrize(("args", "line"), MISTAKES)
def test_a_mistake_is_one_line(args: list[str], line: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "damaged.ckpt").write_bytes((here / "best.ckpt").read_bytes()[:2000])
    (here / "folder.onnx").mkdir()
    assert main(["export", *args]) == 2
    err = capsys.readouterr().err.strip()
    assert line in err
    assert "\n" not in err


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_packages_name_the_extra(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda other: None if other == name else find_spec(other))
    assert main(["export", "--ckpt_path", "best.ckpt"]) == 2
    err = capsys.readouterr().err.strip()
    assert f"{name} not found; pip install 'cnn-lightning[onnx]'" in err
    assert "\n" not in err
    assert main(["export", "--ckpt_path", "best.ckpt", "--format", "pt2"]) == 0


def test_a_full_disk_leaves_the_file_before(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (here / "best.pt2").write_text("the one before")
    monkeypatch.setattr(os, "fsync", full)
    assert main(["export", "--ckpt_path", "best.ckpt", "--format", "pt2"]) == 2
    assert "can't write to best.pt2: No space left" in capsys.readouterr().err
    assert (here / "best.pt2").read_text() == "the one before"
    assert len(list(here.iterdir())) == 2


def test_a_network_that_cannot_be_exported_is_one_line(here: Path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1)[:, :10]
            return x if x.sum() > 0 else -x

    model = from_checkpoint("best.ckpt")
    model.net = torch.nn.Sequential(Branching(), torch.nn.ReLU())
    with pytest.raises(ValueError, match=r"^--format: this network can't be exported") as error:
        export(model, here / "net.pt2", "pt2")
    assert "\n" not in str(error.value)


def test_from_python_a_difference_is_an_exception(here: Path) -> None:
    with pytest.raises(Unequal, match=r"differ from the NumPy layers' by .* was not written"):
        export(from_checkpoint("best.ckpt"), here / "net.pt2", "pt2", tolerance=-1)


NETWORKS = ["resnet18", "mobilenet_v3_small", "googlenet", "convnext_tiny", "vit_b_16", "vgg11_bn"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "googlenet", "convnext_tiny", "vit_b_16", "vgg11_bn"]
)
def test_networks_of_torchvision(name: str, kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier(name, "numpy", num_classes=7, in_channels=3, image_size=64)
    found = export(model, tmp_path / f"net.{kind}", kind)
    assert found.difference < 1e-4
    assert found.batches == (1, 2, 5)
