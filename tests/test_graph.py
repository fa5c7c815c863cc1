"""A network as a graph: what a run calls, what feeds what, in which blocks, and how it is laid out."""

import functools
import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from cnn_lightning.model import build_net, least_image_size
from cnn_lightning.swap import swap_layers
from cnn_lightning.tools.graph.blocks import IN, OUT, Item, in_blocks
from cnn_lightning.tools.graph.drawing import BOX, VISIBLE, Box, Look, drawn, open_at_first
from cnn_lightning.tools.graph.layout import GAP, lay_out
from cnn_lightning.tools.graph.record import Graph, graph_of


def built(name: str, device: str = "meta") -> tuple[nn.Module, Tensor]:
    """A network and a batch, by default without numbers: then even a large one runs at once."""
    size = 42 if name == "vit_h_14" else max(32, least_image_size(name))
    channels = 1 if name == "simple_cnn" else 3
    with torch.device(device):
        torch.manual_seed(0)
        return build_net(name, in_channels=channels, image_size=size), torch.ones(2, channels, size, size)


@functools.cache
def graph(name: str, functions: bool = True) -> Graph:
    net, x = built(name)
    return graph_of(net, x, functions=functions)


def names(found: Graph, node: int) -> set[str]:
    """The names of the nodes that feed a node."""
    return {found.nodes[a].name for a, b in found.edges if b == node}


def number(found: Graph, name: str, call: int = 0) -> int:
    return [index for index, node in enumerate(found.nodes) if node.name == name][call]


# ---- what is recorded


def test_simple_cnn_is_a_chain_of_its_layers() -> None:
    found = graph("simple_cnn")
    expected = "input conv1 relu1 pool1 conv2 relu2 pool2 flatten linear1 relu3 linear2 output"
    assert [node.name for node in found.nodes] == expected.split()
    assert found.edges == tuple(pairwise(range(12)))
    assert [node.type for node in found.nodes][:4] == ["", "Conv2d", "ReLU", "MaxPool2d"]
    assert found.nodes[3].shapes == ((2, 16, 16, 16),)


def test_resnet_adds_the_skip_to_the_branch() -> None:
    found = graph("resnet18")
    sums = [index for index, node in enumerate(found.nodes) if node.name == "+"]
    assert len(sums) == 8
    assert all(len(names(found, index)) == 2 for index in sums)
    assert names(found, sums[0]) == {"maxpool", "layer1.0.bn2"}
    assert names(found, sums[2]) == {"layer2.0.bn2", "layer2.0.downsample.1"}
    second = number(found, "layer1.0.relu", 1)
    assert (found.nodes[second].call, found.nodes[second].scopes) == (1, (("layer1", 0), ("layer1.0", 0)))


def test_densenet_concatenates_all_layers_before() -> None:
    found = graph("densenet121")
    joined = [len(names(found, index)) for index, node in enumerate(found.nodes) if node.name == "cat"]
    assert joined[:7] == [1, 2, 3, 4, 5, 6, 7]


def test_auxiliary_heads_feed_the_output() -> None:
    found = graph("googlenet")
    assert names(found, len(found.nodes) - 1) == {"fc", "aux1.fc2", "aux2.fc2"}
    assert len(found.nodes[-1].shapes) == 3


def test_without_functions_edges_pass_through_them() -> None:
    found = graph("resnet18", functions=False)
    assert {node.kind for node in found.nodes} == {"input", "module", "output"}
    assert names(found, number(found, "layer1.0.relu", 1)) == {"maxpool", "layer1.0.bn2"}


