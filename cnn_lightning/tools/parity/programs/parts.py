"""A part of a network alone: recorded as torch eager ran it, then computed by several implementations.

A part is a module, or a few modules that ran one after the other. Every call of a module is recorded, those of
containers too, so that a network can be taken apart to the smallest part in which two implementations differ.
"""

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from cnn_lightning.swap import LAYERS, Spec, native_type, swap_layers
from cnn_lightning.tools.parity.layerwise.results import WHOLE
from cnn_lightning.tools.parity.layerwise.runner import Place, is_gradient

Results = dict[Place, Tensor | None]
"""Results of a call: outputs, and with a backward also buffers after it and gradients of inputs and parameters."""
Backward = Callable[[Any], None]
"""Runs the backward, from the output of a module."""
Around = Callable[[], AbstractContextManager[Any]]


def results_of(
    module: nn.Module,
    run: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    backward: Backward | None,
) -> Results:
    """Run ``run``, which uses the parameters and buffers of ``module``, forward and (if given) backward."""
    module.zero_grad()
    values, structure = tree_flatten((arguments, keywords))
    leaves = {i: x.detach().clone() for i, x in enumerate(values) if is_float(x)}
    for x in leaves.values():
        x.requires_grad_(backward is not None)
    # The first layer may write into its input, which torch forbids for a leaf: so it gets the product with 1.
    given = [leaves[i] * 1 if i in leaves else x for i, x in enumerate(values)]
    arguments, keywords = tree_unflatten(given, structure)
    with torch.set_grad_enabled(backward is not None):
        output = run(*arguments, **keywords)
    found: Results = {("outputs", i): y.detach().clone() for i, y in enumerate(floats(output))}
    if backward is not None:
        found |= {("after", key): value.clone() for key, value in module.named_buffers()}
        backward(output)
        found |= {("grad_inputs", i): x.grad for i, x in leaves.items()}
        found |= {
            ("parameter", key): None if x.grad is None else x.grad.clone()
            for key, x in module.named_parameters()
            if x.requires_grad
        }
    return found


def in_layers(module: nn.Module, layers: Spec) -> nn.Module:
    """The module with its layers by ``layers``, in place; as it is, where it has none."""
    if any(native_type(each) in LAYERS for each in module.modules()):
        swap_layers(module, layers)
    return module


def is_float(value: Any) -> bool:
    """Whether a value is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def floats(output: Any) -> list[Tensor]:
    """The floating-point tensors of an output, also those in dictionaries."""
    return [value for value in tree_leaves(output) if is_float(value)]


def filled(*values: Any) -> list[Any]:
    """The values, with zeros for a gradient that is None where others are not."""
    like = next((x for x in values if x is not None), None)
    return [torch.zeros_like(like) if x is None and like is not None else x for x in values]


def floor_of(exact: Results, dtype: torch.dtype) -> float:
    """The size of a gradient that is pure rounding, as that of a bias before a normalisation."""
    gradients = [x for place, x in exact.items() if x is not None and is_gradient(place)]
    largest = max((x.abs().max().item() for x in gradients if x.numel()), default=0.0)
    return torch.finfo(dtype).eps * largest


def in_words(place: Place) -> str:
    """A result as `Row` names it."""
    kind, key = place
    return {
        "outputs": f"output {key}" if key else "output",
        "after": f"buffer {key}",
        "grad_inputs": f"gradient of input {key}" if key else "gradient of input",
        "parameter": f"gradient of {key}",
    }[kind]


# ---- the record


@dataclass
class Visit:
    """A call of a module: what it got, and the calls inside it."""

    name: str
    index: int
    module: nn.Module
    """As it was before the call, without hooks of the record; its buffers are in ``buffers``."""
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    buffers: dict[str, Tensor]
    upstream: dict[int, Tensor] = field(default_factory=dict)
    """The gradient of each output, by the output's number."""
    chains: list[list["Visit"]] = field(default_factory=list)
    """The calls inside. In each chain, the output of a call is the only input of the next."""

    def all_visits(self) -> Iterator["Visit"]:
        """This call and all inside, in the order in which they began."""
        yield self
        for chain in self.chains:
            for visit in chain:
                yield from visit.all_visits()


