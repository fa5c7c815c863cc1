"""A trained network for programs without this package: as ONNX, for ``torch.export``, or as one file of NumPy.

The first two are native torch. Before the written file gets its name, it is run and compared with the NumPy layers.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnn_lightning.classifier import Classifier
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import expect_writable, written
from cnn_lightning.portable.pictures import normalised
from cnn_lightning.tools.export.formats import missing_for_onnx, to_onnx, to_pt2
from cnn_lightning.tools.export.numpy import build

Format = Literal["onnx", "pt2", "numpy"]

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "pt2": ".pt2", "numpy": ".pyz"}

TOLERANCE = 1e-4
"""The largest difference of logits that rounding explains, relative to the largest logit."""

EXTRA_FILE = "cnn_lightning.json"
"""The name under which a pt2 archive holds `metadata`: ``torch.export.load(path, extra_files={EXTRA_FILE: ""})``."""

INPUT, OUTPUT = "images", "logits"

_BATCHES = (1, 2, 5)


class Unequal(Exception):
    """The written program computes other logits than the NumPy layers."""


@dataclass(frozen=True)
class Exported:
    """The written file, and its comparison with the NumPy layers."""

    path: Path
    difference: float
    """The largest difference of a logit, relative to the largest logit."""
    batches: tuple[int, ...]
    """The sizes of the batches that were compared."""
    by: str
    """The program that ran the file."""


def export(
    model: Classifier, path: Path, kind: Format, *, batch: int | None = None, tolerance: float = TOLERANCE
) -> Exported:
    """Write ``model``'s network to ``path``, whole or not at all, if it equals the network with NumPy layers.

    The program takes normalised images ``(N, C, H, W)`` in float32 and returns logits ``(N, num_classes)``. The
    classes' names and the normalisation are in the file (see `metadata`): in ONNX's metadata_props, or as `EXTRA_FILE`
    in the archive. The model is left in evaluation mode with native layers.

    As "numpy" the file is a program that takes pictures, see `cnn_lightning.portable`; it takes batches of any size.

    Args:
        model: On the CPU.
        path: The file; an existing one is replaced.
        kind: "onnx", "pt2" or "numpy".
        batch: N; None for any.
        tolerance: The largest difference of logits that passes, relative to the largest logit.

    Raises:
        UserError: ``path`` can't be written, a package is missing, or the network can't be exported.
        Unequal: Outputs differ by more than ``tolerance``; nothing was written.
    """
    if kind == "onnx" and (missing := missing_for_onnx()):
        raise UserError(f"--format onnx: {missing}")
    expect_writable("--output", path)
    if kind == "numpy":
        return _export_numpy(model.float().eval(), path, tolerance)
    model = model.float().eval()
    batches = _BATCHES if batch is None else (batch,)
    probes = _probes(model, batches)
    with torch.no_grad():
        model.swap("numpy")
        expected = [model(images) for images in probes]
        model.swap("torch")
        example = _probes(model, (3 if batch is None else batch,))[0]
        content = _tried(lambda: _EXPORTERS[kind](model, example, batch is None))

    def write(file: Path) -> list[Tensor]:
        file.write_bytes(content)
        return _RUNNERS[kind](file, probes)

    difference = _proven(path, expected, tolerance, write)
    return Exported(path, difference, batches, "onnxruntime" if kind == "onnx" else "torch.export")


def _export_numpy(model: Classifier, path: Path, tolerance: float) -> Exported:
    """The file is proven with pictures, so that its normalisation is compared too."""
    model.swap("torch")
    plan, arrays = build.plan_of(model)
    images = _pictures(model, sum(_BATCHES))
    with torch.no_grad():
        model.eval().swap("numpy")
        expected = [model(torch.from_numpy(normalised(images, plan)))]
        model.swap("torch")

    def write(file: Path) -> list[Tensor]:
        build.write(file, plan, arrays)
        return [torch.from_numpy(build.run(file, images))]

    return Exported(path, _proven(path, expected, tolerance, write), (len(images),), "a process with NumPy alone")


def metadata(model: Classifier) -> dict[str, str]:
    """What a program that runs the network must know about its pictures and classes, each value as JSON."""
    known = model.hparams
    return {
        key: json.dumps(value, ensure_ascii=False)
        for key, value in {
            "class_names": model.class_names,
            "mean": model.mean,
            "std": model.std,
            "value_range": model.value_range,  # of pixels with more than 8 bits, which become 0 to 255; or null
            "fit": model.picture_fit,  # what is done with a picture that is not square: squeeze, pad, or null
            "input": "(pixels / 255 - mean) / std, per channel, as (N, C, H, W) float32",
            "in_channels": known["in_channels"],
            "image_size": known["image_size"],
            "net": known["net"],
            "written_by": f"cnn-lightning {version('cnn-lightning')}",
        }.items()
    }


# ---- the two formats


def _pt2(model: Classifier, example: Tensor, any_batch: bool) -> bytes:
    values = {key: json.loads(value) for key, value in metadata(model).items()}
    extra = {EXTRA_FILE: json.dumps(values, ensure_ascii=False, indent=1)}
    return to_pt2(model.net, (example,), any_batch=any_batch, extra=extra)


def _onnx(model: Classifier, example: Tensor, any_batch: bool) -> bytes:
    names = {"inputs": [INPUT], "outputs": [OUTPUT]}
    return to_onnx(model.net, (example,), any_batch=any_batch, **names, properties=metadata(model))


def _tried(work: Callable[[], bytes]) -> bytes:
    """The exporter's result; its errors, which can be pages long, in one line."""
    try:
        return work()
    except Exception as error:
        line = one_line(error, 200)
        raise UserError(f"--format: this network can't be exported: {type(error).__name__}: {line}") from error


