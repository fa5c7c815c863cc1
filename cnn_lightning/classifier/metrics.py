"""Metrics over a whole epoch and over all processes."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """The mean over samples, which may have weights, of a loss that is such a mean over each batch.

    A float64 sum of float32 losses is nearly exact, so that the order of summation, which depends on the number of
    processes, does not change the float32 mean.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, weight: float | Tensor) -> None:
        """Add the mean loss of samples, whose number or sum of weights is ``weight``."""
        self.total += loss.detach().double() * weight
        self.count += weight

    def compute(self) -> Tensor:
        """The mean so far."""
        return (self.total / self.count).float()


def classes_of(labels: Tensor) -> Tensor:
    """The class (N,) of each sample; of probabilities (N, num_classes) the most likely."""
    return labels.argmax(1) if labels.is_floating_point() else labels
