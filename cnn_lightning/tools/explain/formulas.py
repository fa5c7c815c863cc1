r"""Formulas of forward and backward, typeset as MathML, which browsers display without help.

They are written in a small part of TeX: ``_``, ``^``, braces, ``\frac``, ``\sqrt``, ``\sum``, ``\max``, ``\text``,
names of Greek letters and symbols, and ``\d{x}`` for the derivative of the loss L by x. ``g`` is the upstream gradient.
"""

import re
from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from cnn_lightning.layers import catalog
from cnn_lightning.swap import native_type


class Formulas(NamedTuple):
    """The formulas of a layer: its forward, and each gradient of its backward."""

    forward: list[str]
    backward: list[str]


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
    return Formulas(forward, backward)


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


def mathml(text: str) -> str:
    """The formula as a ``<math>`` element."""
    tokens = _Tokens(_TOKEN.findall(text))
    body = "".join(_row(tokens))
    return f'<math display="block" aria-label="{escape(spoken(text))}"><mrow>{body}</mrow></math>'


def spoken(text: str) -> str:
    """The formula as plain text, for screen readers."""
    text = re.sub(r"\\d\{((?:[^{}]|\{[^{}]*\})*)\}", r"dL/d\1", text).replace("\\text", "")
    return " ".join(re.sub(r"[\\{}]", " ", text.replace("-", "−")).split())


class _Tokens:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.place = tokens, 0

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
    base = _atom(tokens)
    scripts: dict[str, str] = {}
    while tokens.peek() in ("_", "^"):
        mark = tokens.take()
        scripts[mark] = _argument(tokens)
    if not scripts:
        return base
    under = token in ("\\sum", "\\max") and "_" in scripts
    name = "munder" if under else {"_": "msub", "^": "msup", "_^": "msubsup"}["".join(sorted(scripts, reverse=True))]
    return f"<{name}>{base}{''.join(scripts[mark] for mark in '_^' if mark in scripts)}</{name}>"


def _argument(tokens: _Tokens) -> str:
    if tokens.peek() == "{":
        return _inner(tokens.group())
    return _atom(tokens)


def _inner(text: str) -> str:
    return f"<mrow>{''.join(_row(_Tokens(_TOKEN.findall(text))))}</mrow>"


def _atom(tokens: _Tokens) -> str:
    token = tokens.peek()
    if token == "{":
        return _inner(tokens.group())
    tokens.take()
    if token == "\\d":
        return f"<mfrac><mrow><mo>∂</mo><mi>L</mi></mrow><mrow><mo>∂</mo>{_inner(tokens.group())}</mrow></mfrac>"
    if token == "\\frac":
        return f"<mfrac>{_inner(tokens.group())}{_inner(tokens.group())}</mfrac>"
    if token == "\\sqrt":
        return f"<msqrt>{_inner(tokens.group())}</msqrt>"
    if token == "\\text":
        return f"<mtext>{escape(tokens.group()).replace(' ', '&#160;')}</mtext>"
    if token == "\\sum":
        return "<mo>∑</mo>"
    if token in _FUNCTIONS:
        return f"<mi>{token[1:]}</mi>"
    if token[0].isdigit():
        return f"<mn>{token}</mn>"
    if token.isalpha():
        return f"<mi>{token}</mi>"
    return f"<mo>{escape('−' if token == '-' else token)}</mo>"