def _run_onnx(file: Path, probes: Sequence[Tensor]) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0]) for images in probes]


def _run_pt2(file: Path, probes: Sequence[Tensor]) -> list[Tensor]:
    program = torch.export.load(file).module()
    with torch.no_grad():
        return [program(images) for images in probes]


_EXPORTERS = {"onnx": _onnx, "pt2": _pt2}
_RUNNERS = {"onnx": _run_onnx, "pt2": _run_pt2}


# ---- the proof


def _probes(model: Classifier, batches: Sequence[int]) -> list[Tensor]:
    """Images of normally distributed numbers, like normalised pictures."""
    generator = torch.Generator().manual_seed(0)
    channels, size = model.hparams["in_channels"], model.hparams["image_size"]
    return [torch.randn(n, channels, size, size, generator=generator) for n in batches]


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference relative to the largest value; infinite for other shapes."""
    if any(a.shape != b.shape for a, b in zip(found, expected, strict=True)):
        return float("inf")
    largest = max(b.abs().max().item() for b in expected)
    difference = max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))
    return difference / largest if largest else difference


def _pictures(model: Classifier, n: int) -> NDArray[np.uint8]:
    channels, size = model.hparams["in_channels"], model.hparams["image_size"]
    return np.random.default_rng(0).integers(0, 256, (n, channels, size, size), np.uint8)


def _proven(
    path: Path, expected: Sequence[Tensor], tolerance: float, write: Callable[[Path], Sequence[Tensor]]
) -> float:
    """Write under another name, compare the logits of that file, and rename it; the difference.

    Raises:
        UserError: ``path`` can't be written.
        Unequal: The difference is more than ``tolerance``.
    """
    with written("--output", path) as temporary:
        difference = _difference(write(temporary), expected)
        if not difference <= tolerance:
            raise Unequal(
                f"the exported network's logits differ from the NumPy layers' by {difference:.1e} of the largest "
                f"(expected at most {tolerance:g}); {path} was not written"
            )
    return difference
