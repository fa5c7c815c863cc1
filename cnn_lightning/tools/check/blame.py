"""Which is wrong where a layer and its reference differ. Neither has priority."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.tools import judge
from cnn_lightning.tools.check.report import Finding
from cnn_lightning.tools.check.subject import Run, Subject, call, distance, far, is_float, party, propagate
from cnn_lightning.tools.check.where import backward_of, forward_of, operators_of, source_of
from cnn_lightning.tools.elementary import Elementary

TORCH_MENDS = (
    "nothing in the layer: compute the same on contiguous tensors or by other operators, and report it to torch"
)
_MENDS = {
    "reference": "mend the reference, or use another one; the layer need not change",
    "torch": TORCH_MENDS,
    "both": "mend both: neither gradient is that of its own forward",
}
_OF_LAYER = "the layer is made of its operators"
_OF_REFERENCE = "the reference is made of its operators"
_DIFFERENCES = "central differences in float64 agree with the layer's gradient, not with the reference's"
_WHO = {
    "reference": ": the REFERENCE is wrong there, not the layer",
    "torch": ": TORCH is wrong there, not the layer",
    "both": ": the layer and the reference are BOTH wrong there",
    "undecided": "; which of the two is wrong is UNDECIDED",
}


def finding(
    s: Subject,
    rule: str,
    module: torch.nn.Module,
    inputs: Sequence[Any],
    runs: tuple[Run, Run],
    row: tuple[str, float],
    words: tuple[str, str],
    mend: str,
) -> Finding:
    """What differs between a layer and its reference (their ``runs``), and which is wrong.

    Args:
        s: The layer and its reference.
        rule: The rule that found the difference.
        module: The copy of the layer that ran on ``inputs``, in float64.
        inputs: The inputs at which they differ.
        runs: Of the layer, of the reference.
        row: What differs and by how much, of `subject.differences`.
        words: The text before and after ``row`` in the message.
        mend: The advice if the layer is wrong.
    """
    what, off = row
    found, expected = runs
    name = what.removeprefix("the gradient of ") if what.startswith("the gradient of ") else None
    blames, why = _outputs(s, module, inputs, runs)
    if not blames and name is not None:
        blames, why = _gradient(s, module, inputs, name, found)
    blames = blames or "layer"
    if blames == "reference" or (blames == "torch" and _OF_LAYER not in why):
        where = f"the reference, {source_of(s.reference)}"
        if name is not None:
            where += f", {backward_of(expected.outputs)}"
    else:
        where = forward_of(s) if name is None else backward_of(found.outputs)
    before, after = words
    wrong = f"{before}{what} {far(off)}{after}{_WHO.get(blames, '')}"
    if why and blames != "layer":
        wrong += f" ({why})"
    return Finding(rule, wrong, where, _MENDS.get(blames, mend), blames)


def _outputs(s: Subject, module: torch.nn.Module, inputs: Sequence[Any], runs: tuple[Run, Run]) -> tuple[str, str]:
    """Which is wrong where outputs differ, and why; empty where they agree."""
    found, expected = runs
    pairs = list(zip(found.outputs, expected.outputs, strict=True))
    apart = [index for index, (a, b) in enumerate(pairs) if not distance(a, b) <= 1e-9]
    if not apart:
        return "", ""
    mine, theirs = pairs[apart[0]]
    with Elementary() as elementary:
        third = call(s.twin(module), inputs)[apart[0]]
    right = judge.of_forwards(theirs, mine, third) if elementary.is_second_opinion else "unclear"
    if right == "second":
        return "torch", f"{_OF_REFERENCE}; by elementary operations, these give the layer's output"
    with Elementary() as elementary:
        third = call(module, inputs)[apart[0]]
    if elementary.is_second_opinion and judge.of_forwards(theirs, mine, third) == "first":
        return "torch", f"{_OF_LAYER}; by elementary operations, these give the reference's output"
    base = base_of(s.module)
    if base is not None and not isinstance(s.reference, base):
        natives = _by(base, module, inputs)
        if len(natives) == len(pairs) and judge.of_forwards(theirs, mine, natives[apart[0]]) == "second":
            return "reference", f"the layer gives the output of {base.__module__}.{base.__name__}, which it subclasses"
    return ("layer", "") if right == "first" else ("undecided", "the reference uses other operators than torch's")


def base_of(module: torch.nn.Module) -> type[torch.nn.Module] | None:
    """The class of torch that a layer subclasses, with a forward of its own."""
    same = (type(module).forward, torch.nn.Module.forward)
    for kind in type(module).__mro__[1:]:
        if kind.__module__.startswith("torch.nn.modules."):
            return kind if issubclass(kind, torch.nn.Module) and kind.forward not in same else None
    return None


def as_class(kind: type[torch.nn.Module], module: torch.nn.Module) -> torch.nn.Module:
    """A module of the class ``kind`` with the state of ``module``."""
    native: torch.nn.Module = object.__new__(kind)
    native.__dict__ = module.__dict__
    return native


def _by(kind: type[torch.nn.Module], module: torch.nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    """The outputs of the class ``kind`` with the module's state; none if it does not run with that state."""
    try:
        return call(as_class(kind, module), inputs)
    except Exception:  # a subclass may have changed its state in any way
        return []


def _gradient(s: Subject, module: torch.nn.Module, inputs: Sequence[Any], name: str, found: Run) -> tuple[str, str]:
    """Which is wrong where a gradient differs and the outputs agree."""
    right, nearby = judge.of_backwards(party(s, s.twin(module), inputs), party(s, module, inputs), name)
    if right == "second":
        with Elementary() as elementary:
            plain = propagate(s, s.twin(module), inputs).gradients.get(name)
        torchs = elementary.is_second_opinion and distance(plain, found.gradients.get(name)) <= 1e-9
        return ("torch", f"{_OF_REFERENCE}; {_DIFFERENCES}") if torchs else ("reference", _DIFFERENCES)
    if right == "first" and torchs_own(s, s.copy(), inputs, found, name):
        return "torch", f"{_OF_LAYER}; central differences of its forward give the reference's gradient"
    if right == "neither":
        return "both", "central differences in float64"
    finite = all(torch.isfinite(value).all() for value in inputs if is_float(value))
    if right == "first" or (nearby and finite):
        return "layer", ""
    return "undecided", "central differences are not precise enough"


def torchs_own(s: Subject, module: torch.nn.Module, inputs: Sequence[Any], run: Run, name: str) -> bool:
    """Whether a wrong gradient is torch's: by elementary operations it is right, or the output is another one."""
    if not operators_of(run.outputs):
        return False
    with Elementary() as elementary:
        plain = propagate(s, module, inputs)
    if not elementary.is_second_opinion:
        return False
    if any(not distance(a, b) <= 1e-9 for a, b in zip(run.outputs, plain.outputs, strict=True)):
        return True
    return bool(judge.is_gradient(party(s, module, inputs), name, plain.gradients.get(name)))
