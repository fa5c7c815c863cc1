"""What is wrong with a command line or a config, in one line: ``option: expected X, got Y``.

jsonargparse knows the true reason, but says it at the bottom of a screen of text, once for every type that a value
might have had. A parser here tells what it met itself (`Slip`), where its options and their types are at hand, and
hands it up through the text of the parsers around it.
"""

import argparse
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin
from urllib.parse import quote, unquote

import yaml

from cnn_lightning.errors import UserError

LONGEST = 300
"""Letters of a value or of a list of choices that a line shows."""

OTHER_NAMES = {
    "batch": "data.batch_size",
    "checkpoint": "ckpt_path",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "learning_rate": "model.lr",
    "output": "trainer.default_root_dir",
    "resume": "ckpt_path",
    "seed": "seed_everything",
    "steps": "trainer.max_steps",
    "workers": "data.num_workers",
}
"""What options of a training are often called elsewhere."""

EXPECTED = {
    "model.layers": "numpy, torch, or a mapping of patterns of layer names to either",
    "data": "Digits, MNIST, FashionMNIST, CIFAR10, ImageFolder or the import path of a LightningDataModule",
}
"""Options whose type says less than we know."""


def near(word: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one most probably means; None where none is like it."""
    names = {name.casefold(): name for name in known}
    found = get_close_matches(word.casefold(), names, 1, 0.6)
    return names[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    """The end of a sentence that asks so, or nothing."""
    found = near(word, known)
    return f"; did you mean {before}{found}?" if found else ""


def near_option(word: str, known: Iterable[str]) -> str | None:
    """The option with its groups that was meant by ``word``, which may lack the groups or have another name."""
    options = list(known)
    if "." not in word:
        of_last = {option.rpartition(".")[2]: option for option in reversed(options)}
        of_last |= {name: option for name, option in OTHER_NAMES.items() if option in options}
        of_last |= {option: option for option in options if "." not in option}
        last = near(word, of_last)
        return of_last[last] if last else None
    group, _, last = word.rpartition(".")
    inside = {option.rpartition(".")[2]: option for option in options if option.rpartition(".")[0] == group}
    found = near(last, inside)
    return inside[found] if found else near(word, options)


# ---- what a parser met


@dataclass(frozen=True)
class Slip:
    """One mistake.

    Args:
        key: The option, from the parser that met it.
        expected: What it wants.
        got: What it was given; empty for nothing.
        meant: The option of the same parser that was probably meant.
        owner: The class whose option it is; empty for the command's own.
        flag: It was given as a flag of that name.
    """

    key: str
    expected: str
    got: str = ""
    meant: str = ""
    owner: str = ""
    flag: bool = False

    def line(self, dashes: str = "") -> str:
        """For the reader."""
        dashes = "--" if self.flag else dashes
        key = f"{dashes}{self.key}" if self.key else "arguments"
        got = f", got {self.got}" if self.got else ""
        meant = f"; did you mean {dashes}{self.meant}?" if self.meant else ""
        return f"{key}: expected {self.expected.replace(OWNER, self.owner or 'it')}{got}{meant}"

    def below(self, key: str, owner: str) -> "Slip":
        """The same for the parser whose option ``key`` takes the class that the option belongs to."""
        meant = f"{key}.{self.meant}" if self.meant else ""
        return replace(self, key=f"{key}.{self.key}", meant=meant, owner=self.owner or owner)


OWNER = "@owner@"
MARKED = re.compile("\x02([^\x03]*)\x03")


def _marked(slip: Slip) -> str:
    """As one word, which no parser that puts it into a text of its own breaks or shortens."""
    return f"\x02{quote(json.dumps(asdict(slip)))}\x03"


def _inner(message: str) -> Slip | None:
    found = MARKED.search(message)
    return Slip(**json.loads(unquote(found[1]))) if found else None


class OneLine(argparse.ArgumentParser):
    """Has a jsonargparse parser raise its errors as a `UserError` of one line.

    jsonargparse makes a parser of the same class for each class that an option takes.
    """

    dashes = "--"

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)  # the start of an option's name may be a slip
        super().__init__(*args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong."""
        slip = self.slip(str(message), ex)
        if self.exit_on_error:
            if slip is None:
                raise UserError(_cut(_one_line(MARKED.sub("", str(message)))))
            action = self._action(slip.key)
            raise UserError(slip.line(self.dashes if action is None or action.option_strings else ""))
        raise argparse.ArgumentError(None, _marked(slip) if slip else message)

    def parse_string(self, content: str, *args: Any, **options: Any) -> Any:
        """A config's text, in which an empty section says nothing; jsonargparse takes some for a text or for null."""
        try:
            config = yaml.safe_load(content)
        except yaml.YAMLError:
            config = content
        if config is None or (isinstance(config, dict) and None in config.values()):
            content = yaml.safe_dump(checked(config, "the config"), sort_keys=False)
        return super().parse_string(content, *args, **options)  # type: ignore[misc]  # of the parser it is mixed into

    def validate(self, namespace: Any, *args: Any, **options: Any) -> None:
        """Check all values, null too, which jsonargparse takes for not given, whatever the type."""
        super().validate(namespace, *args, **options)  # type: ignore[misc]  # of the parser it is mixed into
        for action in self._actions:
            hint = _hint(action)
            if hint is None or action.default is None or action.required or {"null", "any value"} & {*_choices(hint)}:
                continue
            if namespace.get(action.dest, ...) is None:
                raise TypeError(f'Parser key "{action.dest}": Got value: None')

    def slip(self, message: str, ex: Exception | None) -> Slip | None:
        """What the parser's message says; None where it says something that is not known here."""
        readers = (self._inside_a_class, self._unknown, self._missing, self._linked, self._without_a_value, self._wrong)
        return next((found for read in readers if (found := read(message, ex)) is not None), None)

    def options(self) -> list[str]:
        """The names of all options, for suggestions."""
        names = [action.dest for action in self._actions if action.option_strings]
        return [name for name in names if name not in (argparse.SUPPRESS, "help") and not name.endswith(".help")]

    def _inside_a_class(self, message: str, _: Exception | None) -> Slip | None:
        key, slip = _key(message), _inner(message)
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
                return Slip("", "options that begin with --", _shown(word))
            key = word.partition("=")[0].lstrip("-")
            return replace(self._no_option(key, self.options(), self.prog.split()[-1]), flag=self.exit_on_error)
        found = re.search(r"(?:^|\s)(?:(?:Subcommand|Group) '([\w.]+)' does not accept o|O)ption '([^']+)'", message)
        if found is None:
            return None
        key = f"{found[1]}.{found[2]}" if f"Group '{found[1]}'" in message else found[2]
        return self._no_option(key, self._parser_of(found[1]).options(), found[1] or self.prog.split()[-1])

    def _no_option(self, key: str, known: list[str], command: str) -> Slip:
        if self.exit_on_error:
            meant = near_option(key, known)
            listed = "" if meant else ", which its --help lists"
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
        hint = _hint(self._action(found[1]))
        expected = EXPECTED.get(key) or (words(hint) if hint else "a value")
        return Slip(key, f"{expected}, which {OWNER} needs", "nothing", owner=owner)

    def _linked(self, message: str, _: Exception | None) -> Slip | None:
        found = re.search(r'Linked "([\w.]+)" must be given via "(\w+)|argument (\w+)[\w.]+ --> ([\w.]+):', message)
        if found is None:
            return None
        key, source = (found[1], found[2]) if found[1] else (found[4], found[3])
        return Slip(key, f"no value, as {source} says it", "one")

    def _without_a_value(self, _: str, ex: Exception | None) -> Slip | None:
        if not isinstance(ex, argparse.ArgumentError) or ex.argument_name is None:
            return None
        names = [name for name in ex.argument_name.split("/") if not name.endswith("+")]
        key = max(names, key=len).lstrip("-")
        last = ["", *getattr(self, "args", ())][-1].lstrip("-")
        key = last if last.startswith(f"{key}.") else key  # the option of a class
        hint = _hint(self._action(key))
        return Slip(key, words(hint) if hint else "one value", "nothing" if "expected" in ex.message else ex.message)

    def _wrong(self, message: str, _: Exception | None) -> Slip | None:
        key = _key(message)
        if key is None:
            return None
        hint = _hint(self._action(key))
        bases = list(dict.fromkeys(_classes(hint)))
        if bases:
            slip = _not_a_class(key, EXPECTED.get(key) or words(hint), bases, message)
            if slip is not None:
                return slip
        given = re.findall(r"(?:Given|Got) value: (.*)", message)
        got = _shown(given[-1]) + did_you_mean(given[-1], _literals(hint)) if given else ""
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
    """A class that an option can't take, or that isn't there."""
    given = re.findall(r"Given value: (.*)", message)
    unknown = re.search(r"Expected a dot import path string: (.+)", message)
    failed = re.search(r"given class_path '([^']+)':\s+(.+)", message)
    other = re.search(r"Import path (?:(\S+) )?does not correspond to a subclass of (\w+)", message)
    if unknown:
        known = [each.__name__ for base in bases for each in _subclasses(base)]
        return Slip(key, expected, _shown(unknown[1]) + did_you_mean(unknown[1], known))
    if failed:
        return Slip(key, expected, f"{_shown(failed[1])}: {failed[2].strip()[:LONGEST]}")
    if other:
        return Slip(key, expected, f"{_shown(other[1] or given[-1])}, which is no {other[2]}")
    return None


# ---- configs


SECTIONS = ("trainer", "model", "data")


def checked(config: Any, path: str) -> dict[str, Any]:
    """What a config file says, its empty sections left out.

    Raises:
        UserError: A file, or a section in it, that is no mapping.
    """
    if not isinstance(config or {}, dict):
        raise UserError(f"config: expected a mapping in {path}, got {_kind(config)}")
    found = {str(key): value for key, value in (config or {}).items() if value is not None or key not in SECTIONS}
    for section in ("trainer", "model"):
        if not isinstance(found.get(section, {}), dict):
            raise UserError(f"{section}: expected a mapping of options in {path}, got {_kind(found[section])}")
    for key, value in _init_args(found):
        if not isinstance(value or {}, dict):
            raise UserError(f"{key}.init_args: expected a mapping of options in {path}, got {_kind(value)}")
    return found


def _init_args(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The options of every class in a config, with the option that takes the class."""
    if isinstance(value, list):
        for each in value:
            yield from _init_args(each, key)
    elif isinstance(value, dict):
        if "class_path" in value:
            yield key, value.get("init_args")
        for name, each in value.items():
            yield from _init_args(each, key if name == "init_args" else f"{key}.{name}".lstrip("."))


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)


# ---- what is wrong without the parser's knowing it


def check_number(key: str, value: Any, least: float, most: float = math.inf) -> None:
    """Nothing for None or a number in the range.

    Raises:
        UserError: Another number.
    """
    if value is not None and not least <= value <= most:
        expected = f"at least {least}" if most == math.inf else f"a number from {least} to {most}"
        raise UserError(f"{key}: expected {expected}, got {value}")


def check_name(key: str, value: Any, names: Iterable[str], base: type) -> None:
    """An option that takes a class takes some by names of their own as well, and its parser any text.

    Raises:
        UserError: A text that is no such name.
    """
    if isinstance(value, str) and value.casefold() not in (name.casefold() for name in names):
        meant = did_you_mean(value, [*names, *(kind.__name__ for kind in _subclasses(base))])
        expected = f"{', '.join(names)[:LONGEST]} or {_a(base.__name__)} by its name or import path"
        raise UserError(f"{key}: expected {expected}, got {value!r}{meant}")


class Made:
    """For jsonargparse, to make the objects of classes that options take: their errors name the option.

    Args:
        config: Holds the options.
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, kind: type, *args: Any, **options: Any) -> Any:
        """The object.

        Raises:
            ValueError: The class raises, or needs a package that is not here; `readable` has the words for it.
        """
        try:
            return kind(*args, **options)
        except Exception as error:
            if isinstance(error, UserError) or MARKED.search(str(error)):
                raise
            key = next(_places(self.config, kind.__name__), kind.__name__)
            what = (
                "a package that is not here"
                if isinstance(error, ImportError)
                else f"options that {kind.__name__} takes"
            )
            raise ValueError(_marked(Slip(key, f"{what}: {readable(error)}"))) from error


def _places(value: Any, name: str, key: str = "") -> Iterator[str]:
    """The options whose value is or holds a class of the name."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _places(each, name, key)
    elif hasattr(value, "items"):
        if str(value.get("class_path", "")).rpartition(".")[2] == name:
            yield key
        for inner, each in vars(value).items() if not isinstance(value, dict) else value.items():
            yield from _places(each, name, key if inner == "init_args" else f"{key}.{inner}".lstrip("."))


UNION = "Does not validate against any of the Union subtypes"


def readable(error: BaseException) -> str:
    """One line of an error that no parser met, but a class that was being made, or another process."""
    slip = _inner(str(error))
    if slip is not None:
        return slip.line()
    if str(error).startswith(UNION) and error.__cause__ is not None:
        cause = error.__cause__
        return readable(cause) if isinstance(cause, UserError) else f"data: {readable(cause)}"
    kind, text = original(error)
    line = f"{kind}: {_one_line(text)}" if kind in NO_SENTENCE or not text else _one_line(text)
    return line if isinstance(error, UserError) else _cut(line)


NO_SENTENCE = ("KeyError", "AssertionError", "StopIteration")
"""Errors whose text alone says nothing."""


def original(error: BaseException) -> tuple[str, str]:
    """Kind and text of an error, or of the one in another process of whose traceback its text consists."""
    _, found, last = str(error).rpartition("Traceback (most recent call last):\n")
    told = re.sub(r"\A(?:[ \t].*\n)+", "", last) if found else ""
    named = re.match(r"(?:[\w]+\.)*(\w+)(?:: (.*))?", told, re.DOTALL)
    return (named[1], (named[2] or "").strip()) if named else (type(error).__name__, str(error))


# ---- a type in words


def words(hint: Any) -> str:
    """What a value of the type looks like."""
    choices = list(dict.fromkeys(_choices(hint)))
    shown = choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    return _cut(shown) + (" (a class by its name or import path)" if any(_classes(hint)) else "")


UNIONS = (Union, UnionType)
WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
    Any: "any value",
    object: "any value",
}
MANY = {int: "whole numbers", float: "numbers", str: "texts"}


def _choices(hint: Any) -> Iterator[str]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in UNIONS:
        for each in args:
            yield from _choices(each)
    elif hint is bool:
        yield from ("true", "false")
    elif origin is Literal:
        yield from ("null" if value is None else str(value) for value in args)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield "a mapping"
    elif isinstance(origin, type) and issubclass(origin, Iterable):
        items = [each for each in args if each is not Ellipsis]
        yield f"a list of {MANY.get(items[0]) or _many(items[0])}" if items else "a list"
    elif hint in WORDS:
        yield WORDS[hint]
    elif isinstance(hint, type):
        yield _a(hint.__name__) if any(_classes(hint)) else hint.__name__
    else:
        yield str(hint)


def _literals(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [value for value in get_args(hint) if isinstance(value, str)]
    return [value for each in get_args(hint) for value in _literals(each)] if get_origin(hint) in UNIONS else []


def _many(hint: Any) -> str:
    return f"{hint.__name__}s" if isinstance(hint, type) else words(hint)


def _a(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


PLAIN = (int, float, bool, str, bytes, NoneType, list, tuple, dict, set)


def _classes(hint: Any) -> Iterator[type]:
    """The classes, themselves or of items, that a value of the type may be an instance of."""
    if isinstance(hint, type) and get_origin(hint) is None:
        if not issubclass(hint, PLAIN) and hint.__module__ not in ("pathlib", "datetime"):
            yield hint
    elif get_origin(hint) is not Literal:
        for inner in get_args(hint):
            yield from _classes(inner)


def _subclasses(base: type) -> Iterator[type]:
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        if not kind.__name__.startswith("_"):
            yield kind
        yield from _subclasses(kind)


def _hint(action: argparse.Action | None) -> Any:
    return getattr(action, "_typehint", None)


def _shown(text: str) -> str:
    """A value that was given as text, as it reads in YAML: only text in quotes."""
    text = text.strip()
    if text in ("None", "True", "False"):
        return {"None": "null"}.get(text, text.lower())
    if re.match(r"\w+\(", text):  # an object of the parser's
        return "a mapping"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    shown = repr(text) if isinstance(value, str) or value is None else text
    return _cut(shown)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _one_line(text: str) -> str:
    return " ".join(text.split())
