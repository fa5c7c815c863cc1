r"""Formulas of forward and backward, typeset as MathML, which browsers display without help.

They are written in a small part of TeX: ``_``, ``^``, braces, ``\frac``, ``\sqrt``, ``\sum``, ``\max``, ``\text``,
names of Greek letters and symbols, and ``\d{x}`` for the derivative of the loss L by x. ``g`` is the upstream gradient.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from cnn_lightning.layers import catalog
from cnn_lightning.swap import native_type
from cnn_lightning.tools.explain import roles
from cnn_lightning.tools.explain.source import Listing


class Formulas(NamedTuple):
    """The formulas of a layer: its forward, each gradient of its backward, and the roles of identifiers in them."""

    forward: list[str]
    backward: list[str]
    letters: dict[str, str]


def entry_of(module: nn.Module) -> catalog.Entry | None:
    """The catalogue's entry of a layer; None for a type that is no layer of ours."""
    kind = native_type(module)
    return catalog.entries().get(nn.Linear if kind is NonDynamicallyQuantizableLinear else kind)


def of(module: nn.Module) -> Formulas | None:
    """The formulas of a layer with its own stride, padding and so on; None for a type that is no layer of ours."""
    entry = entry_of(module)
    if entry is None:
        return None
    forward, backward = (_of_this(module, text).split("\n") for text in entry.page)
    return Formulas(forward, backward, roles.letters(entry.native.__name__, entry.formulas))


def stated(listings: Sequence[Listing]) -> list[Listing]:
    """Of the functions that a pass called, those that state its formula: the first, and public ones of its file."""
    return [each for each in listings if each.file == listings[0].file and not each.name.startswith("_")]


def _of_this(module: Any, text: str) -> str:
    """The formulas with the layer's own stride, dilation and padding, and without terms that it does not have."""
    places = [("FRAME", "tl")] * ("FRAME" in text) + [("ROW", "ui"), ("COLUMN", "vj")]
    for axis, (word, letters) in enumerate(places):
        if word in text:
            text = text.replace(word, _place(module, axis, letters))
    if "bias" in module._parameters and module.bias is None:
        text = "\n".join(line for line in text.replace("b_o + ", "").split("\n") if "b_o" not in line)
    if getattr(module, "groups", 1) > 1 and module.groups == module.in_channels == module.out_channels:
        for old, new in _DEPTHWISE:
            text = text.replace(old, new)
    return text


_DEPTHWISE = (
    ("{o,c,", "{o,"),
    ("{c,o,", "{o,"),
    ("x_{c,", "x_{o,"),
    (r"\sum_{c,", r"\sum_{"),
    (r"\sum_{o,", r"\sum_{"),
)
"""Indices where channel ``o`` of the output depends on the same channel of the input alone."""


def _place(module: Any, axis: int, letters: str) -> str:
    """The row or column of pixel ``i`` in the window of output ``u``: ``stride u + dilation i - padding``."""

    def number(value: Any) -> int:
        return int(value if isinstance(value, int) else value[axis])

    stride = number(module.stride if module.stride is not None else module.kernel_size)
    padding = module.padding if not isinstance(module.padding, str) else 0
    if module.padding == "same":
        padding = number(module.dilation) * (number(module.kernel_size) - 1) // 2
    dilation, padding = number(getattr(module, "dilation", 1)), number(padding)
    text = f"{stride if stride > 1 else ''}{letters[0]}+{dilation if dilation > 1 else ''}{letters[1]}"
    return f"{text}-{padding}" if padding else text


# ---- TeX to MathML

_TOKEN = re.compile(r"\\[a-z]+|\d+(?:\.\d+)?|\s+|.", re.DOTALL)
_FUNCTIONS = {"\\max", "\\min", "\\ln", "\\exp", "\\tanh"}


def mathml(text: str, letters: Mapping[str, str] = MappingProxyType({})) -> str:
    """The formula as a ``<math>`` element.

    Args:
        text: In TeX.
        letters: The roles of identifiers, which become ``data-role`` and a class for the colour.
    """
    tokens = _Tokens(_TOKEN.findall(text), letters)
    body = "".join(_row(tokens))
    return f'<math display="block" aria-label="{escape(spoken(text))}"><mrow>{body}</mrow></math>'


