"""A candidate against torch eager, with NumPy's layers beside them as an independent third implementation.

Two comparisons share one run of torch eager and one in float64: that of the candidate, and that of NumPy. Where the
candidate gives torch eager's result, NumPy shows whether both are wrong.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from cnn_lightning.swap import Spec
from cnn_lightning.tools.parity.candidates import Candidate, without_dropout
from cnn_lightning.tools.parity.layerwise.comparison import TOLERANCE, Comparison
from cnn_lightning.tools.parity.layerwise.results import FAULTS, Evidence, Parity, Row
from cnn_lightning.tools.parity.layerwise.runner import Runner, Training
from cnn_lightning.tools.parity.programs.halving import compare_program

_TORCH_WRONG = ("fault of torch", "both at fault")


def against(net: nn.Module, candidate: Candidate, layers: Spec, training: Training, *, functions: bool) -> Parity:
    """Train the candidate, torch eager, NumPy's layers and torch in float64, and compare everything.

    A mode is compared layer by layer. A program is compared as a whole first (see `halving`).

    Args:
        net: any network; it is not changed.
        candidate: what is compared.
        layers: what runs the layers of the third implementation.
        training: the steps.
        functions: whether NumPy computes torch's own operators in the third implementation, too.
    """
    net = copy.deepcopy(net)
    drew = not candidate.draws_alike and without_dropout(net)
    if not candidate.trains:
        net.eval()
    found = _layer_by_layer(net, candidate, layers, training, functions=functions)
    if candidate.kind == "program":
        found = _with_program(found, net, candidate, training)
    else:
        training.tick("done")
    note = f"dropout is off in all copies: {candidate.name} draws other random numbers" if drew else ""
    return replace(found, candidate=candidate.name, note=note)


def _layer_by_layer(
    net: nn.Module, candidate: Candidate, layers: Spec, training: Training, *, functions: bool
) -> Parity:
    """Torch eager and NumPy in lock-step, and the candidate if it is a mode."""
    dtype, device = training.dtype, training.batches[0][0].device
    tolerance = TOLERANCE[dtype] if training.tolerance is None else training.tolerance
    eager = Runner.of(net, "torch", training, dtype)
    numpy = Runner.of(net, layers, training, dtype, functions=functions)
    truth = Runner.of(net, "torch", training, torch.float64)
    runners = {"torch": eager, "NumPy": numpy, "float64": truth}
    of_numpy = of_candidate = Comparison(eager, numpy, truth, tolerance, device, party="NumPy")
    if candidate.kind == "mode":
        if candidate.autocast is not None:
            tolerance = max(tolerance, TOLERANCE[candidate.autocast])
        other = runners[candidate.name] = Runner.of(net, candidate.layers, training, dtype, mode=candidate)
        of_candidate = Comparison(eager, other, truth, tolerance, device, party=candidate.name)
    comparisons = list(dict.fromkeys((of_candidate, of_numpy)))
    losses = [_step(step, training, runners, comparisons) for step in range(len(training.batches))]
    rows = [_merged(*pair) for pair in zip(of_candidate.rows, of_numpy.rows, strict=True)]
    return Parity(
        rows,
        of_candidate.other.report,
        str(dtype).removeprefix("torch."),
        tolerance,
        len(training.batches),
        losses,
        functions=numpy.ran if functions else None,
        evidence=_first_of_each(rows, [evidence for each in comparisons for evidence in each.evidence]),
    )


def _step(
    step: int, training: Training, runners: Mapping[str, Runner], comparisons: Sequence[Comparison]
) -> dict[str, float]:
    """One step of every copy, compared; the losses."""
    losses = {}
    for name, runner in runners.items():
        losses[name] = runner.backward(training.batches[step], training.seed + step)
        training.tick(f"step {step + 1}: {name}")
    for comparison in comparisons:
        comparison.step(step)
    for runner in runners.values():
        runner.update()
    for comparison in comparisons:
        comparison.updated(step)
    return losses


def _with_program(found: Parity, net: nn.Module, candidate: Candidate, training: Training) -> Parity:
    """The rows of a program after the faults of torch eager and NumPy."""
    rows, evidence = compare_program(
        net,
        candidate,
        batches=training.batches,
        loss=training.loss,
        dtype=training.dtype,
        tolerance=found.tolerance,
        lr=training.lr,
        momentum=training.momentum,
        seed=training.seed,
        tick=training.tick,
        torch_faults=found.faults,
    )
    return replace(found, rows=[*found.faults, *rows], evidence=[*found.evidence, *evidence])


def _merged(row: Row, numpy: Row) -> Row:
    """The row of the candidate with NumPy's error, and the verdict on all three; of a program that of NumPy alone."""
    row = replace(row, numpy=numpy.other)
    if row.verdict in FAULTS or numpy.verdict not in FAULTS:
        return row
    agree = row.verdict == "equal"  # then the candidate gives torch eager's result
    judged = replace(row, why=numpy.why, runs=numpy.runs, of=numpy.of, error=numpy.error, where=numpy.where)
    judged = replace(judged, native=numpy.native, other=numpy.native if agree else row.other)
    if numpy.verdict in _TORCH_WRONG:
        return replace(judged, verdict="both at fault" if agree else "fault of torch")
    return replace(judged, verdict="undecided" if numpy.verdict == "undecided" else "fault of NumPy")


def _first_of_each(rows: Sequence[Row], evidence: Sequence[Evidence]) -> list[Evidence]:
    """The evidence with the merged rows; of two with one party, layer and pass the first."""
    merged = {row.place: row for row in rows}
    found: dict[tuple[str, str, str], Evidence] = {}
    for each in evidence:
        row = merged[each.row.place]
        found.setdefault((each.party, row.layer, row.what), replace(each, row=row))
    return sorted(found.values(), key=lambda each: (each.row.step, rows.index(each.row)))
