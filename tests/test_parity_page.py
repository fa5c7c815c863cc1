"""The page of a comparison: the right numbers at the right node, and what a browser does with it."""

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cnn_lightning.errors import UserError
from cnn_lightning.model import build_net
from cnn_lightning.swap import swap_layers
from cnn_lightning.tools.parity import page
from cnn_lightning.tools.parity.layerwise.results import WHOLE, Parity, Row
from cnn_lightning.tools.parity.lockstep import compare
from cnn_lightning.tools.parity.subject import Subject
from tests.browser import DARK, LIGHT, Structure, browser, observed, on_a_phone, visit
from tests.wrong_torch import wrong_kernel


def subject_of(net: nn.Module, shape: tuple[int, ...], steps: int = 1, name: str = "net") -> Subject:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(shape, generator=generator), torch.randint(10, shape[:1], generator=generator))
        for _ in range(steps)
    ]
    return Subject(name, net, nn.CrossEntropyLoss(), batches, "random pictures")


def row(layer: str, what: str = "output", verdict: str = "equal", *, step: int = 0, call: int = 0, **more: Any) -> Row:
    return Row(step, layer, call, what, 1.25e-7, (0, 3), 2.5e-8, 5e-8, 0, verdict, **more)


def parity_of(net: nn.Module, rows: list[Row], **more: Any) -> Parity:
    steps = 1 + max(each.step for each in rows)
    return Parity(rows, swap_layers(copy.deepcopy(net), "torch"), "float32", 1e-4, steps, **more)


def rows_of(net: nn.Module, steps: int, verdict: Callable[[int, str], str] = lambda step, name: "equal") -> list[Row]:
    """The rows that `compare` gives for a network whose layers are called once, all with the same errors."""
    found = []
    for step in range(steps):
        for name, module in net.named_modules():
            if next(module.children(), None) is None:
                parameters = [f"gradient of {key}" for key, _ in module.named_parameters()]
                buffers = [f"buffer {key}" for key, _ in module.named_buffers()]
                names = ("output", "gradient of input", *parameters, *buffers)
                found += [row(name, what, verdict(step, name), step=step) for what in names]
    return found


@pytest.fixture(scope="module")
def faulty() -> tuple[Subject, Parity, str]:
    """SimpleCNN, where torch's max-pooling is wrong."""
    torch.manual_seed(0)
    subject = subject_of(build_net("simple_cnn", in_channels=1, image_size=8), (2, 1, 8, 8), 2, "simple_cnn")
    with wrong_kernel("max_pool2d_with_indices"):
        found = compare(subject.net, "numpy", batches=subject.batches)
    return subject, found, page.render(subject, found)


@pytest.fixture(scope="module")
def resnet() -> tuple[Subject, Parity, str]:
    """ResNet-18, where a convolution of the candidate is wrong in the second of three steps."""
    torch.manual_seed(0)
    net = build_net("resnet18", in_channels=3, image_size=32)

    def verdict(step: int, name: str) -> str:
        return "fault" if (step, name) == (1, "layer3.0.conv2") else "rounding" if name == "layer4.1.bn2" else "equal"

    subject = subject_of(net, (2, 3, 32, 32), 3, "resnet18")
    found = parity_of(net, rows_of(net, 3, verdict), candidate="channels_last")
    return subject, found, page.render(subject, found)


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def boxes(text: str) -> dict[str, list[str]]:
    """The classes of each box of the graph, by its name."""
    items = data_of(text)["items"]
    found = [attributes for tag, attributes in Structure(text).found if "data-item" in attributes]
    return {items[int(each["data-item"] or 0)]["name"]: (each["class"] or "").split() for each in found}


def cells(text: str, name: str) -> list[list[Any]]:
    return next(item["rows"] for item in data_of(text)["items"] if item["name"] == name)


# ---- what it says


def test_the_page_is_whole_and_needs_nothing_else(faulty: Any, resnet: Any) -> None:
    for _, _, text in (faulty, resnet):
        found = Structure(text)
        assert len(set(found.ids)) == len(found.ids)
        for tag, attributes in found.found:
            assert tag not in ("link", "img", "iframe") or (attributes.get("href") or "").startswith("data:")
            assert "src" not in attributes
            assert (attributes.get("href") or "#graph") in ("data:,", "#graph")
        assert "http" not in text
        assert "url(" not in text
    assert len(resnet[2]) < 2e6


