"""The live page: the browser computes what NumPy computes; pictures are chosen, drawn or linked to; steps train."""

import base64
import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import lightning
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cnn_lightning.classifier import Classifier
from cnn_lightning.cli import main
from cnn_lightning.data import Digits, mnist
from cnn_lightning.data.loader import Batches
from cnn_lightning.model import build_net
from cnn_lightning.swap import swap_layers
from cnn_lightning.tools.check import check_layer
from cnn_lightning.tools.explain import live, page
from cnn_lightning.tools.explain.record import Recording, record
from tests import forgotten_terms
from tests.browser import LIGHT, browser, observed, on_a_phone, visit

ONE = live.Options(mean=(0.0,), std=(1.0,), rate=0.1, module=None, classes=10)


def rendered(
    net: nn.Module,
    image: Tensor,
    *,
    label: int | None = 1,
    loss: nn.Module | None = None,
    names: tuple[str, ...] = tuple("0123456789"),
    options: live.Options = ONE,
) -> tuple[Recording, str]:
    """What NumPy records of a picture (1, C, H, W) with values from 0 to 1, and its page."""
    loss = loss or nn.CrossEntropyLoss()
    swap_layers(net, "numpy", beside={"loss": loss})
    mean, std = (torch.tensor(values)[:, None, None] for values in (options.mean, options.std))
    given = (image - mean) / std
    known = label is not None
    if label is None:
        label = int(net.eval()(given).argmax())
    seen = record(net, loss, given, label, details=True)
    subject = page.Subject("net", "a.ckpt", "a picture", given, image[0], label, known, names)
    return seen, page.render(subject, net, seen, [], [], live.of(seen, given, options))


def picture(channels: int = 1, size: int = 8) -> Tensor:
    return torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(1))


# ---- the numbers


def simple() -> nn.Module:
    return build_net("simple_cnn", in_channels=1, image_size=8)


def strided() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, (3, 2), stride=(2, 1), padding=(2, 1), bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding="same", dilation=2, groups=2),
        nn.Dropout(0.5),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.Identity(),
        nn.Conv2d(8, 8, 2, groups=8, padding="same"),
        nn.MaxPool2d((1, 2), dilation=(1, 2)),
        nn.Flatten(),
        nn.Linear(48, 10, bias=False),
    )


def even_same() -> nn.Module:
    """A kernel of even size with ``same`` pads one more pixel below and to the right."""
    return nn.Sequential(nn.Conv2d(1, 3, (4, 2), padding="same"), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 10))


NETS = {"simple": simple, "strided": strided, "even_same": even_same}
DUMP = """
const text = (values) => Array.from(values, (value) => String(value).replace("Infinity", "inf"));
const dump = () => {
  const layers = {};
  for (const [label, arrays] of Object.entries(shown.layers)) {
    layers[label] = {};
    for (const [name, { shape, values }] of Object.entries(arrays)) layers[label][name] = [shape, text(values)];
  }
  return { layers, loss: String(shown.loss), probabilities: text(shown.probabilities) };
};
"""


def arrays_of(seen: Recording) -> dict[str, dict[str, Tensor]]:
    """All arrays of a recording, named as in the page."""
    found: dict[str, dict[str, Tensor]] = {}
    for layer in seen.layers:
        assert layer.grad_x is not None
        arrays = {"x": layer.x[0], "grad_x": layer.grad_x[0]}
        arrays |= {"y": layer.y, "grad_y": layer.grad_y} if layer.kind == "CrossEntropyLoss" else {}
        arrays = {"y": layer.y[0], "grad_y": layer.grad_y[0], **arrays} if layer.y.dim() else arrays
        for name, (value, gradient) in layer.parameters.items():
            arrays |= {name: value, f"grad_{name}": gradient}
        found[layer.label] = arrays
    return found


