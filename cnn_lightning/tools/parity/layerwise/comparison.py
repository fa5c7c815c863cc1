"""The comparison of two copies after each step: a row for each result, with the verdict where they differ."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.overrides import resolve_name

from cnn_lightning.layers import catalog
from cnn_lightning.swap import native_type
from cnn_lightning.tools.parity.layerwise.blame import Blame, Examined
from cnn_lightning.tools.parity.layerwise.chains import chains_in
from cnn_lightning.tools.parity.layerwise.distance import relative_error
from cnn_lightning.tools.parity.layerwise.functions import FunctionCall
from cnn_lightning.tools.parity.layerwise.replay import OWN_ROUNDING, alone
from cnn_lightning.tools.parity.layerwise.results import FAULTS, WHOLE, Evidence, Row, Where
from cnn_lightning.tools.parity.layerwise.rulings import Rulings
from cnn_lightning.tools.parity.layerwise.runner import Call, Place, Runner, weights_of
from cnn_lightning.tools.parity.layerwise.tiers import Tiers

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The relative error beyond which a difference must be explained, per precision."""

_WHOLE_TOLERANCE = 1e-6


class Comparison:
    """Compares three runners after each step."""

    def __init__(
        self,
        native: Runner,
        other: Runner,
        truth: Runner,
        tolerance: float,
        device: torch.device,
        *,
        party: str = "this layer",
    ) -> None:
        self.native, self.other, self.truth, self.tolerance, self.device = native, other, truth, tolerance, device
        self.party = party
        """The name of the other copy, in evidence."""
        self.rows: list[Row] = []
        self.evidence: list[Evidence] = []
        self.flipped = False
        self.floor = 0.0
        self.twins = {name: type(module) for name, module in other.named() if other.differs(module)}
        self.rulings = Rulings(self.twins, tolerance, functions=other.functions)
        self.blame = Blame(native, other, tolerance, self.rulings)
        self.tiers = Tiers(other, tolerance, self.rulings, device)
        self.with_tiers = party == "this layer"
        self.chains: list[list[str]] = []
        """The layers that the network computes as one when no hook is on them, by their names."""
        self.owners = {
            id(parameter): (name, key)
            for name, module in other.net.named_modules()
            for key, parameter in module._parameters.items()
            if parameter is not None
        }

    # -- a step

    def step(self, step: int) -> None:
        """Compare the forward in the order of the calls, and the backward in reverse order."""
        self.rulings.clear()
        triples = list(zip(self.native.calls, self.other.calls, self.truth.calls, strict=True))
        gradients = [parameter.grad for parameter in self.truth.net.parameters() if parameter.grad is not None]
        gradients += [gradient for call in self.truth.calls for gradient in call.grad_inputs.values()]
        largest = max((gradient.abs().max().item() for gradient in gradients if gradient.numel()), default=0.0)
        # A gradient that is pure rounding, as that of a bias before a normalisation, has no scale of its own.
        self.floor = torch.finfo(self.other.rounds).eps * largest
        if self.with_tiers:
            self.tiers.step(self._exact_floor())
        for a, b, c in triples:
            flips = _flips(a, b)
            self.flipped |= flips > 0
            for index, output in enumerate(b.outputs):
                what = "output" if not index else f"output {index}"
                values = (a.outputs[index], output, c.outputs[index])
                self._judge(step, (a, b), what, values, ("outputs", index), flips)
                flips = 0
            for key, buffer in b.after.items():
                self._judge(step, (a, b), f"buffer {key}", (a.after[key], buffer, c.after[key]), ("after", key))
        parameters = self._parameters()
        for a, b, c in reversed(triples):
            for index in b.grad_inputs:
                found = [call.grad_inputs.get(index) for call in (a, b, c)]
                name = "gradient of input" if not index else f"gradient of input {index}"
                self._judge(step, (a, b), name, found, ("grad_inputs", index))
            for key, parameter in weights_of(b.module).items():
                if id(parameter) in parameters:
                    grads = parameters.pop(id(parameter))
                    self._judge(step, (a, b), f"gradient of {key}", grads, ("parameter", key))
        for identity, grads in parameters.items():
            name, key = self.owners[identity]
            self._judge(step, _no_calls(name), f"gradient of {key}", grads, None)

    def updated(self, step: int) -> None:
        """Compare the parameters after the optimizer's step."""
        for native, other, truth in zip(*(runner.net.parameters() for runner in self._runners), strict=True):
            home = native.device
            name, key = self.owners[id(other)]
            # The optimizer is torch's in both copies. A copy that changed a parameter outside of it is at fault.
            changed = (id(native) in self.native.changed, id(other) in self.other.changed)
            wrong = (changed[0] and not changed[1], changed[1] and not changed[0])
            values = (native, other.to(home), truth)
            self._judge(step, _no_calls(name), f"{key} after the step", values, None, wrong=wrong)

    def chained(self, step: int) -> None:
        """Compare the chains with the formulas of their layers, at the inputs and upstream gradients of this step."""
        for chain in chains_in(self.other.calls, self.chains):
            for row in chain.differences(self._exact_floor()):
                verdict = "follows" if row.verdict == "fault" and self.faults() else row.verdict
                numbers = (row.error, row.where, row.of_formula, row.of_chain, 0)
                self.rows.append(
                    Row(step, row.layer, 0, row.what, *numbers, verdict, tier="fast", tiers=row.error, of=row.of)
                )

    def _exact_floor(self) -> float:
        """The floor of gradients in float64."""
        return 1e-5 * self.floor / torch.finfo(self.other.rounds).eps

    def whole(self, runner: Runner, watched: Callable[[], Runner]) -> None:
        """Compare the network as it trains in float64: without hooks, so that it computes chains of layers as one.

        Where its error is larger than in any well-conditioned network, the layers are judged one by one in float64. If
        they are right, the error of the network that runs them one by one is the rounding that this network amplifies.
        """
        floor = self._exact_floor()
        one_by_one: list[nn.Parameter] = []
        pairs = zip(runner.net.named_parameters(), self.truth.net.parameters(), strict=True)
        for index, ((name, ours), true) in enumerate(pairs):
            found, expected = ours.grad, true.grad
            what = f"gradient of {name} in float64"
            if found is None or expected is None:
                if found is not expected:
                    verdict = "follows" if self.faults() else "fault"
                    self.rows.append(Row(0, WHOLE, 0, what, math.inf, (), 0, math.inf, 0, verdict))
                continue
            error, where = relative_error(found, expected, floor)
            amplified, verdict = 0.0, "equal"
            if not error <= _WHOLE_TOLERANCE:
                if not one_by_one:
                    other = watched()
                    self._layers_in_float64(other)
                    one_by_one = list(other.net.parameters())
                gradient = one_by_one[index].grad
                amplified = 0.0 if gradient is None else relative_error(gradient, expected, floor)[0]
                faulty = not error <= OWN_ROUNDING * amplified
                verdict = "follows" if self.faults() else "fault" if faulty else "rounding"
            native_off, other_off = (math.nan, math.nan) if self._torch_is_wrong() else (amplified, error)
            self.rows.append(Row(0, WHOLE, 0, what, error, where, native_off, other_off, 0, verdict))

    def _layers_in_float64(self, other: Runner) -> None:
        layers = Comparison(self.truth, other, self.truth, TOLERANCE[torch.float64], self.device)
        layers.step(0)
        self.rows += [replace(row, what=f"{row.what} in float64") for row in layers.faults()]

    # -- one tensor

    def _judge(
        self,
        step: int,
        calls: tuple[Call, Call],
        what: str,
        values: Sequence[Tensor | None],
        place: Place | None,
        flips: int = 0,
        wrong: tuple[bool, bool] = (False, False),
    ) -> None:
        """Compare one result of two calls. ``wrong``: which of the two is known to be wrong, if ``place`` is None."""
        native, other, truth = values
        if native is None and other is None:
            return
        floor = self.floor if "gradient" in what else 0.0
        verdict, explained = "flip" if flips else "equal", "undecided"
        error, native_off, other_off = math.inf, math.nan, math.nan
        where: Where = ()
        if native is not None and other is not None and truth is not None:
            error, where = relative_error(other, native, floor)
            native_off, other_off = (relative_error(value, truth, floor)[0] for value in (native, other))
            explained = "follows" if self.faults() else "flip" if self.flipped else "rounding"
        row = Row(step, calls[1].name, calls[1].index, what, error, where, native_off, other_off, flips, verdict)
        dtypes = {value.dtype for value in (native, other) if value is not None}
        if not row.error <= self.tolerance or (len(dtypes) > 1 and self.other.mode.autocast is None):
            row = self._blamed(replace(row, verdict=explained), calls, (native, other), place, floor, wrong)
        self.rows.append(self._with_tiers(row, calls[1], place))

    def _blamed(
        self,
        row: Row,
        calls: tuple[Call, Call],
        values: tuple[Tensor | None, Tensor | None],
        place: Place | None,
        floor: float,
        wrong: tuple[bool, bool],
    ) -> Row:
        """The row of two results that differ, with the verdict; that of ``row`` if neither copy is at fault."""
        found = [Examined(known) for known in wrong]
        if place is not None:
            copies = zip((self.native, self.other), calls, values, strict=True)
            found = [self.blame.examine(runner, call, value, place, floor) for runner, call, value in copies]
        call = calls[1]
        if len({value.dtype for value in values if value is not None}) > 1 and call.name in self.twins:
            # The wrong dtype is a fault, even with the right numbers.
            found = [
                replace(each, wrong=each.wrong or (value is not None and value.dtype != self.other.dtype))
                for each, value in zip(found, values, strict=True)
            ]
        row = replace(row, verdict=self.blame.verdict(call, *(each.wrong for each in found)) or row.verdict)
        if row.verdict in FAULTS and place is not None:
            why = next((each.why for each in found if each.why and each.wrong is not False), "")
            row = replace(row, native=found[0].off, other=found[1].off, why=why, runs=_name(call.module))
            for party, each, own, value in zip(("torch", self.party), found, calls, values, strict=True):
                if each.wrong and each.right is not None and value is not None:
                    self.evidence += self._shown(row, party, own, place, value, each.right)
            return row
        if row.verdict == "follows" and self._torch_is_wrong():
            return replace(row, native=math.nan, other=math.nan)  # the float64 copy runs torch's layers too
        return row

    def _shown(self, row: Row, party: str, call: Call, place: Place, found: Tensor, right: Tensor) -> list[Evidence]:
        """The evidence of a fault, unless there is one of this party in this layer and pass."""
        if any((each.party, each.row.layer, each.row.what) == (party, row.layer, row.what) for each in self.evidence):
            return []
        kind = native_type(call.module) if party == "torch" else type(call.module)
        part = alone(call, kind)
        return [Evidence(row, party, part, call.arguments, call.keywords, dict(call.grad_outputs), place, found, right)]

    def _with_tiers(self, row: Row, call: Call, place: Place | None) -> Row:
        """The row with the tier of its layer, the error between the tiers, and which of them is at fault."""
        tier, apart = self.tiers.names.get(call.name, ""), self.tiers.apart(call, place)
        row = replace(row, tier=tier, tiers=apart.error, of=apart.of)
        if apart.of and row.verdict not in FAULTS:
            row = replace(row, error=apart.error, where=apart.where, native=apart.of_formula, other=apart.of_fast)
            return replace(row, verdict="fault", why=apart.why)
        if tier and not apart.of and row.verdict in ("fault", "both at fault"):
            of = "formula" if tier != "fast" else self.tiers.of_own_dtype(call, place, self.floor)
            return replace(row, of=of)
        return row

    def _torch_is_wrong(self) -> bool:
        return any(row.verdict in ("fault of torch", "both at fault") for row in self.rows)

    def _parameters(self) -> dict[int, Sequence[Tensor | None]]:
        triples = zip(*(runner.net.parameters() for runner in self._runners), strict=True)
        return {
            id(other): (native.grad, self.other.gradient(other), truth.grad)
            for native, other, truth in triples
            if other.requires_grad
        }

    @property
    def _runners(self) -> tuple[Runner, Runner, Runner]:
        return self.native, self.other, self.truth

    def faults(self) -> list[Row]:
        """The rows so far in which one side is wrong."""
        return [row for row in self.rows if row.verdict in FAULTS]


def _name(module: nn.Module) -> str:
    """What torch runs: the class of a layer, or the name of a function."""
    if isinstance(module, FunctionCall):
        return resolve_name(module.function) or str(module.function)
    kind = native_type(module)
    short = getattr(nn, kind.__name__, None) is kind
    return f"torch.nn.{kind.__name__}" if short else f"{kind.__module__}.{kind.__qualname__}"


def _no_calls(name: str) -> tuple[Call, Call]:
    """Empty calls, for a result that belongs to a layer but to no call of it."""
    call = Call(name, 0, None, (), {}, {}, [], True)
    return call, call


def _flips(a: Call, b: Call) -> int:
    """The number of signs of a ReLU-like layer, or of choices of a max-pooling, that differ between two calls."""
    entry = catalog.entries().get(native_type(b.module))
    if entry is not None and entry.kinks:
        x, y = a.arguments[0], b.arguments[0]
        return sum(int(((x > kink) != (y > kink)).sum()) for kink in entry.kinks_of(b.module))
    if entry is not None and entry.choices is not None:
        choose = entry.choices
        x, y = (choose(call.module, call.arguments[0]) for call in (a, b))
        return int((x != y).sum())
    return 0
