"""The flags of both plain programs, and their manners: a mistake is told in one line, with exit code 2."""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.progress import track

from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import expect_writable
from cnn_lightning.streams import exit_code, lasting_streams


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(one_line(message))


def parse(program: str, description: str | None, args: Sequence[str] | None = None) -> argparse.Namespace:
    """The options as a namespace.

    Raises:
        UserError: An unknown flag or a value that makes no sense.
    """
    parser = _Parser(
        prog=f"python -m cnn_lightning.plain.{program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits", help="what to train on")
    parser.add_argument("--root", default="data", metavar="DIR", help="the folder that holds MNIST/raw")
    parser.add_argument("--epochs", type=_at_least_one, default=10, metavar="N", help="passes over the pictures")
    parser.add_argument("--batch_size", type=_at_least_one, default=32, metavar="N", help="pictures in a step")
    parser.add_argument("--lr", type=_positive, default=1e-3, metavar="RATE", help="learning rate")
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="adam", help="sgd has momentum 0.9")
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the first weights and the order")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of all numbers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where they live")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="start from these weights (.npz)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the trained weights there (.npz)")
    if program == "train_numpy":
        parser.add_argument("--fast", action="store_true", help="the same operations by the fast functions of ops.fast")
    options = parser.parse_args(args)
    expect_writable("--save", options.save, (".npz",))
    return options


def progress(batches: Any, epoch: int) -> Iterable[Any]:
    """The batches, with a bar on the screen that tells how many are done; none where the output is no screen."""
    screen = sys.stdout.isatty()
    return track(batches, f"epoch {epoch + 1}", len(batches), transient=True, disable=not screen)


def run(train: Callable[[Sequence[str] | None], object], args: Sequence[str] | None = None) -> NoReturn:
    """Call ``train`` and leave: with 0, with 2 after a mistake, with 130 when interrupted."""
    with lasting_streams() as streams:
        sys.exit(exit_code(streams, _run(train, args), ends=True))


def _run(train: Callable[[Sequence[str] | None], object], args: Sequence[str] | None) -> int:
    try:
        train(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _at_least_one(text: str) -> int:
    return int(_number(text, int, 1, math.inf, "a whole number of at least 1"))


def _seed(text: str) -> int:
    return int(_number(text, int, 0, 2**32, "a whole number from 0 to 2**32 - 1"))


def _positive(text: str) -> float:
    return _number(text, float, math.ulp(0), math.inf, "a number above 0")


def _number(text: str, kind: Callable[[str], float], low: float, end: float, expected: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not low <= value < end:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value
