"""The order of samples: one rule for the DataModules and the plain programs. NumPy alone."""

import numpy as np
from numpy.typing import NDArray


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of ``n`` samples in an epoch, the same on every machine and for any number of processes."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def stratified(labels: NDArray[np.int64], fractions: tuple[float, ...], seed: int) -> list[NDArray[np.int64]]:
    """Cut ``0 ... len(labels) - 1`` into parts of about ``fractions``, each with its share of every class."""
    rng = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in fractions]
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        ends = np.rint(np.cumsum(fractions) * len(indices)).astype(int)
        for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            part.append(indices[start:end])
    return [np.sort(np.concatenate(part)) if part else np.empty(0, np.int64) for part in parts]
