"""The page: one HTML file that needs no other file."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from markupsafe import Markup
from torch import Tensor, nn

from cnn_lightning import draw
from cnn_lightning.draw import short
from cnn_lightning.ops.fast import chooser
from cnn_lightning.page.template import as_json, rendered
from cnn_lightning.swap import formula_file
from cnn_lightning.tools.explain import figures, formulas, glossary, picker, roles
from cnn_lightning.tools.explain.cam import grad_cam
from cnn_lightning.tools.explain.live import STILL, Live
from cnn_lightning.tools.explain.network import network
from cnn_lightning.tools.explain.record import Layer, Recording
from cnn_lightning.tools.explain.source import Listing
from cnn_lightning.tools.explain.training import Frame
from cnn_lightning.tools.graph.drawing import STRIP

DEEP = 24
"""From this number of layers on, layers are folded and their pictures smaller."""

NO_MOMENTS = (
    "There is no slider over the training here: it needs the weights of the network at two moments at least, and "
    "beside this checkpoint lie no others. fit keeps them in snapshots/ and checkpoints/ of the run's folder; explain "
    "looks there when it gets the checkpoint where fit wrote it."
)


@dataclass(frozen=True)
class Subject:
    """What is explained.

    Args:
        net: The network's name.
        checkpoint: The file of its weights.
        picture: The name of the picture.
        image: The normalised picture (1, C, H, W).
        pixels: The same with values from 0 to 1 (C, H, W).
        label: The true class, or the predicted one if that is unknown.
        known: Whether the true class is known.
        names: The names of the classes.
    """

    net: str
    checkpoint: str
    picture: str
    image: Tensor
    pixels: Tensor
    label: int
    known: bool
    names: Sequence[str]


def render(
    subject: Subject,
    net: nn.Module,
    seen: Recording,
    shown: Sequence[Frame],
    captions: Sequence[str],
    live: Live = STILL,
) -> str:
    """The page of a network's recording with details, and of the frames of its training."""
    deep = len(seen.layers) > DEEP
    sources: dict[Listing, int] = {}
    layers = [_layer(index, layer, deep, sources) for index, layer in enumerate(seen.layers)]
    numbers = picker.numbers(seen.layers)
    for layer, entry in zip(layers, numbers, strict=True):
        layer["picker"] = entry["picker"]
        if live.content is not None:
            entry["arrays"] = {}  # the browser computes them
    drawing = network(net, subject.image, subject.pixels, seen, still=live.content is None)
    cam = grad_cam(net, subject.image, seen)
    gradient = figures.network_input(seen.grad_image[0])
    data: dict[str, Any] = {
        "names": list(subject.names),
        "layers": numbers,
        "frames": [_frame(frame) for frame in shown],
        "picture": {
            "pixels": picker.pack(subject.pixels),
            "label": subject.label,
            "known": subject.known,
            "probabilities": picker.pack(seen.probabilities),
            "loss": seen.loss,
            "name": subject.picture,
        },
        "live": live.content,
        "palette": draw.palette(),
        "network": drawing.data,
        "figures": {
            layer["label"]: {each.array: asdict(each.layout) for each in layer["pictures"]} for layer in layers
        },
        "cam": cam and {"label": cam.label, "color": draw.HEAT},
    }
    data["figures"][layers[0]["label"]][gradient.array] = asdict(gradient.layout)
    made = partial(
        rendered,
        "cnn_lightning.tools.explain",
        "cnn_lightning.tools.graph",
        subject=subject,
        deep=deep,
        layers=layers,
        total=_total(seen.layers),
        picture=draw.photograph(subject.pixels.numpy(), f"The picture: {subject.picture}"),
        gradient=gradient.picture,
        cam=cam,
        heat=cam and draw.heat(cam.values.numpy(), f"Grad-CAM of {cam.label}"),
        graph=drawing.graph,
        strip=STRIP,
        palette=draw.palette(),
        loss=short(seen.loss),
        predicted=int(seen.probabilities.argmax()),
        classes=_classes(subject, seen.probabilities),
        frames=shown,
        captions=captions,
        live=live,
        sources=[
            {"number": number, "listing": listing, "lines": roles.colored(listing)}
            for listing, number in sources.items()
        ],
        data=as_json(data),
        no_moments="" if shown else NO_MOMENTS,
    )
    return made(words=glossary.used(made(words=[])))


def _classes(subject: Subject, probabilities: Tensor) -> list[dict[str, Any]]:
    """All classes, or the ten most probable and the true one, with their probabilities."""
    order = probabilities.argsort(descending=True).tolist()
    chosen = order if len(order) <= 20 else [*order[:10], *(each for each in [subject.label] if each not in order[:10])]
    chosen = sorted(chosen) if len(order) <= 20 else chosen
    return [
        {"index": index, "name": subject.names[index], "probability": float(probabilities[index])} for index in chosen
    ]


