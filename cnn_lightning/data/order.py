"""The order of samples and the division into splits, for the DataModules and the plain programs. NumPy alone."""

import numpy as np
from numpy.typing import NDArray


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of ``n`` samples in an epoch: equal on every machine and for any number of processes."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def balanced(labels: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """As many indices as there are labels, drawn with replacement: first a class, each equally likely, then a sample.

    Classes without a sample are not drawn. Equal on every machine and for any number of processes.
    """
    random = np.random.default_rng([seed, epoch, 2])  # the order of `permutation` and the shifts use other numbers
    by_class = np.argsort(labels, kind="stable")
    _, first, count = np.unique(labels[by_class], return_index=True, return_counts=True)
    drawn = random.integers(len(count), size=len(labels)) if len(labels) else np.empty(0, np.int64)
    found: NDArray[np.int64] = by_class[first[drawn] + random.integers(count[drawn])]
    return found


def stratified(labels: NDArray[np.int64], fractions: tuple[float, ...], seed: int) -> list[NDArray[np.int64]]:
    """Divide ``0 ... len(labels) - 1`` into subsets by ``fractions``, applied to every class.

    Args:
        labels: The class of each sample.
        fractions: Of each subset; their sum is 1.
        seed: Of the random division.

    Returns:
        The sorted indices of each subset.
    """
    rng = np.random.default_rng(seed)
    subsets: list[list[NDArray[np.int64]]] = [[] for _ in fractions]
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        ends = np.rint(np.cumsum(fractions) * len(indices)).astype(int)
        for subset, start, end in zip(subsets, [0, *ends[:-1]], ends, strict=True):
            subset.append(indices[start:end])
    return [np.sort(np.concatenate(subset)) if subset else np.empty(0, np.int64) for subset in subsets]
