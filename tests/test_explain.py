"""The page that explains: what it records, how it is built, and that a browser does with it what it says."""

import base64
import functools
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cnn_lightning import draw, ops
from cnn_lightning.classifier import Classifier, from_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.data import Digits
from cnn_lightning.model import build_net
from cnn_lightning.ops import activation
from cnn_lightning.swap import swap_layers
from cnn_lightning.tools.explain import arguments, formulas, picker, source, training
from cnn_lightning.tools.explain import command as explain
from cnn_lightning.tools.explain.flops import flops
from cnn_lightning.tools.explain.record import Recording, record
from tests.browser import DARK, LIGHT, Structure, browser, observed, visit
from tests.cases import Case, load

# ---- what is recorded


def recorded(name: str = "simple_cnn", layers: str = "numpy", **options: Any) -> tuple[nn.Module, Recording]:
    torch.manual_seed(0)
    channels, size = (1, 8) if name == "simple_cnn" else (3, 32)
    net, loss = build_net(name, in_channels=channels, image_size=size), nn.CrossEntropyLoss()
    swap_layers(net, layers, beside={"loss": loss})
    image = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(1))
    return net, record(net, loss, image, 3, **options)


@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
def test_what_is_recorded_is_what_torch_computes(name: str) -> None:
    _, found = recorded(name)
    net, _ = recorded(name, "torch")
    image = torch.randn(found.grad_image.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    outputs: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, y: torch.Tensor) -> torch.Tensor:
            y.retain_grad()
            outputs.setdefault(name, []).append(y)
            return y.clone()  # which the network may write to

        return hook

    for key, module in net.named_modules():
        if next(module.children(), None) is None:
            module.register_forward_hook(keep(key))
    logits = net(image)
    loss = nn.functional.cross_entropy(logits, torch.tensor([3]))
    loss.backward()
    assert found.loss == pytest.approx(loss.item(), abs=1e-5)
    torch.testing.assert_close(found.logits, logits.detach()[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.grad_image, image.grad, atol=1e-4, rtol=1e-3)
    assert [layer.name for layer in found.layers][-1] == "loss"
    assert len(found.layers) == 1 + sum(map(len, outputs.values()))
    for layer in found.layers[:-1]:
        expected = outputs[layer.name][layer.again - 1]
        torch.testing.assert_close(layer.y, expected.detach(), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(layer.grad_y, expected.grad, atol=1e-4, rtol=1e-3)
        for key, (_, gradient) in layer.parameters.items():
            torch.testing.assert_close(gradient, net.get_parameter(f"{layer.name}.{key}").grad, atol=1e-4, rtol=1e-3)


def test_details_of_each_layer() -> None:
    _, found = recorded(details=True)
    for layer in found.layers:
        assert layer.details is not None
        assert layer.details.difference is not None
        assert layer.details.difference < 1e-5
        assert (layer.details.forward > 0) == (layer.kind != "Flatten")
    counts = {layer.name: layer.details.flops for layer in found.layers if layer.details}
    assert counts["conv1"] == 2 * 16 * 8 * 8 * 9
    assert counts["pool2"] == 32 * 2 * 2 * 4
    assert counts["linear2"] == 2 * 10 * 128
    assert counts["flatten"] == 0


def test_the_window_of_a_pooling_counts_its_pixels() -> None:
    x, y = torch.zeros(1, 3, 8), torch.zeros(1, 3, 4)
    assert flops(torch.nn.MaxPool1d(2), x, y) == flops(torch.nn.AvgPool1d(2), x, y) == 12 * 2
    assert flops(torch.nn.MaxPool2d((2, 3)), x[None], y[None]) == 12 * 6
    assert flops(torch.nn.MaxPool2d(2), x[None], y[None]) == 12 * 4
    assert flops(torch.nn.AvgPool3d(2), x[None, None], y[None, None]) == 12 * 8


def test_a_wrong_backward_shows() -> None:
    wrong = activation.relu_backward
    with patch.object(activation, "relu_backward", lambda *args, **options: 1.1 * wrong(*args, **options)):
        _, found = recorded(details=True)
    worst = {layer.name: layer.details.difference or 0.0 for layer in found.layers if layer.details}
    assert worst["relu1"] > 1e-4
    assert worst["conv1"] < 1e-5


def test_the_lines_are_those_of_the_file_and_those_that_ran() -> None:
    _, found = recorded(details=True)
    layer = next(layer for layer in found.layers if layer.name == "pool1")
    assert layer.details is not None
    for listings, name in (
        (layer.details.forward_source, "max_pool2d"),
        (layer.details.backward_source, "max_pool2d_backward"),
    ):
        assert listings[0].name == name
        assert listings[0].file == "ops/pool.py"
        lines = Path(ops.__file__).with_name("pool.py").read_text().splitlines()
        for line in listings[0].lines:
            assert line.text.strip() == lines[line.number - 1].strip()
        assert any(line.ran for line in listings[0].lines)


def test_a_line_that_did_not_run_is_not_marked() -> None:
    x, statistics = np.ones((4, 2)), (np.ones(2), np.ones(2), np.ones(2))
    passes = (
        source.traced(functools.partial(ops.norm.batch_norm_backward, x, x, *statistics, training=training))
        for training in (False, True)
    )
    ran = [{line.number for line in listings[0].lines if line.ran} for _, listings in passes]
    assert ran[0] < ran[1]


# ---- formulas and pictures


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in load()])
def test_formulas_are_well_formed(case: Case) -> None:
    found = formulas.of(case.native(**case.samples[0].options))
    assert found is not None
    for text in (*found.forward, *found.backward):
        root = ElementTree.fromstring(formulas.mathml(text).replace("&#160;", " "))
        assert root.tag == "math"
        assert root.get("aria-label")
        assert "\\" not in "".join(root.itertext())
        assert "{" not in "".join(root.itertext())


