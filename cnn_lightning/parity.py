"""Two implementations of one network side by side, layer by layer, and which of them is wrong where they differ.

Three copies take the same steps from equal weights on equal batches: torch's layers, the layers under test, and torch
in float64, which counts as the truth. Everything a layer sees and says is kept: outputs, the gradients of its inputs
and parameters, its buffers, and the parameters after each step of the optimizer.

Where two results differ by more than the tolerance, that layer alone is computed again by torch, in both precisions,
from the very inputs and upstream gradients which the layer under test had. If it agrees with that, it only carries on a
difference that was there before: rounding, amplified perhaps, or a ReLU or max-pool whose inputs were so nearly tied
that rounding chose the other side. If it does not, the fault is its own.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cnn_lightning.model import total_loss
from cnn_lightning.swap import Spec, SwapReport, native_type, swap_layers

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The relative error beyond which a difference must be explained, per precision."""

WHOLE = "(network)"
"""The name under which the network stands as it trains, without anybody watching its layers."""

_WHOLE_TOLERANCE = 1e-6
_PART = 2**20
"""So many numbers of a tensor are compared at a time: VGG has 100 million weights in a layer."""
_OWN_ROUNDING = 10.0
"""What is this many times further from the truth than torch's own rounding takes it is a fault."""

Batch = tuple[Tensor, Tensor]
Tick = Callable[[str], None]
Where = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One comparison: the largest relative error of a tensor, and where in it.

    ``error`` is between the two implementations, ``native`` and ``other`` are each one's own distance from float64.
    ``what`` is ``output``, ``gradient of input``, ``gradient of NAME``, ``buffer NAME`` or ``NAME after the step``;
    ``verdict`` is ``equal``, ``rounding``, ``flip``, ``follows`` (an earlier fault) or ``fault``.
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

    @property
    def first(self) -> Row | None:
        """The first layer and pass that is wrong by more than rounding."""
        return next((row for row in self.rows if row.verdict == "fault"), None)

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
    judge = _Judge(native, other, truth, TOLERANCE[dtype] if tolerance is None else tolerance, lr, momentum)
    losses: list[dict[str, float]] = []

    def in_float64(*, watch: bool) -> _Runner:
        runner = _Runner(net, layers, loss, torch.float64, lr, momentum, watch=watch)
        runner.backward(batches[0], seed)
        return runner

    for step, batch in enumerate(batches):
        values = {}
        for name, runner in (("torch", native), ("layers", other), ("float64", truth)):
            values[name] = runner.backward(batch, seed + step)
            tick(f"step {step + 1}: {name}")
        losses.append(values)
        judge.step(step)
        if step == 0:
            judge.whole(in_float64(watch=False), lambda: in_float64(watch=True))
        for runner in (native, other, truth):
            runner.update()
        judge.updated(step)
    tick("done")
    return Parity(judge.rows, other.report, str(dtype).removeprefix("torch."), judge.tolerance, len(batches), losses)


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
        if self.optimizer is not None:
            self.optimizer.step()

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


@dataclass
class _Alone:
    """What torch's layer makes of a recorded call."""

    outputs: list[Tensor]
    after: dict[str, Tensor]
    grad_inputs: dict[int, Tensor]
    grad_parameters: dict[str, Tensor]


def _alone(call: _Call, dtype: torch.dtype) -> _Alone:
    """The recorded call of a layer, repeated by its native type in ``dtype``."""

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    source = call.module
    module: Any = object.__new__(native_type(source))
    module.__dict__ = dict(source.__dict__) | {"training": call.training, "_backward_hooks": {}}
    for key in [key for key in module.__dict__ if key.endswith(("_hooks", "_hooks_with_kwargs"))]:
        module.__dict__[key] = type(source.__dict__[key])() if key in source.__dict__ else {}
    module._parameters = {
        key: None if value is None else cast(value.detach()).clone().requires_grad_()
        for key, value in source._parameters.items()
    }
    module._buffers = {
        key: None if value is None else cast(call.buffers[key]).clone() for key, value in source._buffers.items()
    }
    arguments = [
        cast(value).clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in call.arguments
    ]
    inside = torch.device("cuda") if len(call.randomness) > 1 else None
    with torch.random.fork_rng([torch.cuda.current_device()] if inside else []), torch.enable_grad():
        torch.set_rng_state(call.randomness[0])
        if inside:
            torch.cuda.set_rng_state(call.randomness[1])
        given = [value * 1 if isinstance(value, Tensor) and value.requires_grad else value for value in arguments]
        outputs = _tensors(module(*given, **call.keywords))
    parameters = {key: value for key, value in module._parameters.items() if value is not None}
    leaves = [(index, value) for index, value in enumerate(arguments) if isinstance(value, Tensor)]
    leaves = [(index, value) for index, value in leaves if value.requires_grad]
    upstream = [(output, call.grad_outputs.get(index)) for index, output in enumerate(outputs)]
    reached = [(output, cast(gradient)) for output, gradient in upstream if gradient is not None]
    gradients: Sequence[Tensor | None] = ()
    if reached and (leaves or parameters):
        gradients = torch.autograd.grad(
            [output for output, _ in reached],
            [*(value for _, value in leaves), *parameters.values()],
            [gradient for _, gradient in reached],
            allow_unused=True,
        )
    keys: list[Any] = [*(index for index, _ in leaves), *parameters]
    found = {key: gradient for key, gradient in zip(keys, gradients, strict=False) if gradient is not None}
    return _Alone(
        [output.detach() for output in outputs],
        {key: value for key, value in module._buffers.items() if value is not None},
        {key: gradient for key, gradient in found.items() if isinstance(key, int)},
        {key: gradient for key, gradient in found.items() if isinstance(key, str)},
    )


