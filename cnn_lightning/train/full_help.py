"""The whole help of a parser: every option, with what it takes and its default, without the markup of docstrings."""

import argparse
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from cnn_lightning.train.help import OF_DATA, OPTIONS, PURPOSE, SHORT, configs, short_names, typed
from cnn_lightning.train.listing import Row, paragraph, section, usage
from cnn_lightning.train.words import choices_of, cut, hint_of, literals_of, words

TITLES = {
    "": "run",
    "model": "network, of cnn_lightning.Classifier",
    "data": "data",
    "optimizer": "an optimizer of torch, in place of --model.optimizer",
    "lr_scheduler": "a scheduler of torch, in place of --model.schedule",
    "trainer": "Trainer of Lightning",
}
"""The title of each group of options, in the order of the help."""
OURS = {
    "data": "the data set, by its name or import path",
    "model.weights": "pretrained weights of torchvision by their name, such as DEFAULT",
    "optimizer": "its class",
    "lr_scheduler": "its class",
    "model": "a YAML file of these options",
    "print_config": "print all options with their values, and stop",
    "trainer": "a YAML file of these options",
    "trainer.accelerator": "cpu, gpu, tpu, mps, auto, or a class",
    "trainer.callbacks": "more callbacks",
    "trainer.logger": "more loggers; false writes no folder of the run",
    "trainer.max_epochs": "passes over the training pictures; -1 for no end",
    "trainer.precision": "floating-point format",
    "verbose": "print the results",
    "weights_only": "false: a checkpoint may also contain other objects than tensors and plain values",
}
"""Our words for options of which the docstrings say what does not hold here, or what only programmers need."""
MARKUP = (
    (r":\w+:`~(?:[^`]*\.)?([^`.]+)`", r"\1"),  # :class:`~a.b.C`
    (r":\w+:`([^`]*)`", r"\1"),
    (r"`([^`<]*?)\s*<[^`>]*>`_+", r"\1"),  # a link
    (r"`+([^`]*)`+", r"\1"),
    (r"\*\*([^*]+)\*\*", r"\1"),
    (r"\.\. \w+::\s*", ""),
)
HELP = Row("-h, --help", "[all]", "print the most used options; with all, every option")
UNTRUE = re.compile(r"\s*(?:Default: [^ ]+|Defaults to [^.]*\.|Disabled by default \([^)]*\)\.)(?=\s|$)")
"""Defaults in words: ours may differ, and the parser's own are printed."""


def of_trainer(parser: argparse.ArgumentParser, data: Iterable[argparse.ArgumentParser]) -> str:
    """The help of fit, validate, test or predict.

    Args:
        parser: The command's parser.
        data: A parser for each data set; its description is the title of its options.
    """
    command, actions = _command(parser), _shown(parser)
    ours = texts(command)
    lines = [*usage(command), *paragraph(PURPOSE[command]), "", *HELP.lines()]
    for group, title in TITLES.items():
        lines += section(title, (row_of(action, True, ours) for action in actions if _group(action) == group))
        if group == "data":
            for each in data:
                rows = (row_of(action, True, ours) for action in _shown(each) if action.dest != "data")
                lines += section(str(each.description), rows)
    return "\n".join([*lines, "", *configs()])


def texts(command: str) -> dict[str, str]:
    """Our own texts of options of fit, validate, test or predict, by their names."""
    short = {option.name: option.row.text for some in OPTIONS.values() for option in some if command in option.commands}
    return short | {f"data.{name}": text for name, (_, text) in OF_DATA.items()} | OURS


def whole(parser: argparse.ArgumentParser) -> str:
    """The help of a parser of few options: of one of the tools, or of a class that an option takes."""
    actions = _shown(parser)
    described = paragraph(plain(parser.description or ""))
    is_command = parser.prog.startswith("cnn-lightning ")
    head = [*usage(_command(parser), _arguments(actions)), *described, "", *HELP.lines()] if is_command else described
    return "\n".join([*head, *(line for action in actions for line in row_of(action, True).lines())])


