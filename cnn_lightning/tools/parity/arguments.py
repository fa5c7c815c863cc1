"""The options of ``cnn-lightning parity``."""

from typing import Literal

from jsonargparse import ArgumentParser

from cnn_lightning.tools import parser as parsers

DESCRIPTION = (
    "Run two implementations of a network in lock-step, and show each layer's largest error. They are NumPy's layers "
    "and torch's; or with --against torch and another mode of it, a program made from the network, or your own layer."
)


def parser() -> ArgumentParser:
    """The command's parser."""
    parser = parsers.make("parity", DESCRIPTION)
    parser.add_argument("--config", type=list[str], default=[], help="a run's config, or several: model and data")
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="a checkpoint: network and weights")
    parser.add_argument("--model.net", type=str | None, default=None, help="simple_cnn or a torchvision model")
    parser.add_argument(
        "--against",
        type=str | None,
        default=None,
        help="what to compare with torch eager: compile, compile=BACKEND, channels_last, bf16, fp16, no_mkldnn, "
        "threads=N, cuda, mps, onnx, pt2, formula, fast, or package.module.Layer",
    )
    parser.add_argument(
        "--model.layers",
        type=str | dict[str, str] | None,
        default=None,
        help="the layers to compare with torch: numpy (default) or patterns of layer names",
    )
    parser.add_argument(
        "--model.functions",
        type=Literal["torch", "numpy"],
        default="torch",
        help="numpy: NumPy computes torch's own operators, too; --model.layers is then torch by default",
    )
    parser.add_argument(
        "--model.memory_format",
        type=parsers.MemoryFormat | None,
        default=None,
        help="memory of the pictures: contiguous (default, also for auto), channels_last or batch_last",
    )
    parser.add_argument("--model.channels", type=tuple[int, ...] | None, default=None, help="channels of SimpleCNN")
    parser.add_argument("--model.hidden", type=int | None, default=None, help="hidden units of SimpleCNN")
    parser.add_argument("--model.num_classes", type=int | None, default=None, help="classes of random data")
    parser.add_argument("--model.in_channels", type=int | None, default=None, help="channels of random data")
    parser.add_argument("--model.image_size", type=int | None, default=None, help="height and width of random data")
    parser.add_argument("--data.name", type=str | None, default=None, help="a data set instead of random pictures")
    parser.add_argument("--data.root", type=str | None, default=None, help="folder of the data set's files")
    parser.add_argument("--data.batch_size", type=int, default=8, help="pictures in a batch")
    parser.add_argument("--steps", type=int, default=3, help="steps of the optimizer")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate of gradient descent with momentum 0.9")
    parser.add_argument(
        "--precision", type=Literal["32", "64", "16", "bf16"], default="32", help="floating-point format"
    )
    parser.add_argument(
        "--tolerance", type=float | None, default=None, help="relative error up to which results are equal"
    )
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="device of the tensors")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, random data and dropout")
    parser.add_argument("--html", type=str | None, default=None, help="file for a page with the network as a graph")
    parser.add_argument(
        "--reproducers", type=str, default=".", help="folder for the programs that show each fault alone"
    )
    parser.add_argument("--json", type=str | None, default=None, help="file for every comparison")
    parser.add_argument("--png", type=str | None, default=None, help="file for a picture of the errors of all layers")
    return parser
