"""All commands with their options and values, in one plain parser, from which shtab writes a script."""

import argparse
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any, get_args

from cnn_lightning import tools
from cnn_lightning.model import net_names
from cnn_lightning.tools.check.surrogate import NAMED
from cnn_lightning.tools.export.program import Format
from cnn_lightning.tools.learn.course import EXERCISES
from cnn_lightning.tools.parity.candidates import MODES
from cnn_lightning.train.aliases import usable
from cnn_lightning.train.arguments import data_parsers
from cnn_lightning.train.configs import shipped
from cnn_lightning.train.full_help import placeholder, row_of, texts
from cnn_lightning.train.help import DATA, PURPOSE
from cnn_lightning.train.run import parsers
from cnn_lightning.train.words import choices_of, hint_of, literals_of

FILES, FOLDERS = "file", "directory"
KINDS = {"DIR": FOLDERS, "FILE": FILES, "data.root": FOLDERS, "file": FILES, "layer": FILES}
"""shtab's names of what a shell completes itself, by the placeholder or the name of an option."""


def tree() -> argparse.ArgumentParser:
    """The command line as a parser whose actions have shtab's attribute ``complete``."""
    root = argparse.ArgumentParser("cnn-lightning", add_help=False)
    root.add_argument("-h", "--help", action="store_true", help="list the commands")
    root.add_argument("--version", action="store_true", help="print versions")
    commands = root.add_subparsers(dest="command")
    data = [action for each in data_parsers() for action in each._actions]
    for name, parser in parsers().items():
        _add(commands.add_parser(name, help=PURPOSE[name], add_help=False), [*parser._actions, *data], texts(name))
    for name in tool_names():
        parser = import_module(f"cnn_lightning.tools.{name}.arguments").parser()
        _add(commands.add_parser(name, help=_escaped(parser.description), add_help=False), parser._actions)
    return root


def tool_names() -> list[str]:
    """The commands in `cnn_lightning.tools`."""
    folders = [each.name for each in iter_modules(tools.__path__) if each.ispkg]
    return [name for name in folders if find_spec(f"{tools.__name__}.{name}.arguments")]


def _add(
    parser: argparse.ArgumentParser, actions: Sequence[argparse.Action], ours: Mapping[str, str] = MappingProxyType({})
) -> None:
    known: set[str] = set()
    aliases = {option: alias for alias, option in usable(_names(actions)).items()}
    for action in actions:
        flags = [flag for flag in action.option_strings if flag.startswith("-") and flag not in known]
        if action.help == argparse.SUPPRESS or (action.option_strings and not flags):
            continue
        known |= {*flags}
        name = max(flags, key=len).lstrip("-").removesuffix("+") if flags else action.dest
        if name in aliases:
            flags.append(f"--{aliases[name]}")
        if name == "data.name":
            flags, name = ["--data"], "data"
        _add_one(parser, flags, name, action, ours)


def _names(actions: Iterable[argparse.Action]) -> set[str]:
    return {flag.lstrip("-") for action in actions for flag in action.option_strings}


def _add_one(
    parser: argparse.ArgumentParser, flags: Sequence[str], name: str, action: argparse.Action, ours: Mapping[str, str]
) -> None:
    row = row_of(action, with_kind=False, ours=ours)
    options: dict[str, Any] = {"help": _escaped(row.text)}
    if name == "help":
        options |= {"nargs": "?", "choices": ["all"], "help": "print the most used options, or all"}
    elif action.nargs == 0 or name == "print_config":
        options["action"] = "store_true"
    else:
        options |= {"choices": values(name, action) or None, "nargs": "?" if action.nargs == "?" else None}
    made: Any = parser.add_argument(*(flags or [action.dest]), **options)
    found = KINDS.get(name) or KINDS.get(placeholder(action, name))
    if name in ("config", "ckpt_path"):
        made.complete = _names_and_files(name, options["choices"])
    elif found is not None and not made.choices:
        made.complete = found


def values(name: str, action: argparse.Action) -> list[str]:
    """The values of an option that a shell can complete; empty for others."""
    named: dict[str, Collection[str]] = {
        "against": (*MODES, "compile"),
        "accelerator": ("auto", "cpu", "gpu", "mps", "tpu"),
        "ckpt_path": ("last",),
        "config": shipped(),
        "data": DATA,
        "exercise": [str(number) for number in EXERCISES],
        "format": get_args(Format),
        "layers": ("numpy", "torch"),
        "net": net_names(),
        "strategy": ("auto", "ddp", "ddp_spawn", "fsdp"),
        "surrogate": NAMED,
    }
    hint = hint_of(action)
    logical = [choice for choice in choices_of(hint) if choice in ("true", "false")] if hint is not None else []
    return [*named.get(name.rpartition(".")[2], ()), *logical] or [*map(str, action.choices or literals_of(hint))]


def _names_and_files(name: str, names: Sequence[str]) -> dict[str, Any]:
    """A completion of shtab's for a value that is one of some names, or a file."""
    function, words = f"_cnn_lightning_{name}_or_file", " ".join(names)
    bash = f'{function}() {{\n  compgen -W "{words}" -- "$1"\n  compgen -f -- "$1"\n}}'
    zsh = f"{function}() {{\n  compadd -- {words}\n  _files\n}}"
    fish = f"{words} (__fish_complete_path (commandline -ct))"
    return {"bash": function, "zsh": function, "fish": fish, "preamble": {"bash": bash, "zsh": zsh}}


def _escaped(text: str | None) -> str:
    """The first sentence of a help text, for argparse, which formats it."""
    return (text or "").partition(". ")[0].replace("%", "%%")