def test_every_number_is_that_of_the_comparison(faulty: Any) -> None:
    _, found, text = faulty
    data = data_of(text)
    shown = {}
    for item in data["items"]:
        for step, _, what, *errors, verdict, _ in item["rows"]:
            shown[item["name"], step, what] = (errors, data["verdicts"][verdict]["verdict"])
    assert sum(len(item["rows"]) for item in data["items"]) == len(found.rows)
    for each in found.rows:
        name, what = "output" if each.layer == WHOLE else each.layer, each.what
        if name.endswith(" (chain)"):  # of several layers: with the last of them
            name, what = name.split()[-2], f"{name}: {what}"
        errors, verdict = shown[name, each.step + 1, what]
        for text_of, error in zip(errors, (each.error, each.native, each.other), strict=True):
            assert math.isnan(error) if text_of == "" else float(text_of) == pytest.approx(error, rel=0.05)
        assert verdict == each.verdict
    assert data["columns"][3:6] == ["layers to torch", "torch to float64", "layers to float64"]


def test_a_planted_fault_colours_the_named_node(faulty: Any) -> None:
    _, found, text = faulty
    at_fault = {each.layer for each in found.rows if each.verdict == "fault of torch"} - {WHOLE}
    assert "pool1" in at_fault
    wrong = {name for name, classes in boxes(text).items() if "wrong" in classes}
    assert wrong - {"output"} == at_fault
    assert "torchs" in boxes(text)["pool1"]
    assert "three float64 results" in next(line[-1] for line in cells(text, "pool1") if line[-1])
    assert "TORCH IS WRONG" in text


def test_a_block_has_the_gravest_verdict_in_it_and_the_way_to_the_first_fault_is_open(resnet: Any) -> None:
    _, _, text = resnet
    found = boxes(text)
    assert {name for name, classes in found.items() if "theirs" in classes} == {
        "layer3",
        "layer3.0",
        "layer3.0.conv2",
    }
    assert "rounding" in found["layer4"]
    assert "equal" in found["layer1"]
    assert found["+ in layer1.0"] == ["node", "box"]
    items = data_of(text)["items"]
    opened = {
        items[int(attributes["data-item"] or 0)]["name"]
        for tag, attributes in Structure(text).found
        if tag == "details" and "data-item" in attributes and "open" in attributes
    }
    assert opened == {"layer1", "layer2", "layer3", "layer4", "layer3.0"}
    assert "fault of channels_last" in text


