"""How much of a training step the bridge between tensors and arrays takes."""

from typing import Any

from cnn_lightning.layers import bridge
from cnn_lightning.tools.benchmark.steps import Contender, Setting
from cnn_lightning.tools.benchmark.timing import UNTIMED, Tick, Timing, clock


class _Spent(bridge.Listener):
    """Adds up the seconds inside calls, and inside the operations that they run, of one call after the other."""

    def __init__(self, cpu: bool) -> None:
        self.now = clock(cpu)
        self.layers = self.arrays = 0.0

    def begin(self, op: bridge.Operation, tensors: Any) -> None:
        self._begun = self.now()

    def enter(self, op: bridge.Operation, arrays: Any, options: Any) -> None:
        self._entered = self.now()

    def leave(self, op: bridge.Operation, arrays: Any, results: Any, dtypes: Any) -> None:
        self.arrays += self.now() - self._entered

    def end(self, op: bridge.Operation) -> None:
        self.layers += self.now() - self._begun


def measure_bridge(setting: Setting, rounds: int, tick: Tick | None = None) -> dict[str, Timing]:
    """Seconds of a step inside `bridge.call`, and inside the operations it calls: the difference is the bridge's own.

    Both are taken in the same steps, so that the state of the caches is the same for both.
    """
    contender = Contender.make("numpy", setting)
    timings = {"layers": Timing(), "arrays": Timing()}
    for index in range(rounds + 1):
        with bridge.watch(_Spent(setting.counts_cpu)) as spent:
            for _ in range(UNTIMED if index == 0 else _BRIDGE_STEPS):
                contender.step()
        if index == 0:
            continue
        timings["layers"].seconds.append(spent.layers / _BRIDGE_STEPS)
        timings["arrays"].seconds.append(spent.arrays / _BRIDGE_STEPS)
        if tick:
            tick("bridge", index, rounds)
    return timings


_BRIDGE_STEPS = 5
