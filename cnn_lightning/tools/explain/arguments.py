"""The options of ``cnn-lightning explain``."""

from typing import Literal

from jsonargparse import ArgumentParser

from cnn_lightning.tools import parser as parsers

DESCRIPTION = (
    "Write one page that shows how a trained network processes a picture, layer by layer. The picture is "
    "number --index of a split of the data that the checkpoint's run was trained on, or of --data, or a file "
    "(--image). The page needs no internet and opens from disk."
)


def parser() -> ArgumentParser:
    """The command's parser."""
    parser = parsers.make("explain", DESCRIPTION)
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="the trained network; last for the newest")
    parser.add_argument("--image", type=str | None, default=None, help="a picture file")
    parser.add_argument("--label", type=str | None, default=None, help="the class of --image, if it is known")
    parser.add_argument("--index", type=int | None, default=None, help="number of a picture, from 0 (the default)")
    parser.add_argument("--split", type=Literal["test", "val"], default="test", help="the split that --index counts in")
    parser.add_argument("--data.name", type=str | None, default=None, help="another data set than that of the run")
    parser.add_argument("--data.root", type=str | None, default=None, help="folder of the data set's files")
    parser.add_argument(
        "--model.functions",
        type=Literal["torch", "numpy"],
        default="torch",
        help="numpy: NumPy computes the operators of functions and native layers, too",
    )
    parser.add_argument("--output", type=str, default="explain.html", help="file for the page")
    return parser
