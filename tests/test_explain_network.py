"""The network as a picture on the page that explains, its colours, and Grad-CAM."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cnn_lightning import draw
from cnn_lightning.model import build_net
from cnn_lightning.swap import swap_layers
from cnn_lightning.tools.explain import chain, figures, live, page
from cnn_lightning.tools.explain.cam import grad_cam, last_maps
from cnn_lightning.tools.explain.network import is_chain
from cnn_lightning.tools.explain.picker import pack
from cnn_lightning.tools.explain.record import Recording, record
from cnn_lightning.tools.graph.record import graph_of
from tests.browser import DARK, LIGHT, Structure, browser, observed, on_a_phone, visit
from tests.test_draw import rgba

# ---- the pages


@functools.cache
def built(name: str, channels: int, size: int) -> tuple[nn.Module, Tensor, Recording]:
    torch.manual_seed(0)
    net, loss = build_net(name, in_channels=channels, image_size=size), nn.CrossEntropyLoss()
    swap_layers(net, "numpy", beside={"loss": loss})
    image = torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(1))
    return net, image, record(net, loss, (image - 0.5) / 0.25, 3, details=True)


def page_of(name: str, channels: int, size: int, *, is_live: bool = False) -> str:
    net, image, seen = built(name, channels, size)
    subject = page.Subject(
        net=name,
        checkpoint="best.ckpt",
        picture="a picture",
        image=(image - 0.5) / 0.25,
        pixels=image[0],
        label=3,
        known=True,
        names=[f"class {index}" for index in range(10)],
    )
    options = live.Options(mean=(0.5,) * channels, std=(0.25,) * channels, rate=0.1, module=None, classes=10)
    alive = live.of(seen, subject.image, options) if is_live else live.STILL
    return page.render(subject, net, seen, [], [], alive)


@functools.cache
def simple() -> str:
    return page_of("simple_cnn", 3, 12)


@functools.cache
def alive() -> str:
    return page_of("simple_cnn", 3, 12, is_live=True)


@functools.cache
def resnet() -> str:
    return page_of("resnet18", 3, 32)


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


# ---- a chain


def test_simple_cnn_is_a_chain_and_resnet_is_not() -> None:
    for name, size, expected in (("simple_cnn", 12, True), ("resnet18", 32, False)):
        net, image, seen = built(name, 3, size)
        assert is_chain(graph_of(net, image), seen) == expected


def test_columns_go_from_the_picture_to_the_probabilities() -> None:
    _, image, seen = built("simple_cnn", 3, 12)
    columns = chain.columns(image[0], seen)
    titles = "picture normalised conv1 relu1 pool1 conv2 relu2 pool2 flatten linear1 relu3 linear2 probability"
    assert [column["title"] for column in columns] == titles.split()
    assert columns[5]["shape"] == [32, 6, 6]
    assert columns[5]["y"]["shape"] == [16, 6, 6]
    assert [column["links"] for column in columns if isinstance(column["links"], str)].count("same") == 7


def test_a_convolution_s_links_are_the_means_of_its_kernels() -> None:
    weight = torch.randn(6, 2, 3, 3)
    links = chain.convolution_links(weight, groups=3)
    assert [[index for index, _ in each] for each in links] == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5]]
    assert links[3][1][1] == pytest.approx(weight[3, 1].mean().item(), abs=1e-5)


def test_a_linear_layer_s_links_are_its_largest_products() -> None:
    weight, x = torch.randn(5, 40), torch.randn(40)
    links = chain.linear_links(weight, x)
    products = weight[2] * x
    assert links[2][0][0] == products.abs().argmax()
    assert [value for _, value in links[2]] == sorted((value for _, value in links[2]), key=abs, reverse=True)
    assert len(links[2]) == chain.STRONGEST


def test_large_maps_are_means_of_squares() -> None:
    net = nn.Sequential(nn.Conv2d(1, 16, 1), *(nn.ReLU() for _ in range(6)), nn.Flatten(), nn.Linear(16 * 100 * 100, 2))
    seen = record(net, nn.CrossEntropyLoss(), image := torch.rand(1, 1, 100, 100), 1)
    columns = chain.columns(image[0], seen)
    assert columns[2]["shape"] == [16, 100, 100]
    assert (columns[2]["step"], columns[2]["y"]["shape"]) == (4, [16, 25, 25])
    assert sum(np.prod(column["y"]["shape"]) for column in columns[1:-1]) <= chain.BUDGET


HOVER = """
  const tiles = (column) => [...document.querySelectorAll(`.column:nth-of-type(${column + 1}) .tile`)];
  const point = (tile, across, down, type = "pointermove") => {
    tile.scrollIntoView({ block: "center", inline: "center" });
    const box = tile.getBoundingClientRect();
    const place = { clientX: box.left + across * box.width, clientY: box.top + down * box.height };
    tile.dispatchEvent(new PointerEvent(type, { bubbles: true, ...place }));
  };
  const key = (name, shiftKey = false) => document.activeElement.dispatchEvent(
    new KeyboardEvent("keydown", { key: name, shiftKey, bubbles: true, cancelable: true }));
  const lines = () => [...document.querySelectorAll(".wires g:last-child path")];
  const lit = () => lines().map((path) => path.getAttribute("class"));
