"""The layer sections of the explain page: formulas beside code, pickers that move, one number traced, the widget."""

import functools
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cnn_lightning.model import build_net
from cnn_lightning.ops import conv, pool
from cnn_lightning.swap import swap_layers
from cnn_lightning.tools.explain import formulas, glossary, page, picker, roles, source
from cnn_lightning.tools.explain.record import Layer, Recording, record
from tests.browser import LIGHT, Structure, browser, observed, on_a_phone, visit
from tests.cases import Case, load

# ---- formulas beside code

WITH_A_SUM = {"Upsample": 7}
"""The sample of a layer, not the first, whose output is a sum as the formula says."""


def traced(case: Case) -> dict[str, list[source.Listing]]:
    """The functions that a sample of a layer calls, forward and backward."""
    sample = case.samples[WITH_A_SUM.get(case.name, 0)]
    module, inputs = case.layer(**sample.options).eval(), sample.inputs()
    inputs[0].requires_grad_(inputs[0].is_floating_point())
    found, forward = source.traced(lambda: module(*inputs))
    y = found[0] if isinstance(found, tuple) else found
    _, backward = source.traced(lambda: y.sum().backward())
    return {"forward": forward, "backward": backward}


def roles_in(text: str) -> set[str]:
    return set(re.findall(r'data-role="(\w+)"', text))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in load() if not case.is_view])
def test_every_role_of_a_formula_has_a_name_in_the_code(case: Case) -> None:
    module: Any = case.native(**case.samples[0].options)
    found, listings = formulas.of(module), traced(case)
    assert found is not None
    for name, result in (("forward", "y"), ("backward", "dx")):
        typeset = roles_in("".join(formulas.mathml(text, found.letters) for text in getattr(found, name)))
        if not listings[name]:  # dropout computes nothing outside training
            continue
        stated = formulas.stated(listings[name])
        lines = [line for listing in stated for line in roles.colored(listing, result)]
        if "sum" in typeset:  # a sum may be in a function that the formula calls
            helpers = [listing for listing in listings[name] if listing not in stated]
            lines += [line for listing in helpers for line in roles.colored(listing)]
        assert typeset <= {part.role for line in lines for part in line.parts}, name
        assert typeset & {"y", "dx"}


def test_an_alias_that_is_missing_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roles._NAMES, "weight", None)
    monkeypatch.setitem(roles._NAMES, "w", None)
    case = next(case for case in load() if case.native is nn.Conv2d)
    with pytest.raises(AssertionError, match="forward"):
        test_every_role_of_a_formula_has_a_name_in_the_code(case)


def test_a_line_in_parts_is_the_line() -> None:
    case = next(case for case in load() if case.native is nn.Conv2d)
    for listing in traced(case)["backward"]:
        for each in roles.colored(listing, "dx"):
            assert "".join(part.text for part in each.parts) == each.line.text


def test_what_a_backward_returns_without_a_name_has_a_role() -> None:
    case = next(case for case in load() if case.native is nn.Linear)
    [listing, *_] = traced(case)["backward"]
    last = roles.colored(listing, "dx")[-1]
    assert {part.role for part in last.parts if part.text in ("grad_x", "grad_weight")} == {"dx", "dw"}
    assert {part.role for part in last.parts if part.text == "dtype"} == {"db"}
    assert [part.role for part in last.parts if part.text == "upstream"] == ["g"]


# ---- the page


@dataclass
class Made:
    text: str
    seen: Recording
    image: torch.Tensor

    def layer(self, name: str) -> Layer:
        return next(layer for layer in self.seen.layers if layer.name == name)


def made(net: nn.Module, channels: int, size: int) -> Made:
    loss = nn.CrossEntropyLoss()
    swap_layers(net, "numpy", beside={"loss": loss})
    image = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(1))
    seen = record(net, loss, image, 3, details=True)
    names = [f"class {index}" for index in range(len(seen.logits))]
    subject = page.Subject("net", "best.ckpt", "a.png", image, image[0].sigmoid(), 3, True, names)
    return Made(page.render(subject, net, seen, [], []), seen, image)


@pytest.fixture(scope="module")
def simple() -> Made:
    torch.manual_seed(0)
    return made(build_net("simple_cnn", in_channels=1, image_size=8), 1, 8)


