"""Rules about results: the reference, dtypes, strides, empty batches, special numbers, copies."""

import copy
import io
import pickle

import numpy as np
import torch
from torch import Tensor

from cnn_lightning.tools.check.blame import finding
from cnn_lightning.tools.check.report import Finding
from cnn_lightning.tools.check.subject import (
    Skip,
    Subject,
    call,
    converted,
    differences,
    distance,
    far,
    is_float,
    parameters,
    propagate,
)
from cnn_lightning.tools.check.where import backward_of, forward_of, raw_gradients, watched

MEND_EMPTY = "write sizes out (reshape(0, -1) fails), and allow sums over zero rows"
MEND_COPIES = "define module and Functions at the top level of a file; keep no lambdas, locks or open files on self"


def forward(s: Subject) -> list[Finding]:
    """It runs, and equal inputs give equal outputs.

    In float32 and in float64, with equal random numbers.
    """
    found = []
    for dtype in (torch.float32, torch.float64):
        module, inputs = s.copy(dtype), s.inputs(dtype)
        first, second = call(module, inputs), call(module, inputs)
        if any(distance(a, b) > 0 for a, b in zip(second, first, strict=True)):
            found.append(
                Finding(
                    "forward",
                    f"a second call with the same {dtype} input and random state gives another output",
                    forward_of(s),
                    "compute the result only from inputs, parameters and torch's random state; keep no state on self",
                )
            )
    return found


def reference(s: Subject) -> list[Finding]:
    """Outputs and gradients equal the reference's.

    In float64 to nine digits; in float32 with about the error of the reference in float32.
    """
    module, inputs = s.copy(), s.inputs()
    truth, found = propagate(s, s.twin(module), inputs), propagate(s, module, inputs)
    if len(found.outputs) != len(truth.outputs):
        wrong = f"{len(found.outputs)} outputs where the reference has {len(truth.outputs)}"
        return [Finding("reference", wrong, forward_of(s), "return as many outputs as the reference")]
    different = differences(found, truth, 1e-9)
    mend = "compare the formula with the reference's; try the smallest shape that still differs"
    kind = "float64"
    if not different:
        module, inputs = s.copy(torch.float32), s.inputs(torch.float32)
        wide = tuple(converted(value, torch.float64) for value in inputs)
        truth = propagate(s, s.twin(module), wide)
        allowed = dict(differences(propagate(s, s.twin(module, torch.float32), inputs), truth, 0.0))
        different = differences(propagate(s, module, inputs), truth, 0.0)
        different = [(name, off) for name, off in different if off > max(4 * allowed.get(name, 0.0), 1e-5)]
        mend = "rounding is amplified: first subtract the largest value or the mean; sum in pairs or in float64"
        kind = "float32"
    if kind == "float64":
        runs = (found, truth)
        words = ("", " from the reference's in float64")
        return [finding(s, "reference", module, inputs, runs, row, words, mend) for row in different]
    return [
        Finding(
            "reference",
            f"{name} {far(off)} from the reference's in {kind}",
            backward_of(found.outputs) if "gradient" in name else forward_of(s),
            mend,
        )
        for name, off in different
    ]


