"""A network that was compiled or exported, beside torch eager: as a whole first, then its parts, halving.

Four copies take the same steps from equal weights, without hooks: torch eager, the program, NumPy layers, and torch in
float64. Where the program differs from torch eager by more than the tolerance, the whole is computed again from the
state of torch eager at that step, at points nearby too, and in float64, where rounding decides no ReLU (`yardstick`).
If it still differs, submodules are made into programs alone, at the inputs and upstream gradients that torch eager
recorded. Of modules that ran one after the other, halves are tried, until a part is the smallest that differs by
itself. Then it is judged which side is wrong there (`verdicts`).

A fault that is smaller than the effect of rounding on the whole network is not found, unless float64 has it too.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import nn

from cnn_lightning.tools.parity.candidates import Candidate, without_dropout
from cnn_lightning.tools.parity.layerwise.replay import OWN_ROUNDING
from cnn_lightning.tools.parity.layerwise.results import Evidence, Row
from cnn_lightning.tools.parity.layerwise.runner import Batch
from cnn_lightning.tools.parity.programs.parts import Alone, Part, Visit, in_layers, record
from cnn_lightning.tools.parity.programs.verdicts import Judged
from cnn_lightning.tools.parity.programs.whole import Learner, Whole
from cnn_lightning.tools.parity.programs.yardstick import Trial

_MOST = 3
"""The number of smallest parts that are named in a network: each costs some programs."""

Tick = Callable[[str], None]


def compare_program(
    net: nn.Module,
    candidate: Candidate,
    *,
    batches: Sequence[Batch],
    loss: nn.Module,
    dtype: torch.dtype,
    tolerance: float,
    lr: float,
    momentum: float,
    seed: int,
    tick: Tick,
    torch_faults: Sequence[Row],
) -> tuple[list[Row], list[Evidence]]:
    """Train copies of ``net``, a step on each batch, and find where the program differs from torch eager.

    A program without gradients is compared in evaluation, forward only.

    Args:
        net: Any network; it is not changed.
        candidate: One with `Candidate.build`.
        batches: Images and targets.
        loss: Of the outputs and targets.
        dtype: Of torch eager, the program and NumPy.
        tolerance: The relative error up to which results count as equal.
        lr: The learning rate of gradient descent.
        momentum: Of gradient descent.
        seed: Of the random numbers, the same for all copies.
        tick: Called with what was done: once per batch and copy, and once at the end.
        torch_faults: The rows in which a comparison of NumPy with torch eager, layer by layer, found one side wrong.

    Returns:
        The rows of the smallest parts that differ, and of the network at each step; and what shows the faults again.

    Raises:
        ValueError: The program can't be made from this network, or can't run.
    """
    net, loss = in_layers(copy.deepcopy(net), "torch"), in_layers(copy.deepcopy(loss), "torch")
    if not candidate.draws_alike:
        without_dropout(net)
    if not candidate.trains:
        net.eval()
    truth = not any(row.verdict == "fault of torch" for row in torch_faults)
    whole = Whole(net, candidate, loss, dtype, tolerance, truth=truth)
    search = _Search(whole, loss, torch_faults)
    rows: list[Row] = []
    evidence: list[Evidence] = []
    for step, batch in enumerate(batches):
        before = copy.deepcopy(whole.native.net)
        found = whole.step(step, batch, seed + step, lr, momentum, tick)
        if not search.successful and not all(row.verdict for row in found):
            for row, shown in search.faults(step, before, batch, seed + step):
                rows.append(row)
                evidence += shown
        rows += [replace(row, verdict=row.verdict or _explained(row, search.successful)) for row in found]
    tick("done")
    return rows, evidence


def _explained(row: Row, faulty: bool) -> str:
    """The verdict on a difference of the whole in which no side is at fault."""
    if faulty:
        return "follows"
    small, large = sorted((row.native, row.other))
    # What is wrong here alone, and at no point nearby, comes from a tie that rounding decided.
    return "flip" if large > OWN_ROUNDING * max(small, row.numpy) else "rounding"


class _Search:
    """The search for the smallest parts of a network in which its program differs from torch eager."""

    def __init__(self, whole: Whole, loss: nn.Module, torch_faults: Sequence[Row]) -> None:
        self.whole, self.loss, self.torch_faults = whole, loss, torch_faults
        self.successful = False
        self._exact_is_equal = whole.dtype == torch.float64
        self._trials: dict[tuple[int, ...], Trial | None] = {}

    def faults(self, step: int, before: nn.Module, batch: Batch, seed: int) -> Iterator[tuple[Row, list[Evidence]]]:
        """The rows of the faults at a step, from the state of torch eager before it."""
        dtype = self.whole.dtype
        for precision in [dtype] if self._exact_is_equal else [torch.float64, dtype]:
            self._trials.clear()
            root = self._recorded(before, batch, seed, precision)
            with self.whole.program.at(before):
                if self._differs([root], precision):
                    parts = list(islice(self._smallest([root], precision), _MOST))
                    same = root if precision == dtype else self._recorded(before, batch, seed, dtype)
                    for part in parts:
                        yield from self._judged(part, precision, same, step)
            if self.successful:
                return
        self._exact_is_equal = True

    def _recorded(self, before: nn.Module, batch: Batch, seed: int, dtype: torch.dtype) -> Visit:
        learner = Learner(before, self.loss, dtype)
        return record(learner.net, batch[0].to(dtype), learner.backward(batch[1]) if self._trains else None, seed)

    @property
    def _trains(self) -> bool:
        return self.whole.candidate.trains

    def _judged(
        self, part: Sequence[Visit], precision: torch.dtype, root: Visit, step: int
    ) -> Iterator[tuple[Row, list[Evidence]]]:
        """The rows of a part, in the precision of the comparison if it differs there too (``root`` is its record)."""
        wanted = {(visit.name, visit.index) for visit in part}
        same = [visit for visit in root.all_visits() if (visit.name, visit.index) in wanted]
        trial, note = self._trial(same, self.whole.dtype), ""
        if trial is None or not trial.confirmed:
            trial, note = self._trial(part, precision), " in float64"
        if trial is None or not trial.confirmed:
            return
        self.successful = True
        yield from Judged(trial, self.whole.candidate.name, step, self.torch_faults, note).rows()

    def _smallest(self, visits: Sequence[Visit], dtype: torch.dtype) -> Iterator[Sequence[Visit]]:
        """The smallest parts that differ by themselves, of a part that does."""
        inside = False
        for chain in visits[0].chains if len(visits) == 1 else []:
            for part in self._halved(chain, dtype):
                inside = True
                yield from self._smallest(part, dtype) if len(part) == 1 else [part]
        if not inside:
            yield visits

    def _halved(self, chain: Sequence[Visit], dtype: torch.dtype) -> Iterator[Sequence[Visit]]:
        """The shortest stretches of a chain that differ, the first first."""
        rest = list(chain)
        while rest and self._differs(rest, dtype):
            # The first `least` don't differ, the first `most` do.
            least, most = 0, len(rest)
            while most - least > 1:
                middle = (least + most) // 2
                least, most = (least, middle) if self._differs(rest[:middle], dtype) else (middle, most)
            head, rest = rest[:most], rest[most:]
            # Without its first `least`, the head differs; without its first `most`, it does not.
            least, most = 0, len(head)
            while most - least > 1:
                middle = (least + most) // 2
                least, most = (middle, most) if self._differs(head[middle:], dtype) else (least, middle)
            yield head[least:]

    def _differs(self, visits: Sequence[Visit], dtype: torch.dtype) -> bool:
        return self._trial(visits, dtype) is not None

    def _trial(self, visits: Sequence[Visit], dtype: torch.dtype) -> Trial | None:
        """The part, if it differs and can be computed alone."""
        key = tuple(id(visit) for visit in visits)
        if key not in self._trials:
            try:
                trial = self._made(visits, dtype)
                self._trials[key] = trial if trial.differences else None
            except Exception:  # a user's module, alone or in another precision, may raise anything
                self._trials[key] = None
        return self._trials[key]

    def _made(self, visits: Sequence[Visit], dtype: torch.dtype) -> Trial:
        whole = self.whole
        build, program = whole.candidate.build, whole.program
        assert build is not None
        is_root = visits[0].name == "" and dtype == whole.dtype
        made = Alone(program.net, dtype, program.run) if is_root else None
        # The tolerance stays in float64: a program that keeps a constant in float32 there is right in float32.
        return Trial(Part(visits), build, dtype, whole.tolerance, program=made, backward=self._trains)
