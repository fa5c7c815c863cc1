"""Rules about memory and state: writes into arguments, memory that results share, state kept on the module."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnn_lightning.tools.check.report import Finding
from cnn_lightning.tools.check.subject import (
    Skip,
    Subject,
    call,
    distance,
    is_float,
    kind_of,
    parameters,
    propagate,
    seeded,
    tensors,
    upstream_of,
)
from cnn_lightning.tools.check.where import backward_of, forward_of, watched


def _shares_memory_unseen(a: Tensor, b: Tensor) -> bool:
    """Whether the memory of two storages overlaps: torch tracks views of one storage, but not this."""
    if a.device.type != "cpu" or b.device.type != "cpu" or not a.numel() or not b.numel():
        return False
    first, second = a.untyped_storage(), b.untyped_storage()
    if first._cdata == second._cdata:
        return False
    start, other = first.data_ptr(), second.data_ptr()
    return start < other + second.nbytes() and other < start + first.nbytes()


def _collected(upstream: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """For ``propagate``: appends the tensors that enter the backward to ``upstream``."""

    def collect(g: Tensor) -> Tensor:
        upstream.append(g.clone())
        return upstream[-1]

    return collect


def _other(x: Tensor) -> Tensor:
    """Other numbers of the same signs, none larger."""
    return x * torch.linspace(0.5, 1, x.numel()).reshape(x.shape).to(x)


def aliasing(s: Subject) -> list[Finding]:
    """Results have memory of their own.

    They share it neither with inputs nor with each other, and no later call uses it again.
    """
    found, module, inputs = [], s.copy(torch.float32), s.inputs(torch.float32)
    given: list[Any] = []
    upstream: list[Tensor] = []

    def keep(outputs: list[Tensor], values: list[Any]) -> list[Tensor]:
        given.extend(values)
        return outputs

    with watched() as seen:
        run = propagate(s, module, inputs, after=keep, upstream_layout=_collected(upstream))
    copied = "return x.copy() (or torch's own view: x.reshape on the tensor): a change of one changes the other"
    for where, name in seen.aliased.items():
        found.append(Finding("aliasing", f"a result is a view of the argument {name!r}", where, copied))
    for y in run.outputs:
        for name, x in [*((s.name(i), v) for i, v in enumerate(given)), *parameters(module).items()]:
            if isinstance(x, Tensor) and y is not x and _shares_memory_unseen(y, x):
                found.append(Finding("aliasing", f"the output is a view of {name}", forward_of(s), copied))
    gradients = [(name, g) for name, g in run.gradients.items() if g is not None]
    for index, (name, gradient) in enumerate(gradients):
        others = [("the upstream gradient", g) for g in upstream] + gradients[:index]
        for other, g in others:
            if _shares_memory_unseen(gradient, g):
                wrong = f"the gradient of {name} is a view of {other if 'upstream' in other else f'that of {other}'}"
                found.append(Finding("aliasing", wrong, backward_of(run.outputs), copied))
    first = call(module, inputs)
    before = [y.clone() for y in first]
    smaller = tuple(_other(value) if is_float(value) else value for value in inputs)
    if s.refuses(smaller):
        return found
    call(module, smaller)
    if any(distance(y, old) > 0 for y, old in zip(first, before, strict=True)):
        wrong = "a later call changes the output of an earlier one: both use the same buffer"
        mend = "allocate the output at every call (np.empty_like); reuse only buffers that are never returned"
        found.append(Finding("aliasing", wrong, forward_of(s), mend))
    return found


def inputs_unwritten(s: Subject) -> list[Finding]:
    """Inputs and upstream gradients are not changed.

    Parameters are not changed either, in both directions.
    """
    module, inputs = s.copy(), s.inputs()
    upstream: list[Tensor] = []
    kept: list[tuple[str, Tensor, Tensor]] = []

    def remember(outputs: list[Tensor], given: list[Any]) -> list[Tensor]:
        kept.extend(
            (s.name(i), value, fresh)
            for i, (value, fresh) in enumerate(zip(given, s.inputs(), strict=True))
            # With inplace=True the output is the input.
            if isinstance(value, Tensor) and all(y is not value and y._base is not value for y in outputs)
        )
        return outputs

    with watched() as seen:
        before = {name: p.detach().clone() for name, p in parameters(module).items()}
        run = propagate(s, module, inputs, after=remember, upstream_layout=_collected(upstream))
    fresh_upstream = [g for g, y in zip(upstream_of(run.outputs), run.outputs, strict=True) if y.requires_grad]
    kept += [("the upstream gradient", g, old) for g, old in zip(upstream, fresh_upstream, strict=True)]
    kept += [(name, p, before[name]) for name, p in parameters(module).items()]
    mend = "write into a copy: x - m instead of x -= m, out=np.empty_like(x) instead of out=x"
    found = {}
    for where, name in seen.written.items():
        found[name] = Finding("inputs unwritten", f"the operation writes into its argument {name!r}", where, mend)
    for name, now, old in [] if found else kept:
        if distance(now, old) > 0:
            wrong = f"{name} has other values after forward and backward"
            found[name] = Finding("inputs unwritten", wrong, f"{forward_of(s)} or its backward", mend)
    return list(found.values())


def twice(s: Subject) -> list[Finding]:
    """If a graph uses it twice, its gradients add up."""
    module, inputs = s.copy(), s.inputs()
    other = tuple(value * 0.5 if is_float(value) else value for value in inputs)
    single = [propagate(s, copy.deepcopy(module), values) for values in (inputs, other)]
    shared = copy.deepcopy(module)

    def at(factor: float) -> list[Tensor]:
        seeded(0, inputs)
        return tensors(shared(*[value * factor if is_float(value) else value for value in leaves]))

    leaves = [value.clone().requires_grad_() if is_float(value) else value for value in inputs]
    outputs = at(1.0) + at(0.5)
    upstream = single[0].upstream + single[1].upstream
    pairs = [(y, g) for y, g in zip(outputs, upstream, strict=True) if y.requires_grad]
    if not pairs:
        raise Skip("the output needs no gradient")
    wanted = {s.name(i): v for i, v in enumerate(leaves) if is_float(v)}
    wanted |= {name: p for name, p in parameters(shared).items() if p.requires_grad}
    found = torch.autograd.grad([y for y, _ in pairs], list(wanted.values()), [g for _, g in pairs], allow_unused=True)
    findings = []
    for name, gradient in zip(wanted, found, strict=True):
        parts = [run.gradients.get(name) for run in single]
        weight = 0.5 if name.startswith("input") else 1.0
        terms = [g * w for g, w in zip(parts, (1.0, weight), strict=True) if g is not None]
        if terms and distance(gradient, sum(terms[1:], terms[0])) > 1e-9:
            wrong = f"if one graph uses the layer twice, the gradient of {name} is not the sum of the two"
            mend = "save what backward needs by ctx.save_for_backward, never on the module or in a global"
            findings.append(Finding("used twice", wrong, backward_of(outputs), mend))
    return findings


def stateless(s: Subject) -> list[Finding]:
    """The forward stores nothing on the module.

    Buffers, and attributes that were there before, may change.
    """
    module, inputs = s.copy(), s.inputs()
    before = {id(part): dict(vars(part)) for part in module.modules()}
    propagate(s, module, inputs)
    found = []
    for path, part in module.named_modules():
        old = before.get(id(part), {})
        for name, value in vars(part).items():
            if name.startswith("_") and name in old and old[name] is value:
                continue
            if name not in old or (isinstance(value, Tensor | np.ndarray | list | dict) and old[name] is not value):
                where = f"self.{path}.{name}" if path else f"self.{name}"
                wrong = f"the forward stores {kind_of(value)} on the module"
                mend = "pass it to backward by ctx.save_for_backward; use register_buffer for state that must stay"
                found.append(Finding("stateless", wrong, where, mend))
    return found


def changed_afterwards(s: Subject) -> list[Finding]:
    """In-place changes give no silently wrong gradient.

    After an in-place change of output or input the gradient is right, or torch raises an error.
    """
    module, inputs = s.copy(), s.inputs()
    expected = propagate(s, copy.deepcopy(module), inputs)

    def output(outputs: list[Tensor], given: list[Any]) -> list[Tensor]:
        return [y.mul_(3) if y.is_floating_point() and y.requires_grad else y for y in outputs]

    def input(outputs: list[Tensor], given: list[Any]) -> list[Tensor]:
        same = {id(part) for y in outputs for part in (y, y._base)}
        for value in given:
            if is_float(value) and id(value) not in same:
                value.add_(1)
        return outputs

    found = []
    for what, change, factor in (("output", output, 3.0), ("input", input, 1.0)):
        try:
            run = propagate(s, copy.deepcopy(module), inputs, after=change)
        except RuntimeError as error:
            if "modified by an inplace operation" in str(error) or "modified inplace" in str(error):
                continue
            raise
        for name, gradient in expected.gradients.items():
            right = None if gradient is None else gradient * factor
            if distance(run.gradients.get(name), right) > 1e-9:
                wrong = f"after an in-place change of the {what}, the gradient of {name} is silently wrong"
                mend = "use ctx.save_for_backward(tensor), which detects such a change; ctx.x = x.numpy() does not"
                found.append(Finding("in-place change", wrong, backward_of(run.outputs), mend))
    return found
