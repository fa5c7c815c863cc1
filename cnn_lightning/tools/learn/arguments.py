"""The options of ``cnn-lightning learn``, by the standard library's parser, which is loaded in no time."""

from argparse import ArgumentParser
from typing import NoReturn

from cnn_lightning.errors import UserError
from cnn_lightning.train.suggestions import did_you_mean

DESCRIPTION = "Twelve exercises, from ReLU to a whole network, that you write in NumPy."


class _OneLineParser(ArgumentParser):
    """An ArgumentParser of the standard library whose errors are `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `UserError`."""
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        hint = (
            did_you_mean(unknown, [f for f in self._option_string_actions if f != "-h"])
            if message.startswith("unrecognized")
            else ""
        )
        raise UserError(f"learn: {message}{hint}")


def parser() -> ArgumentParser:
    """The command's parser."""
    parser = _OneLineParser("cnn-lightning learn", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("exercise", nargs="?", help="its number; without one, all are listed")
    parser.add_argument("--check", action="store_true", help="grade it: what is wrong, where, and a hint")
    parser.add_argument("--hint", metavar="STEP", help="the hint to give: 1 is small, 3 is almost the solution")
    parser.add_argument("--solution", action="store_true", help="the formula of cnn_lightning.ops")
    parser.add_argument("--train", action="store_true", help="train the digits with what you wrote")
    parser.add_argument("--file", help="the file to grade, if it is not the one in the current folder")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="the grade for a program, on the screen or in a file"
    )
    return parser
