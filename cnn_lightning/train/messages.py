"""What a parser refuses, as one line: ``option: expected X, got Y``.

jsonargparse knows the reason, but prints it at the end of a long text, once for each type that a value might have had.
A parser here describes each mistake that it meets as a `Slip`, because it knows its own options and their types. The
parsers around it pass the `Slip` on inside the text of their own errors.
"""

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn
from urllib.parse import quote, unquote

from cnn_lightning.errors import UserError, one_line
from cnn_lightning.train.aliases import usable
from cnn_lightning.train.suggestions import did_you_mean, near_option
from cnn_lightning.train.words import (
    LONGEST,
    choices_of,
    classes_of,
    cut,
    hint_of,
    literals_of,
    shown,
    subclasses_of,
    words,
)

EXPECTED = {
    "model.layers": "numpy, torch, or a mapping of patterns of layer names to either",
    "data": "Digits, MNIST, FashionMNIST, CIFAR10, ImageFolder or the import path of a LightningDataModule",
}
"""Options for which these words say more than their type."""


@dataclass(frozen=True)
class Slip:
    """One mistake.

    Args:
        key: The option, as the parser that met the mistake names it.
        expected: What the option takes.
        got: What the user gave; empty for nothing.
        meant: The option of the same parser that the user probably meant.
        owner: The class that has the option; empty for an option of the command.
        flag: Whether the user gave the option as a flag of that name.
    """

    key: str
    expected: str
    got: str = ""
    meant: str = ""
    owner: str = ""
    flag: bool = False

    def line(self, dashes: str = "") -> str:
        """The line that the user reads; ``dashes`` stands before the option's name."""
        dashes = "--" if self.flag else dashes
        key = f"{dashes}{self.key}" if self.key else "arguments"
        got = f", got {self.got}" if self.got else ""
        meant = f"; did you mean {dashes}{self.meant}?" if self.meant else ""
        return f"{key}: expected {self.expected.replace(OWNER, self.owner or 'it')}{got}{meant}"

    def below(self, key: str, owner: str) -> "Slip":
        """The same mistake as seen by the parser whose option ``key`` takes the class ``owner``."""
        meant = f"{key}.{self.meant}" if self.meant else ""
        return replace(self, key=f"{key}.{self.key}", meant=meant, owner=self.owner or owner)


OWNER = "@owner@"
"""Stands for the owner's name in `Slip.expected`, which the parser that meets the mistake does not know."""
MARKED = re.compile("\x02([^\x03]*)\x03")


def marked(slip: Slip) -> str:
    """The mistake as one word, which stays whole when a parser puts it into a text of its own."""
    return f"\x02{quote(json.dumps(asdict(slip)))}\x03"


def slip_in(message: str) -> Slip | None:
    """The mistake that a text contains as `marked` writes it; None if it contains none."""
    found = MARKED.search(message)
    return Slip(**json.loads(unquote(found[1]))) if found else None


