"""The curves of a test as one picture: ROC, precision and recall, and how far a confidence can be trusted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from cnn_lightning.classifier.scores import BINS, Floats, Scores, macro_precision_recall, macro_roc, mean_of

COLORED = 6
"""The most classes with a colour and a line in the legend: those with the smallest areas."""
LONGEST = 24
"""The most letters of a class in the legend."""
BAR, MARK = "#8fb1d9", "#be4810"
"""Of accuracies and of confidences; the orange is that of the confusion matrix."""


def draw_scores(scores: Scores, names: Sequence[str], shown: Sequence[int], path: Path) -> None:
    """Draw ROC curves, precision-recall curves, and the reliability diagram, side by side.

    Args:
        scores: Of a test.
        names: Of the classes.
        shown: The classes whose curves are drawn: those with the smallest areas in colour, the others in grey.
        path: The PNG.
    """
    figure = Figure(figsize=(13.5, 4.6))
    figure.subplots_adjust(left=0.045, right=0.99, top=0.92, bottom=0.12, wspace=0.16)
    roc, recall, reliability = figure.subplots(1, 3)
    curves = scores.curves
    drawn = [index for index in shown if not np.isnan(curves.auroc[index])]
    worst = sorted(drawn, key=lambda index: (curves.auroc[index], index))[:COLORED]
    roc.plot((0, 1), (0, 1), "--", color="0.7", linewidth=1)
    for axes, x, y, areas, mean, style in (
        (roc, curves.fpr, curves.tpr, curves.auroc, macro_roc(curves), "default"),
        (recall, curves.tpr, curves.precision, curves.average_precision, macro_precision_recall(curves), "steps"),
    ):
        for index in drawn:
            if index not in worst:
                axes.plot(x[index], y[index], color="0.8", linewidth=0.8, drawstyle=style)
        for number, index in enumerate(worst):
            label, color = _label(areas[index], names[index]), colormaps["Dark2"](number)
            axes.plot(x[index], y[index], color=color, linewidth=1.2, drawstyle=style, label=label)
        if drawn:
            label = f"{mean_of(areas):.4f}  mean of {int((~np.isnan(areas)).sum()):,} classes"
            axes.plot(*mean, color="black", linewidth=2, label=label)
            corner = "lower right" if axes is roc else "lower left"
            axes.legend(edgecolor="none", framealpha=0.85, fontsize=8, loc=corner)
    _name(roc, "ROC", "false positive rate", "true positive rate", "area below the curve")
    _name(recall, "precision and recall", "recall", "precision", "average precision")
    _draw_bins(reliability, scores)
    figure.savefig(path, dpi=110)


def _draw_bins(axes: Any, scores: Scores) -> None:
    """Bars of the accuracy at each confidence, on a diagonal that a calibrated network reaches."""
    count, confidence, accuracy, error = scores.bins
    middle = (np.arange(BINS) + 0.5) / BINS
    filled = count > 0
    axes.plot((0, 1), (0, 1), "--", color="0.7", linewidth=1)
    if filled.any():
        axes.bar(middle[filled], accuracy[filled], 0.9 / BINS, color=BAR, label="share that is right")
        marks: Floats = confidence[filled]
        axes.plot(marks, marks, "o", color=MARK, markersize=4, label="mean confidence")
        shares = count / count.sum()
        axes.step(np.append(middle - 0.5 / BINS, 1), np.append(shares, shares[-1]), color="0.4", where="post")
        axes.lines[-1].set_label("share of the pictures")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    text = f"calibration error {error:.4f}" if filled.any() else ""
    _name(axes, "reliability", "confidence", "accuracy", text)


def _name(axes: Any, title: str, across: str, up: str, right: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_title(right, loc="right", fontsize="medium")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)


def _label(area: float, name: str) -> str:
    """The area and the class; Matplotlib takes what stands between dollars for a formula."""
    short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    return f"{area:.4f}  {short}".replace("$", r"\$")
