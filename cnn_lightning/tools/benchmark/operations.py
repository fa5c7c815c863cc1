"""What a NumPy step consists of: the seconds of each kind of operation, and of everything else."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cnn_lightning.layers import bridge
from cnn_lightning.tools.benchmark.steps import Contender, Setting
from cnn_lightning.tools.benchmark.timing import UNTIMED, Tick, Timing, clock

REST = "all else"
"""torch's own operations, autograd, the optimizer and Python between the calls of NumPy operations."""
BACKWARD = "_backward"


@dataclass
class OperationRow:
    """A kind of operation in a training step: how often it is called forward, and median seconds of both passes."""

    name: str
    calls: int
    forward: float
    backward: float

    @property
    def seconds(self) -> float:
        """Both passes."""
        return self.forward + self.backward


def kind_of(name: str, weight: Sequence[int] = (), groups: int = 1) -> str:
    """The name of an operation or layer; for a convolution, also the size of its kernel, and whether it has groups.

    Args:
        name: Of the operation or layer.
        weight: The shape of a convolution's weight (O, C / groups, kh, kw).
        groups: Its number of groups.
    """
    if not weight:
        return name
    kind = "" if groups == 1 else " depthwise" if weight[1] == 1 else " grouped"
    return f"{name} {'x'.join(map(str, weight[2:]))}{kind}"


class _Seconds(bridge.Listener):
    """Adds up the seconds inside calls of each kind of operation, forward and backward."""

    def __init__(self, cpu: bool) -> None:
        self.now = clock(cpu)
        self.seconds: dict[tuple[str, bool], float] = defaultdict(float)
        self.calls: dict[tuple[str, bool], int] = defaultdict(int)

    def begin(self, op: bridge.Operation, tensors: Any) -> None:
        self._begun = self.now()

    def enter(self, op: bridge.Operation, arrays: Any, options: Any) -> None:
        is_backward = op.__name__.endswith(BACKWARD)
        weight = arrays[1 + is_backward].shape if "groups" in options else ()
        self._key = kind_of(op.__name__.removesuffix(BACKWARD), weight, options.get("groups", 1)), is_backward

    def end(self, op: bridge.Operation) -> None:
        self.seconds[self._key] += self.now() - self._begun
        self.calls[self._key] += 1


def measure_operations(setting: Setting, rounds: int, tick: Tick | None = None) -> list[OperationRow]:
    """The kinds of operations of a NumPy step, by their time with the bridge, largest first; at the end `REST`."""
    contender, now = Contender.make("numpy", setting), clock(setting.counts_cpu)
    timings: dict[tuple[str, bool], Timing] = defaultdict(Timing)
    for index in range(rounds + 1):
        steps = _STEPS if index else UNTIMED
        with bridge.watch(_Seconds(setting.counts_cpu)) as spent:
            begun = now()
            for _ in range(steps):
                contender.step()
            whole = now() - begun
        if index:
            for key, seconds in {**spent.seconds, (REST, False): whole - sum(spent.seconds.values())}.items():
                timings[key].seconds.append(seconds / steps)
        if tick and index:
            tick("operations", index, rounds)
    medians = {key: timing.median for key, timing in timings.items()}
    rows = [
        OperationRow(
            name,
            spent.calls[name, False] // _STEPS,
            medians.get((name, False), 0.0),
            medians.get((name, True), 0.0),
        )
        for name in dict.fromkeys(name for name, _ in medians)
    ]
    return sorted(rows, key=lambda row: (row.name == REST, -row.seconds))


_STEPS = 3