"""


@browser
def test_pointing_at_a_map_lights_what_feeds_it_and_tells_its_value(tmp_path: Path) -> None:
    actions = """
  seen.counts = Array.from({ length: 13 }, (_, column) => tiles(column).length);
  seen.more = [...document.querySelectorAll(".more")].map((each) => each.textContent);
  point(tiles(5)[4], 0.55, 0.2);
  seen.lit = lit();
  seen.tag = document.getElementById("flow-tag").textContent;
  seen.heights = [8, 9, 11].map((column) => [tiles(column)[0].offsetHeight, parseInt(tiles(column)[0].style.height)]);
  point(tiles(9)[0], 0.01, 0.001);
  seen.linear = [document.getElementById("flow-tag").textContent, lit().length];
  point(tiles(12)[3], 0.5, 0.5);
  seen.probability = [document.getElementById("flow-tag").textContent, lit().length];
  document.getElementById("flow").dispatchEvent(new PointerEvent("pointerleave"));
  seen.after = [lit().length, document.getElementById("lens").hidden];
"""
    seen, console = visit(observed(simple(), HOVER + actions), tmp_path, LIGHT, "--window-size=1300,900")
    assert console == []
    assert all(height == expected > 100 for height, expected in seen["heights"])
    assert seen["counts"] == [1, 3, *[16] * 6, 1, 1, 1, 1, 10]
    assert seen["more"] == ["+16"] * 3
    net, _, found = built("simple_cnn", 3, 12)
    layers = {layer.name: layer for layer in found.layers}
    means = net.get_parameter("conv2.weight").mean((2, 3))[4]
    expected = ["positive" if mean > 0 else "negative" for mean in means.tolist()]
    assert seen["lit"] == [*expected, "plain"]
    name, _, value = seen["tag"].partition(" = ")
    assert name == "conv2[4, 1, 3]"
    assert float(value.replace("−", "-")) == pytest.approx(layers["conv2"].y[0, 4, 1, 3].item(), rel=1e-3)
    assert seen["linear"][0].startswith("linear1[0] = ")
    assert seen["linear"][1] == chain.STRONGEST + 1
    assert seen["probability"][0].startswith("p(class 3) = ")
    assert seen["after"] == [0, True]


@browser
def test_a_click_chooses_a_number_and_a_second_goes_to_its_layer(tmp_path: Path) -> None:
    actions = """
  const picks = [];
  whenPicked(() => picks.push([picked.label, picked.place]));
  document.querySelectorAll("details.layer").forEach((layer) => { layer.open = false; });
  point(tiles(2)[5], 0.55, 0.99, "click");
  seen.marks = document.querySelectorAll(".marks .mark").length > 0;
  seen.hash = location.hash;
  point(tiles(2)[5], 0.55, 0.99, "click");
  seen.there = [location.hash, document.getElementById("layer-0").open, document.getElementById("layer-1").open];
  point(tiles(0)[0], 0.5, 0.5, "click");
  point(tiles(11)[0], 0.5, 0.35, "click");
  seen.picks = picks;
  markTrace([
    { label: "conv1", place: [1, 2, 3] }, { label: "relu1", place: [1, 2, 3] }, { label: "conv2", place: [20, 0, 0] },
    { label: "flatten", place: [7] }, { label: "nowhere", place: [0] },
  ]);
  const points = document.querySelector(".marks .line").getAttribute("points").split(" ");
  seen.traced = [document.querySelectorAll(".marks .mark").length, points.length];