def expect_equal(found: dict[str, Any], seen: Recording) -> None:
    expected = arrays_of(seen)
    assert found["layers"].keys() == expected.keys()
    for label, arrays in expected.items():
        assert found["layers"][label].keys() == arrays.keys()
        for name, array in arrays.items():
            shape, values = found["layers"][label][name]
            assert shape == list(array.shape)
            expect_close(values, array, f"{label}.{name}")
    expect_close([found["loss"]], torch.tensor([seen.loss]), "loss")
    expect_close(found["probabilities"], seen.probabilities, "probabilities")


def expect_close(found: list[str], expected: Tensor, what: str) -> None:
    actual = torch.tensor([float(value) for value in found]).reshape(expected.shape)
    torch.testing.assert_close(
        actual, expected.detach(), atol=1e-4, rtol=1e-4, equal_nan=True, msg=lambda text: f"{what}: {text}"
    )


@browser
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", NETS)
def test_the_browser_s_numbers_are_those_of_numpy(name: str, tmp_path: Path) -> None:
    """Of a usual picture, of one whose pixels are 0 and 1, so that windows have ties, and of one with NaN."""
    torch.manual_seed(0)
    usual = picture()
    nans = usual.clone()
    nans[0, 0, 3, 3:5] = math.nan
    net, loss = NETS[name](), nn.CrossEntropyLoss(label_smoothing=0.3 if name == "strided" else 0)
    expected, text = rendered(net, usual, loss=loss)
    actions = DUMP + "seen.usual = dump();"
    for title, image in (("ties", usual.round()), ("nans", nans)):
        packed = base64.b64encode(image.numpy().tobytes()).decode()
        actions += f'showPicture(unpack({{ shape: shown.pixels.shape, base64: "{packed}" }})); seen.{title} = dump();'
    found, console = visit(observed(text, actions), tmp_path, LIGHT)
    assert console == []
    expect_equal(found["usual"], expected)
    for title, image in (("ties", usual.round()), ("nans", nans)):
        expect_equal(found[title], record(net, loss, image, 1))


# ---- which networks are live


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self[0](x)
        return self[2](self[1](y + x))


def residual() -> nn.Module:
    return Residual(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(64, 10))


def branched() -> nn.Module:
    """A chain by its values, whose first output is used twice."""

    class Branched(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self[0](x)
            return self[2](self[1](y)) + (y.sum() - y.sum().detach()) * torch.arange(10.0)

    return Branched(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(64, 10))


def brightened() -> nn.Module:
    """A chain whose first layer gets another picture."""

    class Brightened(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x + 1)

    return Brightened(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(64, 10))


def shared() -> nn.Module:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), conv, nn.Flatten(), nn.Linear(64, 10))


def chain(*layers: nn.Module, features: int = 64) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 10))


def wide() -> nn.Module:
    return chain(*(nn.Conv2d(*each, 5, padding=2) for each in ((1, 128), (128, 128), (128, 1))))