# ---- the judge


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


class _Judge:
    """Compares three runners after each step."""

    def __init__(
        self, native: _Runner, other: _Runner, truth: _Runner, tolerance: float, lr: float, momentum: float
    ) -> None:
        self.native, self.other, self.truth, self.tolerance = native, other, truth, tolerance
        self.lr, self.momentum = lr, momentum
        self.drift: dict[int, tuple[float, float]] = {}
        self.rows: list[Row] = []
        self.flipped = False
        self.floor = 0.0
        self.repeated: dict[tuple[int, torch.dtype], _Alone] = {}
        self.swapped = {id(module) for _, module in other.named() if type(module) is not native_type(module)}
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
        triples = list(zip(self.native.calls, self.other.calls, self.truth.calls, strict=True))
        gradients = [parameter.grad for parameter in self.truth.net.parameters() if parameter.grad is not None]
        gradients += [gradient for call in self.truth.calls for gradient in call.grad_inputs.values()]
        largest = max((gradient.abs().max().item() for gradient in gradients if gradient.numel()), default=0.0)
        # What is pure rounding, such as the gradient of a bias before a normalisation, has no scale of its own.
        self.floor = torch.finfo(self.native.dtype).eps * largest
        for a, b, c in triples:
            flips = _flips(a, b)
            self.flipped |= flips > 0
            for index, output in enumerate(b.outputs):
                what = "output" if not index else f"output {index}"
                self._judge(step, b, what, (a.outputs[index], output, c.outputs[index]), ("outputs", index), flips)
                flips = 0
            for key, buffer in b.after.items():
                self._judge(step, b, f"buffer {key}", (a.after[key], buffer, c.after[key]), ("after", key))
        parameters = self._parameters()
        for a, b, c in reversed(triples):
            for index in b.grad_inputs:
                found = [call.grad_inputs.get(index) for call in (a, b, c)]
                name = "gradient of input" if not index else f"gradient of input {index}"
                self._judge(step, b, name, found, ("grad_inputs", index))
            for key, parameter in b.module._parameters.items():
                if parameter is not None and id(parameter) in parameters:
                    self._judge(step, b, f"gradient of {key}", parameters.pop(id(parameter)), ("parameter", parameter))
        for identity, grads in parameters.items():
            name, key = self.owners[identity]
            self._judge(step, _nobody(name), f"gradient of {key}", grads, None)

    def updated(self, step: int) -> None:
        """The parameters after the optimizer's step."""
        for native, other, truth in zip(*(runner.net.parameters() for runner in self._runners), strict=True):
            name, key = self.owners[id(other)]
            # The step is linear in the gradients: their differences, added up, are all that may be between the copies.
            velocity, distance = self.drift.get(id(other), (0.0, 0.0))
            if native.grad is not None and other.grad is not None:
                velocity = self.momentum * velocity + _farthest(other.grad, native.grad)[0]
                distance += self.lr * velocity
                self.drift[id(other)] = velocity, distance
            difference, _, size = _farthest(other, native)
            own = not difference <= distance + self.tolerance * size
            self._judge(step, _nobody(name), f"{key} after the step", (native, other, truth), None, own=own)

    def whole(self, runner: _Runner, watched: Callable[[], _Runner]) -> None:
        """The network as it trains, which no hook keeps from computing layers together, in float64.

        Where it is off by more than a well-conditioned network could be, the layers are judged one by one in float64;
        if they are right, the distance that they reach in a row is how much this network amplifies rounding.
        """
        floor = 1e-5 * self.floor / torch.finfo(self.native.dtype).eps
        in_a_row: list[nn.Parameter] = []
        pairs = zip(runner.net.named_parameters(), self.truth.net.parameters(), strict=True)
        for index, ((name, ours), true) in enumerate(pairs):
            found, expected = ours.grad, true.grad
            what = f"gradient of {name} in float64"
            if found is None or expected is None:
                if found is not expected:
                    self.rows.append(Row(0, WHOLE, 0, what, math.inf, (), 0, math.inf, 0, "fault"))
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
                verdict = "follows" if self._faulty() else "fault" if faulty else "rounding"
            self.rows.append(Row(0, WHOLE, 0, what, error, where, amplified, error, 0, verdict))

    def _layers_in_float64(self, other: _Runner) -> None:
        judge = _Judge(self.truth, other, self.truth, TOLERANCE[torch.float64], self.lr, self.momentum)
        judge.step(0)
        self.rows += [replace(row, what=f"{row.what} in float64") for row in judge.rows if row.verdict == "fault"]

    # -- one tensor

    def _judge(
        self,
        step: int,
        call: _Call,
        what: str,
        values: Sequence[Tensor | None],
        local: tuple[str, Any] | None,
        flips: int = 0,
        own: bool = False,
    ) -> None:
        floor = self.floor if "gradient" in what else 0.0
        if any(value is None for value in values):
            missing = not all(value is None for value in values)
            if missing:
                self.rows.append(Row(step, call.name, call.index, what, math.inf, (), 0, math.inf, 0, "fault"))
            return
        native, other, truth = (value for value in values if value is not None)
        error, where = relative_error(other, native, floor)
        native_off, other_off = (relative_error(value, truth, floor)[0] for value in (native, other))
        verdict = "equal"
        if flips:
            verdict = "flip"
        if not error <= self.tolerance or other.dtype != native.dtype:
            explained = "follows" if self._faulty() else "flip" if self.flipped else "rounding"
            faulty = own if local is None else id(call.module) in self.swapped and self._own_fault(call, local, floor)
            faulty |= other.dtype != native.dtype and id(call.module) in self.swapped
            verdict = "fault" if faulty else explained
        self.rows.append(Row(step, call.name, call.index, what, error, where, native_off, other_off, flips, verdict))

    def _own_fault(self, call: _Call, local: tuple[str, Any], floor: float) -> bool:
        """Whether the layer differs from torch's own with the same inputs, by more than torch's own rounding."""
        kind, key = local
        dtype = self.other.dtype
        # No format is finer than float64. There the rounding of float32 tells, scaled down.
        coarse = torch.float32 if dtype == torch.float64 else dtype
        if kind == "parameter":
            found, none = key.grad, torch.zeros_like(key, dtype=torch.float64)
            users = [
                (other, name)
                for other in self.other.calls
                for name, parameter in other.module._parameters.items()
                if parameter is key
            ]
            exact, rounded = (
                sum(
                    (self._repeat(other, precision).grad_parameters.get(name, none).double() for other, name in users),
                    start=none,
                )
                for precision in (torch.float64, coarse)
            )
        else:
            found = getattr(call, kind)[key]
            exact, rounded = (
                getattr(self._repeat(call, precision), kind)[key] for precision in (torch.float64, coarse)
            )
        error = relative_error(found, exact, floor)[0]
        rounding = relative_error(rounded, exact, floor)[0] * torch.finfo(dtype).eps / torch.finfo(coarse).eps
        return not error <= max(self.tolerance, _OWN_ROUNDING * rounding)

    def _repeat(self, call: _Call, dtype: torch.dtype) -> _Alone:
        key = (id(call), dtype)
        if key not in self.repeated:
            self.repeated[key] = _alone(call, dtype)
        return self.repeated[key]

    def _parameters(self) -> dict[int, Sequence[Tensor | None]]:
        triples = zip(*(runner.net.parameters() for runner in self._runners), strict=True)
        return {
            id(other): (native.grad, other.grad, truth.grad) for native, other, truth in triples if other.requires_grad
        }

    @property
    def _runners(self) -> tuple[_Runner, _Runner, _Runner]:
        return self.native, self.other, self.truth

    def _faulty(self) -> bool:
        return any(row.verdict == "fault" for row in self.rows)