def test_a_convolution_s_formula_has_its_own_numbers() -> None:
    found = formulas.of(nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=3, bias=False))
    assert found is not None
    assert found.forward == ["y_{o,u,v} = \\sum_{c,i,j} w_{o,c,i,j} x_{c,2u+3i-1,2v+3j-1}"]
    assert len(found.backward) == 2


def decoded(picture: draw.Picture) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))


def test_more_maps_than_fit_are_told() -> None:
    assert "the first 4 of 9 maps" in draw.grid(np.ones((9, 3, 3)), "maps", most=4).alt
    assert decoded(draw.grid(np.ones((1, 300, 200)), "maps", side=100)).size == (67, 100)


def test_large_layers_offer_what_fits() -> None:
    _, found = recorded("resnet18")
    entries = {entry["label"]: entry for entry in picker.numbers(found.layers)}
    assert len(json.dumps(entries)) < 4e6
    assert entries["fc"]["of"] == 10
    assert entries["conv1"]["arrays"]["y"]["shape"][1:] == [16, 16]
    assert 0 < entries["layer4.1.conv2"]["arrays"]["y"]["shape"][0] < entries["layer4.1.conv2"]["of"] == 512


# ---- the page


@dataclass
class Made:
    run: Path
    page: Path
    text: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("explain")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert main(["fit", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "2"]) == 0
        run = folder / "runs/digits/version_0"
        assert main(["explain", "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--index", "5"]) == 0
    page = folder / "explain.html"
    return Made(run, page, page.read_text(encoding="utf-8"))


def test_the_page_is_whole_and_needs_nothing_else(made: Made) -> None:
    page = Structure(made.text)
    assert len(set(page.ids)) == len(page.ids)
    for tag, attributes in page.found:
        for name in ("src", "href"):
            link = attributes.get(name) or "#"
            assert link.startswith(("data:", "#")), link
            assert not link.startswith("#") or link == "#" or link[1:] in page.ids
        if tag == "img":
            assert attributes["alt"]
    assert "http" not in made.text.replace("http://www.w3.org", "")
    assert len(made.text) < 3e6
    for name in ("conv1", "relu1", "pool1", "conv2", "flatten", "linear1", "linear2", "loss"):
        assert f"<h3>{name}</h3>" in made.text
    assert made.text.count("<math ") > 20
    assert "def conv2d_backward(" in made.text
    assert "18,432" in made.text
    assert str(made.run) not in made.text


