"""Types and values in words, as an error message shows them."""

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

LONGEST = 300
"""The most letters of a value or of a list of choices that a message shows."""

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
PLAIN = (int, float, bool, str, bytes, NoneType, list, tuple, dict, set)


def words(hint: Any) -> str:
    """What a value of the type looks like."""
    choices = choices_of(hint)
    listed = choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    return cut(listed) + (" (a class by its name or import path)" if any(classes_of(hint)) else "")


def choices_of(hint: Any) -> list[str]:
    """Each kind of value that the type allows, in words."""
    found = list(dict.fromkeys(_choices(hint)))
    if {WORDS[int], WORDS[float]} <= {*found}:
        # Python keeps one order for both unions of int and float: that of the first that any module has written.
        places = sorted((found.index(WORDS[int]), found.index(WORDS[float])))
        found[places[0]], found[places[1]] = WORDS[int], WORDS[float]
    return found


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
        yield a(hint.__name__) if any(classes_of(hint)) else hint.__name__
    else:
        yield str(hint)


def literals_of(hint: Any) -> list[str]:
    """The texts that the type lists as its values."""
    if get_origin(hint) is Literal:
        return [value for value in get_args(hint) if isinstance(value, str)]
    return [value for each in get_args(hint) for value in literals_of(each)] if get_origin(hint) in UNIONS else []


def classes_of(hint: Any) -> Iterator[type]:
    """The classes of which a value of the type, or an item of it, may be an instance."""
    if isinstance(hint, type) and get_origin(hint) is None:
        if not issubclass(hint, PLAIN) and hint.__module__.partition(".")[0] not in ("pathlib", "datetime"):
            yield hint
    elif get_origin(hint) is not Literal:
        for inner in get_args(hint):
            yield from classes_of(inner)


def subclasses_of(base: type) -> Iterator[type]:
    """The public subclasses of a class, at any depth."""
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        if not kind.__name__.startswith("_"):
            yield kind
        yield from subclasses_of(kind)


def hint_of(action: argparse.Action | None) -> Any:
    """The type of an option; None if it has none."""
    return getattr(action, "_typehint", None)


def a(name: str) -> str:
    """The name with its article."""
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def shown(text: str) -> str:
    """A value that was given as text, as YAML reads it: quotes for text alone."""
    text = text.strip()
    if text in ("None", "True", "False"):
        return {"None": "null"}.get(text, text.lower())
    if re.match(r"\w+\(", text):  # the printed form of one of the parser's objects
        return "a mapping"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return cut(repr(text) if isinstance(value, str) or value is None else text)


def cut(text: str) -> str:
    """At most `LONGEST` letters of a text."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _many(hint: Any) -> str:
    return f"{hint.__name__}s" if isinstance(hint, type) else words(hint)