def brief(parser: argparse.ArgumentParser) -> str:
    """The help of a command with few options: each with its text and its default, without the kinds of values."""
    actions = _shown(parser)
    lines = [*usage(_command(parser), _arguments(actions)), *paragraph(parser.description or ""), ""]
    lines += [line for action in actions for line in row_of(action, False).lines()]
    names = {action.dest for action in actions} & {*SHORT}
    lines += ["", *short_names(names), f"with types: cnn-lightning {_command(parser)} --help all"]
    return "\n".join(lines)


def _shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options that a user may give: without help itself, and without those that the data sets."""
    shown = (action for action in parser._actions if "-->" not in "".join(action.option_strings))
    return [action for action in shown if action.help != argparse.SUPPRESS and action.dest != "help"]


def _command(parser: argparse.ArgumentParser) -> str:
    return parser.prog.split()[-1]


def _arguments(actions: list[argparse.Action]) -> str:
    places = [f"[{action.dest}]" if action.nargs == "?" else action.dest for action in actions if not _flags(action)]
    return " ".join([*places, "[options]"])


def _group(action: argparse.Action) -> str:
    name = max(action.option_strings, key=len, default=action.dest).lstrip("-").rstrip("+")
    group = name.partition(".")[0]
    return group if group in TITLES else ""


def _flags(action: argparse.Action) -> list[str]:
    return [flag for flag in action.option_strings if not flag.endswith("+")]


def row_of(action: argparse.Action, with_kind: bool, ours: Mapping[str, str] = MappingProxyType({})) -> Row:
    """An option of a parser as a row.

    Args:
        action: The option.
        with_kind: Add the values that it takes, in words; otherwise the values that it lists alone.
        ours: Texts by the option's name, in place of its own.
    """
    name = max(_flags(action), key=len, default=action.dest).lstrip("-")
    flags = ["--data"] if name == "data.name" else [f"--{SHORT[name]}"] if name in SHORT else []
    if with_kind or not flags:
        flags += sorted(_flags(action), key=len)
    flag = ", ".join(flags) or action.dest
    if name.endswith(".help"):
        return Row(flag, "CLASS", "print the options of a class")
    hint = hint_of(action)
    default = "" if action.default in (argparse.SUPPRESS, []) or action.nargs == 0 else typed(action.default)
    text = ours.get(name) or plain(action.help or "")
    values = kind(hint) if hint is not None else ""
    if values not in text and (with_kind or any(choice not in text for choice in literals_of(hint))):
        text = f"{text.removesuffix('.')} ({values})".lstrip()
    return Row(flag, placeholder(action, name), text, cut(default))


def placeholder(action: argparse.Action, name: str) -> str:
    """What stands for the value of an option; empty if it takes none or has no flag."""
    hint = hint_of(action)
    if action.nargs == 0 or not action.option_strings:
        return ""
    if isinstance(action.metavar, str) and hint is None:
        return action.metavar if action.metavar.isidentifier() else ""
    choices = choices_of(hint) if hint is not None else []
    by_kind = next((PLACEHOLDERS[choice] for choice in PLACEHOLDERS if choice in choices), "")
    by_text = {"file": "FILE", "folder": "DIR"}.get((action.help or "").partition(" ")[0])
    return by_kind or by_text or name.rpartition(".")[2].rpartition("_")[2].upper()


PLACEHOLDERS = {"a whole number": "N", "a number": "X", "true": "BOOL"}
"""What stands for a value of such a kind."""


def kind(hint: Any) -> str:
    """The values that a type takes, in words; empty where the placeholder says it."""
    choices = choices_of(hint)
    others = [choice for choice in choices if choice not in ("null", "false")]
    if len(others) == 1 and others[0] in (*PLACEHOLDERS, "text"):
        return "or null" if "null" in choices else ""
    return words(hint).replace(" (a class by its name or import path)", "")


def plain(text: str) -> str:
    """The text of a docstring without its markup and without what it says of defaults."""
    text = " ".join(text.split())
    for pattern, found in MARKUP:
        text = re.sub(pattern, found, text)
    return UNTRUE.sub("", text).strip()
