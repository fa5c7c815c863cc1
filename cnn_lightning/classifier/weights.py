"""The weights of the classes in the loss, given or from the numbers of training pictures."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from cnn_lightning.errors import EverywhereError
from cnn_lightning.notices import tell

ClassWeights = Literal["auto"] | Sequence[float] | None


def checked_weights(given: Any, num_classes: int) -> Literal["auto"] | tuple[float, ...] | None:
    """The option ``class_weights`` as plain values.

    Raises:
        ValueError: A list that has not one finite number of at least 0 for each class, or has zeros alone.
    """
    if given is None or given == "auto":
        return None if given is None else "auto"
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ValueError(f"class_weights: expected auto or a list of numbers, got {given!r}")
    weights = tuple(map(float, given))
    if len(weights) != num_classes:
        raise ValueError(f"class_weights: expected {num_classes} numbers, one for each class, got {len(weights)}")
    for weight in weights:
        if not 0 <= weight < math.inf:
            raise ValueError(f"class_weights: expected finite numbers of at least 0, got {weight}")
    if not any(weights):
        raise ValueError("class_weights: expected at least one number above 0, got zeros alone")
    return weights


def weights_from(data: Any, class_names: Sequence[str]) -> list[float]:
    """The weights of "auto": inverse to the number of each class's training pictures, with mean 1 over the pictures.

    ``n / (k * n_c)``, where n pictures are in k classes, n_c of them in class c. A class without a picture has weight
    1, which only validation and test use, and a notice names it.

    Args:
        data: A DataModule with ``class_counts``.
        class_names: For the notice.

    Raises:
        EverywhereError: ``data`` doesn't count its classes.
    """
    counts = getattr(data, "class_counts", None)
    if counts is None:
        kind = "no DataModule" if data is None else f"{type(data).__name__}, which has no class_counts"
        raise EverywhereError(f"model.class_weights: expected a list of numbers with {kind}, got auto")
    found = [int(count) for count in counts]
    missing = [name for name, count in zip(class_names, found, strict=True) if not count]
    if missing:
        tell(f"model.class_weights: no training picture of {', '.join(missing)[:200]}; the weight is 1")
    n, k = sum(found), len(found) - len(missing)
    return [n / (k * count) if count else 1.0 for count in found]