class Net(nn.Module):
    """A module by a function."""

    def __init__(self, run: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def run(function: Any, *inputs: Any, **layers: nn.Module) -> Graph:
    return graph_of(Net(function, **layers), *(inputs or (torch.ones(2, 4),)))


def pairs(found: Graph) -> set[tuple[str, str]]:
    return {(found.nodes[a].name, found.nodes[b].name) for a, b in found.edges}


def test_two_calls_of_one_module_are_two_nodes() -> None:
    found = run(lambda net, x: net.line(net.line(x)), line=nn.Linear(4, 4))
    assert [(node.name, node.call) for node in found.nodes][1:3] == [("line", 0), ("line", 1)]
    assert found.edges == ((0, 1), (1, 2), (2, 3))


def test_a_write_in_place_is_seen_through_views_and_aliases() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.line(x)
        view = y.flatten()
        net.relu(view)
        return y.mean()

    found = run(forward, line=nn.Linear(4, 4), relu=nn.ReLU(inplace=True))
    assert pairs(found) == {
        ("input", "line"),
        ("line", "flatten"),
        ("flatten", "relu"),
        ("relu", "mean"),
        ("mean", "output"),
    }


def test_what_is_put_into_an_empty_tensor_comes_out_of_it() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = torch.empty(2, 8)
        y[:, :4] = x
        y[:, 4:] = net.relu(x)
        y += 1
        return y

    found = run(forward, relu=nn.ReLU())
    assert pairs(found) >= {("input", "[ ] ="), ("relu", "[ ] ="), ("[ ] =", "+"), ("+", "output")}


def test_a_layer_that_returns_its_input_does_not_hide_the_skip() -> None:
    found = run(lambda net, x: net.same(x) * x, same=nn.Identity())
    assert pairs(found) == {("input", "same"), ("input", "×"), ("same", "×"), ("×", "output")}


def test_operations_on_parameters_alone_are_left_out() -> None:
    found = run(lambda net, x: x @ net.line.weight.t().contiguous() + torch.zeros_like(x), line=nn.Linear(4, 4))
    assert [node.name for node in found.nodes] == ["input", "@", "+", "output"]


def test_dictionaries_lists_and_several_inputs() -> None:
    found = run(lambda net, a, b: {"sum": [a["x"] - b], "a": a["x"]}, {"x": torch.ones(2)}, torch.ones(2))
    assert pairs(found) == {
        ("input 1", "−"),
        ("input 2", "−"),
        ("−", "output"),
        ("input 1", "output"),
    }


def test_numpy_layers_give_the_same_graph() -> None:
    net, x = built("resnet18", "cpu")
    swap_layers(net, "numpy")
    assert graph_of(net, x) == graph("resnet18")


@pytest.mark.parametrize("training", [True, False])
def test_the_network_and_the_random_state_stay_as_they_are(training: bool) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten()).train(training)
    seen: list[Any] = []
    net[0].register_forward_hook(lambda module, args, result: seen.append(module))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    found = graph_of(net, torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0)))
    assert [node.type for node in found.nodes[1:-1]] == ["Conv2d", "BatchNorm2d", "Dropout", "Flatten"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(module.training == training for module in net.modules())
    assert len(net[0]._forward_hooks) == 1
    assert sum(len(module._forward_pre_hooks) for module in net.modules()) == 0


# ---- blocks and places


def test_blocks_follow_the_calls() -> None:
    whole = in_blocks(graph("resnet18"))
    assert [item.label for item in whole.items][5:9] == ["layer1", "layer2", "layer3", "layer4"]
    layer = whole.items[5]
    assert (layer.type, [item.label for item in layer.items]) == ("Sequential", ["0", "1"])
    block = layer.items[0]
    assert [item.label for item in block.items] == ["conv1", "bn1", "relu", "conv2", "bn2", "+", "relu"]
    assert {(IN, 0), (IN, 5), (4, 5), (6, OUT)} <= set(block.edges)
    assert [item.number for item in whole.all()] == list(range(sum(1 for _ in whole.all())))


def test_a_block_that_is_called_twice_is_two_blocks_without_a_circle() -> None:
    part = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    whole = in_blocks(run(lambda net, x: net.part(net.norm(net.part(x))), part=part, norm=nn.LayerNorm(4)))
    assert [(item.name, item.call) for item in whole.items][1:4] == [("part", 0), ("norm", 0), ("part", 1)]
    assert whole.edges == [(0, 1), (1, 2), (2, 3), (3, 4)]


def boxes(box: Box) -> list[Box]:
    return [box, *(each for row in box.strips for part in row.parts if part.box for each in boxes(part.box))]


def widths_of(whole: Item) -> list[float]:
    return [box.full for box in boxes(drawn(whole, lambda item: Look(), lambda item: True))]


def test_a_chain_stands_straight_and_a_skip_runs_beside_it() -> None:
    found = lay_out([BOX] * 4, [(IN, 0), (0, 1), (1, 2), (2, 3), (0, 3), (3, OUT)], folded=BOX)
    assert found.x == (0, 0, 0, 0)
    assert [row.items for row in found.rows] == [(0,), (1,), (2,), (3,), ()]
    (lane,) = found.rows[1].lanes
    assert abs(lane) > BOX / 2
    assert [tuple(row.lanes) for row in found.rows] == [(), (lane,), (lane,), (), ()]
    assert found.rows[1].lanes[lane] == found.rows[3].links[lane, 0] == [(0, 3)]
    assert found.rows[3].links[0, 0] == [(2, 3)]
    assert found.width >= 2 * abs(lane)


def test_branches_stand_side_by_side_and_do_not_cross() -> None:
    crossed = [(IN, 0), (IN, 1), (0, 3), (1, 2), (2, 4), (3, 4), (4, OUT)]
    found = lay_out([BOX, 300, BOX, 300, BOX], crossed, folded=BOX)
    upper, lower = found.rows[0].items, found.rows[1].items
    follows = dict(crossed[2:4])
    assert [follows[index] for index in upper] == list(lower)
    for row in found.rows:
        for a, b in pairwise(row.items):
            assert found.x[b] - found.x[a] >= (found.widths[a] + found.widths[b]) / 2 + GAP - 1
    assert found.x[4] == 0


def test_two_lanes_in_one_row_are_two_lines() -> None:
    found = lay_out([BOX] * 5, [(0, 1), (1, 2), (2, 3), (3, 4), (0, 3), (0, 4), (1, 4)], folded=BOX)
    assert len(set(found.rows[2].lanes)) == 2


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_every_node_is_drawn_once(name: str) -> None:
    found = graph(name)
    whole = in_blocks(found)
    drawn_nodes = [box.item.node for box in boxes(drawn(whole, lambda item: Look(), lambda item: False))]
    assert sorted(each for each in drawn_nodes if each is not None) == list(range(len(found.nodes)))


def test_resnet_152_is_laid_out_in_a_second_and_a_phone_shows_its_width() -> None:
    whole = in_blocks(graph("resnet152"))
    start = time.process_time()
    widths = widths_of(whole)
    assert time.process_time() - start < 1
    assert max(widths) <= 360 - 32


def test_as_many_levels_are_open_as_can_be_overlooked() -> None:
    whole = in_blocks(graph("resnet18"))
    opened = [item for item in whole.all() if item.number in open_at_first(whole)]
    assert [item.name for item in opened] == ["", "layer1", "layer2", "layer3", "layer4"]
    assert sum(len(item.items) for item in opened) <= VISIBLE
    assert open_at_first(in_blocks(graph("resnet152"))) == {0}


USUAL = {"alexnet", "convnext_tiny", "inception_v3", "mobilenet_v3_small", "swin_t", "swin_v2_t", "vit_b_16"}
NETS = [
    pytest.param(name, marks=() if name in USUAL else pytest.mark.slow)
    for name in models.list_models(module=models)
    if not name.startswith("regnet") or name.endswith("400mf")  # its widths are computed by torch: not without numbers
]


@pytest.mark.parametrize("name", NETS)
def test_every_node_leads_from_the_input_to_the_output(name: str) -> None:
    net, x = built(name, "cpu" if name.startswith("regnet") else "meta")
    found = graph_of(net, x)
    reached, comes = {0}, {len(found.nodes) - 1}
    for a, b in sorted(found.edges):
        assert a < b
        reached |= {b} if a in reached else set()
    for a, b in sorted(found.edges, reverse=True, key=lambda edge: edge[1]):
        comes |= {a} if b in comes else set()
    everything = set(range(len(found.nodes)))
    assert comes == everything
    # The bias of Swin v2's attention is computed by layers, from constants.
    assert reached == everything or ("swin_v2" in name and reached < everything)
    assert max(widths_of(in_blocks(found))) < 2000
