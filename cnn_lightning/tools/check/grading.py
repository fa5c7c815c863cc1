"""Grades a layer: looks for the common faults of a hand-written forward and backward, and names them."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.aten import numpy_ops
from cnn_lightning.tools.check.derivatives import double_backward, gradient, ties
from cnn_lightning.tools.check.memory import aliasing, changed_afterwards, inputs_unwritten, stateless, twice
from cnn_lightning.tools.check.report import CheckReport, Finding, Grade
from cnn_lightning.tools.check.results import (
    MEND_COPIES,
    MEND_EMPTY,
    autocast,
    copies,
    dtype,
    empty_batch,
    forward,
    frozen,
    half,
    nan,
    reference,
    strides,
)
from cnn_lightning.tools.check.subject import Call, Skip, Subject, is_float, kind_of
from cnn_lightning.tools.check.surrogate import expect_surrogate, named
from cnn_lightning.tools.check.where import line_of

Rule = Callable[[Subject], list[Finding]]


@numpy_ops(False)  # NumPy is compared with torch
def check_layer(
    module: torch.nn.Module, sample: Any, reference: Call | None = None, surrogate: Call | str | None = None
) -> CheckReport:
    """Grade ``module`` by running copies of it on ``sample`` and on variations of it.

    The gradient of every input and parameter is compared with numerical differences in float64. The other rules check
    dtypes, strides, memory, state and special numbers. The module, its random state and the sample are not changed. The
    module is graded in its present mode (training or not).

    Args:
        module: The layer.
        sample: Its input, or a tuple of its inputs; the first axis of each is the batch. Float inputs are moved a
            little, away from kinks.
        reference: What the layer should equal: a function of the inputs, or a module with the same ``state_dict`` keys.
        surrogate: The function whose gradient the layer's backward takes in place of that of its own forward: a
            function of the inputs, a module with the same ``state_dict`` keys if the layer has parameters, or one of
            the names ``identity`` (straight-through), ``clipped``, ``sigmoid``, ``arctan``, ``fast_sigmoid`` and
            ``triangle``. Its gradient is measured by numerical differences, in which tensors that it detaches are
            constants.

    Returns:
        The report: ``passed``, ``findings``; ``str(report)`` is the whole report.

    Raises:
        TypeError: ``module`` is no module, ``sample`` holds no float tensor, or ``surrogate`` is no function.
        ValueError: ``sample`` holds an empty tensor, ``reference`` or ``surrogate`` is a module whose ``state_dict``
            has other names or shapes, or ``surrogate`` fails, gives other shapes or has no gradient.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected an instance of torch.nn.Module, got {kind_of(module)}")
    inputs = tuple(sample) if isinstance(sample, tuple | list) else (sample,)
    if not any(is_float(value) for value in inputs):
        raise TypeError(f"sample: expected a float tensor or a tuple with one, got {kind_of(sample)}")
    if any(isinstance(value, Tensor) and not value.numel() for value in inputs):
        raise ValueError("sample: expected tensors that hold something, got an empty one")
    declared = None if surrogate is None else named(surrogate)
    _expect_same_state("reference", module, reference)
    if _shapes(declared) or any(parameter.requires_grad for parameter in module.parameters()):
        _expect_same_state("surrogate", module, declared)
    devices = sorted({value.device for value in inputs if isinstance(value, Tensor) and value.is_cuda}, key=str)
    with torch.random.fork_rng(devices), torch.enable_grad(), warnings.catch_warnings():
        # NumPy warns of the NaNs and empty batches that the rules use as inputs.
        warnings.simplefilter("ignore", RuntimeWarning)
        subject = Subject(module, inputs, reference, declared)
        expect_surrogate(subject)
        return CheckReport(type(module).__name__, _grades(subject))