def dtype(s: Subject) -> list[Finding]:
    """float32 stays float32, float64 stays float64.

    No intermediate result is wider, in either direction.
    """
    found: list[Finding] = []
    module, inputs = s.copy(torch.float32), s.inputs(torch.float32)
    with watched() as seen:
        run = propagate(s, module, inputs)
        raw = raw_gradients(s, module, inputs, run)
    mend = (
        "np.sqrt(2), np.zeros without dtype, mask / mask.sum() and integer arrays give float64: "
        "use math.sqrt and dtype=x.dtype"
    )
    wide = [y.dtype for y in run.outputs if y.is_floating_point() and y.dtype != torch.float32]
    found += [Finding("dtype", f"float32 input gives {kind} output", forward_of(s), mend) for kind in wide]
    found += [Finding("dtype", f"float32 arrays give float64 for {what}", at, mend) for at, what in seen.wide.items()]
    found += [Finding("dtype", f"float32 input gets a {kind} gradient", at, mend) for at, kind in raw.items()]
    for y in call(s.copy(), s.inputs()):
        narrow = y.is_floating_point() and torch.equal(y.float().double(), y.double())
        if y.is_floating_point() and y.dtype != torch.float64:
            found.append(Finding("dtype", f"float64 input gives {y.dtype} output", forward_of(s), "keep x.dtype"))
        elif narrow and np.unique(y.cpu()).size > max(8, y.numel() // 4):
            wrong = "float64 input is computed in float32: all further digits are lost"
            found.append(Finding("dtype", wrong, forward_of(s), "use x.dtype instead of float32"))
    return found


def half(s: Subject) -> list[Finding]:
    """bfloat16 inputs give bfloat16 outputs (2 digits)."""
    found = []
    exact, given = s.copy(torch.float32), s.inputs(torch.bfloat16)
    run = propagate(s, s.copy(torch.bfloat16), given)
    with torch.no_grad():
        for p in exact.parameters():
            p.copy_(p.bfloat16())
    expected = call(exact, tuple(converted(value, torch.float32) for value in given))
    for y, right in zip(run.outputs, expected, strict=True):
        if not y.is_floating_point():
            continue
        if y.dtype != torch.bfloat16:
            wrong = f"bfloat16 input gives {y.dtype} output"
            found.append(
                Finding("half", wrong, forward_of(s), "call the operation by bridge.call, which casts each result back")
            )
        elif distance(y, right) > 0.05:
            wrong = f"the output for bfloat16 {far(distance(y, right))} from float32's"
            found.append(
                Finding("half", wrong, forward_of(s), "compute in float32 (bridge.call does) and cast the result")
            )
    return found


def autocast(s: Subject) -> list[Finding]:
    """bfloat16 inputs work with float32 weights (AMP)."""
    module, inputs = s.copy(torch.float32), s.inputs(torch.bfloat16)
    device = next(value.device.type for value in inputs if is_float(value))
    with torch.autocast(device, torch.bfloat16):
        outputs = propagate(s, module, inputs).outputs
    expected = call(s.copy(torch.float32), tuple(converted(value, torch.float32) for value in inputs))
    return [
        Finding(
            "autocast",
            f"under autocast the output {far(distance(y, right))} from float32's",
            forward_of(s),
            "use bridge.autocast('lower', ...) for products, bridge.autocast('float32', ...) where precision matters",
        )
        for y, right in zip(outputs, expected, strict=True)
        if y.is_floating_point() and distance(y, right) > 0.05
    ]


def _turned(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x.clone()


def _sparse_rows(x: Tensor) -> Tensor:
    return torch.stack([x, x.detach() + 1], -1)[..., 0]


def _channels_last(x: Tensor) -> Tensor:
    return x.clone().contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.clone()


_LAYOUTS = {"transposed": _turned, "every other element": _sparse_rows, "channels_last": _channels_last}


def strides(s: Subject) -> list[Finding]:
    """Other strides give the same result.

    Those of the inputs, and those of the upstream gradient.
    """
    if s.is_random():
        raise Skip("random numbers depend on the order in memory")
    module, inputs = s.copy(), s.inputs()
    expected = propagate(s, copy.deepcopy(module), inputs)
    for name, layout in _LAYOUTS.items():
        for side, run in (
            ("input", propagate(s, copy.deepcopy(module), inputs, layout=layout)),
            ("upstream gradient", propagate(s, copy.deepcopy(module), inputs, upstream_layout=layout)),
        ):
            different = differences(run, expected, 1e-9)
            if different:
                what, off = different[0]
                return [
                    Finding(
                        "strides",
                        f"for an {side} whose memory is {name}, {what} {far(off)} from that for a contiguous one",
                        backward_of(expected.outputs) if "gradient" in what + side else forward_of(s),
                        "index by axes, never by position in memory (ravel(order='K'), frombuffer, as_strided)",
                    )
                ]
    return []


def empty_batch(s: Subject) -> list[Finding]:
    """An empty batch gives an empty output, and no error.

    The parameters' gradients are zeros, or None.
    """
    module, inputs = s.copy(), s.inputs()
    if not inputs[0].dim():
        raise Skip("the input has no axes")
    n = inputs[0].shape[0]
    given = tuple(v[:0] if isinstance(v, Tensor) and v.dim() and v.shape[0] == n else v for v in inputs)
    if s.reference is not None:
        try:
            propagate(s, s.twin(module), given)
        except (RuntimeError, ValueError, IndexError) as error:
            raise Skip(f"the reference refuses it: {type(error).__name__}") from error
    shapes = [y.shape for y in call(copy.deepcopy(module), inputs)]
    run = propagate(s, module, given)
    found = []
    for y, shape in zip(run.outputs, shapes, strict=True):
        if shape and shape[0] == n and y.shape != (0, *shape[1:]):
            wrong = f"expected an output of shape {(0, *shape[1:])}, got {tuple(y.shape)}"
            found.append(Finding("empty batch", wrong, forward_of(s), MEND_EMPTY))
    for name, gradient in run.gradients.items():
        if name.startswith("parameter") and gradient is not None and gradient.any() and run.outputs[0].dim():
            wrong = f"the gradient of {name} is not 0"
            found.append(
                Finding(
                    "empty batch",
                    wrong,
                    backward_of(run.outputs),
                    "compute it as a sum over the batch, which is then 0",
                )
            )
    return found


def frozen(s: Subject) -> list[Finding]:
    """Any input or parameter may be frozen alone.

    The gradients of the others stay the same.
    """
    module, inputs = s.copy(), s.inputs()
    expected = propagate(s, copy.deepcopy(module), inputs)
    for name in expected.gradients:
        part = copy.deepcopy(module)
        if name.startswith("parameter"):
            parameters(part)[name].requires_grad_(False)
        run = propagate(s, part, inputs, frozen=name)
        for other, gradient in run.gradients.items():
            if distance(gradient, expected.gradients[other]) > 1e-9:
                wrong = f"with {name} frozen, the gradient of {other} changes"
                mend = "return one value per argument of the forward, None for arguments that need no gradient"
                return [Finding("frozen", wrong, backward_of(run.outputs), mend)]
    return []


def copies(s: Subject) -> list[Finding]:
    """deepcopy, pickle and state_dict copy all of it."""
    found = []

    def by_file(module: torch.nn.Module) -> None:
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        copy.deepcopy(module).load_state_dict(torch.load(file, weights_only=True))

    for how, clone in (
        ("deepcopy", copy.deepcopy),
        ("pickle", lambda module: pickle.loads(pickle.dumps(module))),
        ("a file of the state_dict", by_file),
    ):
        try:
            clone(s.module)
        except Exception as error:
            message = (str(error).strip() or "(no message)").splitlines()[0]
            wrong = f"{how} fails: {type(error).__name__}: {message}"
            found.append(Finding("copies", wrong, type(s.module).__qualname__, MEND_COPIES))
            break
    for path, part in s.module.named_modules():
        for name, value in vars(part).items():
            if is_float(value):
                wrong = "a plain tensor is neither saved in the state_dict nor moved by .to()"
                mend = "use torch.nn.Parameter for what is trained, register_buffer for what is not"
                found.append(Finding("copies", wrong, f"self.{path}.{name}" if path else f"self.{name}", mend))
    return found


def nan(s: Subject) -> list[Finding]:
    """A NaN in the input gives a NaN in the output.

    With a reference, NaNs and infinities are where the reference has them.
    """
    if s.reference is not None and not s.agrees():
        raise Skip("it differs from the reference elsewhere too")
    module, inputs = s.copy(), s.inputs()
    run = propagate(s, module, inputs)
    place = next(i for i, value in enumerate(inputs) if is_float(value))
    gradient = run.gradients.get(s.name(place))
    if gradient is None or not gradient.any():
        raise Skip("no output depends on the input")
    spot = int(gradient.abs().argmax())
    mend = "comparisons with NaN are false: np.maximum, not np.fmax; np.where(x <= 0, 0, x), not x > 0; no nan_to_num"
    for value in (float("nan"), float("inf"), -float("inf")) if s.reference is not None else (float("nan"),):
        given = tuple(converted(x, torch.float64) for x in inputs)
        given[place].view(-1)[spot] = value
        if s.refuses(given):
            if value != value:
                raise Skip("it refuses NaN")
            continue
        found = propagate(s, copy.deepcopy(module), given)
        if s.reference is not None:
            expected = propagate(s, s.twin(module), given)
            different = differences(found, expected, 1e-9)
            # At NaN torch's own gradients (ReLU6, ELU, Hardswish) differ between its vectorised and its scalar code.
            different = [row for row in different if value == value or "gradient" not in row[0]]
            if different:
                words = (f"for an input with {value}, ", ", unlike the reference's")
                return [finding(s, "nan", module, given, (found, expected), different[0], words, mend)]
        elif not any(y.isnan().any() for y in found.outputs if y.is_floating_point()):
            return [Finding("nan", "a NaN in the input is swallowed: no output is NaN", forward_of(s), mend)]
    return []
