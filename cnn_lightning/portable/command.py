"""The commands of an exported network: predict, layers, test, train."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import expect_writable, written
from cnn_lightning.ops.softmax import softmax
from cnn_lightning.ops.types import Array
from cnn_lightning.portable import archive, optimizers, pictures, training
from cnn_lightning.portable.layers.table import LAYERS
from cnn_lightning.portable.network import Network
from cnn_lightning.portable.plan import Node, Plan
from cnn_lightning.streams import exit_code, lasting_streams

BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "index")
"""The roles of arrays that no gradient changes."""


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(one_line(message))


def run(place: str) -> NoReturn:
    """Run the command of the arguments and exit: with 0, with 2 after a `UserError`, with 130 after Ctrl-C.

    Args:
        place: The archive or the unpacked folder that the program runs from.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    with lasting_streams() as streams:
        sys.exit(exit_code(streams, main(Path(place), sys.argv[1:]), ends=True))


def main(place: Path, args: Sequence[str]) -> int:
    """Run a command; the exit code."""
    try:
        parser = _parser(place.name)
        if not args:
            parser.print_help()
            return 0
        options = parser.parse_args(args)
        options.run(place, options)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except MemoryError:
        print("error: memory: expected more; a smaller --batch_size takes less", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


# ---- predict


def predict(place: Path, options: argparse.Namespace) -> None:
    """Print the classes of pictures."""
    expect_writable("--logits", options.logits, (".npy",))
    plan, arrays, _ = archive.load(place)
    network, found = Network(plan, arrays), []
    for names, images in _batches(options.pictures, plan):
        logits = training.logits(network, images)
        found.append(logits)
        for name, each in zip(names, softmax(logits, dim=1), strict=True):
            best = np.argsort(-each, kind="stable")[: options.top]
            print(f"{name}: " + ", ".join(f"{plan.class_names[place]} {each[place]:.2%}" for place in best))
    if options.logits is not None:
        with written("--logits", options.logits) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate(found))


def _batches(given: list[str], plan: Plan) -> Any:
    """The names and the uint8 images of some pictures at a time."""
    for path in (Path(path) for path in given if path.lower().endswith(pictures.ARRAYS)):
        images, _ = pictures.arrays(path, plan)
        yield [f"{path}[{index}]" for index in range(len(images))], images
    files = pictures.find([path for path in given if not path.lower().endswith(pictures.ARRAYS)])
    for start in range(0, len(files), training.EVALUATED):
        some = files[start : start + training.EVALUATED]
        yield some, pictures.read(some, plan)


# ---- layers


def layers(place: Path, options: argparse.Namespace) -> None:
    """Print a line for each node."""
    plan, arrays, _ = archive.load(place)
    rows = [("layer", "type", "output", "parameters", "formula")]
    rows += [_row(node, arrays) for node in plan.nodes]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for name, kind, shape, count, file in rows:
        cells = name.ljust(widths[0]), kind.ljust(widths[1]), shape.ljust(widths[2]), count.rjust(widths[3]), file
        print("  ".join(cells).rstrip())
    learned = {name for node in plan.nodes for role, name in node.parameters.items() if role not in BUFFERS}
    print(f"{plan.net}: {sum(arrays[name].size for name in learned):,} parameters, written by {plan.written_by}")


def _row(node: Node, arrays: dict[str, Array]) -> tuple[str, str, str, str, str]:
    count = sum(arrays[name].size for role, name in node.parameters.items() if role not in BUFFERS)
    file, _ = LAYERS[node.operation]
    formula = "-" if file == "shape" else f"cnn_lightning/ops/{file}.py"
    kind = str(node.options.get("function", node.operation))
    return node.name, kind, node.shape, f"{count:,}" if count else "-", formula


# ---- test and train


def test(place: Path, options: argparse.Namespace) -> None:
    """Print the accuracy on labelled pictures."""
    plan, arrays, _ = archive.load(place)
    images, labels = pictures.labelled(options.data, plan)
    print(f"accuracy: {training.accuracy(Network(plan, arrays), images, labels):.4f} of {len(labels)} pictures")


