"""The page: one HTML file that needs no other file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from torch import Tensor, nn

from cnn_lightning import draw
from cnn_lightning.draw import Picture, short
from cnn_lightning.ops.fast import chooser
from cnn_lightning.swap import formula_file
from cnn_lightning.tools.explain import formulas, picker, training
from cnn_lightning.tools.explain.record import Layer, Recording
from cnn_lightning.tools.explain.source import Listing
from cnn_lightning.tools.explain.training import Frame
from cnn_lightning.tools.page.template import as_json, rendered

DEEP = 24
"""From this number of layers on, layers are folded and their pictures smaller."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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


def render(subject: Subject, seen: Recording, shown: Sequence[Frame], captions: Sequence[str]) -> str:
    """The page of a recording with details, and of the frames of its training."""
    deep = len(seen.layers) > DEEP
    sources: dict[Listing, int] = {}
    layers = [_layer(index, layer, deep, sources) for index, layer in enumerate(seen.layers)]
    numbers = picker.numbers(seen.layers)
    for layer in layers:
        layer["picker"] = numbers.get(layer["label"], {}).get("kind")
    data = {"layers": numbers, "names": list(subject.names), "frames": [_frame(frame) for frame in shown]}
    grad = seen.grad_image[0].numpy()
    return rendered(
        "cnn_lightning.tools.explain",
        subject=subject,
        deep=deep,
        layers=layers,
        total=_total(seen.layers),
        picture=draw.photograph(subject.pixels.numpy(), f"The picture: {subject.picture}"),
        gradient=draw.grid(grad, "Gradient of the loss by each pixel", columns=3, tile=224 // min(3, len(grad))),
        loss=short(seen.loss),
        predicted=int(seen.probabilities.argmax()),
        classes=_classes(subject, seen.probabilities),
        frames=shown,
        captions=captions,
        sources=[{"number": number, "listing": listing} for listing, number in sources.items()],
        data=as_json(data),
    )


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
        "pictures": [{"uri": each.uri, "alt": each.alt, "scale": each.scale} for each in frame.pictures],
    }


# ---- a layer


def _layer(index: int, layer: Layer, deep: bool, sources: dict[Listing, int]) -> dict[str, Any]:
    details = layer.details
    assert details is not None
    found = formulas.of(layer.module)
    native = details.difference is None
    return {
        "id": f"layer-{index}",
        "label": layer.label,
        "kind": layer.kind,
        "native": native,
        "description": layer.module.extra_repr(),
        "forward_formulas": _typeset(found.forward) if found else [],
        "backward_formulas": _typeset(found.backward) if found else [],
        "shapes": [("input", _shape(layer.x)), ("output", _shape(layer.y))]
        + [(name, _shape(value)) for name, (value, _) in layer.parameters.items()],
        "in_shape": _shape(layer.x),
        "out_shape": _shape(layer.y),
        "parameters": f"{_parameters(layer.module):,}",
        "flops": f"{details.flops:,}",
        "forward_time": _time(details.forward, native),
        "backward_time": _time(details.backward, native),
        "difference": "" if native else "0" if not details.difference else f"{details.difference:.0e}",
        "pictures": list(_pictures(layer, deep)),
        "histograms": draw.histograms(_arrays(layer)),
        "stands_in": _stands_in(layer),
        "sources": [
            {"pass": name, "main": listings[0], "others": [_number(sources, other) for other in listings[1:]]}
            for name, listings in (("forward", details.forward_source), ("backward", details.backward_source))
            if listings
        ],
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


def _number(sources: dict[Listing, int], listing: Listing) -> dict[str, Any]:
    """The reference to a called function, which is listed once at the end of the page."""
    return {"number": sources.setdefault(listing, len(sources) + 1), "name": listing.name}


def _typeset(texts: Sequence[str]) -> list[Markup]:
    return [Markup(formulas.mathml(text)) for text in texts]


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


def _pictures(layer: Layer, deep: bool) -> Any:
    options: dict[str, Any] = {"most": 16, "side": 28, "tile": 32} if deep else {"most": 64, "side": 112, "tile": 44}
    yield "output", draw.grid(_maps(layer.y), f"Output of {layer.label}", **_tiles(layer.y, options))
    yield (
        "gradient of the output",
        draw.grid(_maps(layer.grad_y), f"Gradient of the output of {layer.label}", **_tiles(layer.y, options)),
    )
    if "weight" in layer.parameters:
        for value, what in zip(layer.parameters["weight"], ("weight", "gradient of the weight"), strict=True):
            name = "filters" if isinstance(layer.module, _CONVOLUTIONS) else "weights"
            title = what.replace("weight", name)
            yield title, _weights(value, f"{title[0].upper()}{title[1:]} of {layer.label}", deep)


def _weights(value: Tensor, what: str, deep: bool) -> Picture:
    if value.dim() == 4:
        return training.filters(value if not deep else value[:, :16], what, most=16 if deep else 64)
    array = value.numpy()
    maps = array.reshape(1, *array.shape) if array.ndim == 2 else array.reshape(-1, 1, 1)
    options = _tiles(value[None] if value.dim() < 2 else value, {"most": 128})
    return draw.grid(maps, what, **{**options, "side": 256, "tile": 320 if array.ndim == 2 else 14})


def _maps(tensor: Tensor) -> draw.Floats:
    """(1, C, H, W) as C maps, (1, n) as n maps of one pixel, and anything else as maps of its last two axes."""
    array = tensor.numpy()
    if array.ndim >= 3:
        return array.reshape(-1, *array.shape[-2:])
    return np.asarray(array).reshape(-1, 1, 1)


def _tiles(tensor: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """Drawing options: many small tiles for a vector, a few large ones for tokens."""
    if tensor.dim() < 3:
        return {**options, "columns": 16, "most": 256, "tile": 18}
    if tensor.dim() == 3:
        return {**options, "side": 256, "tile": 320}
    return options
