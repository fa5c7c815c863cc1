"""Rules about derivatives, against numerical differences: gradients, gradients at ties, second derivatives."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnn_lightning.tools import judge
from cnn_lightning.tools.check.blame import TORCH_MENDS, torchs_own
from cnn_lightning.tools.check.diagnosis import diagnosis as usual
from cnn_lightning.tools.check.report import Finding
from cnn_lightning.tools.check.subject import (
    REFUSALS,
    Call,
    Constants,
    Skip,
    Subject,
    call,
    differences,
    distance,
    far,
    is_float,
    parameters,
    party,
    propagate,
    seeded,
    tensors,
    upstream_of,
)
from cnn_lightning.tools.check.surrogate import diagnosis
from cnn_lightning.tools.check.where import backward_of, forward_of, source_of, watched

_STEP = 1e-6


def gradient(s: Subject) -> list[Finding]:
    """Gradients equal numerical differences.

    Of the layer's forward, or of its surrogate. In float64, along random directions; of a gradient that differs, up to
    128 entries are compared.
    """
    module, inputs = s.copy(), s.inputs()

    def forget(outputs: list[Tensor], given: list[Any]) -> list[Tensor]:
        seen.called.clear()
        return outputs

    with watched() as seen:
        run = propagate(s, module, inputs, after=forget)
    if seen.written:
        raise Skip("the operation writes into its arguments")
    found, unsettled = [], []
    own = party(s, module, inputs)
    targets = {s.name(i): value for i, value in enumerate(inputs) if is_float(value)}
    targets |= {name: p for name, p in parameters(module).items() if p.requires_grad}
    generator = torch.Generator().manual_seed(13)
    for name, x in targets.items():
        gradient = run.gradients.get(name)
        gradient = torch.zeros_like(x) if gradient is None else gradient
        directions, slopes = [], []
        for _ in range(12):
            u = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            slope, finer = (judge.central_difference(own, name, u, h) for h in (_STEP, _STEP / 4))
            # The two agree unless there is a kink between the points: then this direction is not used.
            if abs(slope - finer) <= 1e-5 * max(abs(slope), gradient.norm().item(), 1e-4):
                directions.append(u)
                slopes.append(slope)
            if len(slopes) == 4:
                break
        if not slopes:
            unsettled.append(name)
        scale = max([gradient.norm().item(), *map(abs, slopes), 1e-6])
        if any(abs((gradient * u).sum().item() - n) > 2e-5 * scale for u, n in zip(directions, slopes, strict=True)):
            place = _worst_entry(own, name, gradient)
            blames = "layer"
            if torchs_own(s, s.copy(), inputs, run, name):
                wrong = f"the gradient of {name} differs from numerical differences: TORCH is wrong, not the layer"
                mend, blames, where = TORCH_MENDS, "torch", backward_of(run.outputs)
            elif any(y.requires_grad for y in run.outputs):
                batch = next(value.shape[0] for value in inputs if is_float(value) and value.dim())
                arrays = [array.cpu().numpy() for array in (gradient, *directions)]
                wrong, mend = usual(f"the gradient of {name}", arrays[0], arrays[1:], slopes, batch)
                if s.surrogate is not None:
                    wrong, mend = diagnosis(s, module, inputs, name, gradient, (wrong, mend))
                where = backward_of(run.outputs)
                where += f", which calls {', '.join(seen.called)}" if seen.called else ""
            else:
                wrong = f"the gradient of {name} is missing: the output has no graph"
                mend = "use arrays only inside an autograd.Function, which Module.forward applies to the tensors"
                where = forward_of(s)
            found.append(Finding("gradient", wrong, f"{where}{place}", mend, blames))
    if unsettled and not found:
        raise Skip(
            f"numerical differences of {', '.join(unsettled)} are not precise enough: noise, or kinks everywhere"
        )
    return found


def _worst_entry(own: judge.Party, name: str, gradient: Tensor) -> str:
    """The entry of the gradient with the largest error, of at most 128 of them."""
    x = own.point[name]
    entries = torch.linspace(0, x.numel() - 1, min(x.numel(), 128)).round().long()
    expected = []
    for entry in entries.tolist():
        u = torch.zeros(x.numel(), dtype=x.dtype, device=x.device)
        u[entry] = 1
        expected.append(judge.central_difference(own, name, u.reshape(x.shape), _STEP))
    numeric, analytic = torch.tensor(expected, dtype=torch.float64), gradient.flatten().cpu()[entries].double()
    off = (analytic - numeric).abs()
    wrong, worst = int((off > 1e-5 * numeric.abs().max().clamp(min=1e-6)).sum()), int(off.argmax())
    index = tuple(int(i) for i in np.unravel_index(int(entries[worst]), x.shape))
    return (
        f"; {wrong} of {len(entries)} entries looked at are wrong, the worst at {index}: "
        f"got {analytic[worst]:.6g}, expected {numeric[worst]:.6g}"
    )


def ties(s: Subject) -> list[Finding]:
    """At ties and kinks the gradient is a possible one.

    Some nearby point has this gradient; with a reference it is the reference's own.
    """
    module = s.copy()
    generator = torch.Generator().manual_seed(17)
    if s.reference is not None and not s.agrees():
        raise Skip("it differs from the reference elsewhere too")

    def whole_numbers(x: Tensor, low: int) -> Tensor:
        return torch.randint(low, 2, x.shape, generator=generator).to(x)

    # -1, 0 and 1 have kinks at 0; with 0 and 1 alone, more inputs are equal.
    refused = 0
    for low in (-1, 0):
        inputs = s.like(partial(whole_numbers, low=low))
        if s.refuses(inputs):
            refused += 1
            continue
        found = (
            _impossible_at_ties(s, module, inputs, generator)
            if s.reference is None
            else _unlike_reference_at_ties(s, module, inputs, generator)
        )
        if found:
            return found
    if refused == 2:
        raise Skip("it refuses whole numbers")
    return []


def _unlike_reference_at_ties(
    s: Subject, module: torch.nn.Module, inputs: tuple[Any, ...], generator: torch.Generator
) -> list[Finding]:
    run, expected = propagate(s, module, inputs), propagate(s, s.twin(module), inputs)
    different = differences(run, expected, 1e-9)
    if not different:
        return []
    try:
        possible, theirs = (not _impossible_at_ties(s, f, inputs, generator) for f in (module, s.twin(module)))
    except Skip:
        possible = theirs = True
    if possible and not theirs:
        return [
            Finding(
                "ties",
                f"where inputs are equal or 0, {name} {far(off)} from the reference's: the REFERENCE is wrong there, "
                "not the layer (no point nearby has such a gradient)",
                f"the reference, {source_of(s.reference)}",
                "mend the reference, or use another one; the layer need not change",
                "reference",
            )
            for name, off in different
        ]
    return [
        Finding(
            "ties",
            f"where inputs are equal or 0, {name} {far(off)} from the reference's",
            backward_of(run.outputs) if "gradient" in name else forward_of(s),
            "choose as the reference does: the first maximum wins, relu'(0) = 0; > and >= differ exactly here",
        )
        for name, off in different
    ]


def _impossible_at_ties(s: Subject, module: Call, inputs: tuple[Any, ...], generator: torch.Generator) -> list[Finding]:
    """Compare slopes at a tie with those around it: a slope outside their range is wrong for any choice."""
    place = next(i for i, value in enumerate(inputs) if is_float(value))
    x = inputs[place]

    def rows(point: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the gradients of a few of its values, one a row."""
        leaf = point.clone().requires_grad_()
        seeded(0, inputs)
        given = (*inputs[:place], leaf.clone(), *inputs[place + 1 :])
        try:
            y = tensors(module(*given))[0]
        except REFUSALS as error:
            raise Skip(f"it refuses numbers near whole ones: {type(error).__name__}") from error
        if not y.requires_grad or not torch.isfinite(y).all():
            raise Skip("no finite output with a gradient at whole numbers")
        found = [
            torch.autograd.grad(y.flatten()[i], leaf, retain_graph=True, allow_unused=True)[0]
            for i in _some(y).tolist()
        ]
        return y, torch.stack([torch.zeros(x.numel()).to(x) if row is None else row.flatten() for row in found])

    y, tied = rows(x)
    axes = torch.nn.functional.one_hot(tied.abs().argmax(1), x.numel()).to(x)
    signs = torch.randint(0, 2, (2, x.numel()), generator=generator).to(x) * 2 - 1
    directions = torch.cat([torch.ones_like(signs[:1]), signs, axes])
    # With the noise no two inputs are equal; with the directions each input is the largest at some point.
    shifts = torch.cat([torch.zeros(16, x.numel()).to(x), directions, -directions])
    shifts += 0.1 * torch.randn(shifts.shape, generator=generator).to(x)
    points = [x + 1e-4 * shift.reshape(x.shape) for shift in shifts]
    if s.surrogate is None:
        around = torch.stack([rows(point)[1] for point in points]) @ directions.T
    else:
        around = torch.stack([_slopes_of_surrogate(s, module, inputs, place, point, directions) for point in points])
    slopes, margin = tied @ directions.T, 0.02 * (1 + around.abs().amax(0))
    low, high = around.amin(0) - margin, around.amax(0) + margin
    wrong = ((slopes < low) | (slopes > high)).nonzero()
    if not len(wrong):
        return []
    worst = tuple(wrong[0].tolist())
    of, mend = "", "give the gradient to one of the equal inputs (torch: the first), or divide it among them"
    if s.surrogate is not None:
        of, mend = " of the surrogate", "take the surrogate's gradient there; at a kink of it, one between both sides'"
    return [
        Finding(
            "ties",
            f"where inputs are equal or 0, the gradient of {s.name(place)} means a slope of {slopes[worst]:.4g}; at "
            f"all points around it the slope{of} is from {low[worst]:.4g} to {high[worst]:.4g}",
            backward_of([y]),
            mend,
        )
    ]


