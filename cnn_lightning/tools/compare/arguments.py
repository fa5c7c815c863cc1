"""The options of ``cnn-lightning compare``."""

from typing import Literal

from jsonargparse import ArgumentParser

from cnn_lightning.tools import parser as parsers

SCREEN = "-"
"""The file that stands for standard output."""
DESCRIPTION = "Train the same network four ways, and print a table of the measured cost of each."


def parser() -> ArgumentParser:
    """The command's parser."""
    parser = parsers.make("compare", DESCRIPTION)
    parser.add_argument("--data.name", type=Literal["Digits", "MNIST"], default="Digits", help="the data set")
    parser.add_argument("--data.root", type=str, default="data", help="folder of MNIST's files")
    parser.add_argument("--data.batch_size", type=int, default=64, help="pictures in a step")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each run; the first is not timed")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way, in turns")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate of Adam")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first weights and of the order")
    parser.add_argument(
        "--threads", type=int | None, default=None, help="threads of each process; by default one per core"
    )
    parser.add_argument(
        "--markdown",
        type=str | None,
        nargs="?",
        const=SCREEN,
        default=None,
        help="file for the table in Markdown; without a name, print that in place of the table",
    )
    parser.add_argument("--json", type=str | None, default=None, help="file for all figures")
    parser.add_argument("--png", type=str | None, default=None, help="file for a picture of the figures")
    return parser