MEAN = nn.CrossEntropyLoss()
STILL = {
    "its layers are no chain": (residual, MEAN),
    "its layers are no chain, though their values are one": (branched, MEAN),
    "its layers are no chain, as the picture changes before them": (brightened, MEAN),
    "0 is used 2 times": (shared, MEAN),
    "0 is BatchNorm2d,": (lambda: chain(nn.BatchNorm2d(1)), MEAN),
    "0 is Conv2d(": (lambda: chain(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")), MEAN),
    "its loss has weights for the classes": (simple, nn.CrossEntropyLoss(torch.ones(10))),
    "its loss has weights for the classes, or ignores one": (simple, nn.CrossEntropyLoss(ignore_index=2)),
    "its loss is CrossEntropyLoss, not the mean": (simple, nn.CrossEntropyLoss(reduction="sum")),
    "its loss is MultiMarginLoss, not the mean": (simple, nn.MultiMarginLoss()),
    "it has 750,010 weights, and a page": (
        lambda: chain(nn.Flatten(), nn.Linear(64, 10_000), features=10_000),
        MEAN,
    ),
    "its forward takes 53,": (wide, MEAN),
}


@pytest.mark.parametrize("why", STILL)
def test_a_network_that_the_script_can_not_compute_is_still_and_the_page_says_why(why: str) -> None:
    make, loss = STILL[why]
    found = live.of(record(make(), loss, picture(), 1), picture(), ONE)
    assert found.content is None
    assert found.why_not.startswith(why.partition(", though")[0].partition(", as")[0])


def test_a_still_page_has_no_controls_for_other_pictures() -> None:
    _, text = rendered(residual(), picture())
    assert "it can't compute other pictures: its layers are no chain." in text
    assert '"live":null' in text
    assert 'id="steps"' not in text


# ---- what the command packs


def written_page(folder: Path, config: str, *args: str, **options: Any) -> Any:
    """The ``live`` data of the page of an untrained network, whose run has this config."""
    (folder / "checkpoints").mkdir()
    model = Classifier("simple_cnn", in_channels=1, layers="torch", **options)
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save({**content, "pytorch-lightning_version": lightning.__version__}, folder / "checkpoints/a.ckpt")
    (folder / "config.yaml").write_text(config)
    Image.new("L", (20, 10), 128).save(folder / "a.png")
    output = folder / "page.html"
    assert main(["explain", "--ckpt_path", str(folder / "checkpoints/a.ckpt"), "--output", str(output), *args]) == 0
    text = output.read_text(encoding="utf-8")
    assert len(text) < 4e6
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])["live"]


def test_the_page_has_two_test_pictures_of_each_class_and_the_training_split(tmp_path: Path) -> None:
    found = written_page(tmp_path, "data: Digits", image_size=8, optimizer="sgd", lr=0.02)
    module = Digits()
    module.setup("test")
    labels = module.test_dataloader().labels
    places = [place for label in range(10) for place in (labels == label).nonzero().flatten()[:2].tolist()]
    assert found["test"]["labels"] == [each for label in range(10) for each in (label, label)]
    images = module.test_dataloader().images
    assert isinstance(images, Tensor)
    assert base64.b64decode(found["test"]["base64"]) == images[places].numpy().tobytes()
    assert found["train"]["labels"] == module.train_dataloader().labels.tolist()
    assert (found["mean"], found["std"]) == (list(module.mean), list(module.std))
    assert found["rate"] == 0.02


def test_a_picture_file_has_the_pictures_of_the_run_beside_it(tmp_path: Path) -> None:
    found = written_page(tmp_path, "data: Digits", "--image", str(tmp_path / "a.png"), image_size=8)
    assert len(found["test"]["labels"]) == 20
    assert found["rate"] == 0.1  # the run's own rate is that of AdamW


def test_a_picture_file_alone_downloads_nothing(tmp_path: Path) -> None:
    config = f"data: {{class_path: MNIST, init_args: {{root: {tmp_path}/nowhere}}}}"
    with patch.object(mnist, "fetch", side_effect=AssertionError):
        found = written_page(tmp_path, config, "--image", str(tmp_path / "a.png"), image_size=28)
    assert (found["test"], found["train"]) == (None, None)


def test_pictures_of_another_size_are_left_out(tmp_path: Path) -> None:
    found = written_page(tmp_path, "data: Digits", "--image", str(tmp_path / "a.png"), image_size=12)
    assert (found["test"], found["train"]) == (None, None)


