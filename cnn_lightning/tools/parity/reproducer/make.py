"""A file of at most 30 lines that shows a fault: a person can run it, and paste it into a report.

The file is found by running what it would contain: a case is the lines of a program (`script`), the search makes it
smaller (`smallest`), and the fault is there while the party's result differs from the right one for the same numbers.
The right one is computed in float64 by an implementation that gave the right value for the recorded call.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.errors import one_line
from cnn_lightning.files import written
from cnn_lightning.swap import Spec, native_type, swap_layers
from cnn_lightning.swap.functional import InNumPy
from cnn_lightning.swap.native import is_ours_type
from cnn_lightning.tools.elementary import Elementary
from cnn_lightning.tools.parity.candidates import Candidate
from cnn_lightning.tools.parity.layerwise.comparison import TOLERANCE
from cnn_lightning.tools.parity.layerwise.distance import relative_error
from cnn_lightning.tools.parity.layerwise.functions import FunctionCall
from cnn_lightning.tools.parity.layerwise.replay import OWN_ROUNDING, rounded
from cnn_lightning.tools.parity.layerwise.results import Evidence
from cnn_lightning.tools.parity.layerwise.runner import float_tensors
from cnn_lightning.tools.parity.reproducer import script
from cnn_lightning.tools.parity.reproducer.constructors import NoCode, code_of, literal, options_of, path_of
from cnn_lightning.tools.parity.reproducer.script import Case, Layer, Mode, Numbers, Ran, Whole, undisturbed
from cnn_lightning.tools.parity.reproducer.smallest import smallest

LINES = 30
"""The most lines of a file."""
_SECONDS = {False: 3.0, True: 60.0}
"""How long the search may take, at least; longer for a program, which is compiled for each case."""
_FIRST_RUNS = 10
"""The search may take as long as this many runs of the recorded call."""

_TAKEN = {"", "x", "y", "g", "layer", "wanted", "found", "expected", "onnx", "session", "torch", "nn", "sys", "given"}
"""Names that a program has for other things."""
_ELEMENTARY = 2**9
"""The most numbers of a case that is computed by elementary operations, too, which are slow."""


class NoReproducer(ValueError):
    """No file can be made; the message is the reason, in one line."""


def write(evidence: Evidence, candidate: Candidate | None, path: str | Path) -> None:
    """Write a program that exits 1 while a fault is there, and 0 without it.

    Args:
        evidence: The fault.
        candidate: What was compared with torch eager; None for the layers under test.
        path: The file.

    Raises:
        NoReproducer: A part can't be written as code, or the fault does not show in a program.
        UserError: The file can't be written.
    """
    lines = program(evidence, candidate)
    with written("reproducer", path) as place:
        place.write_text("\n".join(lines) + "\n", encoding="utf-8")


def program(evidence: Evidence, candidate: Candidate | None) -> list[str]:
    """The lines of the program.

    Raises:
        NoReproducer: As `write`.
    """
    try:
        case = _recorded(evidence, _mode(evidence, candidate))
    except NoCode as reason:
        raise NoReproducer(str(reason)) from None
    trial = _Trial(evidence, case, candidate)
    case = smallest(case, trial.shows)
    shown = trial.of(case)
    if shown is None:
        raise NoReproducer("the fault shows in some runs only")
    if any(value.code() is None for value in case.numbers):
        raise NoReproducer("the fault needs more given numbers than a file of this length has room for")
    lines = script.text(case, shown.ran, _title(evidence, case), shown.where, shown.right, shown.tolerance)
    if len(lines) > LINES:
        lines = [line for line in lines if line]
    if len(lines) > LINES or max(map(len, lines)) > script.WIDTH:
        raise NoReproducer(f"the smallest program that was found has {len(lines)} lines")
    if script.exit_code(lines) != 1:
        raise NoReproducer("the fault shows in some runs only")
    return lines


# ---- the recorded call as a program


def _recorded(evidence: Evidence, mode: Mode) -> Case:
    part, (kind, key) = _of_torch(evidence.part), evidence.place
    made = _made(part)
    code = made.code()
    tensors = (*part.named_parameters(), *part.named_buffers())
    state = {new: Numbers(x.detach().clone()) for name, x in tensors if (new := code.name_of(name)) is not None}
    if kind in ("parameter", "after"):
        key = code.name_of(key)
        if key is None:
            raise NoCode(f"the forward does not use {evidence.place[1]}")
    dtypes = [x.values.dtype for x in state.values() if x.values.is_floating_point()]
    literal(tuple(evidence.keywords.values()))
    given = zip(_names(part, len(evidence.inputs)), evidence.inputs, strict=True)
    return Case(
        made,
        next(iter(dtypes), None),
        part.training or not _differs_in_training(part),
        state,
        {name: _argument(value) for name, value in given},
        dict(evidence.keywords),
        {index: Numbers(value.detach()) for index, value in evidence.upstream.items()},
        (kind, key),
        mode,
    )


def _of_torch(part: nn.Module) -> nn.Module:
    """The part with torch's classes in place of NumPy's and of a user's."""
    part = copy.deepcopy(part)
    with suppress(ValueError):  # nothing in it can be swapped
        swap_layers(part, "torch")
    return part