"""
    seen, console = visit(observed(simple(), HOVER + actions), tmp_path, LIGHT, "--window-size=1300,900")
    assert console == []
    assert seen["marks"]
    assert seen["hash"] == ""
    assert seen["there"] == ["#layer-0", True, False]
    assert seen["picks"] == [["conv1", [5, 11, 6]], ["linear2", [3]]]
    assert seen["traced"] == [4, 4]  # the map behind "+16" included


@browser
def test_keys_walk_through_maps_layers_and_pixels(tmp_path: Path) -> None:
    actions = """
  const picks = [], said = () => document.getElementById("flow-said").textContent.split(" = ")[0];
  whenPicked(() => picks.push([picked.label, picked.place]));
  seen.stops = document.querySelectorAll('#flow [tabindex="0"]').length;
  document.querySelector('#flow [tabindex="0"]').focus();
  const walk = [];
  for (const name of ["Right", "Right", "Down", "shift Down", "shift Left", "Up", "Up"]) {
    key(`Arrow${name.replace("shift ", "")}`, name.startsWith("shift"));
    walk.push(said());
  }
  seen.walk = walk;
  key("Enter");
  for (let step = 0; step < 20; step++) key("ArrowRight");
  seen.end = said();
  seen.focused = document.activeElement.ariaLabel;
  seen.picks = picks;
  seen.still = document.querySelectorAll('#flow [tabindex="0"]').length;
"""
    seen, console = visit(observed(simple(), HOVER + actions), tmp_path, LIGHT, "--window-size=1300,900")
    assert console == []
    assert (seen["stops"], seen["still"]) == (1, 1)
    assert seen["walk"][0].startswith("normalised[1, ")
    assert seen["walk"][1:] == [
        "conv1[8, 6, 6]",
        "conv1[9, 6, 6]",
        "conv1[9, 7, 6]",
        "conv1[9, 7, 5]",
        "conv1[8, 7, 5]",
        "conv1[7, 7, 5]",
    ]
    assert seen["picks"] == [["conv1", [7, 7, 5]]]
    assert seen["end"].startswith("p(class")
    assert seen["focused"].endswith("softmax of all outputs")


@browser
def test_the_maps_follow_what_is_shown(tmp_path: Path) -> None:
    actions = """
  const y = { shape: [16, 12, 12], values: Float32Array.from({ length: 16 * 144 }, (_, index) => Math.sin(index)) };
  const weight = { shape: [16, 3, 3, 3], values: Float32Array.from({ length: 16 * 27 }, () => -1) };
  const probabilities = Float32Array.from({ length: 10 }, (_, index) => index / 45);
  show({ layers: { ...shown.layers, conv1: { ...shown.layers.conv1, y, weight } }, probabilities });
  seen.after = pixels(tiles(2)[0]);
  seen.percent = tiles(12).map((row) => row.querySelector(".number").textContent);
  point(tiles(2)[0], 0.5, 0.5);
  seen.lit = lit().slice(0, 3);