def _slopes_of_surrogate(
    s: Subject, module: Call, inputs: tuple[Any, ...], place: int, point: Tensor, directions: Tensor
) -> Tensor:
    """The slopes of a few outputs of the surrogate along directions: ``(outputs, directions)``."""
    surrogate = Constants(s.declared(module))

    def outputs(x: Tensor) -> Tensor:
        y = call(surrogate, (*inputs[:place], x, *inputs[place + 1 :]))[0].flatten()
        return y[_some(y)]

    outputs(point)  # detached tensors keep their values at the point itself
    steps = [_STEP * direction.reshape(point.shape) for direction in directions]
    return torch.stack([(outputs(point + step) - outputs(point - step)) / (2 * _STEP) for step in steps], 1)


def _some(y: Tensor) -> Tensor:
    """The places of six values."""
    return torch.linspace(0, y.numel() - 1, min(6, y.numel())).round().long()


def double_backward(s: Subject) -> list[Finding]:
    """A second derivative is right, or raises."""
    if s.surrogate is not None:
        raise Skip("a surrogate declares the first derivative alone")
    module, inputs = s.copy(), s.inputs()
    place = next(i for i, value in enumerate(inputs) if is_float(value))
    generator = torch.Generator().manual_seed(19)
    w = torch.randn(inputs[place].shape, generator=generator, dtype=torch.float64).to(inputs[place])

    def bent(x: Tensor) -> tuple[Any, ...]:
        # The layer gets a curve of x: then the gradient has a graph even if the layer's own graph is lost. Numbers keep
        # their signs and become no larger, so that they stay between 0 and 1, say.
        return *inputs[:place], 0.5 * x + 0.25 * x.tanh(), *inputs[place + 1 :]

    if s.refuses(bent(inputs[place])):
        raise Skip("it refuses smaller numbers")

    def first(x: Tensor, create_graph: bool) -> Tensor:
        seeded(0, inputs)
        outputs = tensors(module(*bent(x)))
        pairs = [(y, g) for y, g in zip(outputs, upstream_of(outputs), strict=True) if y.requires_grad]
        if not pairs:
            raise Skip("the output needs no gradient")
        (gradient,) = torch.autograd.grad(
            [y for y, _ in pairs], x, [g for _, g in pairs], create_graph=create_graph, allow_unused=True
        )
        return torch.zeros_like(x) if gradient is None else gradient

    x = inputs[place].clone().requires_grad_()
    try:
        gradient = first(x, True)
        second = torch.autograd.grad((gradient * w).sum(), x, allow_unused=True)[0]
    except RuntimeError:
        return []
    numeric = []
    for step in (1e-5, 1e-6):
        up, down = (first((x.detach() + sign * step * w).requires_grad_(), False) for sign in (1, -1))
        numeric.append((up - down) / (2 * step))
    # The Hessian is symmetric: H w is both the derivative of <g, w> and the change of g along w.
    if distance(numeric[0], numeric[1]) < 1e-3 and distance(second, numeric[0]) > 1e-3:
        return [
            Finding(
                "double backward",
                f"the second derivative is silently wrong: it {far(distance(second, numeric[0]))}",
                backward_of(propagate(s, module, inputs).outputs),
                "call the operation by bridge.call, which raises here; once_differentiable alone does not",
            )
        ]
    return []