def record(net: nn.Module, images: Tensor, backward: Backward | None, seed: int) -> Visit:
    """Run a copy of ``net`` on ``images``; return its call, and in it all calls of its modules."""
    hooked = copy.deepcopy(net)
    originals = dict(net.named_modules())
    stack: list[Visit] = []
    roots: list[Visit] = []
    counts: Counter[str] = Counter()
    outputs: list[Any] = [None]  # the last output of each call that runs, the outermost first

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            buffers = {key: value.clone() for key, value in module.named_buffers()}
            visit = Visit(name, counts[name], originals[name], *_copies(arguments, keywords), buffers)
            counts[name] += 1
            if stack:
                chains = stack[-1].chains
                follows = len(arguments) == 1 and not keywords and arguments[0] is outputs[-1]
                if chains and follows:
                    chains[-1].append(visit)
                else:
                    chains.append([visit])
            else:
                roots.append(visit)
            stack.append(visit)
            outputs.append(None)

        return hook

    def leave(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        visit = stack.pop()
        outputs.pop()
        outputs[-1] = output
        for index, value in enumerate(floats(output)):
            if value.requires_grad:
                value.register_hook(_keep(visit.upstream, index))  # type: ignore[no-untyped-call]

    for name, module in hooked.named_modules():
        module.register_forward_pre_hook(enter(name), with_kwargs=True)
        module.register_forward_hook(leave)
    torch.manual_seed(seed)
    results_of(hooked, hooked, (images,), {}, backward)
    return roots[0]


def _copies(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, (arguments, keywords))  # type: ignore[no-any-return]


def _keep(place: dict[int, Tensor], index: int) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        place[index] = gradient.detach().clone()

    return hook


# ---- a part


@dataclass(frozen=True)
class Point:
    """The inputs of a part, and the gradients of its outputs."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    upstream: dict[int, Tensor]

    def floats(self) -> list[Tensor]:
        """The float inputs."""
        return floats((self.arguments, self.keywords))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Point":
        """The point with each float tensor changed."""
        arguments, keywords, upstream = tree_map(
            lambda x: change(x) if is_float(x) else x, (self.arguments, self.keywords, self.upstream)
        )
        return Point(arguments, keywords, upstream)


class Part:
    """Calls that ran one after the other, as one module."""

    def __init__(self, visits: Sequence[Visit]) -> None:
        self.visits = visits
        first, last = visits[0], visits[-1]
        self.point = Point(first.arguments, first.keywords, last.upstream)
        self.name = first.name or WHOLE
        if last is not first:
            self.name += f" to {last.name}"

    def module(self) -> nn.Module:
        """A copy, as it was before the call."""
        found = [copy.deepcopy(visit.module) for visit in self.visits]
        for module, visit in zip(found, self.visits, strict=True):
            buffers = dict(module.named_buffers())
            for key, value in visit.buffers.items():
                buffers[key].copy_(value)
        if len(found) == 1:
            return found[0]
        names = [visit.name.rpartition(".")[2] for visit in self.visits]
        if len(set(names)) < len(names):
            names = [f"{name}_{i}" for i, name in enumerate(names)]
        chain = nn.Sequential(OrderedDict(zip(names, found, strict=True)))
        chain.training = found[0].training  # that of each module stays
        return chain


class Alone:
    """A part as one implementation runs it: the same from the same start, any number of times."""

    def __init__(
        self, module: nn.Module, dtype: torch.dtype, run: Callable[..., Any] | None = None, around: Around = nullcontext
    ) -> None:
        self.module, self.dtype, self.around = module, dtype, around
        self.run = module if run is None else run
        self._buffers = {key: value.clone() for key, value in module.named_buffers()}

    def __call__(self, point: Point, *, backward: bool) -> Results:
        """All results at a point."""
        for key, value in self.module.named_buffers():
            value.copy_(self._buffers[key])
        point = point.mapped(lambda x: x.to(self.dtype))
        torch.manual_seed(0)

        def from_upstream(output: Any) -> None:
            outputs = floats(output)
            reached = [(y, point.upstream[i]) for i, y in enumerate(outputs) if i in point.upstream and y.requires_grad]
            if reached:
                ys, gradients = zip(*reached, strict=True)
                torch.autograd.backward(ys, gradients)

        with self.around():
            return results_of(
                self.module, self.run, point.arguments, point.keywords, from_upstream if backward else None
            )


def moved(x: Tensor, size: float, seed: int) -> Tensor:
    """``x`` with each number changed by up to ``size`` of itself; equal numbers stay equal, strides stay."""
    return x.detach().clone().addcmul_(torch.cos(x.detach() * 12345678.9 + seed), x.detach(), value=size)