@pytest.fixture(scope="module")
def strided() -> Made:
    """A net with 7x7 kernels, normalisation and windows that overlap."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False)
    net = nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(64, 5))
    return made(net, 3, 16)


def numbers_of(seen: Recording) -> dict[str, dict[str, Any]]:
    return {entry["label"]: entry for entry in picker.numbers(seen.layers)}


def test_layers_know_where_their_input_comes_from(simple: Made) -> None:
    entries = numbers_of(simple.seen)
    chain = [entry["from"] for entry in entries.values()]
    assert chain == [None, *list(entries)[:-1]]
    assert [label for label, entry in entries.items() if entry["first"]] == ["conv1"]
    assert None not in [entry["picker"] for entry in entries.values()]


def test_a_sum_of_two_layers_comes_from_none() -> None:
    torch.manual_seed(0)
    net = build_net("resnet18", in_channels=3, image_size=32)
    swap_layers(net, "torch")
    entries = numbers_of(record(net, nn.CrossEntropyLoss(), torch.randn(1, 3, 32, 32), 0))
    assert entries["layer1.0.conv1"]["from"] == "maxpool"
    assert entries["layer1.0.relu (call 2)"]["from"] is None
    assert entries["fc"]["from"] == "avgpool"


def test_the_page_says_why_there_is_no_slider(simple: Made) -> None:
    assert page.NO_MOMENTS.replace("'", "&#39;") in simple.text
    Structure(simple.text)


def test_the_glossary_has_the_words_of_the_page_alone(simple: Made) -> None:
    names = [word.name for word in glossary.WORDS]
    assert names == sorted(names, key=str.lower)
    assert [word.name for word in glossary.used("<p>Its stride.</p><pre>padding</pre>")] == ["stride"]
    found = re.findall(r'<dt id="word-\d+"[^>]*>(.*?)</dt>', simple.text)
    assert {"stride", "upstream gradient", "receptive field"} <= set(found) < set(names)


# ---- in the browser

STEPS = """
  const inside = (layer, part) => [...document.querySelectorAll(`.picker[data-layer="${layer}"] ${part}`)];
  const press = (layer, label) => inside(layer, ".player button").find((each) => each.ariaLabel === label).click();
  const choose = (layer, pass) => inside(layer, `[data-pass="${pass}"]`)[0].click();
  const words = (layer) => inside(layer, ".result")[0].textContent;
  const conv = layers.get("conv2"), now = shown.layers.conv2;
  seen.dx = Array.from(convGradX(conv, now, 3, 5, Infinity).values);
  seen.half = Array.from(convGradX(conv, now, 3, 5, 9 * 8).values);
  seen.dw = convGradW(conv, now, 3, 5, Infinity).flat();
  seen.pool = Array.from(poolGradX(layers.get("pool1"), shown.layers.pool1, 2, Infinity).values);
  seen.linear = Array.from(linearGradX(shown.layers.linear1, Infinity));
  press("conv1", "to the first step");
  seen.first = words("conv1");
  seen.totals = Array.from({ length: 10 }, () => { press("conv1", "one step on"); return words("conv1"); });
  const output = document.querySelector('.picker[data-layer="conv1"] canvas.clickable');
  const copy = element("canvas", { width: 224, height: 224 }).getContext("2d", { willReadFrequently: true });
  const alpha = (column) => {
    copy.clearRect(0, 0, 224, 224);
    copy.drawImage(output, 0, 0);
    return copy.getImageData(28 * column + 14, 14, 1, 1).data[3];
  };
  seen.filled = [0, 1, 2].map(alpha);
  for (let step = 0; step < 10; step++) press("conv1", "one step on");
  seen.later = [0, 1, 2].map(alpha);
  const button = inside("conv1", ".player button")[0], progress = () => inside("conv1", "progress")[0].value;
  const options = { bubbles: true, cancelable: true };
  const key = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", { key, ...options }));
  seen.keys = [progress()];
  for (const each of ["ArrowRight", "ArrowRight", "ArrowLeft"]) { key(button, each); seen.keys.push(progress()); }
  seen.due = [due(0.5, 0.1, 8), due(0, 1, 40).whole];
  press("conv1", "play");
  seen.playing = inside("conv1", ".result")[0].getAttribute("aria-live");
  seen.label = inside("conv1", ".player button")[2].ariaLabel;
  key(output, " ");
  seen.paused = inside("conv1", ".player button")[2].ariaLabel;
  choose("conv1", "dw"); seen.dwText = words("conv1");
  choose("pool1", "dx"); seen.poolText = words("pool1");
  choose("relu1", "dx"); seen.reluText = words("relu1");
  const linear2 = shown.layers.linear2, larger = linear2.y.values.map((value) => value + 5);
  const y = { shape: linear2.y.shape, values: larger };
  pick("linear2", [4]);
  show({ layers: { ...shown.layers, linear2: { ...linear2, y } } });
  seen.live = [words("linear2"), text(y.values[4]), document.getElementById("trace-summary").textContent];
  seen.mistakes = 0;
  let random = 1;
  for (let each = 0; each < 2000; each++) {
    const next = () => {
      random = (random * 48271) % 2147483647;
      return (random / 2147483647 - 0.5) * 10 ** (each % 7 - 3);
    };
    const [a, b] = [next(), next()], [p, q, total] = equation([a, b], a + b, (x, y) => x + y);
    if (text(numberIn(p) + numberIn(q)) !== total) seen.mistakes++;
  }
  seen.power = equation([1, 1.00009], 1 / 1.00009, (a, b) => a / b);
  const row = inside("conv1", '[name="row"]')[0];
  row.focus();
  row.value = 99;
  row.dispatchEvent(new Event("input"));
  row.dispatchEvent(new Event("change"));
  seen.row = [row.value, inside("conv1", ".allowed")[0].textContent];
