"""The parser every subcommand of our own starts from."""

from dataclasses import replace
from typing import Any

from jsonargparse import ArgumentParser

from cnn_lightning.commands.messages import OneLine, Slip


class OneLineParser(OneLine, ArgumentParser):
    """An ArgumentParser whose errors are one line, raised as `UserError`."""

    def slip(self, message: str, ex: Exception | None) -> Slip | None:
        """What is wrong; ``--data NAME`` is an option ``data.name`` here."""
        found = super().slip(message, ex)
        return replace(found, key="data") if found is not None and found.key == "data.name" else found


def make(command: str, doc: str | None) -> ArgumentParser:
    """A parser for ``cnn-lightning command`` whose description is the module's docstring."""
    options: dict[str, Any] = {"prog": f"cnn-lightning {command}", "description": doc, "exit_on_error": True}
    return OneLineParser(**options)


def data_by_name(args: list[str]) -> list[str]:
    """``--data NAME``, as the Trainer's commands have it, in the words of a parser that has ``--data.name``."""
    return [
        "--data.name" + arg[len("--data") :] if arg == "--data" or arg.startswith("--data=") else arg for arg in args
    ]
