"""Training with what the learner wrote: the digits under ``fit``, or the whole network of exercise 11 in NumPy."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cnn_lightning.errors import UserError
from cnn_lightning.plain import images
from cnn_lightning.tools.learn.course.exercise import Array, Exercise
from cnn_lightning.tools.learn.course.network import KEYS
from cnn_lightning.tools.learn.grading import grade
from cnn_lightning.tools.learn.loading import loaded
from cnn_lightning.tools.learn.showing import FACES

_EPOCHS, _BATCH, _RATE = 16, 16, 0.1
"""Of the training in NumPy; the rate falls to 0."""


def command(exercise: Exercise) -> list[str]:
    """The ``fit`` that trains with an exercise.

    Raises:
        UserError: The exercise has a training of its own.
    """
    training = exercise.training
    if training is None:
        raise UserError(f"exercise {exercise.number}: it trains by itself, not under fit")
    layers: dict[str, str] = {name: f"{FACES}.{face}" for name, face in training.layers.items()}
    return ["fit", "--model.layers", json.dumps(layers | {"*": "numpy"}), "--trainer.max_epochs", "10", *training.flags]


def train(exercise: Exercise) -> int:
    """Train with the file in the current folder, and give the exit code.

    A mistake is no reason to stop, so that one sees what it does; functions that are not written are.

    Raises:
        UserError: The file is missing, or a function is not written or ends the program.
    """
    report = grade(exercise.number)
    if report.unwritten:
        raise UserError(f"exercise {exercise.number}: not written yet: {', '.join(report.unwritten)}")
    if not report.passed:
        print(f"It does not pass yet ({report.verdict}), and trains as it is.", flush=True)
    if exercise.training is not None:
        return _train_under_fit(exercise)
    try:
        return _train_in_numpy(exercise, report.path)
    except SystemExit as stop:  # its exit code would say that the training ended well
        raise UserError(
            f"exercise {exercise.number}: expected functions that return, got a call of exit({stop.code})"
        ) from None


def _train_under_fit(exercise: Exercise) -> int:
    from cnn_lightning.train import command as fit

    args = command(exercise)
    print(f"cnn-lightning {shlex.join(args)}", flush=True)
    return fit.main(args)


def _train_in_numpy(exercise: Exercise, path: Path) -> int:
    """The learner's network and SGD, without torch."""
    data = images.read("digits", "", "float32")
    with loaded(exercise, path) as network, threadpool_limits(limits=1, user_api="blas"):
        weights = dict(_weights(data))
        for epoch in range(_EPOCHS):
            losses, rate = [], _RATE * (1 - epoch / _EPOCHS)
            for pictures, labels in images.Batches(data.train, _BATCH, 0, epoch):
                loss, gradients = network.loss_and_gradients(pictures, labels, weights)
                weights = network.sgd_step(weights, gradients, rate)
                losses.append(float(loss))
            right = _accuracy(network, weights, data.val)
            print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, val_acc {right:.4f}", flush=True)
        print(f"test_acc: {_accuracy(network, weights, data.test):.4f}")
    sys.stdout.flush()
    return 0


def _weights(data: images.Images) -> Iterator[tuple[str, Array]]:
    """Weights of SimpleCNN, uniform within 1 / sqrt(inputs of a unit)."""
    shapes = {
        "conv1": (16, data.in_channels, 3, 3),
        "conv2": (32, 16, 3, 3),
        "linear1": (128, 32 * (data.image_size // 4) ** 2),
        "linear2": (data.num_classes, 128),
    }
    random = np.random.default_rng(0)
    for key in KEYS:
        name, kind = key.split(".")
        shape = shapes[name]
        bound = 1 / np.sqrt(np.prod(shape[1:]))
        yield key, random.uniform(-bound, bound, shape if kind == "weight" else shape[:1]).astype(np.float32)


def _accuracy(network: Any, weights: dict[str, Array], split: images.Pictures) -> float:
    pictures, labels = split
    scores, _ = network.forward(pictures, weights)
    return float((scores.argmax(1) == labels).mean())
