r"""Formulas of forward and backward, typeset as MathML, which browsers draw by themselves.

They are written in a few words of TeX: ``_``, ``^``, braces, ``\frac``, ``\sqrt``, ``\sum``, ``\max``, ``\text``, names
of Greek letters and symbols, and ``\d{x}`` for the derivative of the loss L by x. ``g`` is the gradient that arrives.
"""

import re
from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

from torch import nn

from cnn_lightning.swap import native_type


class Formulas(NamedTuple):
    """Of a layer: its forward, and each gradient of its backward."""

    forward: list[str]
    backward: list[str]


def of(module: nn.Module) -> Formulas | None:
    """The formulas of a layer with its own stride, padding and so on; None for a type that has none here."""
    kind = native_type(module).__name__
    if kind == "Conv2d":
        return _conv2d(module)
    if kind in ("MaxPool2d", "AvgPool2d"):
        return _pool(module, kind)
    found = _FIXED.get(kind)
    if found is None:
        return None
    forward, backward = found
    return Formulas(forward.split("\n"), backward.split("\n"))


def _conv2d(module: Any) -> Formulas:
    rows, columns = (_place(module, axis, letters) for axis, letters in ((0, "ui"), (1, "vj")))
    depthwise = module.groups == module.in_channels == module.out_channels > 1
    weight, image, channel = ("w_{o,i,j}", "x_{o,", "") if depthwise else ("w_{o,c,i,j}", "x_{c,", "c,")
    bias = "b_o + " if module.bias is not None else ""
    forward = [f"y_{{o,u,v}} = {bias}\\sum_{{{channel}i,j}} {weight} {image}{rows},{columns}}}"]
    backward = [f"\\d{{{weight}}} = \\sum_{{u,v}} g_{{o,u,v}} {image}{rows},{columns}}}"]
    if module.bias is not None:
        backward.append("\\d{b_o} = \\sum_{u,v} g_{o,u,v}")
    over = "u,i,v,j" if depthwise else "o,u,i,v,j"
    backward.append(f"\\d{{{image}r,s}}}} = \\sum_{{{over} : {rows} = r, {columns} = s}} {weight} g_{{o,u,v}}")
    return Formulas(forward, backward)


def _pool(module: Any, kind: str) -> Formulas:
    rows, columns = (_place(module, axis, letters) for axis, letters in ((0, "ui"), (1, "vj")))
    if kind == "MaxPool2d":
        return Formulas(
            [f"y_{{c,u,v}} = \\max_{{i,j}} x_{{c,{rows},{columns}}}"],
            ["\\d{x_{c,r,s}} = \\sum_{u,v : \\text{(r,s) won window (u,v)}} g_{c,u,v}"],
        )
    return Formulas(
        [f"y_{{c,u,v}} = \\frac{{1}}{{k}} \\sum_{{i,j}} x_{{c,{rows},{columns}}}"],
        [f"\\d{{x_{{c,r,s}}}} = \\frac{{1}}{{k}} \\sum_{{u,i,v,j : {rows} = r, {columns} = s}} g_{{c,u,v}}"],
    )


def _place(module: Any, axis: int, letters: str) -> str:
    """Where pixel ``i`` of the window for output ``u`` lies: ``stride u + dilation i - padding``."""

    def number(value: Any) -> int:
        return int(value if isinstance(value, int) else value[axis])

    stride = number(module.stride if module.stride is not None else module.kernel_size)
    padding = module.padding if not isinstance(module.padding, str) else 0
    if module.padding == "same":
        padding = number(module.dilation) * (number(module.kernel_size) - 1) // 2
    dilation, padding = number(getattr(module, "dilation", 1)), number(padding)
    text = f"{stride if stride > 1 else ''}{letters[0]}+{dilation if dilation > 1 else ''}{letters[1]}"
    return f"{text}-{padding}" if padding else text


