"""The options of ``cnn-lightning benchmark``."""

from typing import Literal

from jsonargparse import ArgumentParser

from cnn_lightning.tools import parser as parsers

DESCRIPTION = "Measure step, layers, operations, memory and the floor on this machine."


def parser() -> ArgumentParser:
    """The command's parser."""
    parser = parsers.make("benchmark", DESCRIPTION)
    parser.add_argument("--model.net", default="simple_cnn", help="simple_cnn or the name of a torchvision model")
    parser.add_argument(
        "--model.channels", type=tuple[int, ...], default=(16, 32), help="channels of SimpleCNN's convolutions"
    )
    parser.add_argument("--model.hidden", type=int, default=128, help="units of SimpleCNN's first linear layer")
    parser.add_argument(
        "--model.dropout", type=bool, default=True, help="false: dropout and stochastic depth do nothing"
    )
    parser.add_argument(
        "--model.memory_format",
        type=parsers.MemoryFormat,
        default="auto",
        help="memory of the NumPy layers' pictures; auto: the one that fit takes",
    )
    parser.add_argument(
        "--model.functions",
        type=Literal["torch", "numpy"],
        default="torch",
        help="numpy: measure torch's layers with their operators computed by NumPy, too",
    )
    parser.add_argument("--data.in_channels", type=int, default=1, help="1 for grey, 3 for colour")
    parser.add_argument("--data.image_size", type=int, default=28, help="height and width of the random pictures")
    parser.add_argument("--data.num_classes", type=int, default=10, help="number of classes")
    parser.add_argument("--data.batch_size", type=int, default=64, help="pictures in a batch")
    parser.add_argument("--threads", type=int, default=1, help="threads of NumPy and torch")
    parser.add_argument("--rounds", type=int, default=15, help="number of bursts of each implementation")
    parser.add_argument(
        "--networks", action="store_true", help="only measure a training step of SimpleCNN and networks of torchvision"
    )
    parser.add_argument(
        "--tune", action="store_true", help="only print the tuned numbers and measure the most important ones"
    )
    parser.add_argument("--formulas", type=bool, default=True, help="measure the formulas too")
    parser.add_argument("--compile", type=bool, default=False, help="measure torch.compile too")
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="device of the tensors")
    parser.add_argument("--json", type=str | None, default=None, help="file for all figures")
    parser.add_argument("--png", type=str | None, default=None, help="file for a picture of the layers' times")
    return parser
