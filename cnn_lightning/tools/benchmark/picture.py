"""The picture of the layers: how long each takes forward and backward, in NumPy and in torch."""

import numpy as np

from cnn_lightning.files import written
from cnn_lightning.tools.benchmark.layers import LayerRow
from cnn_lightning.tools.benchmark.steps import Setting
from cnn_lightning.tools.benchmark.tables import machine_of


def draw(setting: Setting, rows: list[LayerRow], path: str) -> None:
    """Write the picture to ``path``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.4 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    for offset, label, color, forward, backward in (
        (-0.2, "NumPy", "#3b6fb6", "forward", "backward"),
        (0.2, "torch", "#c58b2a", "native_forward", "native_backward"),
    ):
        first = np.array([getattr(row, forward) for row in rows]) * 1e3
        second = np.array([getattr(row, backward) for row in rows]) * 1e3
        axes.barh(places + offset, first, 0.38, color=color, label=f"{label} forward")
        axes.barh(places + offset, second, 0.38, left=first, color=color, alpha=0.5, label=f"{label} backward")
    axes.set_yticks(places, [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.set_title(f"{setting.net}, batch {setting.batch_size}: each layer alone\n{machine_of(setting)}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    with written("--png", path) as temporary:
        figure.savefig(temporary, dpi=150)