def test_no_verdict_is_shown_by_colour_alone(resnet: Any) -> None:
    _, _, text = resnet
    verdicts = data_of(text)["verdicts"]
    assert len({each["mark"] for each in verdicts}) == len({each["words"] for each in verdicts}) == len(verdicts)
    for tone in {"equal", "rounding", "theirs"}:
        box = re.search(rf'class="node box [^"]*{tone}".*?</button>', text)
        assert box
        mark, words = next((each["mark"], each["words"]) for each in verdicts if tone in each["tone"].split())
        assert f'<span class="mark" aria-hidden="true">{mark}</span>' in box[0]
        assert f'<span class="unseen words">{words}</span>' in box[0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.part = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.token
        return self.part(self.attention(x, x, x)[0]).mean(1)


def test_a_row_without_a_node_of_its_own_belongs_to_what_it_lies_in() -> None:
    net = Attention()
    rows = [
        row("attention.out_proj", "gradient of weight"),
        row("attention", "gradient of in_proj_weight"),
        row("part", "output"),
        row("", "gradient of token"),
        row(WHOLE, "gradient of part.0.weight in float64"),
        row("loss", "output"),
        row("loss", "output", call=1),
    ]
    text = page.render(subject_of(net, (2, 3, 4)), parity_of(net, rows))
    assert [each[2] for each in cells(text, "attention")] == [
        "out_proj: gradient of weight",
        "gradient of in_proj_weight",
    ]
    assert [each[2] for each in cells(text, "part")] == ["output"]
    assert [each[2] for each in cells(text, "output")] == [
        "the network: gradient of token",
        "gradient of part.0.weight in float64",
    ]
    assert len(cells(text, "loss")) == 2


def test_calls_of_one_layer_are_apart() -> None:
    part = nn.Linear(10, 10)
    net = nn.Sequential(part, part)
    rows = [row("0"), row("0", verdict="both at fault", call=1, numpy=0.5, why="because")]
    text = page.render(subject_of(net, (2, 10)), parity_of(net, rows, candidate="bf16"))
    assert "equal" in boxes(text)["0"]
    assert {"wrong", "both"} <= set(boxes(text)["0 (call 2)"])
    assert data_of(text)["columns"][-2:] == ["NumPy to float64", "verdict"]
    assert cells(text, "0 (call 2)")[0][3:7] == ["1.2e-07", "2.5e-08", "5.0e-08", "5.0e-01"]
    assert cells(text, "0 (call 2)")[0][-1] == "because; the largest error is at [0, 3]"


def test_names_are_text() -> None:
    net = nn.Sequential(nn.Linear(4, 10))
    subject = subject_of(net, (2, 4), name="<b>net</b>")
    text = page.render(subject, parity_of(net, [row("0", why="</script><i>")], candidate="<u>"))
    assert "<b>net" not in text
    assert "<u>" not in text
    assert text.count("</script>") == 2
    Structure(text)


def test_a_page_that_cannot_be_written_is_one_line(faulty: Any, tmp_path: Path) -> None:
    subject, found, text = faulty
    page.write(subject, found, str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text
    with pytest.raises(UserError, match=r"^--html: can't write to "):
        page.write(subject, found, str(tmp_path))


# ---- in the browser

CHOOSE = """
  const named = (name) => graph.box(data.items.findIndex((item) => item.name === name));
  const texts = (nodes) => [...nodes].map((node) => node.textContent);
  const shown = () => [...panel.querySelectorAll("tbody tr")].map((line) => texts(line.cells));
  const press = (key) => document.activeElement.dispatchEvent(
    new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
"""
NODES = """
  seen.idle = panel.textContent.trim();
  named("pool1").click();
  seen.title = panel.querySelector("h3").textContent;
  seen.said = document.getElementById("said").textContent;
  seen.entered = document.activeElement === panel;
  seen.rows = shown();
  seen.pressed = named("pool1").getAttribute("aria-pressed");
  seen.near = texts(panel.querySelectorAll(".near button"));
  panel.querySelector(".near button").click();
  seen.next = [panel.querySelector("h3").textContent, document.activeElement === named("relu1")];
  press("ArrowDown");
  seen.down = document.activeElement === named("pool1");
  press("ArrowUp");
  seen.up = document.activeElement === named("relu1");
  seen.controls = [...graph.root.querySelectorAll("[data-item]")].every((box) => graph.control(box).tabIndex === 0);
  named("conv2").click();
  press("Escape");
  seen.closed = [panel.className, document.activeElement === named("conv2")];
"""
STEPS = """
  const choose = (number) => {
    step.value = number;
    step.dispatchEvent(new Event("change"));
  };
  const look = (name) => [named(name).className, graph.control(named(name)).textContent];
  const border = (name) => getComputedStyle(named(name)).borderTopColor;
  seen.borders = ["input", "+ in layer3.0", "+ in layer4.0", "layer4.0.conv1", "layer4.1.bn2"].map(border);
  seen.all = look("layer3.0.conv2")[0];
  choose(1);
  seen.first = [...look("layer3.0.conv2"), ...look("layer3")];
  choose(2);
  seen.second = [...look("layer3.0.conv2"), ...look("layer3")];
  seen.counts = document.querySelector('[data-count="fault"]').textContent;
  document.getElementById("fold").click();
  document.documentElement.style.scrollBehavior = "auto";
  document.querySelector("[data-go]").click();
  seen.revealed = [named("layer3").open, named("layer3.0").open, panel.querySelector("h3").textContent];
  seen.rows = shown().map((line) => line[0]);
  seen.panel = panel.getBoundingClientRect().bottom - innerHeight;
  seen.covered = named("layer3.0.conv2").getBoundingClientRect().bottom - panel.getBoundingClientRect().top;
  document.getElementById("unfold").click();
  const [whole, ...parts] = [named("layer2.0"), ...named("layer2.0").querySelectorAll(".box")].map(
    (box) => box.getBoundingClientRect());
  seen.inside = parts.every((part) => part.left >= whole.left && part.right <= whole.right);
  seen.graph = graph.root.scrollWidth + 2 * 16 - innerWidth;
"""


def brightness(color: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3


@browser
def test_a_click_shows_the_numbers_and_keys_walk(faulty: Any, tmp_path: Path) -> None:
    _, found, text = faulty
    seen, console = visit(observed(text, CHOOSE + NODES), tmp_path, LIGHT, "--window-size=1280,900")
    assert console == []
    assert seen["idle"] == "Choose a layer to see its numbers."
    assert (seen["title"], seen["pressed"]) == ("pool1", "true")
    rows = [line for line in seen["rows"] if len(line) > 1 and "(chain)" not in line[2]]
    expected = [each for each in found.rows if each.layer == "pool1"]
    assert [line[2] for line in rows] == [each.what for each in expected]
    assert [line[3] for line in rows] == [page.number(each.error) for each in expected]
    assert [line[-1].partition(" ")[2] for line in rows] == [each.verdict for each in expected]
    assert any("three float64 results" in line[0] for line in seen["rows"] if len(line) == 1)
    assert seen["near"] == ["relu1", "conv2"]
    assert seen["next"] == ["relu1", True]
    assert [seen["down"], seen["up"], seen["controls"]] == [True] * 3
    assert seen["said"] == "pool1: fault of torch"
    assert seen["entered"]
    assert seen["closed"] == ["idle", True]
    assert brightness(seen["paper"]) - brightness(seen["ink"]) > 150
    assert seen["wide"] <= 0


@browser
def test_a_step_alone_on_a_dark_phone(resnet: Any, tmp_path: Path) -> None:
    _, _, text = resnet
    phone = on_a_phone(observed(text, CHOOSE + STEPS))
    seen, console = visit(phone, tmp_path, DARK, "--window-size=500,900")
    assert console == []
    assert "theirs" in seen["all"]
    assert seen["borders"][0] == seen["borders"][1] == seen["borders"][2]
    assert len(set(seen["borders"])) == 3
    for tone, text_of in (seen["first"][:2], seen["first"][2:]):
        assert "equal" in tone.split()
        assert "theirs" not in tone.split()
        assert text_of.endswith("equal")
    for tone, text_of in (seen["second"][:2], seen["second"][2:]):
        assert {"wrong", "theirs"} <= set(tone.split())
        assert "✗" in text_of
        assert text_of.endswith("fault of channels_last")
    assert seen["counts"] == " (1 layer)"
    assert seen["revealed"] == [True, True, "layer3.0.conv2"]
    assert set(seen["rows"]) == {"2", "the largest error is at [0, 3]"}
    assert seen["inside"]
    assert seen["wide"] <= 0
    assert seen["graph"] <= 0  # all blocks open, nothing must be scrolled to the side
    assert abs(seen["panel"]) <= 1
    assert seen["covered"] < 0
    assert brightness(seen["ink"]) - brightness(seen["paper"]) > 150


@browser
def test_an_error_in_the_page_would_be_seen(faulty: Any, tmp_path: Path) -> None:
    _, console = visit(observed(faulty[2], "nosuchfunction();"), tmp_path)
    assert any("nosuchfunction" in line for line in console)


def test_the_functions_of_a_block_have_their_numbers() -> None:
    net = build_net("resnet18", num_classes=10, image_size=32)
    subject = subject_of(net, (2, 3, 32, 32))
    found = compare(net, batches=subject.batches, candidate="threads=1")
    items = json.loads(re.findall(r"<script[^>]*json[^>]*>(.*?)</script>", page.render(subject, found), re.DOTALL)[0])
    sums = [item for item in items["items"] if item["name"].startswith("+ in ")]
    assert len(sums) == 8
    assert all(len(item["rows"]) == 3 for item in sums)
