"""``cnn-lightning replay FILE``: run a step whose loss or gradient was not finite again, and name what made it.

The file is the nonfinite.pt that a training wrote when it stopped. The exit code is 1 if the step is not finite again,
and 0 if all is finite now, as after a formula was mended.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from cnn_lightning.aten import numpy_ops
from cnn_lightning.classifier import Classifier, hyper_parameters
from cnn_lightning.classifier.module import Layers
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.layers.memory import MemoryFormat, arranged
from cnn_lightning.model import total_loss
from cnn_lightning.nonfinite import Finding, saved, search
from cnn_lightning.ops.fast import chooser
from cnn_lightning.tools.replay import arguments

HALF = {"bf16": torch.bfloat16, "16": torch.float16}


def main(args: list[str]) -> int:
    """Run the step and print what is found; 1 if it is not finite."""
    options = arguments.parser().parse_args(args)
    found = saved.read(options.file)
    finding = replay(found, options.file, options.model.layers)
    if finding is None:
        print(f"step {found.step}: loss and gradients are finite; when it was saved: {found.found.splitlines()[0]}")
        return 0
    print(f"step {found.step}: {finding}")
    return 1


def replay(found: saved.Saved, path: str | Path, layers: Layers | None = None) -> Finding | None:
    """Run a saved step of a `Classifier` again, forward and backward.

    Args:
        found: The step.
        path: Its file, for messages.
        layers: What runs the layers; None for what ran them when it was saved.

    Returns:
        What made the first number that is not finite; None if all is finite.

    Raises:
        UserError: The step is not one of a `Classifier`, or does not fit.
    """
    if not found.hyper_parameters or not _is_batch(found.batch) or found.memory_format not in get_args(MemoryFormat):
        raise UserError(f"file: expected a step of Classifier in {path}, got one of {found.module}")
    memory = cast(MemoryFormat, found.memory_format)
    device = "cuda" if found.device == "cuda" and torch.cuda.is_available() else "cpu"
    try:
        known = hyper_parameters({"hyper_parameters": found.hyper_parameters}, path)
    except UserError as error:
        raise UserError(str(error).replace("ckpt_path", "file", 1)) from None
    chosen: Any = layers or found.layers or "torch"
    try:
        model = Classifier(**known | {"weights": None}, layers=chosen, fast=found.fast)
        model.load_state_dict(found.state_dict)
        model.to(device=device, dtype=_weights_dtype(found.precision)).train()
        images, labels = (tensor.to(device) for tensor in found.batch)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"file: {path} does not fit: {one_line(error, 200)}") from error
    if memory == "channels_last":
        model.net.to(memory_format=torch.channels_last)
    functions = found.functions == "numpy" and device == "cpu" and layers != "torch"

    def forward() -> Tensor:
        with _in_precision(found.precision, device), numpy_ops(functions):
            outputs = model.net(arranged(images, memory))
            return total_loss(model.net, model.loss, outputs, labels)[0]

    def backward(loss: Tensor) -> None:
        with numpy_ops(functions):
            loss.backward()  # type: ignore[no-untyped-call]

    try:
        with chooser.fast(found.fast), torch.random.fork_rng(["cuda"] if device == "cuda" else []):
            torch.set_rng_state(found.random_state[0])
            if device == "cuda" and len(found.random_state) > 1:
                torch.cuda.set_rng_state(found.random_state[1])
            return search(model, [images, labels], forward, backward)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"file: the step of {path} does not run: {one_line(error, 200)}") from error


def _is_batch(batch: Any) -> bool:
    return isinstance(batch, list) and len(batch) == 2 and all(isinstance(each, Tensor) for each in batch)


def _weights_dtype(precision: str) -> torch.dtype:
    """Of the weights, for the Trainer's option ``precision``."""
    bits, _, kind = precision.partition("-")
    return {"64": torch.float64}.get(bits, HALF.get(bits, torch.float32) if kind == "true" else torch.float32)


@contextmanager
def _in_precision(precision: str, device: str) -> Iterator[None]:
    """``torch.autocast`` for the mixed precisions."""
    bits, _, kind = precision.partition("-")
    with torch.autocast(device, HALF.get(bits), enabled=kind == "mixed"):
        yield