def _differs_in_training(part: nn.Module) -> bool:
    changing = ("BatchNorm", "InstanceNorm", "Dropout", "RReLU")
    return next(part.children(), None) is not None or any(word in type(part).__name__ for word in changing)


def _made(part: nn.Module) -> Layer | Whole:
    """What makes a part."""
    if getattr(nn, type(part).__name__, None) is type(part) and next(part.children(), None) is None:
        return Layer(type(part), options_of(part))
    return Whole(code_of(part))


def _names(part: nn.Module, count: int) -> list[str]:
    """The names of the inputs: ``x``, and for the others those of the arguments of the forward, if they are free."""
    code = getattr(part.forward, "__code__", None)
    known = ("",) * count if code is None else code.co_varnames[1 : code.co_argcount]
    others = [known[i] if i < len(known) and known[i] not in _TAKEN else f"x{i}" for i in range(1, count)]
    return ["x", *others][:count]


def _argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Numbers(value.detach())
    literal(value)
    return value


def _mode(evidence: Evidence, candidate: Candidate | None) -> Mode:
    """What the party at fault computes with."""
    if evidence.party == "torch":
        return Mode()
    if candidate is None or evidence.party != candidate.name or candidate.layers != "torch":
        return _of_layers(evidence, () if candidate is None else candidate.layers)
    if candidate.kind == "program" and not candidate.code:
        raise NoReproducer(f"{candidate.name} can't be written as code")
    around = "" if candidate.autocast is None else f'torch.autocast("cpu", dtype={candidate.autocast})'
    lines = candidate.code
    if candidate.device == "cuda":  # NVIDIA's float32 has 10 bits by default
        lines = ("torch.backends.cudnn.set_flags(_allow_tf32=False)", *lines)
    return Mode((), lines, around, device=candidate.device, is_program=candidate.kind == "program")


def _of_layers(evidence: Evidence, layers: Spec | tuple[()]) -> Mode:
    """NumPy's layers, or the class of a user's."""
    kind, native = type(evidence.part), native_type(evidence.part)
    if kind is native and isinstance(layers, Mapping):
        kind = next((each for each in layers.values() if isinstance(each, type)), kind)
    if kind is native or (is_ours_type(kind) and kind.__module__.startswith("cnn_lightning.")):
        tiers = {"formula": "cnn_lightning.fast(False)", "fast": "cnn_lightning.fast(True)"}
        line = 'cnn_lightning.swap_layers(layer, "numpy")'
        return Mode(("import cnn_lightning",), (line,), around_all=tiers.get(evidence.party, ""))
    own = f"{kind.__module__}.{kind.__qualname__}"
    if getattr(nn, native.__name__, None) is not native or "<" in own:
        raise NoReproducer(f"a program can't import {own} in place of a layer of torch.nn")
    line = f'cnn_lightning.swap_layers(layer, {{nn.{native.__name__}: "{own}"}})'
    return Mode((f"import cnn_lightning  # to run {own} in place of torch's layer",), (line,))


