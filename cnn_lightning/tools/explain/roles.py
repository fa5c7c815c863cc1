"""The roles of variables: what is the input, the weight, the output, ... in a formula and in its NumPy code.

A role is ``x`` (input), ``w`` (weight), ``b`` (bias), ``y`` (output), ``g`` (upstream gradient), ``dx``, ``dw``, ``db``
(the gradients of the loss by the first three) or ``sum``. The page gives a role one colour, wherever it stands.
"""

import ast
import io
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cnn_lightning.tools.explain.source import Line, Listing

MEANINGS = {
    "x": "input",
    "w": "weight",
    "b": "bias",
    "y": "output",
    "g": "upstream gradient",
    "dx": "gradient of the input",
    "dw": "gradient of the weight",
    "db": "gradient of the bias",
    "sum": "sums",
}
_RESULTS = ("dx", "dw", "db")
"""What a backward returns, in this order."""
_RESULTS_OF_FILE = {"attention.py": ("dx", "dx", "dx")}

# ---- identifiers of formulas

_LETTERS = {"x": "x", "w": "w", "b": "b", "y": "y", "g": "g"}
_LETTERS_OF_FILE: dict[str, dict[str, str | None]] = {
    "norm": {"γ": "w", "β": "b"},
    "loss": {"L": "y"},
    "attention": {"q": "x", "k": "x", "v": "x"},
    "response": {"b": None},  # the base of the power
    "upsample": {"w": None},  # known from the sizes alone: no parameter
}
_LETTERS_OF_LAYER: dict[str, dict[str, str | None]] = {
    "PReLU": {"a": "w"},
    "GLU": {"a": "x", "b": "x"},
    "Hardtanh": {"b": None},
}


def letters(kind: str, file: str) -> dict[str, str]:
    """The roles of identifiers in the formulas of a layer: of type ``kind``, with formulas in ``ops/<file>.py``."""
    found = {**_LETTERS, **_LETTERS_OF_FILE.get(file, {}), **_LETTERS_OF_LAYER.get(kind, {})}
    return {letter: role for letter, role in found.items() if role is not None}


# ---- names of the code

_NAMES = {
    **dict.fromkeys(("x", "pixels", "wide", "images", "deep", "x_frames", "logits", "log_probs"), "x"),
    **dict.fromkeys(("weight", "w"), "w"),
    "bias": "b",
    "y": "y",
    **dict.fromkeys(("grad_y", "upstream"), "g"),
    **dict.fromkeys(("grad_x", "grad_wide", "grad_pixels", "grad_deep", "grad_frames"), "dx"),
    **dict.fromkeys(("grad_weight", "grad_w"), "dw"),
    **dict.fromkeys(("grad_bias", "bias_gradient"), "db"),
    **dict.fromkeys(("sum", "_sum", "@", "+="), "sum"),
}
_NAMES_OF_FILE: dict[str, dict[str, str]] = {
    "activation.py": {"a": "x", "b": "x"},
    "attention.py": {"q": "x", "k": "x", "v": "x"},
    "norm.py": {"rows": "x", "wide": "g", "g": "g"},
    "padding.py": {"lines": "x", "grad": "dx"},
    "pool.py": {"put_along_axis": "sum"},
    "response.py": {"_base": "sum", "_window": "sum"},
    "softmax.py": {"shifted": "x", "g": "g"},
    "upsample.py": {"_summed": "sum", "_added": "sum"},
}


@dataclass(frozen=True)
class Part:
    """A piece of a line, and its role; None for no role."""

    text: str
    role: str | None

    @property
    def css_class(self) -> str:
        """The class of its colour; empty without a role."""
        return css_class(self.role) if self.role else ""


@dataclass(frozen=True)
class Colored:
    """A line of a listing in parts."""

    line: Line
    parts: tuple[Part, ...]


def css_class(role: str) -> str:
    """The class with the colour of a role: a gradient has that of its variable."""
    return f"role-{role if role == 'sum' else role[-1]}"


def colored(listing: Listing, result: str | None = None) -> list[Colored]:
    """The lines of a function in parts with roles.

    Args:
        listing: The function.
        result: What it returns, "y" or "dx"; a ``return`` of an expression without a name then has this role, and in a
            backward each value of a returned tuple has the role of its place. None for a helper.
    """
    code = "\n".join(line.text for line in listing.lines) + "\n"
    file = listing.file.removeprefix("ops/")
    names = {**_NAMES, **_NAMES_OF_FILE.get(file, {})}
    found = [_Token(token, names.get(token.string)) for token in tokenize.generate_tokens(io.StringIO(code).readline)]
    if result is not None:
        _name_results(found, code, result, _RESULTS_OF_FILE.get(file, _RESULTS))
    return [
        Colored(line, tuple(_parts(line.text, [token for token in found if token.row == row])))
        for row, line in enumerate(listing.lines, 1)
    ]


class _Token:
    """A token of one line, with its role."""

    def __init__(self, token: tokenize.TokenInfo, role: str | None) -> None:
        (self.row, self.start), (last, self.end) = token.start, token.end
        self.text, self.role = token.string, role
        if token.type not in (tokenize.NAME, tokenize.OP) or last != self.row:
            self.role = None

    def lies_in(self, node: ast.expr) -> bool:
        place, end = (self.row, self.start), (node.end_lineno or 0, node.end_col_offset or 0)
        return (node.lineno, node.col_offset) <= place < end


def _name_results(tokens: Sequence[_Token], code: str, result: str, order: Sequence[str]) -> None:
    """Give a role to what is returned without a name; ``order`` are the roles of a backward's results."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Return) or node.value is None:
            continue
        values = node.value.elts if isinstance(node.value, ast.Tuple) and result == "dx" else []
        for value, role in zip(values, order, strict=False):
            inside = [token for token in tokens if token.lies_in(value)]
            if not any(token.role == role for token in inside):
                _give(role, [token for token in inside if token.role is None])
        if not values:
            _give(result, [token for token in tokens if (token.row, token.text) == (node.lineno, "return")])


def _give(role: str, tokens: Sequence[_Token]) -> None:
    for token in tokens:
        token.role = role


def _parts(text: str, tokens: Sequence[_Token]) -> Iterator[Part]:
    """The line, cut at the tokens that have a role."""
    done = 0
    for token in tokens:
        if token.role is None:
            continue
        if token.start > done:
            yield Part(text[done : token.start], None)
        yield Part(token.text, token.role)
        done = token.end
    if text[done:]:
        yield Part(text[done:], None)


def used(lines: Sequence[Colored], formulas: Sequence[str]) -> dict[str, str]:
    """The roles that occur in the code or in the typeset formulas, with their meanings, in the order of `MEANINGS`."""
    here = {part.role for line in lines for part in line.parts}
    return {
        role: meaning
        for role, meaning in MEANINGS.items()
        if role in here or any(f'data-role="{role}"' in formula for formula in formulas)
    }
