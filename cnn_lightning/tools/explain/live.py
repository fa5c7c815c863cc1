"""What makes a page live: the network and pictures with which the browser computes forward, backward and updates.

A network is live if it is a chain of the layers in `KINDS` that ends in cross-entropy, and small enough for a page.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnn_lightning.data.loader import Batches
from cnn_lightning.data.pictures import Fit
from cnn_lightning.swap import native_type
from cnn_lightning.tools.explain import picker
from cnn_lightning.tools.explain.flops import flops
from cnn_lightning.tools.explain.record import Layer, Recording

KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv",
    nn.ReLU: "relu",
    nn.MaxPool2d: "pool",
    nn.Linear: "linear",
    nn.Flatten: "same",
    nn.Identity: "same",
    nn.Dropout: "same",
    nn.Dropout2d: "same",
}
"""The layers that the browser computes. In evaluation mode, those of the kind ``same`` keep the numbers."""
WEIGHTS = 600_000
"""The most weights of a live network: 3.2 MB of the page. SimpleCNN for 28x28 pixels has 206,922."""
FLOPS = 40_000_000
"""The most additions and multiplications of its forward: about 30 ms with the backward in a browser."""
TEST_PICTURES = 20
TRAINING_PICTURES = 1_500
TRAINING_BYTES = 450_000
"""The most bytes of training pictures; in base64 they are 600 kB."""


@dataclass(frozen=True)
class Term:
    """A term of the backward that the page can leave out.

    Args:
        key: Its name in the page's script.
        name: Its name for the reader.
        without: What happens without it.
        wrong: What `cnn_lightning.tools.check.check_layer` finds in a layer without it; ``{n}`` is the batch size.
        mend: Its advice, with ``{n}`` too.
    """

    key: str
    name: str
    without: str
    wrong: str
    mend: str


_DERIVE = "derive it again for one element; look for a term, a border or a branch that the backward lacks"
_DIFFERS = "the gradient of input 'x' differs from numerical differences"
TERMS = (
    Term(
        "positions",
        "the sum over all positions, for a convolution's weights and bias",
        "the position in the middle alone gives their gradients",
        "the gradient of parameter 'weight' differs from numerical differences",
        _DERIVE,
    ),
    Term(
        "mean",
        "the 1/N of the mean over the batch",
        "every gradient is N times too large",
        "the gradient of input 'logits' is {n} times the right one",
        "look for a factor that the forward has and the backward forgot (or has twice); or, as {n} is the batch size, "
        "for a mean over the batch that should be a sum, or a sum twice",
    ),
    Term("mask", "the mask of ReLU", "the gradient passes where the input is negative, too", _DIFFERS, _DERIVE),
    Term(
        "flip",
        "the flipped kernel, for a convolution's input",
        "each pixel gets its gradient through the wrong weights",
        _DIFFERS,
        _DERIVE,
    ),
    Term("winner", "the winner of max-pooling", "each pixel of a window gets the whole gradient", _DIFFERS, _DERIVE),
)


@dataclass(frozen=True)
class Pictures:
    """Pictures uint8 (n, C, H, W) and their classes (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Live:
    """The content of a live page's script, or why it is none, as half a sentence."""

    content: dict[str, Any] | None = None
    why_not: str = ""
    terms: Sequence[Term] = TERMS


STILL = Live()
"""A page whose numbers are fixed."""


@dataclass(frozen=True)
class Options:
    """What a page takes from the run.

    Args:
        mean: Of each channel, for values from 0 to 1.
        std: Standard deviation of each channel.
        rate: The learning rate with which the page starts.
        module: The run's data after ``setup``, a `cnn_lightning.data.base.InMemory`, or None.
        classes: The number of classes.
        fit: What is done with picture files that are not square.
    """

    mean: Sequence[float]
    std: Sequence[float]
    rate: float
    module: Any
    classes: int
    fit: Fit = "squeeze"


def of(seen: Recording, image: Tensor, options: Options) -> Live:
    """The live part of the page of a recording of ``image`` (1, C, H, W)."""
    why_not = _why_not(seen, image)
    if why_not:
        return Live(why_not=why_not)
    *layers, loss = seen.layers
    expected = list(layers[0].x.shape[1:])
    content = {
        "layers": [_layer(layer) for layer in layers],
        "loss": {"label": loss.label, "smoothing": float(vars(loss.module)["label_smoothing"])},
        "mean": list(options.mean),
        "std": list(options.std),
        "rate": options.rate,
        "fit": options.fit,
        "test": _packed(_test(options), expected),
        "train": _packed(_train(options), expected),
    }
    return Live(content)


def _why_not(seen: Recording, image: Tensor) -> str:
    """Why the browser can't compute a network; empty if it can."""
    *layers, loss = seen.layers
    if native_type(loss.module) is not nn.CrossEntropyLoss or vars(loss.module)["reduction"] != "mean":
        return f"its loss is {loss.kind}, not the mean cross-entropy"
    if loss.module.weight is not None or vars(loss.module)["ignore_index"] >= 0:
        return "its loss has weights for the classes, or ignores one"
    for layer in layers:
        if native_type(layer.module) not in KINDS:
            return f"{layer.label} is {layer.kind}, which the page's script doesn't compute"
        if not _is_plain(layer):
            options = layer.module.extra_repr()
            return f"{layer.label} is {layer.kind}({options}), which the page's script doesn't compute"
        if layer.again > 1 and layer.parameters:
            return f"{layer.name} is used {layer.again} times"
    if not _is_chain(seen, image):
        return "its layers are no chain"
    weights = sum(value.numel() for layer in layers for value, _ in layer.parameters.values())
    if weights > WEIGHTS:
        return f"it has {weights:,} weights, and a page holds at most {WEIGHTS:,}"
    work = sum(flops(layer.module, layer.x, layer.y) for layer in layers)
    if work > FLOPS:
        return f"its forward takes {work:,} FLOPs, and a page computes at most {FLOPS:,} at once"
    return ""


def _is_plain(layer: Layer) -> bool:
    """Whether the input has the usual axes and the options are those that the page's script knows."""
    kind = KINDS[native_type(layer.module)]
    axes = {"conv": 4, "pool": 4, "linear": 2}.get(kind, layer.x.dim())
    return layer.x.dim() == axes and (kind != "conv" or vars(layer.module)["padding_mode"] == "zeros")


def _is_chain(seen: Recording, image: Tensor) -> bool:
    """Whether each layer's input is the output of the one before, and nothing else uses that output."""
    outputs = [(image, seen.grad_image), *((layer.y, layer.grad_y) for layer in seen.layers[:-1])]
    return all(
        after.grad_x is not None and _close(after.x, y) and _close(after.grad_x, grad_y)
        for (y, grad_y), after in zip(outputs, seen.layers, strict=True)
    )


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two arrays are equal but for rounding."""
    if a.shape != b.shape:
        return False
    return torch.allclose(a, b, rtol=1e-3, atol=1e-5 * b.nan_to_num().abs().max().item(), equal_nan=True)


def _layer(layer: Layer) -> dict[str, Any]:
    kind = KINDS[native_type(layer.module)]
    module: Any = layer.module
    found: dict[str, Any] = {"label": layer.label, "kind": kind, "x": list(layer.x.shape[1:])}
    found["y"] = list(layer.y.shape[1:])
    if kind == "conv":
        found |= picker.geometry(module, stride=module.stride, groups=module.groups)
    if kind == "pool":
        found |= picker.geometry(module, stride=module.stride or module.kernel_size)
    return found | {name: picker.pack(value) for name, (value, _) in layer.parameters.items()}


# ---- pictures


def _test(options: Options) -> Pictures | None:
    """About `TEST_PICTURES` of the test split: two of each class, one where there are many classes."""
    batches = options.module and options.module.test_dataloader()
    if not isinstance(batches, Batches):
        return None
    labels = batches.labels.numpy()
    each = 2 if options.classes * 2 <= TEST_PICTURES else 1
    chosen = [place for label in range(options.classes) for place in np.flatnonzero(labels == label)[:each].tolist()]
    return _taken(batches, _evenly(chosen, TEST_PICTURES))


def _train(options: Options) -> Pictures | None:
    """Some of the training split, in its order, without augmentation."""
    batches = options.module and options.module.train_dataloader()
    if not isinstance(batches, Batches) or not len(batches.labels):
        return None
    size = np.asarray(batches.images[[0]]).size
    return _taken(batches, _evenly(range(len(batches.labels)), min(TRAINING_PICTURES, TRAINING_BYTES // size)))


def _evenly(places: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the places, evenly spaced: a split can be sorted by class."""
    n = min(len(places), most)
    return [places[index * len(places) // n] for index in range(n)]


def _taken(batches: Batches, places: list[int]) -> Pictures | None:
    if not places:
        return None
    return Pictures(np.asarray(batches.images[places]), batches.labels.numpy()[places])


def _packed(pictures: Pictures | None, expected: list[int]) -> dict[str, Any] | None:
    """Shape, bytes as base64 and classes: ``live/engine.js`` reads them. None if the network takes other pictures."""
    if pictures is None or list(pictures.images.shape[1:]) != expected:
        return None
    encoded = base64.b64encode(np.ascontiguousarray(pictures.images).tobytes()).decode()
    return {"shape": list(pictures.images.shape), "base64": encoded, "labels": pictures.labels.tolist()}
