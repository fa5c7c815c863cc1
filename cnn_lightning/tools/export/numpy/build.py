"""A trained network as one file that needs NumPy alone, and the process that runs it."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cnn_lightning.classifier import Classifier
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.portable import archive
from cnn_lightning.portable.plan import Plan
from cnn_lightning.tools.export.numpy.record import Recording
from cnn_lightning.tools.export.numpy.sources import collect
from cnn_lightning.tools.export.numpy.walk import walk


def write(path: Path, plan: Plan, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the archive of a plan, with the programs and formulas that it needs as they are installed."""
    archive.fill(path, collect(plan, version("cnn-lightning")), plan, arrays)


def plan_of(model: Classifier) -> tuple[Plan, dict[str, NDArray[Any]]]:
    """The plan, and the arrays by name.

    Args:
        model: With native layers, in float32, on the CPU; it is left in training mode.

    Raises:
        UserError: A layer or a function has no formula, or the normalisation of the pictures is not known.
    """
    if not model.mean:
        raise UserError(
            "--format: expected for numpy a checkpoint that keeps the normalisation of its pictures, got one of a "
            "training with data of its own"
        )
    model.train()
    known, net = model.hparams, model.net
    recording = Recording(net, (known["in_channels"], known["image_size"], known["image_size"]))
    nodes, outputs = walk(net, recording)
    used = {name for node in nodes.nodes for name in node.parameters.values()}
    arrays = {name: array.detach().numpy() for name, array in net.state_dict().items() if name in used}
    arrays |= {name: array.detach().numpy() for name, array in net.named_buffers() if name in used - arrays.keys()}
    plan = Plan(
        nodes=tuple(nodes.nodes),
        outputs=tuple(outputs),
        weights=(1.0, *getattr(net, "auxiliary_weights", ()))[: len(outputs)],
        trainable=tuple(name for name, array in net.named_parameters() if array.requires_grad and name in used),
        net=known["net"],
        class_names=model.class_names,
        mean=tuple(model.mean),
        std=tuple(model.std),
        in_channels=known["in_channels"],
        image_size=known["image_size"],
        fit=model.picture_fit or "squeeze",
        value_range=model.value_range,
        label_smoothing=known["label_smoothing"],
        class_weights=None if model.loss.weight is None else tuple(cast(Tensor, model.loss.weight).tolist()),
        written_by=f"cnn-lightning {version('cnn-lightning')}",
    )
    return plan, arrays | nodes.constants | {
        name: recording.constants[name] for name in used & recording.constants.keys()
    }


def run(path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The logits that an archive computes in a process of its own, which imports nothing of this one.

    Raises:
        UserError: It failed; the last line that it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "images.npz"), Path(folder, "logits.npy")
        np.savez(given, images=images)
        command = [sys.executable, "-I", str(path.resolve()), "predict", str(given), "--logits", str(found)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UserError(f"--format: the exported network does not run: {one_line(last, 200)}")
        logits: NDArray[np.float32] = np.load(found)
    return logits
