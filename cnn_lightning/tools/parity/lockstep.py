"""Two implementations of one network side by side, layer by layer, and which of them is wrong where they differ.

Three copies take the same steps from equal weights on equal batches: torch's layers, the layers under test, and torch
in float64, to show how far either is from it. Everything a layer sees and says is kept: outputs, the gradients of its
inputs and parameters, its buffers, and the parameters after each step of the optimizer.

Where two results differ by more than the tolerance, that layer alone is computed again in float64, by torch and by the
implementation under test, from the very inputs and upstream gradients that each of the two copies had. Where these two
agree, or the judge says which is right (`judge`; torch is not, by rank), a copy that gave something else is at fault. A
copy that gave the same only carries on a difference that was there before: rounding, amplified perhaps, or a ReLU or
max-pool whose inputs were so nearly tied that rounding chose the other side.

A third way is compared for the layers of this package: where a fast function stands in for a formula, both compute each
recorded call again, in float64; and so do chains and the formulas of their layers (`tiers`).
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.layers import catalog, fused
from cnn_lightning.model import total_loss
from cnn_lightning.ops.fast import chooser
from cnn_lightning.swap import LAYERS, Spec, SwapReport, native_type, swap_layers
from cnn_lightning.tools import judge
from cnn_lightning.tools.elementary import Elementary
from cnn_lightning.tools.parity import tiers

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The relative error beyond which a difference must be explained, per precision."""

WHOLE = "(network)"
"""The name under which the network stands as it trains, without anybody watching its layers."""

FAULTS = ("fault", "fault of torch", "both at fault", "undecided")
"""The verdicts that are no agreement: who is wrong."""

_WHOLE_TOLERANCE = 1e-6
_PART = 2**20
"""So many numbers of a tensor are compared at a time: VGG has 100 million weights in a layer."""
_OWN_ROUNDING = 10.0
"""What is this many times further from the right value than rounding takes it is a fault."""

