"""The command line: Lightning's fit, validate, test and predict, and commands of our own beside them."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from textwrap import wrap

from cnn_lightning.errors import UserError, one_line
from cnn_lightning.signals import process_kept
from cnn_lightning.streams import exit_code, lasting_streams, print_line
from cnn_lightning.train.listing import WIDTH
from cnn_lightning.train.suggestions import did_you_mean

TRAINER = {
    "fit": "train a network, test it, and say where everything is",
    "validate": "loss and accuracy on the validation split",
    "test": "loss and accuracy on the test split, per class, with a confusion matrix",
    "predict": "class and confidence for the test split or a folder of pictures",
}
COMMANDS = {
    "parity": "run two implementations in lock-step and report, layer by layer, where they differ",
    "benchmark": "measure step, layers, bridge and memory of every implementation on this machine",
    "sweep": "search the best options of fit: many trainings, which a killed command continues",
    "compare": "train four ways (plain or Lightning, NumPy or torch) and tabulate what each costs",
    "explain": "one page that shows how a trained network sees a picture",
    "check": "grade a layer of your own",
    "learn": "exercises: write the layers yourself in NumPy, and have them graded",
    "replay": "run the batch of a loss or gradient that was not finite again, and name what made it",
    "export": "write a trained network as ONNX, for torch.export, or as one file of NumPy",
    "completion": "print a script that completes commands, options and values in bash, zsh or fish",
}
INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 1 (a check failed), 2 (a mistake, explained in one line)."""
    ends = args is None
    if args is None:
        args = sys.argv[1:]
        if not sys.flags.safe_path and "" not in sys.path:
            sys.path.append("")  # finds the user's own layers in the current folder, as python -m does
    with lasting_streams() as streams:
        return exit_code(streams, _main(list(args)), ends)


def _main(args: list[str]) -> int:
    command = args[0] if args else "--help"
    try:
        which = _help_asked(args[1:]) if command in (*TRAINER, *COMMANDS) else None
        if which is not None:
            return _help_of(command, which, args[1:])
        if command in TRAINER:
            return _run("train", args)
        if command in COMMANDS and find_spec(f"cnn_lightning.tools.{command}"):
            return _run(f"tools.{command}", args[1:])
        if command in ("-h", "--help"):
            print(_help())
            return 0
        if command == "--version":
            print(import_module("cnn_lightning.tools.versions").text())
            return 0
        known = [*TRAINER, *COMMANDS]
        raise UserError(f"command: expected one of {', '.join(known)}, got {command!r}{did_you_mean(command, known)}")
    except UserError as error:
        print_line(f"error: {error.head}", error.details)
        return 2
    except MemoryError as error:  # NumPy's has the number of bytes
        reason = one_line(str(error)) or "it is used up"
        print_line(f"error: memory: {reason}; a smaller --data.batch_size takes less")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def _run(where: str, args: list[str]) -> int:
    module = import_module(f"cnn_lightning.{where}.command")
    with process_kept():
        os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's use of it
        return int(module.main(args))


def _help_asked(args: list[str]) -> str | None:
    """What follows ``--help``, ``all`` or nothing; None if no argument asks for help.

    Raises:
        UserError: Another word follows it.
    """
    for flag, following in zip(args, [*args, ""][1:], strict=True):
        name, equals, word = flag.partition("=")
        if name in ("-h", "--help"):
            word = word if equals else "" if following.startswith("-") else following
            if word not in ("", "all"):
                raise UserError(f"{name}: expected all, or nothing, got {word!r}")
            return word
    return None


def _help_of(command: str, which: str, args: list[str]) -> int:
    """Print the short help of a command, or all of it; the short one loads no torch."""
    if command in TRAINER:
        if which == "all":
            return _run("train", [command, "--help"])
        print(import_module("cnn_lightning.train.help").short(command, args))
    else:
        parser = import_module(f"cnn_lightning.tools.{command}.arguments").parser()
        texts = import_module("cnn_lightning.train.full_help")
        print(texts.whole(parser) if which == "all" else texts.brief(parser))
    return 0


def _help() -> str:
    lines = [
        "usage: cnn-lightning COMMAND [options]",
        "",
        "Every layer of a CNN twice, NumPy and PyTorch, one Trainer.",
    ]
    for title, commands in (("Lightning's Trainer", TRAINER), ("beside it", COMMANDS)):
        lines += ["", f"{title}:"]
        for name, text in commands.items():
            lines += wrap(text, WIDTH, initial_indent=f"  {name:10} ", subsequent_indent=" " * 13)
    lines += [
        "",
        "cnn-lightning COMMAND --help prints the most used options of a command, and",
        "cnn-lightning COMMAND --help all prints every option. Without any, fit trains",
        "on handwritten digits.",
    ]
    return "\n".join(lines)
