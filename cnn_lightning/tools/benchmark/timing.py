"""How functions are timed against each other: in one process, taking turns.

A round is one burst of calls of each function. The first two calls of a burst are untimed, because the worker threads
of the function before it still spin then. Ratios are taken round by round, so that a machine whose speed changes
between rounds changes both sides alike. With one thread on the CPU, the clock is the CPU time of the process, which
other work on the machine does not change; it is wall time otherwise.
"""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from cnn_lightning.ops.fast import blocks

UNTIMED = 2
BURST_SECONDS = 0.1
"""The timed part of a burst takes about this long; a burst has at least one call."""

K = TypeVar("K", bound=Hashable)

Tick = Callable[[str, int, int], None]
"""For a progress bar: called with the name of a measurement, the round and the number of rounds."""


@dataclass
class Timing:
    """Seconds of one call, one figure a round: by the clock of the measurement, and by wall time."""

    seconds: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else (self.median,) * 3
        return (high - low) / 2 / self.median

    def over(self, other: "Timing") -> "Timing":
        """The ratios of this time to the other's, round by round."""
        return Timing(_ratios(self.seconds, other.seconds), _ratios(self.wall, other.wall))

    def minus(self, other: "Timing") -> "Timing":
        """The differences of this time and the other's, round by round."""
        pairs = zip(self.seconds, other.seconds, strict=True), zip(self.wall, other.wall, strict=True)
        return Timing(*([a - b for a, b in pair] for pair in pairs))

    def ratio(self, other: "Timing") -> float:
        """The median over the rounds of this time divided by the other's."""
        return self.over(other).median


def _ratios(times: Sequence[float], others: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(times, others, strict=True)]


@contextmanager
def threads(n: int) -> Iterator[None]:
    """NumPy and torch on ``n`` threads inside the block."""
    before = torch.get_num_threads(), blocks.get_num_threads()
    torch.set_num_threads(n)
    blocks.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        blocks.set_num_threads(before[1])


def clock(cpu: bool) -> Callable[[], float]:
    """The CPU time of the process, in seconds, or wall time."""
    return time.process_time if cpu else time.perf_counter


def seconds_of(function: Callable[[], Any], repeats: int, cuda: bool) -> float:
    """Mean seconds of a call; on a GPU between two events of its stream."""
    if cuda:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(repeats):
            function()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / repeats
    start_s = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start_s) / repeats


def _burst(function: Callable[[], Any], repeats: int, *, cuda: bool, cpu: bool) -> tuple[float, float]:
    """Mean seconds of a call by the clock, and by wall time."""
    begin = time.process_time()
    wall = seconds_of(function, repeats, cuda)
    return ((time.process_time() - begin) / repeats if cpu else wall), wall


def interleave(
    functions: Mapping[K, Callable[[], Any]],
    rounds: int,
    *,
    name: str = "",
    tick: Tick | None = None,
    cuda: bool = False,
    cpu: bool = False,
    burst: float | None = None,
    calls: int = 20,
    limit: float = math.inf,
) -> dict[K, Timing]:
    """Time functions that take turns: a round is one burst of each.

    A burst takes about ``burst`` seconds, `BURST_SECONDS` by default, with at most so many ``calls``. After ``limit``
    seconds no new round begins. The clock is CPU time if ``cpu``.
    """
    end, length = time.perf_counter() + limit, BURST_SECONDS if burst is None else burst
    timings = {key: Timing() for key in functions}
    repeats = {}
    for key, function in functions.items():
        seconds_of(function, UNTIMED, cuda)
        repeats[key] = max(1, min(calls, round(length / seconds_of(function, 1, cuda))))
    for index in range(rounds):
        if index and time.perf_counter() > end:
            break
        for key, function in functions.items():
            seconds_of(function, UNTIMED, cuda)
            seconds, wall = _burst(function, repeats[key], cuda=cuda, cpu=cpu)
            timings[key].seconds.append(seconds)
            timings[key].wall.append(wall)
        if tick:
            tick(name, index + 1, rounds)
    return timings