def _title(evidence: Evidence, case: Case) -> str:
    kind, key = evidence.place
    what = {
        "outputs": "output" if not key else f"output {key}",
        "after": f"buffer {key}",
        "grad_inputs": "gradient of the input" if not key else f"gradient of input {key}",
        "parameter": f"gradient of {key}",
    }[kind]
    name = f"torch.nn.{case.part.kind.__name__}" if isinstance(case.part, Layer) else type(evidence.part).__name__
    if isinstance(evidence.part, FunctionCall):
        name = path_of(evidence.part.function)
    device = (case.mode.device or "cpu").upper()
    party = "NumPy" if evidence.party == "this layer" else evidence.party
    by = "" if party == "torch" else f", by {party}"
    return f"{name}: the {what} is wrong in torch {torch.__version__.split('+')[0]} on {device}{by}."


# ---- whether the fault is there


@dataclass(frozen=True)
class _Shown:
    """A fault: the run, the index of the worst number, the right number there, and how far from it is no fault.

    ``precise``: rounding of the inputs changes the result by less than the tolerance.
    """

    ran: Ran
    where: Sequence[int]
    right: float
    tolerance: float
    precise: bool


class _Trial:
    """Runs cases, and tells whether they show the fault, as long as there is time."""

    def __init__(self, evidence: Evidence, case: Case, candidate: Candidate | None) -> None:
        """Run the recorded call.

        Raises:
            NoReproducer: It does not show the fault, or no implementation has the right value.
        """
        low = candidate.autocast if candidate is not None and evidence.party == candidate.name else None
        floats = [x.values.dtype for x in case.numbers if x.values.is_floating_point()]
        self.dtype = low or case.dtype or next(iter(floats), torch.float32)
        self.limit = TOLERANCE[self.dtype]
        started = time.monotonic()
        try:
            with undisturbed():
                ran = script.run(case)
        except Exception as raised:  # a user's layer may raise anything
            raise NoReproducer(f"the layer does not run alone: {one_line(raised)}") from raised
        error, _ = relative_error(_or_zeros(ran.found, evidence.right), evidence.right)
        self.limit = min(self.limit, error / 4)
        if not self.limit:
            raise NoReproducer("the fault does not show when the layer runs alone")
        self.truth = self._implementation(ran, case, evidence)
        self.end = time.monotonic() + max(_SECONDS[case.mode.is_program], _FIRST_RUNS * (time.monotonic() - started))
        self.precise = False
        """Whether only precise cases count: so where the recorded call is one."""
        shown = self.of(case)
        if shown is None:
            raise NoReproducer("the fault does not show when the layer runs alone")
        self.precise = shown.precise

    def _implementation(self, ran: Ran, case: Case, evidence: Evidence) -> str:
        """The implementation that has the right value of the recorded call."""
        names = ["torch", "contiguous", "NumPy"]
        for name in reversed(names) if evidence.party == "torch" else names:
            value = _attempt(ran, case, name)
            if value is not None and relative_error(value, evidence.right)[0] <= self.limit / 2:
                return name
        raise NoReproducer("no implementation in float64 gives the right value when the layer runs alone")

    def shows(self, case: Case) -> bool:
        """Whether the case shows the fault; False once the time is over."""
        return time.monotonic() <= self.end and self.of(case) is not None

    def of(self, case: Case) -> _Shown | None:
        """The fault in a run of the case."""
        try:
            with undisturbed():
                ran = script.run(case)
        except Exception:  # a size or an option that the layer refuses
            return None
        right = _attempt(ran, case, self.truth)
        if right is None:
            return None
        if ran.found is None and case.mode.is_program:
            return None  # its parameters may be others
        found = _or_zeros(ran.found, right)
        error, where = relative_error(found, right)
        if not error > self.limit or found.shape != right.shape or not found.numel():
            return None
        scale = _size(right)
        gap = abs(found[where].item() - right[where].item())
        rounding = OWN_ROUNDING * self._rounding(ran, case, right)
        tolerance = float(f"{max(self.limit * scale, rounding) or self.limit * gap:.0e}")
        if gap <= tolerance or (self.precise and rounding > self.limit * scale):
            return None
        return _Shown(ran, where, right[where].item(), tolerance, rounding <= self.limit * scale)

    def _rounding(self, ran: Ran, case: Case, right: Tensor) -> float:
        """The difference that rounding makes: of the inputs, and in each elementary operation."""
        coarse = torch.float32 if self.dtype == torch.float64 else self.dtype  # no format is finer than float64
        moved = _attempt(ran, case, self.truth, coarse=coarse)
        numbers = [*ran.layer.parameters(), *(value.values for value in case.numbers)]
        is_small = sum(x.numel() for x in numbers) <= _ELEMENTARY
        in_steps = _attempt(ran, case, "elementary", coarse) if is_small else None
        largest = max((_size(x.double() - right) for x in (moved, in_steps) if x is not None), default=0.0)
        if not right.any():  # the parts of a sum of zero have a size, too
            given = ran.upstream.values() if case.backward else (x for x in ran.inputs if isinstance(x, Tensor))
            largest = max([largest, *(torch.finfo(coarse).eps * _size(x) for x in given)])
        return largest * torch.finfo(self.dtype).eps / torch.finfo(coarse).eps


