"""A chain of layers that are computed as one, against the formulas of its layers; and which of the two is wrong.

A chain (`layers.fused`) is computed once as it runs, and once by the formulas of its layers one after the other, both
from the same input and upstream gradient in float64. torch's layers give the third result.
"""

import math
from collections.abc import Container, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cnn_lightning.layers import fused
from cnn_lightning.ops.fast import chooser
from cnn_lightning.swap import native_type
from cnn_lightning.tools.parity.layerwise.distance import relative_error
from cnn_lightning.tools.parity.layerwise.replay import bare
from cnn_lightning.tools.parity.layerwise.results import Where
from cnn_lightning.tools.parity.layerwise.runner import Call
from cnn_lightning.tools.parity.layerwise.tiers import TOLERANCE, wrong

_Key = tuple[int, str]
"""A stage of a chain, and "output", "input" (its gradient), "weight" or "bias"."""
_Way = Literal["fast", "formula", "torch"]
_STAGE = 3
"""The number of layers in a stage: convolution, ReLU and max-pooling."""


@dataclass(frozen=True)
class Difference:
    """The error between a chain and its formulas in one result, and the error of each against torch.

    ``verdict`` is ``equal``, ``flip`` (rounding decided at nearly equal inputs of a ReLU or max-pool), ``fault`` or
    ``follows`` (a fault of another stage); ``of`` is the one at fault: ``chain`` or ``formula``.
    """

    layer: str
    what: str
    error: float
    where: Where
    of_formula: float
    of_chain: float
    verdict: str
    of: str = ""