"""


@browser
def test_steps_add_up_to_what_numpy_computes(simple: Made, tmp_path: Path) -> None:
    seen, console = visit(observed(simple.text, STEPS), tmp_path, LIGHT, "--window-size=1200,900")
    assert console == []
    conv2, pool1, linear1 = (simple.layer(name) for name in ("conv2", "pool1", "linear1"))
    kernel, g = conv2.parameters["weight"][0][3:4, 5:6], conv2.grad_y[:, 3:4]
    full = nn.functional.conv_transpose2d(g, kernel, padding=1)
    assert seen["dx"] == pytest.approx(full.flatten().tolist(), abs=1e-8)
    some = g.flatten().clone()
    some[8:] = 0
    partial = nn.functional.conv_transpose2d(some.reshape(g.shape), kernel, padding=1)
    assert seen["half"] == pytest.approx(partial.flatten().tolist(), abs=1e-8)
    assert seen["dw"] == pytest.approx(conv2.parameters["weight"][1][3, 5].flatten().tolist(), abs=1e-6)
    assert pool1.grad_x is not None
    assert seen["pool"] == pytest.approx(pool1.grad_x[0, 2].flatten().tolist(), abs=1e-7)
    assert linear1.grad_x is not None
    assert seen["linear"] == pytest.approx(linear1.grad_x.flatten().tolist(), abs=1e-6)

    assert "after 0 of 10 terms: 0" in seen["first"]
    assert "after 9 of 10 terms" in seen["totals"][8]
    assert "the layer's output there is" in seen["totals"][9]
    assert seen["filled"] == [255, 0, 0]
    assert seen["later"] == [255, 255, 0]
    assert seen["keys"] == [20, 21, 22, 21]
    assert seen["due"] == [{"whole": 1, "left": pytest.approx(0.3)}, 40]
    assert (seen["playing"], seen["label"], seen["paused"]) == ("off", "pause", "play")
    assert "gradient of kernel" in seen["dwText"]
    assert "the whole gradient" in seen["poolText"]
    assert "gradient of x = mask × g" in seen["reluText"]
    words, number, summary = seen["live"]
    assert words.endswith(f"the layer's output there is {number}")
    assert summary.startswith(f"Traced: linear2[4] = {number}, ")
    assert seen["mistakes"] == 0
    assert seen["power"] == ["1", "1.0001", "0.9999"]
    assert seen["row"] == ["7", "row: expected 0 to 7, got 99; it is now 7."]


PLAY = """
  const frames = [];
  globalThis.requestAnimationFrame = (frame) => frames.push(frame);
  const root = document.querySelector('.picker[data-layer="conv1"]'), buttons = root.querySelectorAll(".player button");
  const progress = () => root.querySelector("progress").value;
  buttons[0].click();
  root.querySelector(".player select").value = "fast";
  buttons[2].click();
  seen.progress = [progress()];
  for (let time = 0; frames.length && time < 2000; time += 100) {
    frames.shift()(time);
    seen.progress.push(progress());
  }
  seen.label = buttons[2].ariaLabel;