class OneLine(argparse.ArgumentParser):
    """A base of jsonargparse parsers that makes them raise their errors as a `UserError` of one line.

    jsonargparse creates a parser of the same class for each class that an option takes.
    """

    dashes = "--"

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)  # the beginning of an option's name may be a mistake
        super().__init__(*args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the mistake, to the user or to the parser around this one."""
        slip = self.slip(str(message), ex)
        if self.exit_on_error:
            if slip is None:
                raise UserError(cut(one_line(MARKED.sub("", str(message)))))
            action = self._action(slip.key)
            raise UserError(slip.line(self.dashes if action is None or action.option_strings else ""))
        raise argparse.ArgumentError(None, marked(slip) if slip else message)

    def validate(self, namespace: Any, *args: Any, **options: Any) -> None:
        """Check all values, also null, which jsonargparse accepts for every type."""
        super().validate(namespace, *args, **options)  # type: ignore[misc]  # of the parser it is mixed into
        for action in self._actions:
            hint = hint_of(action)
            if hint is None or action.default is None or action.required or {"null", "any value"} & {*choices_of(hint)}:
                continue
            if namespace.get(action.dest, ...) is None:
                raise TypeError(f'Parser key "{action.dest}": Got value: None')

    def slip(self, message: str, ex: Exception | None) -> Slip | None:
        """The mistake that a parser's message describes; None for a message of unknown form."""
        readers = (self._inside_a_class, self._unknown, self._missing, self._linked, self._without_a_value, self._wrong)
        return next((found for read in readers if (found := read(message, ex)) is not None), None)

    def options(self) -> list[str]:
        """The names of all options, for suggestions."""
        names = [action.dest for action in self._actions if action.option_strings]
        return [name for name in names if name not in (argparse.SUPPRESS, "help") and not name.endswith(".help")]

    def _inside_a_class(self, message: str, _: Exception | None) -> Slip | None:
        key, slip = _key(message), slip_in(message)
        if slip is None:
            return None
        before = message[: message.index("\x02")]
        paths = re.findall(r"given class_path '([\w.]+)'", before)
        owner = paths[-1].rpartition(".")[2] if paths else ""
        if slip.key == "class_path" and not slip.got:
            return Slip(key or "", "class_path and init_args, with the options of the class below init_args")
        return slip.below(key, owner) if key else slip

    def _unknown(self, message: str, _: Exception | None) -> Slip | None:
        found = re.search(r"unrecognized arguments: (.*)", message, re.DOTALL)
        if found:
            word = found[1].split(" ")[0]
            if not word.startswith("-"):
                return Slip("", "options that begin with --", shown(word))
            key = word.partition("=")[0].lstrip("-")
            known = self.options()
            known += usable(known) if self.exit_on_error else ()  # no config has them
            return replace(self._no_option(key, known, self.prog.split()[-1]), flag=self.exit_on_error)
        found = re.search(r"(?:^|\s)(?:(?:Subcommand|Group) '([\w.]+)' does not accept o|O)ption '([^']+)'", message)
        if found is None:
            return None
        key = f"{found[1]}.{found[2]}" if f"Group '{found[1]}'" in message else found[2]
        return self._no_option(key, self._parser_of(found[1]).options(), found[1] or self.prog.split()[-1])

    def _no_option(self, key: str, known: list[str], command: str) -> Slip:
        if self.exit_on_error:
            meant = near_option(key, known)
            listed = "" if meant else ", which --help all lists"
            return Slip(key, f"an option of {command}{listed}", meant=meant or "")
        meant = near_option(key, [*known, "class_path", "init_args"])
        listed = f" ({', '.join(known)[:LONGEST]})" if known and not meant else ""
        return Slip(key, f"an option of {OWNER}{listed}", meant=meant or "")

    def _parser_of(self, command: str | None) -> "OneLine":
        for action in self._actions:
            parser = action.choices.get(command) if isinstance(action.choices, Mapping) else None
            if isinstance(parser, OneLine):
                return parser
        return self

    def _missing(self, message: str, _: Exception | None) -> Slip | None:
        found = re.search(r"arguments are required: ([\w.]+)", message)
        if found is None:
            return None
        key, owner = found[1], self.prog.split()[-1] if self.exit_on_error else ""
        command = key.partition(".")[0]
        if self._parser_of(command) is not self:
            key, owner = key.partition(".")[2], command
        hint = hint_of(self._action(found[1]))
        expected = EXPECTED.get(key) or (words(hint) if hint else "a value")
        return Slip(key, f"{expected}, which {OWNER} needs", "nothing", owner=owner)

    def _linked(self, message: str, _: Exception | None) -> Slip | None:
        found = re.search(r'Linked "([\w.]+)" must be given via "(\w+)|argument (\w+)[\w.]+ --> ([\w.]+):', message)
        if found is None:
            return None
        key, source = (found[1], found[2]) if found[1] else (found[4], found[3])
        return Slip(key, f"no value, because {source} sets it", "one")

    def _without_a_value(self, _: str, ex: Exception | None) -> Slip | None:
        if not isinstance(ex, argparse.ArgumentError) or ex.argument_name is None:
            return None
        names = [name for name in ex.argument_name.split("/") if not name.endswith("+")]
        key = max(names, key=len).lstrip("-")
        last = ["", *getattr(self, "args", ())][-1].lstrip("-")
        key = last if last.startswith(f"{key}.") else key  # the option of a class
        hint = hint_of(self._action(key))
        return Slip(key, words(hint) if hint else "one value", "nothing" if "expected" in ex.message else ex.message)

    def _wrong(self, message: str, _: Exception | None) -> Slip | None:
        key = _key(message)
        if key is None:
            return None
        hint = hint_of(self._action(key))
        bases = list(dict.fromkeys(classes_of(hint)))
        if bases:
            slip = _not_a_class(key, EXPECTED.get(key) or words(hint), bases, message)
            if slip is not None:
                return slip
        given = re.findall(r"(?:Given|Got) value: (.*)", message)
        got = shown(given[-1]) + did_you_mean(given[-1], literals_of(hint)) if given else ""
        if "codec can't encode" in message:
            got = "bytes that are no UTF-8"
        return Slip(key, EXPECTED.get(key) or (words(hint) if hint else "another value"), got)

    def _action(self, key: str) -> argparse.Action | None:
        for action in self._actions:
            if action.dest == key or f"--{key}" in action.option_strings:
                return action
            parsers = action.choices.values() if isinstance(action.choices, Mapping) else ()
            for parser in parsers:
                for inner in (key, key.partition(".")[2]):
                    found = parser._action(inner) if isinstance(parser, OneLine) else None
                    if found is not None:
                        return found
        return None


def _key(message: str) -> str | None:
    found = re.match(r'\s*Parser key "([^"]+)"', message)
    return found[1] if found else None


def _not_a_class(key: str, expected: str, bases: list[type], message: str) -> Slip | None:
    """The mistake of a class that the option does not take, or that does not exist."""
    given = re.findall(r"Given value: (.*)", message)
    unknown = re.search(r"Expected a dot import path string: (.+)", message)
    failed = re.search(r"given class_path '([^']+)':\s+(.+)", message)
    other = re.search(r"Import path (?:(\S+) )?does not correspond to a subclass of (\w+)", message)
    if unknown:
        known = [each.__name__ for base in bases for each in subclasses_of(base)]
        return Slip(key, expected, shown(unknown[1]) + did_you_mean(unknown[1], known))
    if failed:
        return Slip(key, expected, f"{shown(failed[1])}: {failed[2].strip()[:LONGEST]}")
    if other:
        return Slip(key, expected, f"{shown(other[1] or given[-1])}, which is no {other[2]}")
    return None