@dataclass(frozen=True)
class Chain:
    """Layers that are computed as one, with their input and their upstream gradient."""

    names: Sequence[str]
    modules: Sequence[nn.Module]
    x: Tensor
    upstream: Tensor | None = None

    def differences(self, floor: float) -> list[Difference]:
        """The error of each result of the chain against the formulas; a fault has the name of its stage."""
        rows = self._rows(floor)
        if all(row.verdict == "equal" for row in rows):
            return rows
        if self._differ_by_ties_alone(floor):
            return [row if row.verdict == "equal" else replace(row, verdict="flip") for row in rows]
        follow = [row if row.verdict == "equal" else replace(row, verdict="follows") for row in rows]
        wrongs = {(row.layer, row.what) for row in rows if row.verdict != "equal"}
        faults = self._faults(floor, wrongs) or [replace(row, layer=_joined(self.names)) for row in rows if row.of]
        named = {(row.layer, row.what) for row in faults}
        return faults + [row for row in follow if (row.layer, row.what) not in named]

    def _faults(self, floor: float, wrongs: Container[tuple[str, str]]) -> list[Difference]:
        """The rows of the first stage whose output is wrong, else of the last that makes wrong gradients of right ones.

        These are only results that are wrong in the whole chain too, and gradients that one stage passes to another.
        """
        ends = range(_STAGE, len(self.modules) + 1, _STAGE)
        for end in ends:
            forward = Chain(self.names[:end], self.modules[:end], self.x)
            rows = [row for row in forward._rows(floor) if row.verdict != "equal"]
            if rows:
                return rows
        for end in reversed(ends):
            start = end - _STAGE
            x, _ = Chain(self.names[:start], self.modules[:start], self.x)._forward("formula")
            behind = Chain(self.names[start:], self.modules[start:], x.detach(), self.upstream)
            here = _joined(self.names[start:end])
            rows = [
                row
                for row in behind._rows(floor)
                if row.layer == here and row.verdict != "equal"
                if (here, row.what) in wrongs or (start and row.what == "gradient of input")
            ]
            if rows:
                return rows
        return []

    def _rows(self, floor: float) -> list[Difference]:
        found, formula = self.results("fast"), self.results("formula")
        errors = {}
        for key, value in found.items():
            errors[key] = relative_error(value, formula[key], 0.0 if key[1] == "output" else floor)
        wrongs = {key for key, (off, _) in errors.items() if not off <= TOLERANCE}
        native = self.results("torch") if wrongs else formula
        rows = []
        for key, (off, where) in errors.items():
            stage, kind = key
            least = 0.0 if kind == "output" else floor
            of_formula, of_chain = (relative_error(each[key], native[key], least)[0] for each in (formula, found))
            names = self.names[_STAGE * stage : _STAGE * (stage + 1)]
            what = {"output": "output", "input": "gradient of input"}.get(kind, f"gradient of {names[0]}.{kind}")
            who = wrong(of_chain, of_formula, "chain") if key in wrongs else ""
            verdict = "fault" if who else "equal"
            rows.append(Difference(_joined(names), what, off, where, of_formula, of_chain, verdict, who))
        return rows

    def _differ_by_ties_alone(self, floor: float) -> bool:
        """Whether the tiers agree at a point nearby, and at numbers whose sums are exact, so that ties are exact ties.

        Of equal patches, rounding alone decides which is larger, and it does so differently in each tier.
        """
        if not torch.isfinite(self.x).all():
            return False
        noise = torch.randn(self.x.shape, generator=torch.Generator().manual_seed(29), dtype=torch.float64)
        moved = replace(self, x=self.x + 1e-3 * self.x.abs().max().clamp(min=1e-3) * noise.to(self.x.device))
        rounded = [
            bare(module, type(module), {key: _few_digits(value) for key, value in module._parameters.items()})
            for module in self.modules
        ]
        exact = replace(self, x=_few_digits(self.x), modules=rounded)
        return all(row.verdict == "equal" for chain in (moved, exact) for row in chain._rows(floor))

    def results(self, way: _Way) -> dict[_Key, Tensor]:
        """The output and, where there is an upstream gradient, all gradients, by the chain, by formulas or by torch."""
        last = len(self.modules) // _STAGE - 1
        y, leaves = self._forward(way)
        found = {(last, "output"): y.detach()}
        if self.upstream is not None:
            with _tier_of(way):
                gradients = torch.autograd.grad(y, list(leaves.values()), self.upstream.to(y))
            found |= dict(zip(leaves, gradients, strict=True))
        return found

    def _forward(self, way: _Way) -> tuple[Tensor, dict[_Key, Tensor]]:
        """The output, and the leaves of its graph, from the last layer to the input."""
        copies, leaves = [], {(0, "input"): self.x.double().contiguous().clone().requires_grad_()}
        for place, module in enumerate(self.modules):
            own: dict[str, Tensor | None] = {}
            for key, value in module._parameters.items():
                own[key] = None if value is None else value.detach().double().clone().requires_grad_()
            copies.append(bare(module, native_type(module) if way == "torch" else type(module), own))
            leaves = {(place // _STAGE, key): value for key, value in own.items() if value is not None} | leaves
        with torch.enable_grad(), _tier_of(way):
            return fused.run(copies, leaves[0, "input"]), leaves


def chains_in(calls: Sequence[Call], groups: Sequence[Sequence[str]]) -> Iterator[Chain]:
    """The chains among the calls of a network's layers; each of ``groups`` has the names of a chain's layers."""
    names = [call.name for call in calls]
    start = 0
    while start < len(calls):
        group = next((group for group in groups if names[start : start + len(group)] == list(group)), None)
        if group is None:
            start += 1
            continue
        members = calls[start : start + len(group)]
        yield Chain(group, [call.module for call in members], members[0].arguments[0], members[-1].grad_outputs.get(0))
        start += len(group)


def _tier_of(way: _Way) -> Any:
    return chooser.fast(False) if way == "formula" else nullcontext()


def _few_digits(x: Tensor | None) -> Any:
    """``x`` rounded to a few binary digits: sums of products of such numbers are exact in float64."""
    if x is None or not x.numel():
        return x
    x = x.detach().double()
    unit = 2.0 ** (math.floor(math.log2(x.abs().max().clamp(min=1e-30).item())) - 6)
    return (x / unit).round() * unit


def _joined(names: Sequence[str]) -> str:
    return f"{' '.join(names)} (chain)"