"""
    seen, console = visit(observed(simple(), HOVER + PAINT + actions), tmp_path, LIGHT, "--window-size=1300,900")
    assert console == []
    values = np.sin(np.arange(16 * 144)).astype(np.float32).reshape(16, 12, 12)
    expected = rgba(draw.grid(values, "maps", columns=16))[:, :12]
    np.testing.assert_array_equal(np.reshape(seen["after"][2:], (12, 12, 4)), expected)
    assert seen["percent"][9] == "20.0 %"
    assert seen["lit"] == ["negative"] * 3


# ---- the colours in the browser

PAINT = """
  const pixels = (canvas) => {
    const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
    const pen = copy.getContext("2d", { willReadFrequently: true });
    pen.drawImage(canvas, 0, 0);
    return [canvas.height, canvas.width, ...pen.getImageData(0, 0, canvas.width, canvas.height).data];
  };
  const wave = (shape, low) => {
    const length = shape.reduce((a, b) => a * b, 1);
    return { shape, values: Float32Array.from({ length }, (_, index) => Math.max(low, Math.sin(index * index))) };
  };
"""


def wave(shape: tuple[int, ...], low: float) -> np.ndarray:
    index = np.arange(np.prod(shape), dtype=np.float64)
    return np.maximum(low, np.sin(index * index)).astype(np.float32).reshape(shape)


GRIDS = [((5, 3, 3), -9.0, {"columns": 2}), ((20, 4, 7), 0.0, {"most": 9}), ((3, 70, 50), -9.0, {"side": 32})]


@browser
def test_grids_in_the_browser_are_those_of_the_files_to_the_pixel(tmp_path: Path) -> None:
    options = [{"columns": 8, "most": 64, "side": 64, "tile": 44, **given} for _, _, given in GRIDS]
    calls = "".join(
        f"""
  {{ const canvas = document.createElement("canvas");
    const scale = paintGrid(canvas, wave({list(shape)}, {low}), {json.dumps(given)});
    seen.grids.push([pixels(canvas), canvas.style.width, scaleBar(scale).at(-1).textContent]); }}"""
        for (shape, low, _), given in zip(GRIDS, options, strict=True)
    )
    colors = """
  const canvas = document.createElement("canvas");
  paintColors(canvas, wave([9, 3, 3, 3], -9), { columns: 8, most: 64, side: 64, tile: 36 });
  seen.colors = [pixels(canvas), canvas.style.width];
"""
    actions = PAINT + "seen.grids = [];" + calls + colors
    seen, console = visit(observed(simple(), actions), tmp_path, LIGHT, "--window-size=1300,900")
    assert console == []
    for (shape, low, _), given, (found, width, words) in zip(GRIDS, options, seen["grids"], strict=True):
        picture = draw.grid(wave(shape, low), "maps", **given)
        assert picture.scale is not None
        assert (width, words) == (f"{picture.width}px", picture.scale.words)
        np.testing.assert_array_equal(np.reshape(found[2:], (*found[:2], 4)), opaque(rgba(picture)))
    picture = draw.colors(wave((9, 3, 3, 3), -9), "filters")
    found, width = seen["colors"]
    assert width == f"{picture.width}px"
    np.testing.assert_array_equal(np.reshape(found[2:], (*found[:2], 4)), opaque(rgba(picture)))


def opaque(pixels: np.ndarray) -> np.ndarray:
    """What is transparent has no colour."""
    return np.where(pixels[..., 3:] == 0, 0, pixels)


@browser
def test_figures_are_painted_again_from_what_is_shown(tmp_path: Path) -> None:
    actions = (
        PAINT
        + """
  const weight = wave([16, 3, 3, 3], -9), y = wave([16, 12, 12], -9), grad_x = wave([3, 12, 12], -9);
  const conv1 = { ...shown.layers.conv1, y, grad_y: wave([16, 12, 12], 0), weight, grad_weight: weight, grad_x };
  const linear1 = { ...shown.layers.linear1, y: wave([128], -9), weight: wave([128, 288], -9) };
  show({ layers: { ...shown.layers, conv1, linear1 } });
  seen.figures = Object.fromEntries([...document.querySelectorAll("figure[data-layer]")].map((figure) => {
    repaint(figure);
    const canvas = figure.querySelector("canvas");
    const words = figure.querySelector(".scale")?.textContent;
    return [`${figure.dataset.layer} ${figure.dataset.array}`, canvas && [pixels(canvas), canvas.ariaLabel, words]];
  }));