def train(place: Path, options: argparse.Namespace) -> None:
    """Train, and write a new archive after each epoch."""
    output = place.with_name(f"{place.stem}_trained.pyz") if options.output is None else Path(options.output)
    expect_writable("--output", output, (".pyz",))
    plan, arrays, files = archive.load(place)
    if not plan.trainable:
        raise UserError("train: expected weights to train, but all of this network's are frozen")
    images, labels = pictures.labelled(options.data, plan)
    optimizer = _optimizer(options)
    network, start, done = Network(plan, arrays), time.perf_counter(), 0
    found = training.epochs(
        network,
        optimizer,
        images,
        labels,
        batch_size=options.batch_size,
        seed=options.seed,
        count=options.epochs,
        each_step=_progress(),
    )
    try:
        for done, mean in enumerate(found, 1):
            archive.write("--output", output, files, plan, network.arrays)
            print(f"epoch {done}: loss {mean:.4f}, {time.perf_counter() - start:.1f} s", flush=True)
    except KeyboardInterrupt:
        kept = f"{output} has the weights after epoch {done}" if done else "nothing was written"
        print(f"stopped: {kept}", file=sys.stderr)
        raise
    print(f"accuracy on these pictures: {training.accuracy(network, images, labels):.4f}")
    print(f"file: {output}")


def _optimizer(options: argparse.Namespace) -> training.Optimizer:
    if options.optimizer == "sgd":
        return optimizers.SGD(options.lr, options.weight_decay, options.momentum)
    return optimizers.Adam(options.lr, options.weight_decay, decoupled=options.optimizer == "adamw")


def _progress() -> Callable[[int, int, int], None]:
    """Shows the step in one line of a terminal, at most ten times a second."""
    last = 0.0

    def show(epoch: int, step: int, steps: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last > 0.1:
            last = now
            print(f"\repoch {epoch}: step {step} of {steps} ", end="\r", file=sys.stderr, flush=True)

    return show if sys.stderr is not None and sys.stderr.isatty() else lambda epoch, step, steps: None


# ---- flags


def _parser(name: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"python {name}",
        description=f"A trained network that needs NumPy alone (and Pillow, to read pictures).\n\n{_examples(name)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser("predict", help="the classes of pictures, with their probability")
    command.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files, folders, or .npz with images")
    command.add_argument("--top", type=_at_least_one, default=1, metavar="N", help="the N most likely classes")
    command.add_argument("--logits", metavar="FILE", help="write the logits (N, classes) there, as .npy")
    command.set_defaults(run=predict)

    command = commands.add_parser("layers", help="the layers, their shapes, and the files with their mathematics")
    command.set_defaults(run=layers)

    data = "a folder with a folder for each class, or a .npz file with images (uint8) and labels"
    command = commands.add_parser("test", help="the accuracy on labelled pictures")
    command.add_argument("data", metavar="DATA", help=data)
    command.set_defaults(run=test)

    command = commands.add_parser("train", help="go on training, and write a new file")
    command.add_argument("data", metavar="DATA", help=data)
    command.add_argument("--epochs", type=_at_least_one, default=1, metavar="N", help="passes over the pictures (1)")
    command.add_argument("--batch_size", type=_at_least_one, default=32, metavar="N", help="pictures in a step (32)")
    command.add_argument("--lr", type=_rate, default=1e-3, metavar="RATE", help="learning rate (0.001)")
    command.add_argument("--optimizer", choices=("sgd", "adam", "adamw"), default="sgd", help="sgd by default")
    command.add_argument("--momentum", type=_fraction, default=0.9, metavar="M", help="of sgd (0.9)")
    command.add_argument("--weight_decay", type=_at_least_zero, default=0.0, metavar="W", help="(0)")
    command.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the order and of dropout (0)")
    command.add_argument("--output", metavar="FILE", help=f"the new file ({Path(name).stem}_trained.pyz)")
    command.set_defaults(run=train)
    return parser


def _examples(name: str) -> str:
    lines = (
        f"python {name} predict picture.png --top 3",
        f"python {name} layers",
        f"python {name} train pictures --epochs 2 --lr 0.01   (pictures/CLASS/*.png)",
        f"python -m zipfile -e {name} folder                  (to read the formulas; python folder predict ...)",
    )
    return "\n".join(f"  {line}" for line in lines)


def _number(text: str, kind: Callable[[str], float], low: float, end: float, expected: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not low <= value < end:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def _at_least_one(text: str) -> int:
    return int(_number(text, int, 1, 2**31, "a whole number of at least 1"))


def _seed(text: str) -> int:
    return int(_number(text, int, 0, 2**32, "a whole number from 0 to 2**32 - 1"))


def _rate(text: str) -> float:
    return _number(text, float, math.ulp(0), math.inf, "a number above 0")


def _at_least_zero(text: str) -> float:
    return _number(text, float, 0, math.inf, "a number of at least 0")


def _fraction(text: str) -> float:
    return _number(text, float, 0, 1, "a number from 0 to 1, without 1")
