"""The options of ``cnn-lightning export``."""

from jsonargparse import ArgumentParser

from cnn_lightning.tools import parser as parsers

DESCRIPTION = "Write a trained network as ONNX, for torch.export, or as one file of NumPy; it equals the NumPy network."


def parser() -> ArgumentParser:
    """The command's parser."""
    parser = parsers.make("export", DESCRIPTION)
    parser.add_argument(
        "--ckpt_path", type=str, required=True, help="the checkpoint, or 'last' for that of the newest run"
    )
    parser.add_argument(
        "--format", default="onnx", help="onnx, pt2 (torch.export), or numpy (a .pyz that needs NumPy alone)"
    )
    parser.add_argument(
        "--output", type=str | None, default=None, help="the file; by default beside the checkpoint, with its name"
    )
    parser.add_argument(
        "--batch", default="dynamic", help="pictures in a batch: dynamic for any number, or a fixed number"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest difference, relative to the largest logit"
    )
    return parser