def test_many_training_pictures_are_evenly_spaced() -> None:
    options = with_pictures(1_600, (3, 20, 20))
    net = chain(nn.Conv2d(3, 1, 20), features=1)
    found = live.of(record(net, MEAN, picture(3, 20), 1), picture(3, 20), options).content
    assert found is not None
    assert len(found["train"]["labels"]) == 450_000 // 1_200
    labels = options.module.train_dataloader().labels.tolist()
    assert found["train"]["labels"] == [labels[index * 1_600 // 375] for index in range(375)]
    assert len(found["train"]["base64"]) <= 600_000


# ---- what check says


@pytest.mark.parametrize("term", live.TERMS, ids=lambda term: term.key)
def test_the_page_says_of_a_lacking_term_what_check_says(term: live.Term) -> None:
    torch.manual_seed(0)
    kind, sample = forgotten_terms.LAYERS[term.key]
    report = check_layer(kind(), sample)
    assert report.failed == ("gradient",)
    finding = report.findings[0]
    assert finding.wrong == term.wrong.format(n=forgotten_terms.N)
    assert finding.mend == term.mend.format(n=forgotten_terms.N)


# ---- steps

SHAPE = (3, 6, 6)


def with_pictures(n: int = 6, shape: tuple[int, ...] = SHAPE, classes: int = 5) -> live.Options:
    """Options with a data set of ``n`` training pictures and of two test pictures a class."""
    generator = torch.Generator().manual_seed(3)
    statistics: dict[str, Any] = {"mean": (0.4,) * shape[0], "std": (0.3,) * shape[0]}

    def batches(n: int) -> Batches:
        images = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
        return Batches(images, torch.arange(n) % classes, batch_size=4, **statistics)

    train, test = batches(n), batches(2 * classes + 3)
    module = SimpleNamespace(train_dataloader=lambda: train, test_dataloader=lambda: test)
    return live.Options(**statistics, rate=0.05, module=module, classes=classes)


def two_convolutions(lacking: str) -> nn.Module:
    """A network with a layer that lacks a term; the second convolution gives the first one its gradient."""
    layers = forgotten_terms.LAYERS
    first: Any = layers[lacking][0] if lacking == "positions" else forgotten_terms.Whole
    second: Any = layers[lacking][0] if lacking == "flip" else first
    return nn.Sequential(
        first(3, 4),
        layers[lacking][0]() if lacking == "mask" else nn.ReLU(),
        layers[lacking][0]() if lacking == "winner" else nn.MaxPool2d(2),
        second(4, 2),
        nn.Flatten(),
        nn.Linear(18, 5),
    )


def native() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 2, 3, padding=1),
        nn.Flatten(),
        nn.Linear(18, 5),
    )


STEP = """
document.getElementById("size").value = data.live.train.labels.length;
const click = (id) => document.getElementById(id).click();
const values = (find) => live.net.layers.flatMap((layer, index) =>
  layer.weight ? ["weight", "bias"].map((name) => text(find(layer, index)[name])) : []);
"""


