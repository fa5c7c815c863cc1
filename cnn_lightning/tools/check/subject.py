"""The layer that is graded: copies of it and of its inputs, and one forward and backward."""

import copy
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cnn_lightning.tools import judge

Call = Callable[..., Any]


REFUSALS = (RuntimeError, ValueError, AssertionError)
"""What a layer raises for numbers outside of its domain."""


class Skip(Exception):
    """A rule does not apply; the message is the reason."""


@dataclass
class Run:
    """Outputs, and the gradients for a fixed upstream gradient, by the names of inputs and parameters."""

    outputs: list[Tensor]
    upstream: list[Tensor]
    gradients: dict[str, Tensor | None] = field(default_factory=dict)


class Subject:
    """The layer that is graded: every rule takes its copies of module and inputs from here."""

    def __init__(
        self,
        module: torch.nn.Module,
        inputs: tuple[Any, ...],
        reference: Call | None,
        surrogate: Call | None = None,
    ) -> None:
        self.module = module
        self.raw = inputs
        self.reference = reference
        self.surrogate = surrogate
        self.dtype = next(value.dtype for value in inputs if is_float(value))

    def copy(self, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
        """The module again, in ``dtype``."""
        return copy.deepcopy(self.module).to(dtype)

    def twin(self, module: torch.nn.Module, dtype: torch.dtype = torch.float64) -> Call:
        """The reference with the parameters, buffers and mode of ``module``."""
        if self.reference is None:
            raise Skip("no reference was given")
        return self._with_state_of(module, self.reference, dtype)

    def declared(self, function: Call) -> Call:
        """What a backward of ``function`` must be the gradient of: its surrogate with its parameters, else itself."""
        if self.surrogate is None:
            return function
        return self._with_state_of(function if isinstance(function, torch.nn.Module) else self.copy(), self.surrogate)

    def _with_state_of(self, module: torch.nn.Module, other: Call, dtype: torch.dtype = torch.float64) -> Call:
        if not isinstance(other, torch.nn.Module):
            return other
        device = next(value.device for value in self.raw if is_float(value))
        twin = copy.deepcopy(other).to(device, dtype).train(module.training)
        if twin.state_dict():  # a surrogate may have none
            twin.load_state_dict(module.state_dict())
        return twin

    def inputs(self, dtype: torch.dtype = torch.float64, *, moved: bool = True) -> tuple[Any, ...]:
        """New copies of the inputs, floats in ``dtype``, moved away from kinks and ties if the outputs stay finite.

        Those at the limits of what the layer takes (targets 0 and 1, say) move inwards.
        """
        plain = tuple(converted(value, dtype) for value in self.raw)
        for scale in (1.0, 0.95) if moved else ():
            generator = torch.Generator().manual_seed(7)
            result = tuple(_moved(value, scale, generator) if is_float(value) else value for value in plain)
            try:
                outputs = call(self.copy(dtype), result)
            except REFUSALS:
                continue
            else:
                return result if all(torch.isfinite(output).all() for output in outputs) else plain
        return plain

    def refuses(self, inputs: tuple[Any, ...]) -> bool:
        """Whether neither the layer nor the reference takes ``inputs``, which may be outside of their domain."""
        dtype = next(value.dtype for value in inputs if is_float(value))
        module = self.copy(dtype)
        if not _raises(module, inputs):
            return False
        return self.reference is None or _raises(self.twin(module, dtype), inputs)

    def like(self, make: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
        """The inputs in float64, with ``make`` applied to the float tensors."""
        return tuple(make(value) if is_float(value) else value for value in self.inputs(moved=False))

    def agrees(self) -> bool:
        """Whether outputs and gradients equal the reference's in float64, away from ties and special numbers."""
        module, inputs = self.copy(), self.inputs()
        found, expected = propagate(self, module, inputs), propagate(self, self.twin(module), inputs)
        return len(found.outputs) == len(expected.outputs) and not differences(found, expected, 1e-9)

    def is_random(self) -> bool:
        """Whether the output depends on torch's random state."""
        module, inputs = self.copy(), self.inputs()
        return any(distance(a, b) > 0 for a, b in zip(call(module, inputs), call(module, inputs, seed=1), strict=True))

    def name(self, index: int) -> str:
        """The name that the forward gives its input ``index``."""
        names = [
            parameter.name
            for parameter in inspect.signature(self.module.forward).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_POSITIONAL
        ]
        return f"input {names[index]!r}" if index < len(names) else f"input {index}"


def is_float(value: Any) -> bool:
    """Whether ``value`` is a tensor that can have a gradient."""
    return isinstance(value, Tensor) and value.is_floating_point()


def kind_of(value: Any) -> str:
    """The type of ``value``, for messages."""
    return f"a value of type {type(value).__name__}"


def converted(value: Any, dtype: torch.dtype) -> Any:
    """A copy of ``value``, in ``dtype`` if it is a float tensor."""
    if isinstance(value, Tensor):
        return value.detach().to(dtype if value.is_floating_point() else value.dtype, copy=True)
    return copy.deepcopy(value)


def _moved(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """``x`` at ``scale`` of its distance from the mean, with noise of one percent of its standard deviation."""
    deviation = x.std().item() if x.numel() > 1 else 0.0
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    return x + (1 - scale) * (x.mean() - x) + 0.01 * (deviation or 1.0) * noise


def _raises(function: Call, inputs: Sequence[Any]) -> bool:
    try:
        call(function, inputs)
    except REFUSALS:
        return True
    return False


def tensors(results: Any) -> list[Tensor]:
    """The results of a forward, as a list, without those of a tuple that are None (weights not wanted, say)."""
    found = [each for each in results if each is not None] if isinstance(results, tuple | list) else [results]
    for result in found:
        if not isinstance(result, Tensor):
            raise TypeError(f"expected the forward to return a tensor or a tuple of tensors, got {kind_of(result)}")
    return found


def seeded(seed: int, inputs: Sequence[Any]) -> None:
    """``torch.manual_seed`` for the inputs' devices alone: for others it records the stack, which takes 2 ms a call."""
    torch.default_generator.manual_seed(seed)
    if any(isinstance(value, Tensor) and value.is_cuda for value in inputs):
        torch.cuda.manual_seed_all(seed)


def call(function: Call, inputs: Sequence[Any], seed: int = 0) -> list[Tensor]:
    """The outputs without an autograd graph, with the same random numbers at every call."""
    seeded(seed, inputs)
    with torch.no_grad():
        return tensors(function(*[value.clone() if isinstance(value, Tensor) else value for value in inputs]))


def propagate(
    subject: Subject,
    function: Call,
    inputs: Sequence[Any],
    layout: Callable[[Tensor], Tensor] = Tensor.clone,
    after: Callable[[list[Tensor], list[Any]], list[Tensor]] = lambda outputs, given: outputs,
    upstream_layout: Callable[[Tensor], Tensor] = Tensor.clone,
    frozen: str = "",
) -> Run:
    """Forward and backward. ``layout`` is applied to each leaf, ``after`` to the outputs and inputs of the forward."""
    leaves = {
        subject.name(index): value.detach().clone().requires_grad_(subject.name(index) != frozen)
        for index, value in enumerate(inputs)
        if is_float(value)
    }
    # An in-place layer must not write into a leaf: its input is a node of the graph.
    given = [layout(leaves[subject.name(i)]) if is_float(value) else value for i, value in enumerate(inputs)]
    seeded(0, inputs)
    outputs = after(tensors(function(*given)), given)
    run = Run(outputs, upstream_of(outputs))
    wanted = {name: x for name, x in (leaves | parameters(function)).items() if x.requires_grad and name != frozen}
    pairs = [(y, g) for y, g in zip(outputs, run.upstream, strict=True) if y.requires_grad]
    if pairs and wanted:
        found = torch.autograd.grad(
            [y for y, _ in pairs],
            list(wanted.values()),
            [upstream_layout(g) for _, g in pairs],
            allow_unused=True,
        )
        run.gradients = dict(zip(wanted, found, strict=True))
    return run


def party(subject: Subject, function: Call, inputs: Sequence[Any]) -> judge.Party:
    """A layer or reference for the judge, with the names of inputs and parameters that findings use.

    Its forward is the function that its backward must be the gradient of: the surrogate, if there is one.
    """
    function = copy.deepcopy(function) if isinstance(function, torch.nn.Module) else function
    declared = subject.declared(function)
    forward = declared if subject.surrogate is None else Constants(declared)
    outputs = call(forward, inputs)
    upstream = [g if is_float(y) else None for y, g in zip(outputs, upstream_of(outputs), strict=True)]
    own = parameters(function)
    floats: dict[Hashable, Tensor] = {
        subject.name(index): value for index, value in enumerate(inputs) if is_float(value)
    }

    def at(point: judge.Point) -> list[Any]:
        with torch.no_grad():
            for name, parameter in (*own.items(), *parameters(declared).items()):
                parameter.copy_(point[name])
        return [point[subject.name(i)] if is_float(value) else value for i, value in enumerate(inputs)]

    return judge.Party(
        floats | {name: parameter.detach().clone() for name, parameter in own.items()},
        upstream,
        lambda point: call(forward, at(point)),
        lambda point: dict(propagate(subject, function, at(point)).gradients.items()),
    )


class Constants:
    """A function in which tensors that it detaches are constants: they keep the values of the first call.

    So numerical differences see what autograd sees of ``x + (x.round() - x).detach()``: the gradient 1.
    """

    def __init__(self, function: Call) -> None:
        self.function = function
        self._kept: list[Tensor] | None = None

    def __call__(self, *inputs: Any) -> Any:
        """The function's results."""
        mode = _Detached(self._kept)
        with mode:
            results = self.function(*inputs)
        self._kept = mode.seen if self._kept is None else self._kept
        return results


_DETACHING = (Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]  # a property of C


class _Detached(TorchFunctionMode):
    """Notes the results of ``detach`` and ``data``, or gives those of an earlier call in their place."""

    def __init__(self, kept: list[Tensor] | None) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self._kept = kept

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute one function of torch."""
        result = func(*args, **(kwargs or {}))
        if func not in _DETACHING:
            return result
        self.seen.append(result)
        kept = self._kept or []
        return kept[len(self.seen) - 1] if len(self.seen) <= len(kept) else result


def parameters(function: Call) -> dict[str, Tensor]:
    """Parameters by the names that findings use; none of a plain function."""
    if not isinstance(function, torch.nn.Module):
        return {}
    return {f"parameter {name!r}": parameter for name, parameter in function.named_parameters()}


def upstream_of(outputs: list[Tensor]) -> list[Tensor]:
    """A gradient of random numbers for each output, the same at every call."""
    generator = torch.Generator().manual_seed(11)
    return [
        torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype if is_float(y) else None)
        for y in outputs
    ]


def distance(a: Tensor | None, b: Tensor | None) -> float:
    """The largest difference over the largest value of ``b``; infinite if shapes or non-finite values differ."""
    a, b = (torch.zeros_like(other) if x is None and other is not None else x for x, other in ((a, b), (b, a)))
    if a is None or b is None:
        return 0.0
    if a.shape != b.shape:
        return float("inf")
    a, b = a.detach().double(), b.detach().double()
    finite = torch.isfinite(b)
    if not torch.equal(torch.isfinite(a), finite) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    if not finite.any():
        return 0.0
    return ((a - b)[finite].abs().max() / b[finite].abs().max().clamp(min=1e-6)).item()


def differences(found: Run, expected: Run, tolerance: float) -> list[tuple[str, float]]:
    """``(what, distance)`` for each output and gradient that differs."""
    pairs: list[tuple[str, Tensor | None, Tensor | None]] = [
        (f"output {i}" if len(expected.outputs) > 1 else "the output", a, b)
        for i, (a, b) in enumerate(zip(found.outputs, expected.outputs, strict=True))
    ]
    pairs += [
        (f"the gradient of {name}", found.gradients.get(name), gradient)
        for name, gradient in expected.gradients.items()
    ]
    distances = [(name, distance(a, b)) for name, a, b in pairs]
    return [(name, distance) for name, distance in distances if not distance <= tolerance]


def far(distance: float) -> str:
    """A distance in words, for messages."""
    return "has another shape or other NaNs and infinities" if distance == float("inf") else f"is off by {distance:.2g}"
