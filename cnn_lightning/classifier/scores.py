"""What a test measures beside loss and accuracy: top-5, calibration, and how well each class ranks the pictures.

All states are sums of whole numbers, so that they are the same bits for any number of processes and any order.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassAveragePrecision,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassPrecisionRecallCurve,
    MulticlassRecall,
    MulticlassROC,
)

Floats = NDArray[np.float64]

BINS = 15
"""Bins of equal width for the calibration, as in Guo et al. 2017 and the default of torchmetrics."""
UNITS = 2**32
"""A confidence is added as a whole number of 1/2^32: sums of integers don't depend on their order."""
TOP = 5
"""The k of top-k accuracy; with so many classes or fewer it would always be 1."""
MOST_THRESHOLDS, LEAST_THRESHOLDS, COUNTERS = 1024, 128, 2**18
"""Thresholds of the curves: so many at most and at least, and about so many in all classes together (4 MB)."""
GRID = np.linspace(0, 1, 101)
"""The rates at which the curves of classes are averaged."""
FARTHEST = 36.0
"""The largest log-odds of a threshold: beyond, float64 has no number between a probability and 1."""


class Bins(NamedTuple):
    """The calibration: for each bin of confidences from low to high, what was promised and what was kept.

    Args:
        pictures: (bins,) How many there are.
        confidence: (bins,) The mean probability of the predicted class; NaN in an empty bin.
        accuracy: (bins,) The share that is right; NaN in an empty bin.
        error: The expected calibration error: the mean of ``|accuracy - confidence|`` over all pictures, by bins;
            NaN without a picture.
    """

    pictures: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats
    error: float


class Curves(NamedTuple):
    """ROC and precision-recall curves of each class against the others, (classes, points), and the areas below them.

    A class without a picture, or with all of them, has NaN.

    Args:
        thresholds: (points,) From the highest to the lowest.
        fpr: False positive rate at each threshold.
        tpr: True positive rate at each threshold, which is the recall.
        precision: At each threshold; 1 where no picture reaches it.
        auroc: (classes,) The area below the ROC curve.
        average_precision: (classes,) ``sum_n (R_n - R_{n-1}) P_n``.
    """

    thresholds: Floats
    fpr: Floats
    tpr: Floats
    precision: Floats
    auroc: Floats
    average_precision: Floats


class Scores(NamedTuple):
    """What `TestScores` measured.

    Args:
        top: The share of pictures whose class is among the `TOP` most probable ones; NaN for so many classes or fewer.
        bins: The calibration.
        curves: Of each class.
        left_out: Pictures with a probability that is not finite: they are in neither ``bins`` nor ``curves``.
    """

    top: float
    bins: Bins
    curves: Curves
    left_out: int


class PerClass(NamedTuple):
    """Precision, recall and F1 of each class, (classes,); NaN for a class without a picture, which is in no mean."""

    precision: Floats
    recall: Floats
    f1: Floats


class TestScores(nn.Module):
    """The metrics of a test that need the logits.

    Args:
        num_classes: The number of classes.
    """

    __test__ = False  # pytest collects classes whose name begins with Test

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.top = MulticlassAccuracy(num_classes, top_k=TOP, average="micro") if num_classes > TOP else None
        self.calibration = Calibration()
        self.ranks = Ranks(num_classes)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch, which may be empty: logits (N, C), labels (N,)."""
        if self.top is not None and len(labels):
            self.top.update(logits, labels)
        probabilities = logits.double().softmax(1)
        finite = probabilities.isfinite().all(1)
        probabilities, labels = probabilities[finite], labels[finite]
        self.calibration.update(probabilities, labels, int((~finite).sum()))
        self.ranks.update(probabilities, labels)

    def compute(self) -> Scores:
        """The values over all batches of all processes. A collective call."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # in a process without a picture update was not called
            bins, left_out = self.calibration.compute()
            curves: Curves = self.ranks.compute()
            top = float("nan") if self.top is None else float(self.top.compute())
        return Scores(top if bins.pictures.any() or left_out else float("nan"), bins, curves, left_out)

    def reset(self) -> None:
        """Forget all batches."""
        for metric in (self.top, self.calibration, self.ranks):
            if metric is not None:
                metric.reset()