def _frame(frame: Frame) -> dict[str, Any]:
    return {
        "title": frame.title,
        "loss": short(frame.loss),
        "probabilities": [round(each, 4) for each in frame.probabilities],
        "pictures": [_drawing(each) for each in frame.pictures],
    }


def _drawing(picture: draw.Picture) -> dict[str, Any]:
    scale = picture.scale and asdict(picture.scale)
    return {"uri": picture.uri, "alt": picture.alt, "count": picture.count, "scale": scale}


# ---- a layer


def _layer(index: int, layer: Layer, deep: bool, sources: dict[Listing, int]) -> dict[str, Any]:
    details = layer.details
    assert details is not None
    native = details.difference is None
    passes = list(_passes(layer, sources))
    return {
        "id": f"layer-{index}",
        "label": layer.label,
        "kind": layer.kind,
        "native": native,
        "description": layer.module.extra_repr(),
        "passes": passes,
        "roles": [(role, roles.css_class(role), meaning) for role, meaning in _roles(passes).items()],
        "shapes": [("input", _shape(layer.x)), ("output", _shape(layer.y))]
        + [(name, _shape(value)) for name, (value, _) in layer.parameters.items()],
        "in_shape": _shape(layer.x),
        "out_shape": _shape(layer.y),
        "parameters": f"{_parameters(layer.module):,}",
        "flops": f"{details.flops:,}",
        "forward_time": _time(details.forward, native),
        "backward_time": _time(details.backward, native),
        "difference": "" if native else "0" if not details.difference else f"{details.difference:.0e}",
        "pictures": list(figures.of(layer, deep)),
        "histograms": draw.histograms(_arrays(layer)),
        "stands_in": _stands_in(layer),
    }


def _stands_in(layer: Layer) -> str:
    """One sentence: what runs these formulas in training."""
    file = formula_file(layer.module)
    if not file:
        return ""
    why = chooser.why_formula(file)
    if why:
        return f"In training these lines run themselves (formula: {why})."
    return f"On the CPU the functions of ops/fast/{file}.py run instead: faster, and proven equal to these lines."


def _passes(layer: Layer, sources: dict[Listing, int]) -> Iterator[dict[str, Any]]:
    """Forward and backward: the typeset formulas, the functions that state them, and links to those that they call."""
    details, found = layer.details, formulas.of(layer.module)
    assert details is not None
    listed: set[Listing] = set()
    for name, result, listings in (
        ("forward", "y", details.forward_source),
        ("backward", "dx", details.backward_source),
    ):
        texts = getattr(found, name) if found else []
        own = [each for each in formulas.stated(listings) if each not in listed]
        listed |= set(own)
        yield {
            "name": name,
            "formulas": [Markup(formulas.mathml(text, found.letters)) for text in texts] if found else [],
            "listings": [(listing, roles.colored(listing, result)) for listing in own],
            "others": [_number(sources, other) for other in listings if other not in listed],
        }


def _roles(passes: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The roles that a layer's formulas and code have, with their meanings."""
    lines = [line for each in passes for _, colored in each["listings"] for line in colored]
    return roles.used(lines, [text for each in passes for text in each["formulas"]])


def _number(sources: dict[Listing, int], listing: Listing) -> dict[str, Any]:
    """The reference to a called function, which is listed once at the end of the page."""
    return {"number": sources.setdefault(listing, len(sources) + 1), "name": listing.name}


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a number"


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _time(seconds: float, native: bool) -> str:
    return "" if native else f"{seconds * 1e6:,.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:,.1f} ms"


def _total(layers: Sequence[Layer]) -> dict[str, str]:
    found = [layer.details for layer in layers if layer.details is not None]
    own = {id(layer.module): _parameters(layer.module) for layer in layers}
    return {
        "parameters": f"{sum(own.values()):,}",
        "flops": f"{sum(details.flops for details in found):,}",
        "forward_time": _time(sum(details.forward for details in found), False),
        "backward_time": _time(sum(details.backward for details in found), False),
        "difference": f"{max((details.difference or 0.0 for details in found), default=0.0):.0e}",
    }


def _arrays(layer: Layer) -> dict[str, draw.Floats]:
    found: dict[str, draw.Floats] = {"output": layer.y.numpy(), "gradient of output": layer.grad_y.numpy()}
    for name, (value, gradient) in layer.parameters.items():
        if name == "weight":
            found |= {name: value.numpy(), f"gradient of {name}": gradient.numpy()}
    return found