"""


@browser
@pytest.mark.parametrize("less", [True, False])
def test_a_picker_plays_but_steps_where_less_motion_is_asked_for(less: bool, simple: Made, tmp_path: Path) -> None:
    flags = ["--force-prefers-reduced-motion"] if less else []
    seen, console = visit(observed(simple.text, PLAY), tmp_path, *flags)
    assert console == []
    if less:
        assert seen["progress"] == [1]
    else:
        assert seen["progress"][:5] == [0, 0, 4, 8, 12]  # 40 steps a second
        assert seen["label"] == "pause"


TRACE = """
  let marked = null;
  globalThis.markTrace = (path) => { marked = path; };
  const fields = (layer) => [...document.querySelectorAll(`.picker[data-layer="${layer}"] input`)];
  seen.begin = traced.steps;
  pick("relu1", largestPlace("relu1"));
  seen.path = traced.steps;
  seen.marked = marked.length;
  const moving = data.layers.filter((layer) => WAYS[layer.picker]).map((layer) => layer.label);
  seen.followed = moving.map((label) => [label, fields(label).map((input) => +input.value)]);
  seen.softmax = document.querySelector('.picker[data-kind="softmax"] select').value;
  seen.field = receptiveField("conv1", [0, 3, 4]);
  seen.last = receptiveField(data.layers.at(-2).label, [0]);
  const links = [...document.querySelectorAll("#trace-path a")];
  seen.links = links.map((link) => document.querySelector(link.hash).dataset.label);
  const legend = document.querySelector('.layer[data-label="conv1"] .legend [data-role="w"]');
  legend.click();
  seen.lit = [...document.querySelectorAll(".lit")].map((each) => [each.dataset.role, each.tagName]);
  seen.elsewhere = document.querySelectorAll('.layer:not([data-label="conv1"]) .lit').length;
  legend.click();
  legend.blur();
  document.querySelector('.layer[data-label="conv1"]').dispatchEvent(new PointerEvent("pointerleave"));
  seen.unlit = document.querySelectorAll(".lit").length;
  const terms = [...document.querySelectorAll("a.term")];
  seen.terms = terms.map((link) => document.querySelector(link.hash) !== null && link.dataset.meaning.length > 10);
"""


@browser
def test_a_number_is_traced_to_the_picture_and_to_the_loss(simple: Made, tmp_path: Path) -> None:
    seen, console = visit(observed(simple.text, TRACE), tmp_path, LIGHT, "--window-size=1200,900")
    assert console == []
    labels = [None, *(layer.name for layer in simple.seen.layers)]
    for path in (seen["begin"], seen["path"]):
        assert [step["label"] for step in path] == labels
        picture, *steps, loss = path
        assert picture["value"] == pytest.approx(simple.image[(0, *picture["place"])].item(), rel=1e-5)
        assert picture["gradient"] == pytest.approx(simple.seen.grad_image[(0, *picture["place"])].item(), rel=1e-4)
        for step in steps:
            layer, place = simple.layer(step["label"]), (0, *step["place"])
            assert step["value"] == pytest.approx(layer.y[place].item(), rel=1e-5)
            assert step["gradient"] == pytest.approx(layer.grad_y[place].item(), rel=1e-5)
        assert loss["value"] == pytest.approx(simple.seen.loss)
    found = re.fullmatch(r"one of its terms: (\S+) × (\S+) = (\S+)", seen["path"][4]["how"])
    assert found
    x, w, term = (float(each.replace("−", "-")) for each in found.groups())
    assert x == pytest.approx(seen["path"][3]["value"], rel=1e-3)
    assert x * w == pytest.approx(term, rel=2e-3)
    conv1 = simple.layer("conv1")
    channel, row, column = seen["path"][1]["place"]
    window = nn.functional.pad(conv1.x, (1, 1, 1, 1))[0, 0, row : row + 3, column : column + 3]
    best = divmod(int((window * conv1.parameters["weight"][0][channel, 0]).abs().argmax()), 3)
    assert seen["path"][0]["place"] == [0, row + best[0] - 1, column + best[1] - 1]
    assert seen["followed"] == [[step["label"], step["place"]] for step in seen["path"][1:-1]]
    assert seen["marked"] == len(labels)
    assert int(seen["softmax"]) == seen["path"][-2]["place"][0]
    assert seen["field"] == {"rows": [2, 5], "columns": [3, 6]}
    assert seen["last"] == {"rows": [0, 8], "columns": [0, 8]}
    assert seen["links"] == labels[1:]

    assert {role for role, _ in seen["lit"]} == {"w"}
    assert {tag.lower() for _, tag in seen["lit"]} == {"button", "msub", "span", "div", "table"}
    assert seen["elsewhere"] == seen["unlit"] == 0
    assert len(seen["terms"]) > 5
    assert all(seen["terms"])


WIDE = """
  const edge = document.documentElement.clientWidth, fits = (each) => each.getBoundingClientRect().right <= edge;
  const shownParts = [...document.querySelectorAll(".picker table, .picker canvas, .widget canvas")];
  seen.cut = shownParts.filter((each) => !each.closest(".scroll") && !fits(each)).length;
  const kernels = [...document.querySelectorAll('.picker[data-kind="conv"] .step .scroll')];
  seen.kernels = kernels.length;
  seen.reach = kernels.map((box) => fits(box) && (box.scrollWidth <= box.clientWidth || box.tabIndex === 0));
  seen.steps = traced.steps.map(({ label }) => label);