def spoken(text: str) -> str:
    """The formula as plain text, for screen readers."""
    text = re.sub(r"\\d\{((?:[^{}]|\{[^{}]*\})*)\}", r"dL/d\1", text).replace("\\text", "")
    return " ".join(re.sub(r"[\\{}]", " ", text.replace("-", "−")).split())


def marked(role: str | None) -> str:
    """The attributes of an element that has a role."""
    return f' class="{roles.css_class(role)}" data-role="{role}"' if role else ""


class _Tokens:
    """The tokens of a formula, and the roles that identifiers have in it."""

    def __init__(self, tokens: list[str], letters: Mapping[str, str]) -> None:
        self.tokens, self.letters, self.place = tokens, letters, 0

    def inside(self, text: str, letters: Mapping[str, str] | None = None) -> "_Tokens":
        """Those of a part of the formula."""
        return _Tokens(_TOKEN.findall(text), self.letters if letters is None else letters)

    def peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self) -> str:
        self.place += 1
        return self.tokens[self.place - 1]

    def group(self) -> str:
        """The text inside the next braces."""
        depth, text = 0, ""
        while True:
            token = self.take()
            depth += (token == "{") - (token == "}")
            if depth == 0:
                return text
            if text or token != "{" or depth > 1:
                text += token


def _row(tokens: _Tokens) -> Iterator[str]:
    while tokens.peek():
        if tokens.peek().isspace():
            tokens.take()
            continue
        yield _with_scripts(tokens)


def _with_scripts(tokens: _Tokens) -> str:
    token = tokens.peek()
    role = tokens.letters.get(token)
    base = _atom(tokens)
    scripts: dict[str, str] = {}
    while tokens.peek() in ("_", "^"):
        mark = tokens.take()
        scripts[mark] = _argument(tokens, tokens.letters if mark == "^" else {})
    if not scripts:
        return base.replace("<mi>", f"<mi{marked(role)}>", 1) if role else base
    under = token in ("\\sum", "\\max") and "_" in scripts
    name = "munder" if under else {"_": "msub", "^": "msup", "_^": "msubsup"}["".join(sorted(scripts, reverse=True))]
    return f"<{name}{marked(role)}>{base}{''.join(scripts[mark] for mark in '_^' if mark in scripts)}</{name}>"


def _argument(tokens: _Tokens, letters: Mapping[str, str]) -> str:
    """A subscript or superscript; ``letters`` are the roles in it."""
    if tokens.peek() == "{":
        return _inner(tokens.inside(tokens.group(), letters))
    return _with_scripts(tokens.inside(tokens.take(), letters))


def _inner(tokens: _Tokens) -> str:
    return f"<mrow>{''.join(_row(tokens))}</mrow>"


def _derivative(tokens: _Tokens) -> str:
    """The fraction of the loss by a variable, which has the role of that variable's gradient."""
    by = tokens.group()
    role = tokens.letters.get(by[0])
    body = f"<mrow><mo>∂</mo><mi>L</mi></mrow><mrow><mo>∂</mo>{_inner(tokens.inside(by, {}))}</mrow>"
    return f"<mfrac{marked(role and f'd{role}')}>{body}</mfrac>"


def _atom(tokens: _Tokens) -> str:
    token = tokens.peek()
    if token == "{":
        return _inner(tokens.inside(tokens.group()))
    tokens.take()
    if token == "\\d":
        return _derivative(tokens)
    if token == "\\frac":
        return f"<mfrac>{_inner(tokens.inside(tokens.group()))}{_inner(tokens.inside(tokens.group()))}</mfrac>"
    if token == "\\sqrt":
        return f"<msqrt>{_inner(tokens.inside(tokens.group()))}</msqrt>"
    if token == "\\text":
        return f"<mtext>{escape(tokens.group()).replace(' ', '&#160;')}</mtext>"
    if token == "\\sum":
        return f"<mo{marked('sum')}>∑</mo>"
    if token in _FUNCTIONS:
        return f"<mi>{token[1:]}</mi>"
    if token[0].isdigit():
        return f"<mn>{token}</mn>"
    if token.isalpha():
        return f"<mi>{token}</mi>"
    return f"<mo>{escape('−' if token == '-' else token)}</mo>"
