"""The picture of a comparison: the largest error of each layer, forward and backward."""

import math

import torch

from cnn_lightning.files import written
from cnn_lightning.tools.parity.layerwise.results import FAULTS, Parity
from cnn_lightning.tools.parity.subject import Subject
from cnn_lightning.tools.parity.table import by_layer, kind_of, largest


def draw(subject: Subject, found: Parity, path: str) -> None:
    """Write the picture to ``path``."""
    from matplotlib.figure import Figure

    layers = by_layer(found.rows)
    names = list(layers)
    least = float(torch.finfo(getattr(torch, found.dtype)).eps) / 1e3
    figure = Figure(figsize=(max(8.0, min(40.0, 0.22 * len(names) + 3)), 8), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    passes = (("forward", ("output", "buffers")), ("backward", ("input", "weights", "steps")))
    for axes, (title, kinds) in zip(panels, passes, strict=True):
        for label, field, marker in (
            ("torch to float64", "native", "o"),
            ("layers to float64", "other", "x"),
            ("layers to torch", "error", "_"),
        ):
            heights = [
                largest(getattr(row, field) for row in rows if kind_of(row) in kinds) for rows in layers.values()
            ]
            shown = [math.nan if height is None else min(max(height, least), 1e3) for height in heights]
            axes.plot(range(len(names)), shown, marker, label=label)
        axes.axhline(found.tolerance, color="grey", linestyle="--", label="tolerance")
        axes.set_yscale("log")
        axes.set_ylabel(f"{title}: largest relative error")
        axes.grid(axis="y", alpha=0.3)
        faults = [index for index, rows in enumerate(layers.values()) if any(row.verdict in FAULTS for row in rows)]
        for index in faults:
            axes.axvspan(index - 0.5, index + 0.5, color="red", alpha=0.15)
    panels[0].legend(loc="upper left", ncols=4, fontsize="small")
    panels[0].set_title(
        f"{subject.name}, {found.dtype}, {found.steps} steps: " + ("equal" if found.ok else "different")
    )
    panels[1].set_xticks(range(len(names)), names, rotation=90, fontsize="x-small")
    with written("--png", path) as temporary:
        figure.savefig(temporary, dpi=100)