@browser
def test_steps_in_the_page_are_those_of_torch(tmp_path: Path) -> None:
    net, options = native(), with_pictures()
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    trained = copy.deepcopy(net)
    images = options.module.train_dataloader()
    optimizer = torch.optim.SGD(trained.parameters(), lr=options.rate)
    losses = []
    for _ in range(3):
        ((given, labels),) = Batches(images.images, images.labels, batch_size=6, mean=images.mean, std=images.std)
        value = loss(trained(given), labels)
        losses.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    _, text = rendered(net, picture(3, 6), loss=loss, names=tuple("abcde"), options=options)
    actions = (
        DUMP
        + STEP
        + """
seen.before = values((layer) => layer);
for (let i = 0; i < 3; i++) click("step");
seen.after = values((layer) => layer);
seen.gradients = values((layer, index) => training.gradients[index]);
seen.shown = text(shown.layers["3"].weight.values);
seen.status = document.getElementById("steps-status").textContent;
seen.tables = [...document.querySelectorAll("#weights .step > div > span")].map((title) => title.textContent);
seen.verdict = document.getElementById("verdict").textContent;
click("trained");
seen.again = values((layer) => layer);
click("fresh");
seen.fresh = values((layer) => layer);
click("fresh");
seen.same = JSON.stringify(seen.fresh) === JSON.stringify(values((layer) => layer));
document.getElementById("rate").value = 1e200;
click("step"); click("step"); click("step");
seen.burst = document.getElementById("steps-status").textContent;
click("trained");
seen.well = document.getElementById("verdict").textContent;
"""
    )
    seen, console = visit(observed(text, actions), tmp_path, LIGHT)
    assert console == []
    for found, parameter in zip(seen["after"], trained.parameters(), strict=True):
        expect_close(found, parameter, "a parameter")
    for found, parameter in zip(seen["gradients"], trained.parameters(), strict=True):
        assert parameter.grad is not None
        expect_close(found, parameter.grad, "a gradient")
    expect_close(seen["shown"], trained[3].get_parameter("weight"), "the weights shown")
    assert seen["status"].startswith(f"Step 3: loss of this batch (6 pictures) {losses[2]:.4g} before, ")
    assert seen["tables"] == ["before", "gradient", "after"]
    assert "Weights: 3 steps on this page." in seen["verdict"]
    assert seen["again"] == seen["before"]
    for found, parameter in zip(seen["fresh"], net.parameters(), strict=True):
        numbers = torch.tensor([float(value) for value in found])
        layer = next(each for each in net if any(parameter is own for own in each.parameters()))
        bound = layer.get_parameter("weight")[0].numel() ** -0.5
        assert (0.8 if len(numbers) > 50 else 0) * bound < numbers.abs().max() <= bound
    assert seen["same"]
    assert seen["burst"].endswith("The loss is no number any more: begin again with a smaller learning rate.")
    assert "NaN" not in seen["well"]


@browser
def test_a_backward_that_lacks_a_term_is_the_wrong_one_of_check(tmp_path: Path) -> None:
    net, options = native(), with_pictures()
    images = options.module.train_dataloader()
    ((given, labels),) = Batches(images.images, images.labels, batch_size=6, mean=images.mean, std=images.std)
    gradients: dict[str, list[Tensor]] = {}
    for term in live.TERMS:
        lacking = two_convolutions(term.key)
        lacking.load_state_dict(net.state_dict())
        loss = forgotten_terms.SumForMean() if term.key == "mean" else nn.CrossEntropyLoss()
        loss(lacking(given), labels).backward()
        gradients[term.key] = [parameter.grad for parameter in lacking.parameters() if parameter.grad is not None]
    _, text = rendered(net, picture(3, 6), names=tuple("abcde"), options=options)
    actions = (
        DUMP
        + STEP
        + """
const box = (key) => document.querySelector(`.terms [value="${key}"]`);
const choice = document.getElementById("weights-layer");
choice.value = 0;
choice.dispatchEvent(new Event("input"));
document.getElementById("weights-output").value = 0;
click("difference");
seen.agrees = document.getElementById("difference-result").textContent;
const whole = JSON.stringify(text(shown.layers["0"].grad_weight.values));
seen.found = {}; seen.says = {}; seen.differs = {}; seen.shown = {};
for (const { value: key } of document.querySelectorAll(".terms input")) {
  box(key).click();
  const without = [...document.querySelectorAll(".without")].filter((each) => !each.hidden);
  seen.says[key] = without.map((each) => each.querySelector("q").textContent);
  seen.shown[key] = JSON.stringify(text(shown.layers["0"].grad_weight.values)) !== whole;
  click("difference");
  seen.differs[key] = document.getElementById("difference-result").textContent;
  click("step");
  seen.found[key] = values((layer, index) => training.gradients[index]);
  seen.line = document.querySelectorAll("#curve .lacking").length;
  click("trained");
  box(key).click();
}
seen.back = JSON.stringify(text(shown.layers["0"].grad_weight.values)) === whole;
"""
    )
    seen, console = visit(observed(text, actions), tmp_path, LIGHT)
    assert console == []
    assert seen["agrees"].endswith("They agree.")
    for term in live.TERMS:
        for found, gradient in zip(seen["found"][term.key], gradients[term.key], strict=True):
            expect_close(found, gradient, term.key)
        assert seen["says"][term.key] == [f"{term.wrong} ({term.mend})".format(n=6)]
        assert "They differ" in seen["differs"][term.key]
        assert seen["shown"][term.key] == (term.key != "mean")  # of one picture the mean is the sum
    assert seen["line"] > 0
    assert seen["back"]