Batch = tuple[Tensor, Tensor]
Tick = Callable[[str], None]
Where = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One comparison: the largest relative error of a tensor, and where in it.

    ``error`` is between the two implementations. ``native`` and ``other`` are each one's own distance from torch in
    float64; in a fault, from what the judge found right for the inputs that it had (NaN where it found nothing).
    ``what`` is ``output``, ``gradient of input``, ``gradient of NAME``, ``buffer NAME`` or ``NAME after the step``;
    ``verdict`` is ``equal``, ``rounding``, ``flip``, ``follows`` (an earlier fault) or one of `FAULTS`: ``fault`` of
    the layer under test, ``fault of torch``, ``both at fault``, or ``undecided`` where the two differ and the judge
    can't tell which is wrong. ``why`` says how a fault was judged, ``runs`` which class torch's side is.

    ``tier`` is what the layer ran: ``fast``, or ``(formula: edited)`` or another reason; ``tiers`` the relative error
    between its fast function and its formula on equal inputs, NaN where they were not compared; ``of`` which of them is
    at fault: ``fast function``, ``formula`` or ``chain``. In the rows of a chain, and where only the tiers differ,
    ``error`` is that between the tiers, ``native`` and ``other`` are the formula's and the fast one's own from torch.
    """

    step: int
    layer: str
    call: int
    what: str
    error: float
    where: Where
    native: float
    other: float
    flips: int
    verdict: str
    why: str = ""
    runs: str = ""
    tier: str = ""
    tiers: float = math.nan
    of: str = ""

    def __str__(self) -> str:
        call = f" (call {self.call + 1})" if self.call else ""
        return f"{self.layer}{call}, {self.what}"


@dataclass(frozen=True)
class Parity:
    """All comparisons in the order in which things happened."""

    rows: list[Row]
    layers: SwapReport
    dtype: str
    tolerance: float
    steps: int
    losses: list[dict[str, float]] = field(default_factory=list)
    """The loss of each step, under ``torch``, ``layers`` and ``float64``."""
    tiers: dict[str, str] = field(default_factory=dict)
    """What ran each NumPy layer of this package that calls formulas: ``fast``, or ``(formula: edited)`` or so."""

    @property
    def first(self) -> Row | None:
        """The first layer and pass where one is wrong by more than rounding, whichever it is."""
        return next(iter(self.faults), None)

    @property
    def faults(self) -> list[Row]:
        """The rows whose verdict is one of `FAULTS`."""
        return [row for row in self.rows if row.verdict in FAULTS]

    @property
    def ok(self) -> bool:
        """Whether both implementations agree."""
        return self.first is None

    @property
    def flips(self) -> int:
        """Signs of ReLU and choices of max-pooling that rounding changed."""
        return sum(row.flips for row in self.rows)


def compare(
    net: nn.Module,
    layers: Spec = "numpy",
    *,
    batches: Sequence[Batch],
    loss: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    tolerance: float | None = None,
    lr: float = 0.01,
    momentum: float = 0.9,
    seed: int = 0,
    tick: Tick = lambda what: None,
) -> Parity:
    """Train three copies of ``net``, a step on each batch, and compare everything.

    Args:
        net: any network; it is left as it is.
        layers: what runs its layers, as for `swap_layers`; the other copy runs them all in torch. The loss is ``loss``.
        batches: images and targets, on the device of ``net``.
        loss: by default the cross entropy.
        dtype: in which the two implementations compute.
        tolerance: the relative error up to which results count as equal; see `TOLERANCE` for the default.
        lr: the step of gradient descent. Its updates are linear in the gradients and so don't amplify rounding.
        momentum: of gradient descent.
        seed: of dropout's masks, the same for all copies.
        tick: told what is done, for a progress bar; once per batch and copy, and once at the end.

    Raises:
        ValueError: no batches, or what `swap_layers` refuses.
    """
    if not batches:
        raise ValueError("batches: expected at least one, got none")
    loss = nn.CrossEntropyLoss() if loss is None else loss
    native = _Runner(net, "torch", loss, dtype, lr, momentum)
    other = _Runner(net, layers, loss, dtype, lr, momentum)
    truth = _Runner(net, "torch", loss, torch.float64, lr, momentum)
    comparison = _Comparison(native, other, truth, TOLERANCE[dtype] if tolerance is None else tolerance)
    losses: list[dict[str, float]] = []

    def in_float64(*, watch: bool) -> _Runner:
        runner = _Runner(net, layers, loss, torch.float64, lr, momentum, watch=watch)
        with fused.computed() as chains:
            runner.backward(batches[0], seed)
        names = {id(module): name for name, module in runner.named()}
        comparison.chains = comparison.chains or [[names[id(module)] for module in chain] for chain in chains]
        return runner

    for step, batch in enumerate(batches):
        values = {}
        for name, runner in (("torch", native), ("layers", other), ("float64", truth)):
            values[name] = runner.backward(batch, seed + step)
            tick(f"step {step + 1}: {name}")
        losses.append(values)
        comparison.step(step)
        unwatched = in_float64(watch=False) if step == 0 else None
        comparison.chained(step)
        if unwatched is not None:
            comparison.whole(unwatched, lambda: in_float64(watch=True))
        for runner in (native, other, truth):
            runner.update()
        comparison.updated(step)
    tick("done")
    ran = {name: tier for name, tier in comparison.tiers.items() if tier}
    kind = str(dtype).removeprefix("torch.")
    return Parity(comparison.rows, other.report, kind, comparison.tolerance, len(batches), losses, ran)


# ---- a copy of the network under observation


@dataclass
class _Call:
    """What one call of a layer saw and said."""

    name: str
    index: int
    module: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    buffers: dict[str, Tensor]
    randomness: list[Tensor]
    training: bool
    outputs: list[Tensor] = field(default_factory=list)
    after: dict[str, Tensor] = field(default_factory=dict)
    grad_outputs: dict[int, Tensor] = field(default_factory=dict)
    grad_inputs: dict[int, Tensor] = field(default_factory=dict)


class _Runner:
    """A copy of the network with its loss and optimizer; each leaf's calls are kept in order."""

    def __init__(
        self,
        net: nn.Module,
        layers: Spec,
        loss: nn.Module,
        dtype: torch.dtype,
        lr: float,
        momentum: float,
        *,
        watch: bool = True,
    ) -> None:
        self.net, self.loss = copy.deepcopy(net).to(dtype), copy.deepcopy(loss).to(dtype)
        swap_layers(self.net, "torch", beside={"loss": self.loss})
        self.report = swap_layers(self.net, layers, beside={"loss": self.loss})
        self.dtype = dtype
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=lr, momentum=momentum) if trained else None
        self.calls: list[_Call] = []
        self.changed: set[int] = set()
        """Parameters that somebody else than the optimizer has changed since its last step."""
        self._prints = self._fingerprints()
        for name, module in self.named() if watch else ():
            if next(module.children(), None) is None:
                module.register_forward_pre_hook(self._before(name), with_kwargs=True)
                module.register_forward_hook(self._after)

    def named(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules of the network, and those of the loss after them."""
        yield from self.net.named_modules()
        yield from self.loss.named_modules(prefix="loss")

    def backward(self, batch: Batch, seed: int) -> float:
        """Forward and backward; the loss."""
        self.calls.clear()
        self.net.zero_grad()
        torch.manual_seed(seed)
        images, target = batch
        if target.is_floating_point():
            target = target.to(self.dtype)
        # The first layer's gradient is compared too; it may write into its input, which torch forbids for a leaf.
        images = images.detach().to(self.dtype, copy=True).requires_grad_() * 1
        value, _ = total_loss(self.net, self.loss, self.net(images), target)
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    def update(self) -> None:
        """One step of the optimizer."""
        prints = self._fingerprints()
        self.changed = {key for key, value in prints.items() if value != self._prints[key]}
        if self.optimizer is not None:
            self.optimizer.step()
        self._prints = self._fingerprints()

    def _fingerprints(self) -> dict[int, int]:
        """A number for each parameter that changes when it does."""
        return {id(parameter): _fingerprint(parameter) for parameter in self.net.parameters()}

    def _before(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            call = _Call(
                name,
                sum(other.name == name for other in self.calls),
                module,
                tuple(_kept(value) for value in arguments),
                keywords,
                {key: value.clone() for key, value in module.named_buffers()},
                _randomness(arguments),
                module.training,
            )
            self.calls.append(call)
            given = []
            for index, value in enumerate(arguments):
                if isinstance(value, Tensor) and value.requires_grad:
                    if not getattr(module, "inplace", False):
                        value = value.clone()  # its gradient is this layer's part alone, whoever else reads the input
                    value.register_hook(_keep(call.grad_inputs, index))  # type: ignore[no-untyped-call]
                given.append(value)
            return tuple(given), keywords

        return hook

    def _after(self, module: nn.Module, arguments: Any, output: Any) -> None:
        call = next(call for call in reversed(self.calls) if call.module is module and not call.outputs)
        for index, value in enumerate(_tensors(output)):
            call.outputs.append(value.detach().clone())
            if value.requires_grad:
                value.register_hook(_keep(call.grad_outputs, index))  # type: ignore[no-untyped-call]
        call.after = {key: value.clone() for key, value in module.named_buffers()}


def _keep(place: dict[int, Tensor], index: int) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        place[index] = gradient.detach().clone()

    return hook


def _fingerprint(x: Tensor) -> int:
    """The sum of its bits, as whole numbers: rounding hides no change."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(x.element_size(), torch.uint8)
    return int(x.detach().contiguous().view(kind).sum(dtype=torch.int64))


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _tensors(output: Any) -> list[Tensor]:
    found = output if isinstance(output, (tuple, list)) else (output,)
    return [value for value in found if isinstance(value, Tensor) and value.is_floating_point()]


def _randomness(values: Iterable[Any]) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if any(isinstance(value, Tensor) and value.is_cuda for value in values):
        states.append(torch.cuda.get_rng_state())
    return states


# ---- one layer alone

_Key = int | str
_Local = tuple[str, Any]
"""Which result of a call: the kind (a field of `_Alone`), and its index or name, or the parameter itself."""


@dataclass
class _Alone:
    """What a layer makes of a recorded call."""

    outputs: list[Tensor]
    after: dict[str, Tensor]
    gradients: dict[Any, Tensor | None]
    """Of the inputs by their index, of the parameters by their name."""

    def get(self, kind: str, key: Any) -> Tensor | None:
        """A result, or None."""
        if kind in ("grad_inputs", "parameter"):
            return self.gradients.get(key)
        found: Tensor = getattr(self, kind)[key]
        return found


class _Replay:
    """A recorded call, computed again by the class ``kind`` in ``dtype``, at any inputs and parameters.

    With ``contiguous``, inputs and upstream gradients don't keep the order in memory that they had; with ``formulas``
    no fast function stands in for a formula.
    """

    def __init__(
        self,
        call: _Call,
        kind: type[nn.Module],
        dtype: torch.dtype,
        *,
        contiguous: bool = False,
        formulas: bool = False,
    ) -> None:
        self.call, self.kind, self.dtype, self.contiguous, self.formulas = call, kind, dtype, contiguous, formulas
        self.point: dict[Any, Tensor] = {
            index: self._cast(value)
            for index, value in enumerate(call.arguments)
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        self.point |= {
            key: self._cast(value.detach()) for key, value in call.module._parameters.items() if value is not None
        }
        self.upstream = {index: self._cast(gradient) for index, gradient in call.grad_outputs.items()}
        self.alone = self.run()

    def _cast(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        value = value.to(self.dtype)
        return value.contiguous() if self.contiguous else value

    def forward(self, point: judge.Point) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Outputs, and buffers afterwards."""
        call, source = self.call, self.call.module
        module = tiers.bare(source, self.kind, {key: point.get(key) for key in source._parameters})
        module.__dict__["training"] = call.training
        module._buffers = {
            key: None if value is None else self._cast(call.buffers[key]).clone()
            for key, value in source._buffers.items()
        }
        # What works in place may not write into the point, nor into a leaf.
        given = [point[i].clone() if i in point else value for i, value in enumerate(call.arguments)]
        inside = torch.device("cuda") if len(call.randomness) > 1 else None
        with torch.random.fork_rng([torch.cuda.current_device()] if inside else []):
            torch.set_rng_state(call.randomness[0])
            if inside:
                torch.cuda.set_rng_state(call.randomness[1])
            outputs = _tensors(module(*given, **call.keywords))
        return outputs, {key: value for key, value in module._buffers.items() if value is not None}

    def run(self, point: judge.Point | None = None, upstream: Mapping[int, Tensor] | None = None) -> _Alone:
        """Forward and backward."""
        leaves = {key: x.clone().requires_grad_() for key, x in (self.point if point is None else point).items()}
        with torch.enable_grad(), self._tier():
            outputs, after = self.forward(leaves)
        upstream = self.upstream if upstream is None else upstream
        reached = [(y, upstream[index]) for index, y in enumerate(outputs) if index in upstream and y.requires_grad]
        found: Sequence[Tensor | None] = ()
        if reached and leaves:
            ys, gradients = zip(*reached, strict=True)
            with self._tier():
                found = torch.autograd.grad(ys, list(leaves.values()), gradients, allow_unused=True)
        return _Alone([y.detach() for y in outputs], after, dict(zip(leaves, found, strict=False)))

    def _tier(self) -> Any:
        return chooser.fast(False) if self.formulas else nullcontext()

    def party(self) -> judge.Party:
        """For the judge of a backward."""
        upstream = [self.upstream.get(index) for index in range(len(self.alone.outputs))]
        return judge.Party(
            self.point,
            upstream,
            lambda point: self.forward(point)[0],
            lambda point: self.alone.gradients if point is self.point else self.run(point).gradients,
        )


# ---- the comparison


def relative_error(found: Tensor, expected: Tensor, floor: float = 0.0) -> tuple[float, Where]:
    """The largest difference, relative to the largest finite number expected (or ``floor``), and its index.

    Equal infinities and two NaN differ by nothing, any other NaN or infinity by infinity.
    """
    if found.shape != expected.shape:
        return math.inf, ()
    if not found.numel():
        return 0.0, ()
    largest, place, size = _farthest(found, expected)
    scale = max(size, floor)
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), found.shape))
    return (largest / scale if scale else math.inf if largest else 0.0), where


def _farthest(found: Tensor, expected: Tensor) -> tuple[float, int, float]:
    """The largest difference, its index among all numbers, and the largest finite number expected."""
    largest, place, size = -1.0, 0, 0.0
    parts = zip(*(torch.split(x.detach().reshape(-1), _PART) for x in (found, expected)), strict=True)
    for number, (some, others) in enumerate(parts):
        if not some.numel():
            return 0.0, 0, 0.0
        a, b = some.double(), others.double()
        difference = (a - b).abs_()
        most, index = difference.max(0)
        least, greatest = b.aminmax()
        reach = max(-least.item(), greatest.item())
        if not math.isfinite(most.item()) or not math.isfinite(reach):
            same = (a == b) | (a.isnan() & b.isnan())
            most, index = torch.where(same, 0.0, difference).nan_to_num(math.inf, math.inf).max(0)
            reach = b.abs().nan_to_num(0, 0, 0).max().item()
        size = max(size, reach)
        if most.item() > largest:
            largest, place = most.item(), number * _PART + int(index)
    return largest, place, size


class _Comparison:
    """Compares three runners after each step."""

    def __init__(self, native: _Runner, other: _Runner, truth: _Runner, tolerance: float) -> None:
        self.native, self.other, self.truth, self.tolerance = native, other, truth, tolerance
        self.rows: list[Row] = []
        self.flipped = False
        self.floor = 0.0
        self.repeated: dict[Any, _Replay | None] = {}
        self.rulings: dict[Any, _Ruling | None] = {}
        self.apart: dict[Any, _Apart] = {}
        self.chains: list[list[str]] = []
        """The layers that the network computes as one, by their names, where nobody watches them."""
        self.tiers = {name: tiers.tier(module) for name, module in other.named()}
        self.twins = {name: type(module) for name, module in other.named() if type(module) is not native_type(module)}
        self.owners = {
            id(parameter): (name, key)
            for name, module in other.net.named_modules()
            for key, parameter in module._parameters.items()
            if parameter is not None
        }

    # -- a step

    def step(self, step: int) -> None:
        """Forward in the order of the calls, backward in the opposite one."""
        self.repeated.clear()
        self.rulings.clear()
        self.apart.clear()
        triples = list(zip(self.native.calls, self.other.calls, self.truth.calls, strict=True))
        gradients = [parameter.grad for parameter in self.truth.net.parameters() if parameter.grad is not None]
        gradients += [gradient for call in self.truth.calls for gradient in call.grad_inputs.values()]
        largest = max((gradient.abs().max().item() for gradient in gradients if gradient.numel()), default=0.0)
        # What is pure rounding, such as the gradient of a bias before a normalisation, has no scale of its own.
        self.floor = torch.finfo(self.native.dtype).eps * largest
        for call in self.other.calls:
            if self.tiers[call.name] == "fast":
                self.apart |= self._between_tiers(call)
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
            for key, parameter in b.module._parameters.items():
                if parameter is not None and id(parameter) in parameters:
                    grads = parameters.pop(id(parameter))
                    self._judge(step, (a, b), f"gradient of {key}", grads, ("parameter", key))
        for identity, grads in parameters.items():
            name, key = self.owners[identity]
            self._judge(step, _nobody(name), f"gradient of {key}", grads, None)

    def updated(self, step: int) -> None:
        """The parameters after the optimizer's step."""
        for native, other, truth in zip(*(runner.net.parameters() for runner in self._runners), strict=True):
            name, key = self.owners[id(other)]
            # Beside the optimizer, which is torch's in both, who changes a parameter is at fault.
            changed = (id(native) in self.native.changed, id(other) in self.other.changed)
            wrong = (changed[0] and not changed[1], changed[1] and not changed[0])
            self._judge(step, _nobody(name), f"{key} after the step", (native, other, truth), None, wrong=wrong)

    def chained(self, step: int) -> None:
        """The chains against the formulas of their layers, from the inputs and upstream gradients of this step."""
        for chain in tiers.chains_in(self.other.calls, self.chains):
            for row in chain.differences(relative_error, self._exact_floor()):
                verdict = "follows" if row.verdict == "fault" and self.faults() else row.verdict
                numbers = (row.error, row.where, row.of_formula, row.of_chain, 0)
                self.rows.append(
                    Row(step, row.layer, 0, row.what, *numbers, verdict, tier="fast", tiers=row.error, of=row.of)
                )

    def _exact_floor(self) -> float:
        """The floor of gradients in float64."""
        return 1e-5 * self.floor / torch.finfo(self.native.dtype).eps

    def whole(self, runner: _Runner, watched: Callable[[], _Runner]) -> None:
        """The network as it trains, which no hook keeps from computing layers together, in float64.

        Where it is off by more than a well-conditioned network could be, the layers are judged one by one in float64;
        if they are right, the distance that they reach in a row is how much this network amplifies rounding.
        """
        floor = self._exact_floor()
        in_a_row: list[nn.Parameter] = []
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
                if not in_a_row:
                    other = watched()
                    self._layers_in_float64(other)
                    in_a_row = list(other.net.parameters())
                gradient = in_a_row[index].grad
                amplified = 0.0 if gradient is None else relative_error(gradient, expected, floor)[0]
                faulty = not error <= _OWN_ROUNDING * amplified
                verdict = "follows" if self.faults() else "fault" if faulty else "rounding"
            native_off, other_off = (math.nan, math.nan) if self._torch_is_wrong() else (amplified, error)
            self.rows.append(Row(0, WHOLE, 0, what, error, where, native_off, other_off, 0, verdict))

    def _layers_in_float64(self, other: _Runner) -> None:
        layers = _Comparison(self.truth, other, self.truth, TOLERANCE[torch.float64])
        layers.step(0)
        self.rows += [replace(row, what=f"{row.what} in float64") for row in layers.faults()]

    # -- one tensor

    def _judge(
        self,
        step: int,
        calls: tuple[_Call, _Call],
        what: str,
        values: Sequence[Tensor | None],
        local: _Local | None,
        flips: int = 0,
        wrong: tuple[bool, bool] = (False, False),
    ) -> None:
        """Compare what two calls gave. ``wrong``: which of them is known to be wrong, where there is no ``local``."""
        floor = self.floor if "gradient" in what else 0.0
        call = calls[1]
        native, other, truth = values
        if native is None and other is None:
            return
        error, native_off, other_off = math.inf, math.nan, math.nan
        where: Where = ()
        explained = "undecided"
        if native is not None and other is not None and truth is not None:
            error, where = relative_error(other, native, floor)
            native_off, other_off = (relative_error(value, truth, floor)[0] for value in (native, other))
            explained = "follows" if self.faults() else "flip" if self.flipped else "rounding"
        kinds = {value.dtype for value in (native, other) if value is not None}
        verdict, why, runs = "flip" if flips else "equal", "", ""
        if not error <= self.tolerance or len(kinds) > 1:
            found = [_Found(known) for known in wrong]
            if local is not None:
                parties = zip((self.native, self.other), calls, (native, other), strict=True)
                found = [self._examine(runner, each, value, local, floor) for runner, each, value in parties]
            if len(kinds) > 1 and call.name in self.twins:  # the wrong dtype is a fault, whatever the numbers
                pairs = zip(found, (native, other), strict=True)
                found = [
                    replace(each, wrong=each.wrong or (value is not None and value.dtype != self.other.dtype))
                    for each, value in pairs
                ]
            verdict = self._blame(call, *(each.wrong for each in found)) or explained
            if verdict in FAULTS and local is not None:
                runs = _name(native_type(call.module))
                why = next((each.why for each in found if each.why and each.wrong is not False), "")
                native_off, other_off = (each.off for each in found)
            if verdict == "follows" and self._torch_is_wrong():
                native_off = other_off = math.nan  # float64, too, is torch's
        tier, apart = self.tiers.get(call.name, ""), self._apart(call, local)
        of = apart.of
        if of and verdict not in FAULTS:
            verdict, why, error, where = "fault", apart.why, apart.error, apart.where
            native_off, other_off = apart.of_formula, apart.of_fast
        elif verdict in ("fault", "both at fault") and tier:
            of = of or ("formula" if tier != "fast" else self._of_own_dtype(call, local))
        self.rows.append(
            Row(
                *(step, call.name, call.index, what, error, where, native_off, other_off, flips, verdict, why, runs),
                tier=tier,
                tiers=apart.error,
                of=of,
            )
        )

    # -- one layer in both tiers

    def _between_tiers(self, call: _Call, dtype: torch.dtype = torch.float64) -> "dict[Any, _Apart]":
        """All results of a call by its fast functions and by its formulas, and which is wrong where they differ."""
        kind, exact = type(call.module), dtype == torch.float64
        fast, formula = (_Replay(call, kind, dtype, formulas=formulas) for formulas in (False, True))
        places: list[tuple[str, Any]] = [("outputs", index) for index in range(len(fast.alone.outputs))]
        places += [("after", key) for key in fast.alone.after]
        places += [("parameter" if isinstance(key, str) else "grad_inputs", key) for key in fast.point]
        found = {}
        for place in places:
            a, b = fast.alone.get(*place), formula.alone.get(*place)
            if a is None or b is None:
                continue
            floor = (self._exact_floor() if exact else self.floor) if place[0] in ("parameter", "grad_inputs") else 0.0
            error, where = relative_error(a, b, floor)
            of, why, offs = "", "", (math.nan, math.nan)
            if not error <= (tiers.TOLERANCE if exact else self.tolerance):
                rounding = self._amplified(fast, *place, floor, torch.float32) if exact else 0.0
                if not error <= _OWN_ROUNDING * rounding * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps:
                    of, why, offs = self._of_tiers(call, place, a, b, floor)
            found[id(call), *place] = _Apart(error, where, of, why, *offs)
        return found

    def _of_tiers(
        self, call: _Call, place: tuple[str, Any], fast: Tensor, formula: Tensor, floor: float
    ) -> tuple[str, str, tuple[float, float]]:
        """Which of two tiers is wrong: that which torch, in float64, does not agree with; and their distances to it."""
        native = self._repeat(call, native_type(call.module), torch.float64)
        third = None if native is None else native.alone.get(*place)
        if third is None:
            return "formula or fast function", "torch has no third result", (math.nan, math.nan)
        of_formula, of_fast = (relative_error(value, third, floor)[0] for value in (formula, fast))
        of = tiers.wrong(of_fast, of_formula, "fast function")
        agrees = {"formula": "the fast function", "fast function": "the formula"}.get(of, "neither")
        return of, f"of three float64 results torch's agrees with {agrees}", (of_formula, of_fast)

    def _apart(self, call: _Call, local: _Local | None) -> "_Apart":
        """How far the tiers are apart in a result; of a parameter that several calls use, the worst."""
        if local is None:
            return _Apart()
        found = [
            self.apart.get((id(user), local[0], key), _Apart()) for user, key in self._users(self.other, call, local)
        ]
        return max(found, key=lambda each: (bool(each.of), -1.0 if math.isnan(each.error) else each.error))

    def _of_own_dtype(self, call: _Call, local: _Local | None) -> str:
        """Which tier is at fault in the precision of the run, where in float64 both agree."""
        if local is None or self.other.dtype == torch.float64:
            return ""
        users = self._users(self.other, call, local)
        found = [self._between_tiers(user, self.other.dtype).get((id(user), local[0], key)) for user, key in users]
        return next((each.of for each in found if each is not None and each.of), "")

    def _users(self, runner: _Runner, call: _Call, local: _Local) -> list[tuple[_Call, Any]]:
        """The calls that a result comes from, with its name there: for a parameter all that use it."""
        kind, key = local
        if kind != "parameter":
            return [(call, key)]
        parameter = call.module._parameters[key]
        return [
            (other, name)
            for other in runner.calls
            for name, value in other.module._parameters.items()
            if value is parameter
        ]

    def _blame(self, call: _Call, native: bool | None, other: bool | None) -> str:
        """The verdict on two copies of which each is wrong, right or (None) unsettled; empty where both are right."""
        if native and other:
            return "both at fault" if call.name in self.twins else "fault of torch"  # which both run
        if native or other:
            return "fault" if other and call.name in self.twins else "fault of torch"
        return "undecided" if native is None or other is None else ""

    def _torch_is_wrong(self) -> bool:
        return any(row.verdict in ("fault of torch", "both at fault") for row in self.rows)

    def _examine(self, runner: _Runner, call: _Call, found: Tensor | None, local: _Local, floor: float) -> "_Found":
        """Whether a copy gave something else than is right for the inputs that this very layer had in it."""
        kind, _ = local
        dtype = runner.dtype
        users = self._users(runner, call, local)
        rulings = [self._rule(other, kind, name, floor) for other, name in users]
        if any(ruling is None for ruling in rulings):
            return _Found(None if call.name in self.twins else False, why="the layer does not run alone in float64")
        settled = [ruling for ruling in rulings if ruling is not None]
        lost = next((ruling for ruling in settled if ruling.value is None), None)
        if lost is not None:
            return _Found(True if lost.right == "neither" else None, why=lost.why)
        right = sum((value for ruling in settled if (value := ruling.value) is not None), start=torch.zeros(()))
        error = relative_error(torch.zeros_like(right) if found is None else found, right, floor)[0]
        why = next((ruling.why for ruling in settled if ruling.right != "both"), settled[0].why)
        if error <= self.tolerance:
            return _Found(False, error, why)
        # No format is finer than float64. There the rounding of float32 tells, scaled down.
        coarse = torch.float32 if dtype == torch.float64 else dtype
        rounding = max(
            self._amplified(self._two(other)[ruling.right == "second"], kind, name, floor, coarse)
            for ruling, (other, name) in zip(settled, users, strict=True)
        )
        if runner is self.other:
            rounding = min(rounding, self._torch_rounds(users, kind, right, floor, coarse))
        rounding *= torch.finfo(dtype).eps / torch.finfo(coarse).eps
        return _Found(not error <= max(self.tolerance, _OWN_ROUNDING * rounding), error, why)

    def _torch_rounds(
        self, users: list[tuple[_Call, Any]], kind: str, right: Tensor, floor: float, coarse: torch.dtype
    ) -> float:
        """How far the native layers' own rounding in ``coarse`` takes them."""
        rounded = torch.zeros(())
        for call, name in users:
            replay = self._repeat(call, native_type(call.module), coarse)
            value = None if replay is None else replay.alone.get(kind, name)
            rounded = rounded + (torch.zeros_like(right) if value is None else value.double())
        return relative_error(rounded, right, floor)[0]

    def _amplified(self, replay: "_Replay | None", kind: str, key: Any, floor: float, coarse: torch.dtype) -> float:
        """How far rounding of the inputs in ``coarse`` takes the exact result."""
        exact = None if replay is None else replay.alone.get(kind, key)
        if replay is None or exact is None:
            return 0.0
        worst = 0.0
        for seed in (1, 2):
            point = {name: _rounded(x, seed, coarse) for name, x in replay.point.items()}
            upstream = {index: _rounded(x, seed, coarse) for index, x in replay.upstream.items()}
            moved = replay.run(point, upstream).get(kind, key)
            worst = max(worst, 0.0 if moved is None else relative_error(moved, exact, floor)[0])
        return worst

    # -- what is right for the inputs of a call

    def _rule(self, call: _Call, kind: str, key: Any, floor: float) -> "_Ruling | None":
        """The right value of one result in float64; None where the layer can't be computed alone."""
        place = (id(call), kind, key)
        if place not in self.rulings:
            first, second = self._two(call)
            self.rulings[place] = None if first is None else self._ruling(first, second, kind, key, floor)
        return self.rulings[place]

    def _ruling(self, first: _Replay, second: "_Replay | None", kind: str, key: Any, floor: float) -> "_Ruling":
        a = first.alone.get(kind, key)
        b = a if second is None else second.alone.get(kind, key)
        if a is None and b is None:
            a = b = torch.zeros_like(first.point[key])
        a, b = (torch.zeros_like(other) if x is None and other is not None else x for x, other in ((a, b), (b, a)))
        assert a is not None
        assert b is not None
        apart = max(relative_error(a, b, floor)[0], relative_error(b, a, floor)[0])
        agreed = _Ruling(a, "both", "two float64 results agree")
        if second is None or apart <= self.tolerance / 10:
            return agreed
        rounding = self._amplified(first, kind, key, floor, torch.float32)
        if apart <= _OWN_ROUNDING * rounding * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps:
            return agreed
        values = {"first": a, "second": b}
        if kind in ("outputs", "after"):
            with torch.no_grad(), Elementary() as elementary:
                outputs, after = first.forward(first.point)
            if not elementary.is_second_opinion:
                return _Ruling(None, "unclear", "torch's side is not made of torch's operators, so there is no third")
            right = judge.of_forwards(a, b, outputs[key] if kind == "outputs" else after[key])
            why = "of three float64 results that by elementary tensor operations agrees with "
            why += {"first": "torch's", "second": "the layer's"}.get(right, "neither")
            return _Ruling(values.get(right), right, why)
        forwards = [self._rule(first.call, "outputs", index, 0.0) for index in range(len(first.alone.outputs))]
        lost = [ruling.right for ruling in forwards if ruling is not None and ruling.right != "both"]
        right, beside = judge.of_backwards(first.party(), second.party(), key)
        why = "central differences in float64 of each one's own forward"
        if right == "both" and lost:  # each is the gradient of its own forward, and one of those is wrong
            right = lost[0]
        elif right == "both" and beside and not all(torch.isfinite(x).all() for x in first.point.values()):
            return _Ruling(None, "unclear", "they differ at numbers alone that are not finite")
        elif right == "both" and beside:
            return _Ruling(a, "first", "they differ at tied inputs alone, where torch's choice is the rule")
        elif right in values and lost and right != lost[0]:
            right = "neither"
        if right not in values:
            why += {"neither": " agree with neither", "both": " agree with both"}.get(right, " don't settle")
        return _Ruling(values.get(right), "unclear" if right == "both" else right, why)

    def _two(self, call: _Call) -> "tuple[_Replay | None, _Replay | None]":
        """The call in float64 by torch's layer, and by a second implementation."""
        native, twin = native_type(call.module), self.twins.get(call.name)
        if twin is None and not native.__module__.startswith(("torch.", "torchvision.")):
            return None, None  # both copies run it, and who knows what state it has
        first = self._repeat(call, native, torch.float64)
        second = self._repeat(call, twin or LAYERS.get(native, native), torch.float64)
        if twin is None and (second is None or second is first):
            second = self._repeat(call, native, torch.float64, contiguous=True)
        return first, second

    def _repeat(
        self, call: _Call, kind: type[nn.Module], dtype: torch.dtype, *, contiguous: bool = False
    ) -> "_Replay | None":
        key = (id(call), kind, dtype, contiguous)
        if key not in self.repeated:
            try:
                self.repeated[key] = _Replay(call, kind, dtype, contiguous=contiguous)
            except Exception:  # a layer of anybody's, in another precision, may raise anything
                self.repeated[key] = None
        return self.repeated[key]

    def _parameters(self) -> dict[int, Sequence[Tensor | None]]:
        triples = zip(*(runner.net.parameters() for runner in self._runners), strict=True)
        return {
            id(other): (native.grad, other.grad, truth.grad) for native, other, truth in triples if other.requires_grad
        }

    @property
    def _runners(self) -> tuple[_Runner, _Runner, _Runner]:
        return self.native, self.other, self.truth

    def faults(self) -> list[Row]:
        """The rows so far where one is wrong."""
        return [row for row in self.rows if row.verdict in FAULTS]


@dataclass(frozen=True)
class _Found:
    """Whether a copy is wrong (None: who knows), how far it is from the right value, and how that was judged."""

    wrong: bool | None
    off: float = math.nan
    why: str = ""


@dataclass(frozen=True)
class _Apart:
    """How far two tiers are apart in one result, which is at fault, and how far each is from torch in float64."""

    error: float = math.nan
    where: Where = ()
    of: str = ""
    why: str = ""
    of_formula: float = math.nan
    of_fast: float = math.nan


@dataclass(frozen=True)
class _Ruling:
    """The right value of a result, None where neither implementation has it; and which one has it."""

    value: Tensor | None
    right: judge.Right
    why: str


def _rounded(x: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
    """``x``, each number off by up to the rounding of ``dtype``; equal numbers stay equal, in the same memory order."""
    noise = torch.cos(x * 12345678.9 + seed)
    return x.detach().clone().addcmul_(noise, x, value=torch.finfo(dtype).eps)


def _name(kind: type[nn.Module]) -> str:
    short = getattr(nn, kind.__name__, None) is kind
    return f"torch.nn.{kind.__name__}" if short else f"{kind.__module__}.{kind.__qualname__}"


def _nobody(name: str) -> tuple[_Call, _Call]:
    """Stands for a layer where no call is at stake."""
    call = _Call(name, 0, None, (), {}, {}, [], True)
    return call, call


# ---- what rounding may turn over


def _flips(a: _Call, b: _Call) -> int:
    """How many signs of a ReLU-like layer, or choices of a max-pooling, differ between two calls."""
    kind = native_type(b.module)
    entry = catalog.entries().get(kind)
    if entry is not None and entry.kinks:
        x, y = a.arguments[0], b.arguments[0]
        return sum(int(((x > kink) != (y > kink)).sum()) for kink in entry.kinks)
    if entry is not None and entry.choices is not None:
        choose = entry.choices
        x, y = (choose(call.module, call.arguments[0]) for call in (a, b))
        return int((x != y).sum())
    return 0
