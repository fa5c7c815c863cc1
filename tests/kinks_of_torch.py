"""What torch gives at kinks, ties, NaN and infinities: a table of answers by the version from which each holds.

``python -m tests.kinks_of_torch`` records what the installed version gives and the table does not say.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from math import inf, nan
from pathlib import Path

import torch
from packaging.version import Version
from torch import Tensor
from torch.nn import functional as F

from cnn_lightning.tools.check.answers import Answer, Numbers, ask, text
from cnn_lightning.tools.check.kinks import quiet
from cnn_lightning.tools.check.places import settings

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python -m tests.kinks_of_torch"
Table = dict[str, dict[str, str]]
"""From a place to the answers there, by the version of torch from which each holds."""

SPECIAL: list[Numbers] = [(nan,), (inf,), (-inf,)]
ZEROS: list[Numbers] = [(-0.0,), (0.0,)]
PAIRS: list[Numbers] = [(1, 1), (-0.0, 0.0), (0.0, -0.0), (nan, 1), (1, nan), (inf, inf)]
TRIPLES: list[Numbers] = [(1, 1, 0), (0, 1, 1), (1, 1, 1), (nan, 1, 1), (1, nan, nan)]


def at_two(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of two numbers."""
    return lambda x: function(x[:, :1], x[:, 1:])