@browser
def test_without_training_pictures_a_step_takes_the_picture_shown(tmp_path: Path) -> None:
    net = simple()
    expected, text = rendered(net, picture())
    actions = (
        'document.getElementById("step").click(); seen.status = document.getElementById("steps-status").textContent;'
    )
    found, console = visit(observed(text, actions), tmp_path, LIGHT)
    assert console == []
    assert found["status"].startswith(f"Step 1: loss of this batch (1 picture) {expected.loss:.4g} before, ")
    assert "Right" not in found["status"]
    assert 'id="run"' not in text


# ---- pictures


TURN = """
// Chromium's virtual time stands still between messages, so that frames and decoded files arrive in time.
const turn = () => new Promise((go) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => { port1.close(); go(); };
  port2.postMessage(null);
});
const until = async (done) => { for (let turns = 0; turns < 200000 && !done(); turns++) await turn(); };
const numbers = () => Array.from(shown.pixels.values);
const all = (selector, find) => [...document.querySelectorAll(selector)].map(find);
const words = (selector) => document.querySelector(selector).textContent;
const state = () => ({
  name: shown.name, label: shown.known ? shown.label : null, truth: document.getElementById("truth").value,
  pixels: numbers(), verdict: words("#verdict"), says: words("#says"), caption: words("#answer-picture figcaption"),
  shares: all("#answer-classes .number", (cell) => parseFloat(cell.textContent)),
  pressed: all("#thumbs button", (button) => button.ariaPressed === "true"),
});
const paper = document.getElementById("paper");
const draw = (name, row, column) => {
  const box = paper.getBoundingClientRect();
  const clientX = box.left + (column / paper.width) * box.width, clientY = box.top + (row / paper.height) * box.height;
  paper.dispatchEvent(new PointerEvent(name, { clientX, clientY, pointerId: 1 }));
};
const key = (name, shiftKey = false) => paper.dispatchEvent(new KeyboardEvent("keydown", { key: name, shiftKey }));
const file = document.getElementById("file"), files = new DataTransfer();
const load = () => {
  const canvas = element("canvas", { width: 32, height: 16 }), pen = canvas.getContext("2d");
  pen.fillStyle = "#f00";
  pen.fillRect(0, 0, 16, 16);
  const bytes = Uint8Array.from(atob(canvas.toDataURL().split(",")[1]), (letter) => letter.charCodeAt(0));
  files.items.add(new File([bytes], "red.png"));
  file.files = files.files;
  file.dispatchEvent(new Event("change"));
};
"""