"""
    )
    seen, console = visit(observed(simple(), actions), tmp_path, LIGHT, "--window-size=1300,900")
    assert console == []
    found = seen["figures"]
    weight = torch.from_numpy(wave((16, 3, 3, 3), -9))
    expected = {
        "conv1 y": draw.grid(wave((16, 12, 12), -9), "", side=112),
        "conv1 grad_y": draw.grid(wave((16, 12, 12), 0), "", side=112),
        "conv1 weight": figures.filters(weight, "", figures.filters_layout(weight)),
        "conv1 weight_colors": figures.colors(weight, "", figures.Layout(tile=36)),
        "conv1 grad_x": figures.network_input(torch.from_numpy(wave((3, 12, 12), -9))).picture,
        "linear1 y": draw.grid(wave((128, 1, 1), -9), "", columns=16, most=256, side=256, tile=18),
        "linear1 weight": draw.grid(wave((1, 128, 288), -9), "", side=256, tile=320),
    }
    for name, picture in expected.items():
        height, width, *values = found[name][0]
        off = np.abs(np.reshape(values, (height, width, 4)) - opaque(rgba(picture)))
        assert off.max() == 0, name
        assert picture.scale is None or picture.scale.words in found[name][2]
    assert found["linear1 grad_weight"] is None  # it is not known here: the picture stays
    assert re.search(r"values from −1 to (1|0\.999)", found["conv1 y"][1])
    assert found["conv1 histograms"][0][:2] == [600, 960]


# ---- Grad-CAM


def direct_cam(name: str, channels: int, size: int, module: str, call: int) -> tuple[int, Tensor]:
    """With torch's layers and autograd alone."""
    numpy_net, image, _ = built(name, channels, size)
    torch.manual_seed(0)
    net = build_net(name, in_channels=channels, image_size=size).eval()
    net.load_state_dict(numpy_net.state_dict())
    maps: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        output.retain_grad()
        maps.append(output)
        return output.clone()

    net.get_submodule(module).register_forward_hook(keep)
    logits = net((image - 0.5) / 0.25)[0]
    best = int(logits.argmax())
    logits[best].backward()
    kept = maps[call - 1]
    assert kept.grad is not None
    return best, (kept.grad.mean((2, 3), keepdim=True) * kept).sum(1)[0].relu().detach()


@pytest.mark.parametrize(
    ("name", "size", "label", "module", "call"),
    [("simple_cnn", 12, "relu2", "relu2", 1), ("resnet18", 32, "layer3.1.relu (call 2)", "layer3.1.relu", 2)],
)
def test_grad_cam_is_torch_s(name: str, size: int, label: str, module: str, call: int) -> None:
    net, image, seen = built(name, 3, size)
    found = grad_cam(net, (image - 0.5) / 0.25, seen)
    assert found is not None
    best, expected = direct_cam(name, 3, size, module, call)
    assert (found.label, found.index) == (label, best)
    torch.testing.assert_close(found.values, expected, atol=1e-5, rtol=1e-3)


def test_a_network_without_maps_has_no_grad_cam() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    seen = record(net, nn.CrossEntropyLoss(), image := torch.rand(1, 1, 2, 2), 1)
    assert last_maps(seen.layers) is None
    assert grad_cam(net, image, seen) is None


LIVE_CAM = """
  showPicture(unpack(PIXELS), null, "another");
  seen.cam = [...gradCam().values];
  seen.kinds = [...document.querySelectorAll("#cam .stack > *")].map((each) => each.tagName);
  seen.words = document.querySelector("#cam .words").textContent;
  const slider = document.querySelector("#cam input");
  slider.value = 20;
  slider.dispatchEvent(new Event("input"));
  seen.opacity = getComputedStyle(document.querySelector("#cam .heat")).opacity;
"""