def _grades(subject: Subject) -> tuple[Grade, ...]:
    grades: dict[str, Grade] = {}
    reason = of_torch = ""
    for rule, function in _RULES.items():
        asks = (function.__doc__ or "").partition("\n")[0]
        if subject.surrogate is not None:
            asks = _ASKS_OF_SURROGATE.get(rule, asks)
        skipped = reason or (of_torch if rule in _BY_GRADIENTS else "")
        grades[rule] = Grade(rule, (), skipped, asks) if skipped else _apply(rule, function, subject, asks)
        # The later rules need copies, a forward and a backward that work.
        if rule == "copies" and any("deepcopy fails" in finding.wrong for finding in grades[rule].findings):
            reason = "the module can't be copied"
        if rule == "forward" and any(finding.wrong.startswith("raised") for finding in grades[rule].findings):
            reason = "the forward does not run"
        if rule == "forward" and not reason and grades[rule].findings:
            reason = "two equal calls differ"
        if rule == "reference" and any(finding.wrong.startswith("raised") for finding in grades[rule].findings):
            subject = Subject(subject.module, subject.raw, None, subject.surrogate)
        if rule == "reference" and any(
            finding.blames not in ("layer", "undecided") for finding in grades[rule].findings
        ):
            subject = Subject(subject.module, subject.raw, None, subject.surrogate)  # a wrong reference is not used
        if rule == "gradient" and any(finding.blames == "torch" for finding in grades[rule].findings):
            of_torch = "torch's own gradient is wrong here, so a comparison with it means nothing"
        if rule == "gradient" and any(finding.wrong.startswith("raised") for finding in grades[rule].findings):
            reason = "the backward does not run"
    return tuple(grades.values())


def _expect_same_state(name: str, module: torch.nn.Module, other: Call | None) -> None:
    """Check that a reference or surrogate takes the layer's state; a reference that is a function needs none."""
    if other is None or (name == "reference" and not isinstance(other, torch.nn.Module)):
        return
    if _shapes(other) != _shapes(module):
        raise ValueError(
            f"{name}: expected a state_dict with {_shapes(module) or 'nothing in it'}, as that of the module, got "
            f"{_shapes(other) or 'nothing in it'}"
        )


def _shapes(module: Call | None) -> str:
    """Names and shapes of a module's state, for comparison and messages; empty for a function."""
    if not isinstance(module, torch.nn.Module):
        return ""
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in sorted(module.state_dict().items()))


def _apply(rule: str, function: Rule, subject: Subject, asks: str) -> Grade:
    try:
        return Grade(rule, tuple(function(subject)), asks=asks)
    except Skip as reason:
        return Grade(rule, skipped=str(reason), asks=asks)
    except (Exception, SystemExit) as error:  # the layer may call exit()
        message = (str(error).strip() or "(no message)").splitlines()[0]
        found = Finding(rule, f"raised {type(error).__name__}: {message}", line_of(error, subject), _MEND_RAISED[rule])
        return Grade(rule, (found,), asks=asks)


_RULES: dict[str, Rule] = {
    "copies": copies,
    "forward": forward,
    "reference": reference,
    "gradient": gradient,
    "ties": ties,
    "dtype": dtype,
    "half": half,
    "autocast": autocast,
    "strides": strides,
    "empty batch": empty_batch,
    "aliasing": aliasing,
    "inputs unwritten": inputs_unwritten,
    "used twice": twice,
    "stateless": stateless,
    "in-place change": changed_afterwards,
    "frozen": frozen,
    "double backward": double_backward,
    "nan": nan,
}


_ASKS_OF_SURROGATE = {
    "gradient": "Gradients equal the surrogate's, by numerical differences.",
    "ties": "At ties and kinks the gradient is one of the surrogate's.",
}

_BY_GRADIENTS = ("strides", "used twice", "in-place change", "frozen", "double backward")
"""The rules that compare gradients of the layer with each other."""

_MEND_RAISED = dict.fromkeys(
    _RULES, "mend what the message names: the layer will get inputs like that of this rule"
) | {
    "forward": "the layer must run on its sample in float32 and float64; the other rules need that",
    "gradient": "return one gradient per argument of the forward, with the argument's shape, or None for no gradient",
    "half": "NumPy has no bfloat16: bridge.call computes such tensors in float32 and casts back",
    "reference": "the reference must run on the sample in float32 and float64, too",
    "autocast": "under autocast inputs are bfloat16 beside float32 parameters: start Module.forward with "
    "x, weight = bridge.autocast('lower', x, self.weight)",
    "strides": "inputs may have any strides: use reshape instead of view, and don't assume contiguous memory",
    "empty batch": MEND_EMPTY,
    "copies": MEND_COPIES,
    "frozen": "return None for arguments that need no gradient (see ctx.needs_input_grad)",
}
