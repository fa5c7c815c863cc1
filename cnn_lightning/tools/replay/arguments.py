"""The options of ``cnn-lightning replay``."""

from jsonargparse import ArgumentParser

from cnn_lightning.tools import parser as parsers

DESCRIPTION = (
    "Run a step whose loss or gradient was not finite again, and name what made it. The exit code is 1 if the "
    "step is not finite again, and 0 if all is finite now, as after a formula was mended."
)


def parser() -> ArgumentParser:
    """The command's parser."""
    parser = parsers.make("replay", DESCRIPTION)
    parser.add_argument("file", type=str, help="the nonfinite.pt of a run that stopped")
    parser.add_argument(
        "--model.layers",
        type=parsers.Layers | None,
        default=None,
        help="what runs the layers; by default what ran them in the training",
    )
    return parser