@browser
def test_a_live_page_computes_the_same_grad_cam(tmp_path: Path) -> None:
    net, _, _ = built("simple_cnn", 3, 12)
    image = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(7))
    given = (image - 0.5) / 0.25
    actions = LIVE_CAM.replace("PIXELS", json.dumps(pack(image[0])))
    seen, console = visit(observed(alive(), actions), tmp_path, LIGHT, "--window-size=1300,900")
    assert console == []
    expected = grad_cam(net, given, record(net, nn.CrossEntropyLoss(), given, 0))
    assert expected is not None
    np.testing.assert_allclose(seen["cam"], expected.values.ravel(), atol=1e-5)
    assert seen["kinds"] == ["CANVAS", "CANVAS"]
    assert seen["words"] == f"Grad-CAM of relu2 for class {expected.index}"
    assert float(seen["opacity"]) == pytest.approx(0.2)


# ---- a graph


def test_a_graph_has_the_skips_the_normalisation_and_the_loss() -> None:
    text = resnet()
    Structure(text)
    titles = re.findall(r'class="node box [^"]*" data-item="\d+" title="([^"]*)"', text)
    assert titles[:3] == ["picture", "normalise", "conv1"]
    assert titles[-2:] == ["output", "loss"]
    assert titles.count("+") == 8
    assert "flatten" in titles
    opened = re.findall(r'<details class="block box [^"]*" data-item="\d+" open>\s*<summary title="([^"]*)"', text)
    assert opened == ["layer1", "layer1.0", "layer2", "layer3", "layer4"]
    strips = re.findall(r'<img class="map" src="(data:[^"]*)"[^>]* alt="">', text)
    assert len(strips) > 50
    assert sum(map(len, strips)) < 1.5e6


GRAPH = """
  const nodes = [...document.querySelectorAll(".atlas [data-item]")];
  const box = (title, which = 0) => nodes.filter((each) => graph.control(each).title === title)[which];
  const near = () => [...document.querySelectorAll(".atlas .near")].map((each) => graph.control(each).title);
  const point = (each) => graph.control(each).dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
"""


@browser
def test_pointing_at_a_node_lights_what_feeds_it_and_what_it_feeds(tmp_path: Path) -> None:
    actions = """
  graph.fold(true);
  point(box("+"));
  seen.sum = near();
  seen.lines = document.querySelectorAll(".atlas path.lit").length;
  point(box("layer2.0.conv1"));
  seen.crossing = near();
  point(box("maxpool"));
  seen.skip = near();
  graph.control(box("layer1.0.bn1")).focus();
  seen.focused = near();
  seen.lens = document.getElementById("lens").textContent;
  graph.control(box("+")).click();
  seen.nowhere = location.hash;
  graph.control(box("layer1.0.relu", 1)).click();
  const target = document.querySelector(location.hash);
  seen.there = [target.open, target.querySelector("h3").textContent];
  markTrace([{ label: "conv1", place: [0, 0, 0] }]);
  seen.traced = [...document.querySelectorAll(".atlas .traced")].map((each) => graph.control(each).title);
"""
    seen, console = visit(observed(resnet(), GRAPH + actions), tmp_path, LIGHT, "--window-size=1300,900")
    assert console == []
    assert {"layer1.0.bn2", "+", "layer1.0.relu", "maxpool"} <= set(seen["sum"])
    assert seen["lines"] > 3
    assert {"layer2.0.conv1", "layer2.0.bn1", "layer2", "layer1"} <= set(seen["crossing"])
    assert "layer1" in seen["skip"]
    assert set(seen["focused"]) == {"layer1.0.conv1", "layer1.0.bn1", "layer1.0.relu"}
    assert "fed by layer1.0.conv1" in seen["lens"]
    assert seen["nowhere"] == ""
    assert seen["there"] == [True, "layer1.0.relu (call 2)"]
    assert seen["traced"] == ["conv1"]


# ---- everywhere


@browser
@pytest.mark.parametrize("text", [simple, resnet], ids=["chain", "graph"])
def test_a_phone_and_dark_mode(text: Any, tmp_path: Path) -> None:
    seen, console = visit(on_a_phone(observed(text())), tmp_path, DARK, "--window-size=500,900")
    assert console == []
    assert seen["wide"] <= 0


def test_without_javascript_there_is_a_word_about_it() -> None:
    assert "<noscript>" in simple().split('id="flow"')[1][:800]
