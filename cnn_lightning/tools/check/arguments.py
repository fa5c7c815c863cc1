"""The options of ``cnn-lightning check``."""

from jsonargparse import ArgumentParser

from cnn_lightning.tools import parser as parsers

DESCRIPTION = (
    "Grade a layer of your own, and print how each fault is usually mended. With --kinks: the gradient taken at each "
    "kink, tie, NaN and infinity, next to torch's, of one layer or of all."
)
SURROGATES = ("identity", "clipped", "sigmoid", "arctan", "fast_sigmoid", "triangle")
"""The names of `cnn_lightning.tools.check.surrogate.NAMED`, which loads torch."""


def parser() -> ArgumentParser:
    """The command's parser."""
    parser = parsers.make("check", DESCRIPTION)
    parser.add_argument(
        "layer", type=str | None, nargs="?", help="my_file.py:MyLayer, or an import path such as my_package.MyLayer"
    )
    parser.add_argument("--shape", default="2,3,8,8", help="shape of the input; several inputs: '2,3,8,8 2,3'")
    parser.add_argument(
        "--options", nargs="*", default=[], help="options of the constructor: in_channels=3 kernel_size=[3,3]"
    )
    parser.add_argument(
        "--reference", type=str | None, default=None, help="what the layer should equal: torch.nn.ReLU, ref.py:f"
    )
    parser.add_argument(
        "--reference_options", nargs="*", default=None, help="options of its constructor; by default those of the layer"
    )
    parser.add_argument(
        "--surrogate",
        type=str | None,
        default=None,
        help=f"whose gradient the backward takes: {', '.join(SURROGATES)}, or my_file.py:function",
    )
    parser.add_argument(
        "--surrogate_options", nargs="*", default=None, help="options of its constructor, such as slope=25 threshold=1"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the parameters and the input")
    parser.add_argument("--eval", action="store_true", help="grade the layer in evaluation mode")
    parser.add_argument(
        "--kinks", action="store_true", help="print the gradient at kinks, ties and NaN, of all layers if none is named"
    )
    parser.add_argument("--json", type=str | None, default=None, help="file for the table of --kinks")
    return parser
