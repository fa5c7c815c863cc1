"""The parser every subcommand of our own starts from."""

from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from cnn_lightning.errors import UserError


class OneLineParser(ArgumentParser):
    """An ArgumentParser whose errors are one line, raised as `UserError`."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the first sentence of what is wrong."""
        raise UserError(" ".join(message.split()))


def make(command: str, doc: str | None) -> ArgumentParser:
    """A parser for ``cnn-lightning command`` whose description is the module's docstring."""
    options: dict[str, Any] = {"prog": f"cnn-lightning {command}", "description": doc, "exit_on_error": True}
    return OneLineParser(**options)


def data_by_name(args: list[str]) -> list[str]:
    """``--data NAME``, as the Trainer's commands have it, in the words of a parser that has ``--data.name``."""
    return [
        "--data.name" + arg[len("--data") :] if arg == "--data" or arg.startswith("--data=") else arg for arg in args
    ]