class Calibration(Metric):
    """The expected calibration error in the L1 norm, and the bins that it is computed from.

    As torchmetrics' ``MulticlassCalibrationError``, which keeps the confidence of every picture and returns no bins.
    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, https://arxiv.org/abs/1706.04599.
    """

    full_state_update = False
    sums: Tensor
    left_out: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(BINS, 3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("left_out", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor, left_out: int = 0) -> None:
        """Add finite probabilities (N, C) with labels (N,), and a number of pictures that have none."""
        confidence, guess = probabilities.max(1)
        place = (confidence * BINS).long().clamp(max=BINS - 1)
        values = torch.stack([torch.ones_like(guess), (confidence * UNITS).round().long(), (guess == labels).long()], 1)
        inside = place[:, None] == torch.arange(BINS, device=place.device)
        self.sums += (inside[:, :, None] * values[:, None]).sum(0)
        self.left_out += left_out

    def compute(self) -> tuple[Bins, int]:
        """The bins, and the number of pictures in none."""
        count, confidences, right = self.sums.cpu().numpy().T
        with np.errstate(invalid="ignore"):
            confidence, accuracy = confidences / UNITS / count, right / count
            error = np.abs(right - confidences / UNITS).sum() / count.sum()
        return Bins(count, confidence, accuracy, float(error)), int(self.left_out)


class Ranks(Metric):
    """How high the pictures of a class and the others are ranked by its probability: `Curves`.

    The thresholds lie equally apart in log-odds, because a trained network's probabilities lie near 0 and 1. A batch
    takes one pass, whatever the number of thresholds; torchmetrics' own update takes one pass for each.

    Args:
        num_classes: The number of classes.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        n = max(LEAST_THRESHOLDS, min(MOST_THRESHOLDS, COUNTERS // num_classes))
        inner = torch.linspace(-FARTHEST, FARTHEST, n - 2, dtype=torch.float64).sigmoid()
        self.thresholds = torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])
        self.add_state("counts", torch.zeros(num_classes, 2, n, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add finite probabilities (N, C) with labels (N,)."""
        classes, _, n = self.counts.shape
        reached = torch.bucketize(probabilities, self.thresholds.to(probabilities.device), right=True) - 1
        reached.clamp_(max=n - 2)  # no picture reaches the last one, so that each ROC curve begins at (0, 0)
        each = torch.arange(classes, device=labels.device)
        places = (2 * each + (labels[:, None] == each).long()) * n + reached
        self.counts += torch.bincount(places.flatten(), minlength=self.counts.numel()).view_as(self.counts)

    def compute(self) -> Curves:
        """The curves and their areas, by torchmetrics from the counts at each threshold."""
        counts = self.counts.cpu()
        above = counts.flip(2).cumsum(2).flip(2)
        totals = counts.sum(2, keepdim=True)
        # torchmetrics' state: (thresholds, classes, 2 for the truth, 2 for the guess).
        confmat = torch.stack([totals - above, above], 3).permute(2, 0, 1, 3)
        others, own = totals[:, 0, 0].numpy(), totals[:, 1, 0].numpy()
        values = []
        kinds: list[Any] = [
            *(MulticlassROC, MulticlassPrecisionRecallCurve),
            *(MulticlassAUROC, MulticlassAveragePrecision),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes without a picture, which become NaN below
            for kind in kinds:
                # The counts are those of all processes already.
                metric = kind(len(counts), average=None, thresholds=self.thresholds.cpu(), sync_on_compute=False)
                metric.confmat = confmat
                values.append(metric.compute())
        (fpr, tpr, thresholds), (precision, _, _), auroc, average_precision = values
        # No picture reaches a threshold: torchmetrics has 0 or NaN there, by its version.
        precision = precision[:, :-1].flip(1).masked_fill((above.sum(1) == 0).flip(1), 1.0)
        found = [each.double().numpy() for each in (fpr, tpr, precision, auroc, average_precision)]
        for value in found:
            value[(own == 0) | (others == 0)] = np.nan
        return Curves(thresholds.double().numpy(), *found)


def per_class(counts: NDArray[np.int64]) -> PerClass:
    """Precision, recall and F1 of each class, by torchmetrics.

    A class without a picture has NaN. A class that is never predicted has precision 0.

    Args:
        counts: The confusion matrix; rows are the true classes.
    """
    matrix = torch.from_numpy(counts)
    right, true, guessed = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    states = {"tp": right, "fp": guessed - right, "fn": true - right, "tn": matrix.sum() - true - guessed + right}
    found = []
    kinds: list[Any] = [MulticlassPrecision, MulticlassRecall, MulticlassF1Score]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that update was not called
        for kind in kinds:
            metric = kind(len(counts), average=None, sync_on_compute=False)
            for name, state in states.items():
                setattr(metric, name, state)
            value = metric.compute().double().numpy()
            value[counts.sum(1) == 0] = np.nan
            found.append(value)
    return PerClass(*found)


def mean_of(values: Floats) -> float:
    """The mean over the classes that have a value: the macro average; NaN if none has one."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def macro_roc(curves: Curves) -> tuple[Floats, Floats]:
    """False positive rates, and the mean of the classes' true positive rates there; empty if no class has a curve."""
    known = np.flatnonzero(~np.isnan(curves.auroc))
    found = [np.interp(GRID, curves.fpr[index], curves.tpr[index]) for index in known]
    return (GRID, np.mean(found, 0)) if found else (GRID[:0], GRID[:0])


def macro_precision_recall(curves: Curves) -> tuple[Floats, Floats]:
    """Recalls, and the mean of the classes' precisions there; empty if no class has a curve.

    The precision at a recall is that of the highest threshold that reaches it, as in the average precision.
    """
    known = np.flatnonzero(~np.isnan(curves.auroc))
    found = [curves.precision[index][np.searchsorted(curves.tpr[index], GRID)] for index in known]
    return (GRID, np.mean(found, 0)) if found else (GRID[:0], GRID[:0])