def of_rows(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of all of a tensor, row by row."""
    return lambda x: torch.stack([function(row) for row in x])[:, None]


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], list[Numbers]]] = {
    "clamp(x, -1, 1)": (lambda x: x.clamp(-1, 1), [(-1,), (1,), *SPECIAL]),
    "clamp_min(x, 0)": (lambda x: x.clamp_min(0), [*ZEROS, *SPECIAL]),
    "clamp_max(x, 0)": (lambda x: x.clamp_max(0), [*ZEROS, *SPECIAL]),
    "clamp(x, min=y)": (at_two(lambda x, y: x.clamp(min=y)), PAIRS),
    "clamp(x, max=y)": (at_two(lambda x, y: x.clamp(max=y)), PAIRS),
    "abs(x)": (torch.abs, [*ZEROS, *SPECIAL]),
    "sign(x)": (torch.sign, [*ZEROS, *SPECIAL]),
    "floor(x)": (torch.floor, [(1,), *ZEROS, *SPECIAL]),
    "ceil(x)": (torch.ceil, [(1,), *ZEROS]),
    "round(x)": (torch.round, [(0.5,), (1.5,), (-0.5,)]),
    "trunc(x)": (torch.trunc, [(1,)]),
    "frac(x)": (torch.frac, [(1,), *SPECIAL]),
    "remainder(x, 1)": (lambda x: x.remainder(1), [(1,), (-1,)]),
    "fmod(x, 1)": (lambda x: x.fmod(1), [(1,), (-1,)]),
    "maximum(x, y)": (at_two(torch.maximum), PAIRS),
    "minimum(x, y)": (at_two(torch.minimum), PAIRS),
    "fmax(x, y)": (at_two(torch.fmax), PAIRS),
    "fmin(x, y)": (at_two(torch.fmin), PAIRS),
    "max(x)": (of_rows(torch.max), TRIPLES),
    "min(x)": (of_rows(torch.min), TRIPLES),
    "max(x, dim)": (lambda x: x.max(1, keepdim=True).values, TRIPLES),
    "min(x, dim)": (lambda x: x.min(1, keepdim=True).values, TRIPLES),
    "amax(x, dim)": (lambda x: x.amax(1, keepdim=True), TRIPLES),
    "amin(x, dim)": (lambda x: x.amin(1, keepdim=True), TRIPLES),
    "aminmax(x, dim).max": (lambda x: x.aminmax(dim=1, keepdim=True).max, TRIPLES),
    "cummax(x, dim)[-1]": (lambda x: x.cummax(1).values[:, -1:], TRIPLES),
    "sort(x)": (lambda x: x.sort(1).values, TRIPLES),
    "sort(x, descending)": (lambda x: x.sort(1, descending=True).values, TRIPLES),
    "topk(x, 1)": (lambda x: x.topk(1, 1).values, TRIPLES),
    "kthvalue(x, 2)": (lambda x: x.kthvalue(2, 1, keepdim=True).values, TRIPLES),
    "median(x)": (of_rows(torch.median), TRIPLES),
    "median(x, dim)": (lambda x: x.median(1, keepdim=True).values, TRIPLES),
    "quantile(x, 0.5)": (lambda x: x.quantile(0.5, 1, keepdim=True), TRIPLES),
    "norm(x)": (lambda x: x.norm(dim=1, keepdim=True), [(0, 0), (nan, 1), (inf, 1)]),
    "norm(x, p=1)": (lambda x: x.norm(p=1, dim=1, keepdim=True), [(0, 0), (nan, 1), (inf, 1)]),
    "norm(x, p=inf)": (lambda x: x.norm(p=inf, dim=1, keepdim=True), [(0, 0), (1, 1), (nan, 1), (inf, inf)]),
    "normalize(x)": (lambda x: F.normalize(x, dim=1), [(0, 0), (nan, 1), (inf, 1)]),
    "cosine_similarity(x, 1)": (lambda x: F.cosine_similarity(x, torch.ones_like(x))[:, None], [(0, 0)]),
    "pairwise_distance(x, 0)": (lambda x: F.pairwise_distance(x, torch.zeros_like(x))[:, None], [(0, 0)]),
    "cdist(x, 0)": (lambda x: torch.cdist(x[:, None], torch.zeros_like(x)[:, None])[:, 0], [(0, 0)]),
    "sqrt(x)": (torch.sqrt, [*ZEROS, (-1,), *SPECIAL]),
    "rsqrt(x)": (torch.rsqrt, [*ZEROS, *SPECIAL]),
    "reciprocal(x)": (torch.reciprocal, [*ZEROS, *SPECIAL]),
    "log(x)": (torch.log, [*ZEROS, (-1,), *SPECIAL]),
    "log1p(x)": (torch.log1p, [(-1,), *SPECIAL]),
    "exp(x)": (torch.exp, SPECIAL),
    "sinc(x)": (torch.sinc, [*ZEROS, *SPECIAL]),
    "asin(x)": (torch.asin, [(-1,), (1,)]),
    "acos(x)": (torch.acos, [(-1,), (1,)]),
    "atanh(x)": (torch.atanh, [(-1,), (1,)]),
    "logit(x)": (torch.logit, [(0,), (1,)]),
    "logit(x, 0.1)": (lambda x: x.logit(0.1), [(0.1,), (0.9,), (0,)]),
    "atan2(x, y)": (at_two(torch.atan2), [(0, 0), (0, -1), (-0.0, -1), (nan, 1), (inf, inf)]),
    "hypot(x, y)": (at_two(torch.hypot), [(0, 0), (inf, 1), (nan, 1)]),
    "pow(x, y)": (at_two(torch.pow), [(0, 0), (0, 1), (0, 2), (0, 0.5), (0, -1), (-1, 2), (1, nan), (nan, 0)]),
    **{
        f"pow(x, {y})": (lambda x, y=y: x.pow(y), [*ZEROS, *SPECIAL])  # type: ignore[misc]
        for y in (0, 0.5, 1, 2, -1)
    },
    "pow(0, x)": (lambda x: torch.pow(torch.zeros_like(x), x), [(0,), (1,), (-1,), (nan,)]),
    "prod(x)": (lambda x: x.prod(1, keepdim=True), [(0, 2, 3), (0, 0, 3), (nan, 0, 1), (inf, 0, 1)]),
    "cumprod(x)[-1]": (lambda x: x.cumprod(1)[:, -1:], [(0, 2, 3), (0, 0, 3), (nan, 0, 1)]),
    "logsumexp(x)": (lambda x: x.logsumexp(1, keepdim=True), [(-inf, -inf), (-inf, 0), (inf, 0), (inf, inf), (nan, 0)]),
    "logcumsumexp(x)[-1]": (lambda x: x.logcumsumexp(1)[:, -1:], [(-inf, -inf), (-inf, 0), (inf, 0)]),
    "logaddexp(x, y)": (at_two(torch.logaddexp), [(-inf, -inf), (-inf, 0), (inf, inf), (nan, 0)]),
    "xlogy(x, y)": (at_two(torch.xlogy), [(0, 0), (0, 1), (1, 0), (0, inf), (0, nan), (nan, 1)]),
    "x * log(y)": (at_two(lambda x, y: x * y.log()), [(0, 0), (0, inf)]),
    "var(x)": (lambda x: x.var(1, keepdim=True), [(1, 1, 1), (nan, 1, 1), (inf, 1, 1)]),
    "std(x)": (lambda x: x.std(1, keepdim=True), [(1, 1, 1), (nan, 1, 1), (inf, 1, 1)]),
    "where(x > 0, x, 0)": (lambda x: torch.where(x > 0, x, 0), [*ZEROS, *SPECIAL]),
    "where(x > 0, log(x), 0)": (lambda x: torch.where(x > 0, x.log(), 0), [*ZEROS, (-1,)]),
    "nan_to_num(x)": (torch.nan_to_num, SPECIAL),
    "copysign(x, -1)": (lambda x: x.copysign(-torch.ones_like(x)), ZEROS),
    "heaviside(x, 1)": (lambda x: x.detach().heaviside(torch.ones_like(x)), [*ZEROS, *SPECIAL]),
    "hardshrink(x)": (F.hardshrink, [(-0.5,), (0.5,), *SPECIAL]),
    "softshrink(x)": (F.softshrink, [(-0.5,), (0.5,), *SPECIAL]),
    "rrelu(x) in evaluation": (F.rrelu, [*ZEROS, *SPECIAL]),
    "huber_loss(x, 0)": (lambda x: F.huber_loss(x, 0 * x.detach(), reduction="none"), [(-1,), *ZEROS, (1,)]),
    "hinge_embedding_loss(x, -1)": (
        lambda x: F.hinge_embedding_loss(x, -torch.ones_like(x), reduction="none"),
        [(1,), *SPECIAL],
    ),
    "margin_ranking_loss(x, y, 1)": (
        at_two(lambda x, y: F.margin_ranking_loss(x, y, torch.ones_like(x), reduction="none")),
        [(1, 1), (nan, 1)],
    ),
    "soft_margin_loss(x, 1)": (
        lambda x: F.soft_margin_loss(x, torch.ones_like(x), reduction="none"),
        [(0,), *SPECIAL],
    ),
    "kl_div(x, 0)": (lambda x: F.kl_div(x, torch.zeros_like(x), reduction="none"), [(0,), (-inf,), (nan,)]),
}


def answers() -> Iterator[tuple[str, Answer]]:
    """Each place of the catalogue and of `FUNCTIONS`, and what the installed torch gives there."""
    with quiet():
        for setting in settings():
            functions = setting.functions(setting.entry.native)
            for place in setting.places:
                yield f"{setting.name} at {text(place)}", ask(functions, place)
        for name, (function, places) in FUNCTIONS.items():
            for place in places:
                yield f"{name} at {text(place)}", ask([function], place)


def recorded() -> Table:
    """The table."""
    table: Table = json.loads(FILE.read_text())
    return table


def known(entry: Mapping[str, str], version: str) -> str | None:
    """The answer of the last version up to this one; None if the table begins with a later one."""
    earlier = [key for key in entry if Version(key) <= Version(version)]
    return entry[max(earlier, key=Version)] if earlier else None


def is_within(found: str, expected: str) -> bool:
    """Whether each alternative is a recorded one: a processor with other vector kernels gives some of them.

    Nor does the sign of a zero count, which depends on those kernels, too.
    """
    pairs = zip(found.split(" → "), expected.split(" → "), strict=True)
    return all(_alternatives(new) <= _alternatives(old) for new, old in pairs)


def _alternatives(text: str) -> set[str]:
    return {" ".join("0" if number == "-0" else number for number in each.split()) for each in text.split(" or ")}


def changes(table: Table, found: Mapping[str, Answer], version: str) -> list[str]:
    """A line for each place where torch gives something else than the table says."""
    lines = []
    for place, answer in found.items():
        expected = known(table.get(place, {}), version)
        if place not in table:
            lines.append(f"{place}: not in the table, is {answer}")
        elif expected is not None and not is_within(str(answer), expected):
            lines.append(f"torch changed {place}: was {expected}, is {answer}")
    return lines


def installed() -> str:
    """The version of torch, without the letters of its build."""
    return Version(torch.__version__).public


def updated(table: Table, found: Mapping[str, Answer], version: str) -> Table:
    """The table with what is new in this version."""
    result = {}
    for place, answer in found.items():
        entry = dict(table.get(place, {}))
        expected = known(entry, version)
        if expected is None or not is_within(str(answer), expected):
            entry[version] = str(answer)
        result[place] = dict(sorted(entry.items(), key=lambda item: Version(item[0])))
    return result


if __name__ == "__main__":
    found = dict(answers())
    before = recorded() if FILE.exists() else {}
    for line in changes(before, found, installed()):
        print(line)
    rows = [
        f"{json.dumps(place)}: {json.dumps(entry, ensure_ascii=False)}"
        for place, entry in updated(before, found, installed()).items()
    ]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    print(f"{FILE.name}: {len(found)} places, torch {installed()}")