"""


@browser
def test_kernels_of_7_by_7_fit_a_phone(strided: Made, tmp_path: Path) -> None:
    seen, console = visit(on_a_phone(observed(strided.text, WIDE)), tmp_path)
    assert console == []
    assert seen["wide"] <= 0
    assert seen["cut"] == 0
    assert seen["kernels"] == 3
    assert all(seen["reach"])
    assert seen["steps"] == [None, "0", "1", "2", "3", "4", "5", "loss"]


WINDOWS = """
  const set = (name, value) => {
    const input = document.querySelector(`#windows-fields [name="${name}"]`);
    input.value = value;
    input.dispatchEvent(new Event("input"));
  };
  const hidden = () => document.querySelector("#windows-stage > div").hidden;
  const line = () => document.getElementById("windows-equation").textContent;
  seen.prefilled = [document.getElementById("windows-layer").value, line()];
  set("kernel", 17); set("padding", 0);
  seen.error = [line(), hidden()];
  set("kernel", 2); set("stride", 2);
  seen.mended = [line(), hidden()];
  seen.counts = CASES.map(([op, size, kernel, stride, padding, dilation]) => {
    const { count, error } = windowsOf(op, { size, kernel, stride, padding, dilation });
    return error ?? count;
  });
"""


def windows(op: str, size: int, kernel: int, stride: int, padding: int, dilation: int) -> Any:
    """The size of the output, or the message of the formula."""
    x, options = np.zeros((1, 1, size, size)), {"stride": stride, "padding": padding, "dilation": dilation}
    run: Any = functools.partial(pool.max_pool2d, x, kernel_size=kernel)
    if op == "conv2d":
        run = functools.partial(conv.conv2d, x, np.zeros((1, 1, kernel, kernel)))
    try:
        return run(**options).shape[2]
    except RuntimeError as error:
        return str(error)


@browser
def test_windows_are_counted_and_refused_as_by_the_layers(strided: Made, tmp_path: Path) -> None:
    values = ((1, 4, 7), (0, 1, 3), (0, 1, 2), (-1, 0, 1, 2), (0, 1, 3))
    cases = [(op, *each) for op in ("conv2d", "max_pool2d") for each in itertools.product(*values)]
    seen, console = visit(observed(strided.text, WINDOWS.replace("CASES", json.dumps(cases))), tmp_path)
    assert console == []
    assert seen["prefilled"][0] == "0"
    assert seen["prefilled"][1].endswith("⌊(16 + 2 × 3 − 1 × (7 − 1) − 1) / 2⌋ + 1 = 8")
    words = "conv2d: x: expected a padded image of at least 17x17 for the kernel 17x17, got 16x16"
    assert seen["error"] == [words, True]
    assert seen["mended"][0].endswith("= 8")
    assert seen["mended"][1] is False
    assert dict(zip(cases, seen["counts"], strict=True)) == {case: windows(*case) for case in cases}


PRINTED = """
  dispatchEvent(new Event("beforeprint"));
  seen.closed = document.querySelectorAll("details:not([open])").length;
  const all = (parts) => [...document.querySelectorAll(parts)], edge = document.documentElement.clientWidth + 1;
  const cut = all(".layers, .cells, pre, math, canvas").filter((each) => each.getBoundingClientRect().right > edge);
  seen.cut = cut.map((each) => each.className || each.tagName);
  seen.controls = all(".player, .controls, .legend").filter((each) => each.checkVisibility()).length;
  dispatchEvent(new Event("afterprint"));
  seen.again = document.querySelectorAll("details:not([open])").length;
"""


@browser
def test_on_paper_no_column_is_cut_and_all_is_open(simple: Made, tmp_path: Path) -> None:
    paper = simple.text.replace("@media print", "@media all")
    seen, console = visit(on_a_phone(observed(paper, PRINTED), width=718, height=1000), tmp_path)
    assert console == []
    assert seen["closed"] == 0
    assert seen["again"] > 0
    assert seen["cut"] == []
    assert seen["controls"] == 0
