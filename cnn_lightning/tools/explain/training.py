"""The same picture through the network as it was at several moments of its training."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cnn_lightning import draw
from cnn_lightning.callbacks.metrics import read_metrics
from cnn_lightning.checkpoints import Unreadable, load
from cnn_lightning.draw import Picture
from cnn_lightning.errors import UserError
from cnn_lightning.notices import tell
from cnn_lightning.tools.explain import figures
from cnn_lightning.tools.explain.record import Recording, record

MOST = 16
"""The largest number of moments shown; of more, evenly spaced ones are chosen."""
LAYERS = 4
"""The number of convolutions whose filters and maps are shown."""


@dataclass(frozen=True)
class Moment:
    """A file of weights, with the optimizer steps and epochs after which it was written."""

    path: Path
    step: int
    epochs: int
    weights: dict[str, Tensor]

    @property
    def title(self) -> str:
        """The text of the slider."""
        if self.step == 0:
            return "before training"
        return f"after epoch {self.epochs}, step {self.step}"


@dataclass(frozen=True)
class Frame:
    """The content of the page at one position of the slider."""

    title: str
    loss: float
    probabilities: list[float]
    pictures: list[Picture]
    """In the order of `captions`."""


def moments(checkpoint: Path, net: nn.Module) -> list[Moment]:
    """The weights that the checkpoint's run saved and that fit the network, in the order of training.

    They are the snapshots in the run's folder (`cnn_lightning.callbacks.Snapshots`) and the checkpoints beside the
    given one. Those of another network are left out. Those that can't be read are left out with a message.
    """
    beside = sorted(checkpoint.parent.glob("*.ckpt"))
    snapshots = sorted((checkpoint.parent.parent / "snapshots").glob("*.pt"))
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    found: dict[int, Moment] = {}
    for path in [checkpoint, *snapshots, *beside]:
        moment = _moment(path)
        if moment is None or moment.step in found:
            continue
        if {name: value.shape for name, value in moment.weights.items()} == shapes:
            found[moment.step] = moment
    ordered = [found[step] for step in sorted(found)]
    if len(ordered) > MOST:
        ordered = [ordered[round(index * (len(ordered) - 1) / (MOST - 1))] for index in range(MOST)]
    return ordered


def _moment(path: Path) -> Moment | None:
    try:
        content = load(path)
    except Unreadable as error:
        tell(f"{path} {error}; passed over")
        return None
    try:
        weights = {
            name.removeprefix("net."): value for name, value in content["state_dict"].items() if name.startswith("net.")
        }
        step = int(content["global_step"])
        epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        return Moment(path, step, int(epochs), weights)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def captions(net: nn.Module) -> list[str]:
    """The captions of a frame's pictures."""
    names = [name for name, _ in _convolutions(net)]
    return [text for name in names for text in (f"filters of {name}", f"output of {name}")] + ["learning curves"]


def _convolutions(net: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    found = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    return found[:LAYERS]


def frames(kept: list[Moment], net: nn.Module, loss: nn.Module, image: Tensor, label: int) -> list[Frame]:
    """Run the picture at every moment; ``net`` is not changed."""
    if len(kept) < 2:
        return []
    metrics_file = kept[-1].path.parent.parent / "metrics.csv"
    try:
        metrics = read_metrics(metrics_file)
    except UserError as error:
        tell(f"{error}; the page has no learning curves")
        metrics = {}
    net = copy.deepcopy(net)
    result = []
    for moment in kept:
        net.load_state_dict(moment.weights)
        seen = record(net, loss, image, label)
        pictures = _pictures(net, seen)
        pictures.append(draw.curves(metrics, moment.epochs))
        result.append(Frame(moment.title, seen.loss, seen.probabilities.tolist(), pictures))
    return result


def _pictures(net: nn.Module, seen: Recording) -> list[Picture]:
    outputs = {layer.name: layer.y for layer in seen.layers}
    found = []
    for name, module in _convolutions(net):
        found.append(_filters(module.weight.detach(), f"Filters of {name}"))
        maps = outputs[name][0].numpy() if name in outputs else torch.zeros(1, 1, 1).numpy()
        found.append(draw.grid(maps, f"Output of {name}", most=16, side=32, tile=36))
    return found


def _filters(weight: Tensor, what: str) -> Picture:
    """Kernels (O, C, h, w), of three channels in colour."""
    if weight.shape[1] == 3:
        return figures.colors(weight, what, figures.Layout(most=16, tile=36))
    return figures.filters(weight, what, figures.filters_layout(weight, outputs=16))