def test_the_slider_has_every_snapshot(made: Made) -> None:
    titles = [frame["title"] for frame in data_of(made.text)["frames"]]
    assert titles == ["before training", "after epoch 1, step 40", "after epoch 2, step 80"]


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_a_picture_file_without_a_class(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "<b>.png")
    output = tmp_path / "page.html"
    checkpoint = str(made.run / "checkpoints/best.ckpt")
    assert (
        main(["explain", "--ckpt_path", checkpoint, "--image", str(tmp_path / "<b>.png"), "--output", str(output)]) == 0
    )
    assert "prediction: " in capsys.readouterr().out
    text = output.read_text(encoding="utf-8")
    assert "the true class is not known" in text
    assert "<b>" not in text
    Structure(text)


def test_unreadable_neighbours_are_passed_over(made: Made, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made.run, run)
    (run / "snapshots/epoch_0001.pt").write_bytes(b"half a file")
    net = build_net("simple_cnn", image_size=8, channels=(4,))
    other = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": other, "global_step": 7, "loops": {}}, run / "checkpoints/other.ckpt")
    kept = training.moments(run / "checkpoints/last.ckpt", build_net("simple_cnn", image_size=8))
    assert [moment.step for moment in kept] == [0, 80]


def test_a_page_in_the_run_s_folder_is_listed_for_its_report(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(made.run / "checkpoints/best.ckpt")
    for split, index in (("val", 3), ("test", 0)):
        output = made.run / f"explain/{split}-{index}.html"
        args = ["--ckpt_path", checkpoint, "--split", split, "--index", str(index), "--output", str(output)]
        assert main(["explain", *args]) == 0
    assert (made.run / "explain/pages.js").read_text() == 'window.pages = ["test-0", "val-3"];\n'
    assert "validation picture 3 of Digits" in (made.run / "explain/val-3.html").read_text(encoding="utf-8")
    assert not (made.page.parent / "pages.js").exists()


def test_the_validation_picture_is_that_of_the_validation_split(made: Made) -> None:
    path = made.run / "checkpoints/best.ckpt"
    model = from_checkpoint(path, layers="numpy")
    options = arguments.parser().parse_args(["--index", "7", "--split", "val"])
    picture = explain._from_data(options, model, path)
    data = Digits()
    data.prepare_data()
    data.setup("fit")
    images, labels = zip(*data.val_dataloader(), strict=True)
    assert torch.equal(picture.image[0], torch.cat(images)[7].float())
    assert picture.label == int(torch.cat(labels)[7])


MISTAKES = [
    ([], "--ckpt_path: expected a checkpoint"),
    (["--ckpt_path", "nofile.ckpt"], "found none at 'nofile.ckpt'"),
    (["--ckpt_path", "CKPT", "--index", "359"], "--index: expected 0 to 358 for Digits, got 359"),
    (["--ckpt_path", "CKPT", "--index", "-1"], "--index: expected a number from 0 on, got -1"),
    (["--ckpt_path", "CKPT", "--index", "x"], "index"),
    (["--ckpt_path", "CKPT", "--split", "val", "--index", "180"], "--index: expected 0 to 179 for Digits, got 180"),
    (["--ckpt_path", "CKPT", "--split", "train"], "split"),
    (["--ckpt_path", "CKPT", "--image", "nofile.png"], "--image: expected a picture, found no file"),
    (["--ckpt_path", "CKPT", "--image", "CKPT"], "expected a picture"),
    (["--ckpt_path", "CKPT", "--image", "a.png", "--index", "1"], "expected one of the two"),
    (["--ckpt_path", "CKPT", "--label", "3"], "--label: expected it with --image"),
    (["--ckpt_path", "CKPT", "--data", "Digit"], "--data: expected one of"),
    (["--ckpt_path", "CKPT", "--output", "nowhere/page.html"], "--output: expected a file in a folder that exists"),
    (["--ckpt_path", "CKPT", "--output", "/dev/full"], "--output: can't write to /dev/full: No space left"),
]


@pytest.mark.parametrize(("args", "words"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_a_mistake_is_one_line(
    args: list[str], words: str, made: Made, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    if "/dev/full" in args and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.chdir(tmp_path)
    checkpoint = str(made.run / "checkpoints/last.ckpt")
    assert main(["explain", *(checkpoint if arg == "CKPT" else arg for arg in args)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("cnn-lightning: error: ")
    assert words in error[0]
    assert not (tmp_path / "explain.html").exists()


def test_a_checkpoint_alone_needs_a_picture(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(made.run / "checkpoints/last.ckpt", tmp_path / "alone.ckpt")
    assert main(["explain", "--ckpt_path", str(tmp_path / "alone.ckpt"), "--output", str(tmp_path / "a.html")]) == 2
    assert "--image: expected a picture, or data" in capsys.readouterr().err


# ---- in the browser

PICK = """
  const set = (layer, name, value) => {
    const input = document.querySelector(`.picker[data-layer="${layer}"] [name="${name}"]`);
    input.value = value;
    input.dispatchEvent(new Event(input.tagName === "SELECT" ? "change" : "input"));
  };
  const sum = (layer) => document.querySelector(`.picker[data-layer="${layer}"] .sum`).textContent;
  set("conv2", "channel", 3); set("conv2", "row", 1); set("conv2", "column", 2);
  seen.conv = sum("conv2");
  seen.products = document.querySelectorAll('.picker[data-layer="conv2"] .step')[0].querySelectorAll("td").length;
  set("pool1", "channel", 4); set("pool1", "row", 2); set("pool1", "column", 1);
  seen.pool = sum("pool1");
  set("linear1", "output", 9);
  seen.linear = sum("linear1");
  set("loss", "class", 6);
  seen.softmax = sum("loss");
  set("conv1", "channel", 0);
  const canvas = document.querySelector('.picker[data-layer="conv1"] canvas.clickable');
  canvas.scrollIntoView();
  const box = canvas.getBoundingClientRect();
  const place = { clientX: box.left + box.width * 0.99, clientY: box.top + box.height * 0.3 };
  canvas.dispatchEvent(new MouseEvent("click", place));
  seen.clicked = [...document.querySelectorAll('.picker[data-layer="conv1"] input')].map((input) => +input.value);
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
  seen.walked = [...document.querySelectorAll('.picker[data-layer="conv1"] input')].map((input) => +input.value);
  const slider = document.getElementById("moment");
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  seen.title = document.getElementById("moment-title").textContent;
  seen.shares = [...document.querySelectorAll("#moment-classes .number")].map((cell) => parseFloat(cell.textContent));
  seen.sources = [...document.querySelectorAll("#moment-pictures img")].map((image) => image.src.slice(-60));
  seen.alts = [...document.querySelectorAll("#moment-pictures img")].map((image) => image.alt);
"""


def numbers(text: str) -> list[float]:
    return [float(each) for each in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text.replace("−", "-"))]


@browser
def test_the_pickers_and_the_slider_do_what_they_say(made: Made, tmp_path: Path) -> None:
    seen, console = visit(observed(made.text, PICK), tmp_path, LIGHT, "--window-size=1200,900")
    assert console == []
    path = made.run / "checkpoints/last.ckpt"
    model = from_checkpoint(path, layers="numpy")
    shown = explain._from_data(arguments.parser().parse_args(["--index", "5"]), model, path)
    assert shown.label is not None
    found = record(model.net, model.loss, shown.image, shown.label)
    layers = {layer.name: layer for layer in found.layers}

    expected = layers["conv2"].y[0, 3, 1, 2].item()
    total, bias, result, output = numbers(seen["conv"])
    assert (total + bias, result, output) == pytest.approx((expected,) * 3, abs=2e-3)
    assert seen["products"] == 3 * 9
    pool = layers["pool1"]
    _, where = nn.functional.max_pool2d(pool.x, 2, return_indices=True)
    row, column = divmod(int(where[0, 4, 2, 1]), pool.x.shape[3])
    assert numbers(seen["pool"])[:2] == [row, column]
    assert numbers(seen["pool"])[2] == pytest.approx(pool.grad_y[0, 4, 2, 1].item(), rel=1e-2)
    expected = layers["linear1"].y[0, 9].item()
    assert numbers(seen["linear"])[2:] == pytest.approx([expected, expected], abs=2e-3)
    *_, p, target, gradient = numbers(seen["softmax"])
    assert p == pytest.approx(found.probabilities[6].item(), rel=1e-2)
    assert target == (shown.label == 6)
    assert gradient == pytest.approx(layers["loss"].grad_x[0, 6].item(), rel=1e-2)  # type: ignore[index]
    assert seen["clicked"] == [0, 2, 7]
    assert seen["walked"] == [0, 3, 7]

    first = data_of(made.text)["frames"][0]
    assert seen["title"] == f"before training: loss {first['loss']}"
    assert seen["shares"] == pytest.approx([100 * share for share in first["probabilities"]], abs=0.06)
    assert seen["sources"] == [picture["uri"][-60:] for picture in first["pictures"]]
    assert seen["alts"] == [picture["alt"] for picture in first["pictures"]]
    assert seen["images"][0] == seen["images"][1] > 30
    assert seen["broken"] == 0


def brightness(color: str) -> float:
    return sum(numbers(color)[:3]) / 3


@browser
def test_light_dark_and_a_phone(made: Made, tmp_path: Path) -> None:
    light, console = visit(observed(made.text), tmp_path, LIGHT, "--window-size=500,800")
    dark, more = visit(observed(made.text), tmp_path, DARK, "--window-size=500,800")
    assert [*console, *more] == []
    assert brightness(light["paper"]) - brightness(light["ink"]) > 150
    assert brightness(dark["ink"]) - brightness(dark["paper"]) > 150
    assert light["wide"] <= 0  # nothing must be scrolled to the side


@browser
def test_an_error_in_the_page_would_be_seen(made: Made, tmp_path: Path) -> None:
    _, console = visit(observed(made.text, "nosuchfunction();"), tmp_path)
    assert any("nosuchfunction" in line for line in console)


# ---- every network

SIZES = {"vgg11": 32, "densenet121": 64, "inception_v3": 96, "efficientnet_b0": 64, "swin_t": 64, "vit_b_16": 32}


def write_checkpoint(path: Path, name: str, size: int) -> None:
    """An untrained network's."""
    model = Classifier(name, in_channels=3, image_size=size, layers="torch")
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save({**content, "pytorch-lightning_version": lightning.__version__}, path)


@pytest.mark.parametrize("name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in SIZES)])
def test_deep_networks_are_folded(name: str, tmp_path: Path) -> None:
    size = SIZES.get(name, 32)
    write_checkpoint(tmp_path / "net.ckpt", name, size)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)).save(tmp_path / "a.png")
    output = tmp_path / "page.html"
    args = ["--ckpt_path", str(tmp_path / "net.ckpt"), "--image", str(tmp_path / "a.png"), "--output", str(output)]
    assert main(["explain", *args]) == 0
    text = output.read_text(encoding="utf-8")
    page = Structure(text)
    layers = [attributes for tag, attributes in page.found if tag == "details" and attributes.get("class") == "layer"]
    assert len(layers) > 24
    assert not any("open" in attributes for attributes in layers)
    if name == "resnet18":
        assert len(text) < 10e6
        assert "layer4.1.relu (call 2)" in text