def _size(x: Tensor) -> float:
    """The largest finite number."""
    return x.detach().double().abs().nan_to_num(0, 0, 0).max().item() if x.numel() else 0.0


def _or_zeros(found: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if found is None else found.detach().cpu().double()


def _attempt(
    ran: Ran, case: Case, name: str, dtype: torch.dtype = torch.float64, *, coarse: torch.dtype | None = None
) -> Tensor | None:
    """The result by one implementation, of inputs rounded to ``coarse``; None where it does not run."""
    try:
        functions = name == "NumPy" and isinstance(case.part, Whole)
        mode = Elementary() if name == "elementary" else InNumPy(None) if functions else nullcontext()
        with undisturbed(), mode:
            return _by(ran, case, name, dtype, coarse)
    except Exception:  # no NumPy layer, or one that refuses this precision
        return None


def _by(ran: Ran, case: Case, name: str, dtype: torch.dtype, coarse: torch.dtype | None) -> Tensor:
    def cast(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        x = x.detach().to(dtype)
        x = x.contiguous() if name == "contiguous" else x
        return x if coarse is None else rounded(x, 1, coarse)

    layer = copy.deepcopy(ran.layer).to(dtype)
    for parameter in layer.parameters():
        parameter.data = cast(parameter)
    if name == "NumPy":
        with suppress(ValueError) if isinstance(case.part, Whole) else nullcontext():  # it may have functions alone
            swap_layers(layer, "numpy")
    given = [cast(x) for x in ran.inputs]
    for x in given:
        if isinstance(x, Tensor) and x.is_floating_point():
            x.requires_grad_()
    torch.set_rng_state(ran.randomness)
    outputs = float_tensors(layer(*(x.clone() if isinstance(x, Tensor) else x for x in given), **case.keywords))
    kind, key = case.place
    if kind == "outputs":
        return outputs[key].detach()
    if kind == "after":
        return layer.get_buffer(key)
    reached = [(outputs[i], cast(g)) for i, g in ran.upstream.items() if outputs[i].requires_grad]
    torch.autograd.backward([y for y, _ in reached], [g for _, g in reached])
    value = given[key] if kind == "grad_inputs" else layer.get_parameter(key)
    return torch.zeros_like(value) if value.grad is None else value.grad