def _nobody(name: str) -> _Call:
    """Stands for a layer where no call is at stake."""
    return _Call(name, 0, None, (), {}, {}, [], True)


# ---- what rounding may turn over


def _flips(a: _Call, b: _Call) -> int:
    """How many signs of a ReLU-like layer, or choices of a max-pooling, differ between two calls."""
    kind = native_type(b.module)
    if kind in _KINKS:
        x, y = a.arguments[0], b.arguments[0]
        return sum(int(((x > kink) != (y > kink)).sum()) for kink in _KINKS[kind])
    choices = _CHOICES.get(kind)
    if choices is not None:
        x, y = (choices(call.module, call.arguments[0]) for call in (a, b))
        return int((x != y).sum())
    return 0


_KINKS: dict[type[nn.Module], tuple[float, ...]] = {
    nn.ReLU: (0,),
    nn.ReLU6: (0, 6),
    nn.LeakyReLU: (0,),
    nn.PReLU: (0,),
    nn.Hardswish: (-3, 3),
    nn.Hardsigmoid: (-3, 3),
}


def _pool_choices(pool: Callable[..., Any]) -> Callable[[Any, Tensor], Tensor]:
    def choices(module: Any, x: Tensor) -> Tensor:
        options = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        found: Tensor = pool(x, *options, return_indices=True)[1]
        return found

    return choices


def _adaptive_choices(module: Any, x: Tensor) -> Tensor:
    found: Tensor = functional.adaptive_max_pool2d(x, module.output_size, return_indices=True)[1]
    return found


_CHOICES: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.MaxPool1d: _pool_choices(functional.max_pool1d),
    nn.MaxPool2d: _pool_choices(functional.max_pool2d),
    nn.AdaptiveMaxPool2d: _adaptive_choices,
}
