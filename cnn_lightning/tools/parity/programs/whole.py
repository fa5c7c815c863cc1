"""Copies of a network that train without hooks, one of them a program, and what they compute at each step."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.errors import one_line
from cnn_lightning.model import total_loss
from cnn_lightning.swap import Spec
from cnn_lightning.tools.parity.candidates import Candidate
from cnn_lightning.tools.parity.layerwise.distance import relative_error
from cnn_lightning.tools.parity.layerwise.results import WHOLE, Row
from cnn_lightning.tools.parity.layerwise.runner import Batch, is_gradient
from cnn_lightning.tools.parity.programs.parts import (
    Backward,
    Results,
    filled,
    floor_of,
    in_layers,
    in_words,
    results_of,
)


class Learner:
    """A copy of the network with its loss and optimizer."""

    def __init__(self, net: nn.Module, loss: nn.Module, dtype: torch.dtype, layers: Spec = "torch") -> None:
        self.net, self.loss = (in_layers(copy.deepcopy(module).to(dtype), layers) for module in (net, loss))
        self.dtype = dtype
        self.run: Callable[..., Any] = self.net
        self._optimizer: torch.optim.SGD | None = None

    def backward(self, target: Tensor) -> Backward:
        """The backward from the loss."""
        given = target.to(self.dtype) if target.is_floating_point() else target
        return lambda output: total_loss(self.net, self.loss, output, given)[0].backward()  # type: ignore[no-untyped-call]

    def results(self, batch: Batch, seed: int, *, trains: bool) -> Results:
        """Forward and, if it trains, backward."""
        torch.manual_seed(seed)
        backward = self.backward(batch[1]) if trains else None
        return results_of(self.net, self.run, (batch[0].to(self.dtype),), {}, backward)

    def update(self, lr: float, momentum: float) -> None:
        """One step of gradient descent."""
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        if trained:
            self._optimizer = self._optimizer or torch.optim.SGD(trained, lr=lr, momentum=momentum)
            self._optimizer.step()

    @contextmanager
    def at(self, net: nn.Module) -> Iterator[None]:
        """Inside, the parameters and buffers are those of another copy."""
        before = copy.deepcopy(self.net.state_dict())
        self.net.load_state_dict(net.state_dict())
        try:
            yield
        finally:
            self.net.load_state_dict(before)


class Whole:
    """Torch eager, the program, NumPy layers and torch in float64, from equal weights.

    ``truth`` is False where torch is known to be wrong in some layer: then its float64 is no measure.
    """

    def __init__(
        self,
        net: nn.Module,
        candidate: Candidate,
        loss: nn.Module,
        dtype: torch.dtype,
        tolerance: float,
        *,
        truth: bool,
    ) -> None:
        self.candidate, self.dtype, self.tolerance, self.truth = candidate, dtype, tolerance, truth
        self.native, self.program = Learner(net, loss, dtype), Learner(net, loss, dtype)
        self.learners = {
            "torch": self.native,
            candidate.name: self.program,
            "NumPy": Learner(net, loss, dtype, "numpy"),
            "float64": Learner(net, loss, torch.float64),
        }

    def step(
        self, step: int, batch: Batch, seed: int, lr: float, momentum: float, tick: Callable[[str], None]
    ) -> list[Row]:
        """Run all copies on a batch, and compare them. The verdict of a row is empty where it must be explained.

        Raises:
            ValueError: The program can't be made from this network, or can't run; or it draws random numbers.
        """
        trains = self.candidate.trains
        found = []
        for name, learner in self.learners.items():
            compute = self._of_program if learner is self.program else learner.results
            found.append(compute(batch, seed, trains=trains))
            if learner is self.native:
                self._expect_no_draws(seed)
            tick(f"step {step + 1}: {name}")
        floor = floor_of(found[-1], self.dtype)
        rows = [
            self._row(step, in_words(place), [each.get(place) for each in found], floor if is_gradient(place) else 0.0)
            for place in found[0]
        ]
        if trains:
            for learner in self.learners.values():
                learner.update(lr, momentum)
            named = [dict(learner.net.named_parameters()) for learner in self.learners.values()]
            rows += [self._row(step, f"{key} after the step", [each[key] for each in named], 0.0) for key in named[0]]
        return [row for row in rows if row is not None]

    def _expect_no_draws(self, seed: int) -> None:
        """Check that torch eager, which has run with this seed, drew no random numbers, if the program's are others."""
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        if not self.candidate.draws_alike and not torch.equal(after, torch.get_rng_state()):
            wanted = "a network that draws random numbers in layers of dropout alone, which are turned off"
            raise ValueError(f"against {self.candidate.name}: expected {wanted}, got one that draws them in a function")

    def _of_program(self, batch: Batch, seed: int, *, trains: bool) -> Results:
        program, build = self.program, self.candidate.build
        assert build is not None
        try:
            if program.run is program.net:
                program.run = build(program.net, (batch[0].to(self.dtype),))
            return program.results(batch, seed, trains=trains)
        except Exception as error:  # a compiler may raise anything
            line = f"{type(error).__name__}: {one_line(error, 200)}"
            raise ValueError(f"against: expected a network that {self.candidate.name} can run, got {line}") from error

    def _row(self, step: int, what: str, values: Sequence[Tensor | None], floor: float) -> Row | None:
        """The row of a result of the four copies."""
        native, other, numpy, true = filled(*values)
        if native is None or other is None or true is None or numpy is None:
            return None
        error, where = relative_error(other, native, floor)
        off = [relative_error(x, true, floor)[0] for x in (native, other, numpy)] if self.truth else [math.nan] * 3
        verdict = "equal" if error <= self.tolerance and native.dtype == other.dtype else ""
        return Row(step, WHOLE, 0, what, error, where, off[0], off[1], 0, verdict, numpy=off[2])
