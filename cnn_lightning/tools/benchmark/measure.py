"""How much of a training step the bridge between tensors and arrays takes."""

import functools
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from cnn_lightning.layers import bridge
from cnn_lightning.tools.benchmark.steps import Contender, Setting
from cnn_lightning.tools.benchmark.timing import UNTIMED, Tick, Timing


def measure_bridge(setting: Setting, rounds: int, tick: Tick | None = None) -> dict[str, Timing]:
    """Seconds of a step inside `bridge.call`, and inside the operations it calls: the rest is the bridge's own.

    Both are taken in the same steps, so that caches are as full for the one as for the other.
    """
    contender = Contender.make("numpy", setting)
    timings = {"layers": Timing(), "arrays": Timing()}
    spent = dict.fromkeys(timings, 0.0)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                spent[name] += time.perf_counter() - start

        return wrapper

    inner = timed("arrays", bridge.results)
    with patch.object(bridge, "call", timed("layers", bridge.call)), patch.object(bridge, "results", inner):
        for index in range(rounds + 1):
            spent.update(dict.fromkeys(timings, 0.0))
            for _ in range(UNTIMED if index == 0 else _BRIDGE_STEPS):
                contender.step()
            if index == 0:
                continue
            for name, timing in timings.items():
                timing.seconds.append(spent[name] / _BRIDGE_STEPS)
            if tick:
                tick("bridge", index, rounds)
    return timings


_BRIDGE_STEPS = 5
