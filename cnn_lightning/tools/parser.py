"""The argument parser of the commands in `cnn_lightning.tools`.

Each command has its options in a module ``arguments`` beside its ``command``. Neither that nor this loads torch, so
that the help takes no time.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from cnn_lightning.errors import UserError
from cnn_lightning.train.aliases import spelled_out
from cnn_lightning.train.messages import OneLine, Slip

MemoryFormat = Literal["auto", "contiguous", "channels_last", "batch_last"]
"""`cnn_lightning.layers.memory.MemoryFormat`, which loads torch."""

Layers = Literal["numpy", "torch"] | dict[str, str]
"""`cnn_lightning.classifier.module.Layers`, in the same way."""


class OneLineParser(OneLine, ArgumentParser):
    """An ArgumentParser whose errors are one line, raised as `UserError`."""

    def parse_args(self, args: Sequence[str], *rest: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """Read the arguments, with aliases spelled out."""
        return super().parse_args(spelled_out(args, self.options()), *rest, **options)

    def slip(self, message: str, ex: Exception | None) -> Slip | None:
        """The mistake in the arguments; here ``--data NAME`` is the option ``data.name``."""
        found = super().slip(message, ex)
        return replace(found, key="data") if found is not None and found.key == "data.name" else found


def make(command: str, description: str) -> ArgumentParser:
    """A parser for ``cnn-lightning command``; the help prints the description."""
    options: dict[str, Any] = {"prog": f"cnn-lightning {command}", "description": description, "exit_on_error": True}
    return OneLineParser(**options)


def expect_at_least_one(options: Namespace, *names: str) -> None:
    """Check that counts are at least 1 and not absurdly large; None is allowed.

    Raises:
        UserError: A count is not.
    """
    from cnn_lightning.model import LARGEST

    for name in names:
        value = options[name]
        if value is not None and value < 1:
            raise UserError(f"--{name}: expected at least 1, got {value}")
        if value is not None and value > LARGEST:
            raise UserError(f"--{name}: expected at most {LARGEST}, got {value}")


def expect_seed(seed: int) -> None:
    """Check that NumPy and torch accept the seed.

    Raises:
        UserError: They don't.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed: expected a whole number from 0 to {2**32 - 1}, got {seed}")


def data_by_name(args: list[str]) -> list[str]:
    """``--data NAME``, as in the Trainer's commands, replaced by ``--data.name NAME``."""
    return [
        "--data.name" + arg[len("--data") :] if arg == "--data" or arg.startswith("--data=") else arg for arg in args
    ]
