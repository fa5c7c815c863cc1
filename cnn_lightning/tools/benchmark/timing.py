"""How functions are timed against each other: in one process, taking turns.

A round is one burst of calls of each function. The first two calls of a burst are untimed, because the worker threads
of the function before it still spin then. Ratios are taken round by round, so that a machine whose speed changes
between rounds changes both sides alike.
"""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from cnn_lightning.ops.fast import blocks

UNTIMED = 2
BURST_SECONDS = 0.1
"""The timed part of a burst takes about this long; a burst has at least one call and at most twenty."""

K = TypeVar("K", bound=Hashable)

Tick = Callable[[str, int, int], None]
"""For a progress bar: called with the name of a measurement, the round and the number of rounds."""


@dataclass
class Timing:
    """Seconds of one call, one figure a round."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else (self.median,) * 3
        return (high - low) / 2 / self.median

    def ratio(self, other: "Timing") -> float:
        """The median over the rounds of this time divided by the other's."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


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


def interleave(
    functions: Mapping[K, Callable[[], Any]],
    rounds: int,
    *,
    name: str = "",
    tick: Tick | None = None,
    cuda: bool = False,
    burst: float | None = None,
    limit: float = math.inf,
) -> dict[K, Timing]:
    """Time functions that take turns: a round is one burst of each.

    A burst takes about ``burst`` seconds, `BURST_SECONDS` by default. After ``limit`` seconds no new round begins.
    """
    end, length = time.perf_counter() + limit, BURST_SECONDS if burst is None else burst
    timings = {key: Timing() for key in functions}
    repeats = {}
    for key, function in functions.items():
        seconds_of(function, UNTIMED, cuda)
        repeats[key] = max(1, min(20, round(length / seconds_of(function, 1, cuda))))
    for index in range(rounds):
        if index and time.perf_counter() > end:
            break
        for key, function in functions.items():
            seconds_of(function, UNTIMED, cuda)
            timings[key].seconds.append(seconds_of(function, repeats[key], cuda))
        if tick:
            tick(name, index + 1, rounds)
    return timings