@browser
def test_pictures_are_chosen_drawn_loaded_and_linked_to(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = with_pictures(12, (1, 8, 8))
    net = build_net("simple_cnn", in_channels=1, image_size=8, num_classes=5)
    _, text = rendered(net, picture(), label=None, names=tuple("abcde"), options=options)
    linked = torch.arange(64, dtype=torch.uint8)
    address = base64.b64encode(linked.numpy().tobytes()).decode()
    actions = (
        TURN
        + f"""
seen.first = state();
document.querySelectorAll("#thumbs button")[3].click();
seen.chosen = state();
document.getElementById("truth").value = "0";
document.getElementById("truth").dispatchEvent(new Event("change"));
seen.relabelled = state();
draw("pointerdown", 1.5, 4.5); draw("pointermove", 6.5, 4.5); draw("pointerup", 6.5, 4.5);
draw("pointermove", 6.5, 0.5);
await until(() => shown.name === "drawn here");
seen.drawn = state();
document.getElementById("clear").click();
await until(() => new Set(numbers()).size === 1);
seen.cleared = state();
key("ArrowUp"); key(" "); key("ArrowLeft", true); key("Tab");
await until(() => new Set(numbers()).size > 1);
seen.keyed = state();
load();
await until(() => shown.name === "red.png");
seen.loaded = state();
seen.words = words("#input-status");
files.items.clear();
files.items.add(new File(["no picture"], "text.txt"));
file.files = files.files;
file.dispatchEvent(new Event("change"));
await until(() => words("#input-status") !== seen.words);
seen.refused = words("#input-status");
location.hash = "picture={address}";
await until(() => shown.name !== "red.png");
seen.linked = state();
location.hash = "picture=AAAA";
await until(() => words("#input-status") !== "");
seen.short = words("#input-status");
"""
    )
    found, console = visit(observed(text, actions), tmp_path, LIGHT, "--window-size=1000,1000")
    assert console == []
    first, chosen = found["first"], found["chosen"]
    assert (first["label"], first["truth"], first["name"]) == (None, "", "a picture")
    assert first["pressed"] == [True] + 10 * [False]
    tests = options.module.test_dataloader()
    place = [0, 5, 1, 6, 2, 7, 3, 8, 4, 9][2]
    assert (chosen["label"], chosen["truth"], chosen["caption"]) == (1, "1", "a test picture of class b")
    assert chosen["pressed"].index(True) == 3
    assert chosen["pixels"] == pytest.approx((tests.images[place].flatten() / 255).tolist())
    given = (tests.images[place : place + 1] / 255 - 0.4) / 0.3
    assert chosen["shares"] == pytest.approx((100 * net(given)[0].softmax(0)).tolist(), abs=0.06)
    assert chosen["says"] == f"{'abcde'[int(net(given).argmax())]} ({max(chosen['shares']):.1f} %)"
    assert found["relabelled"]["label"] == 0
    assert found["relabelled"]["pixels"] == chosen["pixels"]
    assert "but it is a." in found["relabelled"]["verdict"]

    drawn = torch.tensor(found["drawn"]["pixels"]).reshape(8, 8)
    assert (found["drawn"]["name"], found["drawn"]["label"]) == ("drawn here", None)
    ink = (drawn - drawn[0, 0]).abs()
    assert ink[1:7, 4].min() > 0.9
    assert ink[:, :3].max() == 0  # the pointer was up
    assert len(set(found["cleared"]["pixels"])) == 1
    keyed = (torch.tensor(found["keyed"]["pixels"]).reshape(8, 8) - drawn[0, 0]).abs()
    assert keyed[3, 3:5].min() > 0.9
    assert keyed[:2].max() == keyed[5:].max() == 0

    loaded = torch.tensor(found["loaded"]["pixels"]).reshape(8, 8)
    assert loaded[:, :3].unique().tolist() == pytest.approx([round(0.299 * 255) / 255])
    assert loaded[:, 5:].min() == 1  # what is transparent is on white
    assert "scaled by the browser to 8 × 8 pixels" in found["words"]
    assert found["refused"] == "text.txt: expected a picture that the browser can read."
    assert found["linked"]["pixels"] == pytest.approx((linked / 255).tolist())
    assert found["linked"]["caption"] == "the picture in the page's address"
    assert found["short"] == "#picture: expected 64 bytes (1 × 8 × 8) in base64, got 3."


@browser
def test_a_picture_that_is_not_square_is_padded_where_the_data_is(tmp_path: Path) -> None:
    _, text = rendered(simple(), picture(), options=replace(ONE, fit="pad"))
    actions = TURN + 'load(); await until(() => shown.name === "red.png"); seen.pixels = numbers();'
    found, console = visit(observed(text, actions), tmp_path, LIGHT)
    assert console == []
    pixels = torch.tensor(found["pixels"]).reshape(8, 8)
    assert pixels[[0, 1, 6, 7]].min() == 1
    assert pixels[2:6, :3].max() < 0.5


@browser
@pytest.mark.parametrize("dark", [True, False])
def test_the_drawing_has_the_paper_of_the_training_pictures(dark: bool, tmp_path: Path) -> None:
    image = torch.full((1, 1, 8, 8), 0.1 if dark else 0.9)
    _, text = rendered(simple(), image)
    actions = (
        TURN + 'draw("pointerdown", 4, 4); await until(() => shown.name === "drawn here"); seen.pixels = numbers();'
    )
    found, console = visit(observed(text, actions), tmp_path, LIGHT)
    assert console == []
    assert found["pixels"][0] == (0 if dark else 1)
    assert abs(found["pixels"][36] - found["pixels"][0]) > 0.3


# ---- the table of probabilities


@browser
@pytest.mark.parametrize(("letters", "classes"), [(1, 10), (32, 10), (60, 10), (60, 30)])
def test_bars_keep_their_width_whatever_the_names(letters: int, classes: int, tmp_path: Path) -> None:
    names = tuple((chr(97 + index % 26) * letters) for index in range(classes))
    torch.manual_seed(0)
    net = build_net("simple_cnn", in_channels=1, image_size=8, num_classes=classes)
    _, text = rendered(net, picture(), names=names)
    actions = """
const table = document.getElementById("answer-classes");
seen.rows = table.rows.length;
seen.bars = [...table.rows].map((row) => row.cells[1].getBoundingClientRect().width);
seen.table = table.getBoundingClientRect().width;
seen.printed = getComputedStyle(table.querySelector(".bar")).printColorAdjust;
"""
    found, console = visit(on_a_phone(observed(text, actions)), tmp_path, LIGHT)
    assert console == []
    assert found["wide"] <= 0
    assert found["rows"] == 10 or (classes, found["rows"]) == (30, 11)  # the true one is beside the first ten
    assert min(found["bars"]) > 0.25 * found["table"]
    assert found["printed"] == "exact"


# ---- a run


@browser
def test_a_run_of_steps_learns_pauses_and_goes_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Digits()
    module.setup("test")
    options = live.Options(module.mean, module.std, 0.1, module, 10)
    net = build_net("simple_cnn", in_channels=1, image_size=8, channels=(4,), hidden=16)
    _, text = rendered(net, picture(), options=options)
    actions = (
        TURN
        + """
const run = document.getElementById("run");
let shows = 0;
whenShown(() => { shows++; });
seen.size = data.live.train.labels.length;
run.click();
seen.running = run.textContent;
seen.disabled = document.getElementById("step").disabled;
run.click();
await until(() => run.textContent !== "Pause");
seen.paused = run.textContent;
run.click();
await until(() => run.textContent !== "Pause");
seen.end = run.textContent;
seen.status = document.getElementById("steps-status").textContent;
seen.curve = document.getElementById("curve").ariaLabel;
seen.points = document.querySelector("#curve polyline").getAttribute("points").split(" ").length;
seen.shows = shows;
"""
    )
    found, console = visit(observed(text, actions), tmp_path, LIGHT)
    assert console == []
    assert found["size"] == 1258
    assert (found["running"], found["disabled"]) == ("Pause", True)
    left = int(re.fullmatch(r"Go on \((\d+) steps left\)", found["paused"])[1])  # type: ignore[index]
    assert 150 < left < 200
    assert found["end"] == "Run 200 steps"
    assert found["points"] == 200
    assert found["curve"].startswith("Loss of each batch: 200 steps, from 2.")
    right = re.search(rf"Step 200: .* Right: (\d+) of the 20 test pictures\. {left} steps in ", found["status"])
    assert right
    assert int(right[1]) >= 15
    assert found["shows"] >= 3