_SIGMOID = r"σ(x) = \frac{1}{1 + e^{-x}}"
_FIXED = {
    "Linear": (
        r"y_o = b_o + \sum_i w_{o,i} x_i",
        "\\d{w_{o,i}} = g_o x_i\n\\d{b_o} = g_o\n\\d{x_i} = \\sum_o w_{o,i} g_o",
    ),
    "ConvTranspose2d": (
        r"y_{o,r,s} = b_o + \sum_{c,u,i,v,j : \text{(u,v) and (i,j) reach (r,s)}} w_{c,o,i,j} x_{c,u,v}",
        r"\d{x_{c,u,v}} = \sum_{o,i,j} w_{c,o,i,j} g_{o,r,s}",
    ),
    "ReLU": (r"y = \max(x, 0)", r"\d{x} = g \text{ where } x > 0 \text{, else } 0"),
    "ReLU6": (r"y = \min(\max(x, 0), 6)", r"\d{x} = g \text{ where } 0 < x < 6 \text{, else } 0"),
    "LeakyReLU": (r"y = \max(x, 0) + a \min(x, 0)", r"\d{x} = g \text{ where } x > 0 \text{, else } a g"),
    "PReLU": (
        r"y = \max(x, 0) + a_c \min(x, 0)",
        "\\d{x} = g \\text{ where } x > 0 \\text{, else } a_c g\n\\d{a_c} = \\sum g \\min(x, 0)",
    ),
    "ELU": (
        r"y = x \text{ where } x > 0 \text{, else } a (e^x - 1)",
        r"\d{x} = g \text{ where } x > 0 \text{, else } a e^x g",
    ),
    "GELU": (r"y = x Φ(x)", r"\d{x} = g (Φ(x) + x φ(x))"),
    "SiLU": ("y = x σ(x)\n" + _SIGMOID, r"\d{x} = g σ(x) (1 + x (1 - σ(x)))"),
    "Mish": (r"y = x \tanh(\ln(1 + e^x))", r"\d{x} = g (t + x (1 - t^2) σ(x)) \text{, where } t = \tanh(\ln(1 + e^x))"),
    "Sigmoid": (r"y = \frac{1}{1 + e^{-x}}", r"\d{x} = g y (1 - y)"),
    "Tanh": (r"y = \tanh(x)", r"\d{x} = g (1 - y^2)"),
    "Softplus": (r"y = \frac{1}{β} \ln(1 + e^{β x})", r"\d{x} = g σ(β x)"),
    "Hardswish": (
        r"y = \frac{1}{6} x \min(\max(x + 3, 0), 6)",
        r"\d{x} = g \frac{2 x + 3}{6} \text{ where } |x| < 3 \text{; } g \text{ above, } 0 \text{ below}",
    ),
    "Hardsigmoid": (
        r"y = \frac{1}{6} \min(\max(x + 3, 0), 6)",
        r"\d{x} = \frac{g}{6} \text{ where } |x| < 3 \text{, else } 0",
    ),
    "BatchNorm2d": (
        r"y_{c,u,v} = γ_c \frac{x_{c,u,v} - μ_c}{\sqrt{σ_c^2 + ε}} + β_c",
        r"\d{x_{c,u,v}} = \frac{γ_c}{\sqrt{σ_c^2 + ε}} g_{c,u,v}"
        "\n"
        r"\d{γ_c} = \sum_{u,v} g_{c,u,v} \frac{x_{c,u,v} - μ_c}{\sqrt{σ_c^2 + ε}}"
        "\n"
        r"\d{β_c} = \sum_{u,v} g_{c,u,v}",
    ),
    "LayerNorm": (
        r"y_k = γ_k z_k + β_k \text{, } z_k = \frac{x_k - μ}{\sqrt{σ^2 + ε}}",
        r"\d{x_k} = \frac{1}{\sqrt{σ^2 + ε}} (h_k - \text{mean}(h) - z_k \text{mean}(h z)) \text{, } h_k = γ_k g_k"
        "\n"
        r"\d{γ_k} = \sum g_k z_k"
        "\n"
        r"\d{β_k} = \sum g_k",
    ),
    "AdaptiveAvgPool2d": (
        r"y_{c,u,v} = \frac{1}{k} \sum_{(r,s) \text{ in window } (u,v)} x_{c,r,s}",
        r"\d{x_{c,r,s}} = \sum_{(u,v) \text{ over } (r,s)} \frac{1}{k} g_{c,u,v}",
    ),
    "AdaptiveMaxPool2d": (
        r"y_{c,u,v} = \max_{(r,s) \text{ in window } (u,v)} x_{c,r,s}",
        r"\d{x_{c,r,s}} = \sum_{(u,v) \text{ won by } (r,s)} g_{c,u,v}",
    ),
    "Flatten": (r"y_k = x_{c,u,v} \text{, row by row}", r"\d{x_{c,u,v}} = g_k"),
    "Identity": (r"y = x", r"\d{x} = g"),
    "Dropout": (r"y = x \text{ (it rests when nothing is learned)}", r"\d{x} = g"),
    "Softmax": (
        r"y_k = \frac{e^{x_k}}{\sum_j e^{x_j}}",
        r"\d{x_k} = y_k (g_k - \sum_j g_j y_j)",
    ),
    "CrossEntropyLoss": (
        r"L = -\ln p_t \text{, } p_k = \frac{e^{x_k}}{\sum_j e^{x_j}}",
        r"\d{x_k} = p_k - 1 \text{ for the true class } t \text{, else } p_k",
    ),
}
_FIXED["BatchNorm1d"] = _FIXED["BatchNorm2d"]
_FIXED["GroupNorm"] = _FIXED["LayerNorm2d"] = _FIXED["LayerNorm"]
_FIXED["Dropout1d"] = _FIXED["Dropout2d"] = _FIXED["Dropout"]
_FIXED["NonDynamicallyQuantizableLinear"] = _FIXED["Linear"]


# ---- TeX to MathML

_TOKEN = re.compile(r"\\[a-z]+|\d+(?:\.\d+)?|\s+|.", re.DOTALL)
_FUNCTIONS = {"\\max", "\\min", "\\ln", "\\exp", "\\tanh"}


def mathml(text: str) -> str:
    """The formula as a ``<math>`` element whose words are those of ``text``."""
    tokens = _Tokens(_TOKEN.findall(text))
    body = "".join(_row(tokens))
    return f'<math display="block" aria-label="{escape(spoken(text))}"><mrow>{body}</mrow></math>'


def spoken(text: str) -> str:
    """The formula as plain text, for those who listen to the page."""
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
        """The text inside the braces that come next."""
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
