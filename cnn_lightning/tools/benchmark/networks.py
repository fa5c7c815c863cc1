"""``cnn-lightning benchmark --networks``: a training step of several networks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cnn_lightning.tools.benchmark.memory import measure_memory
from cnn_lightning.tools.benchmark.steps import Setting, measure_steps
from cnn_lightning.tools.benchmark.timing import Tick, Timing, threads

COMPARED = ("numpy", "torch", "torch channels_last")
SECONDS = 6.0
"""After so many seconds of a network's steps no new round begins."""

_GREY = Setting(dropout=False)
_COLOUR = replace(_GREY, in_channels=3, image_size=64, batch_size=8)
NETWORKS = (
    _GREY,
    replace(_GREY, batch_size=256),
    replace(_GREY, in_channels=3, image_size=32, channels=(32, 64, 128)),
    *(
        replace(_COLOUR, net=net, batch_size=batch_size)
        for net in ("resnet18", "mobilenet_v2")
        for batch_size in (8, 32)
    ),
    *(replace(_COLOUR, net=net) for net in ("convnext_tiny", "efficientnet_b0", "densenet121", "shufflenet_v2_x1_0")),
)
"""The networks, without dropout and stochastic depth, so that all implementations compute the same."""


@dataclass
class NetworkRow:
    """A network: seconds of a step of each of `COMPARED`, and peak bytes of NumPy's and torch's."""

    setting: Setting
    step: dict[str, Timing]
    memory: dict[str, int]


def measure_networks(settings: Sequence[Setting], rounds: int, tick: Tick | None = None) -> list[NetworkRow]:
    """Measure one network after the other, each in the memory format that it would train in."""
    rows = []
    for index, each in enumerate(settings):
        with threads(each.threads):
            setting, _ = each.decided()
            step = measure_steps(setting, COMPARED, rounds, kinds=["step"], limit=SECONDS)["step"]
        rows.append(NetworkRow(setting, step, measure_memory(setting, COMPARED[:2])))
        if tick:
            tick("networks", index + 1, len(settings))
    return rows
