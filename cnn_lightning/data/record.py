"""The record of the data of a training, which a checkpoint keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch

from cnn_lightning.data.pictures import Fit, checked_fit
from cnn_lightning.data.sides import SIDES, Sides
from cnn_lightning.data.values import Range, checked_range
from cnn_lightning.errors import EverywhereError

SHOWN = 8
"""The most classes whose names a message lists."""


@dataclass(frozen=True)
class DataRecord:
    """The classes in their order, the normalisation, and the side of each picture; empty fields are unknown.

    Args:
        class_names: One for each output of the network.
        mean: Mean of each channel, for values from 0 to 1.
        std: Standard deviation of each channel.
        sides: The keys of the pictures of each side.
        value_range: Of pictures with more than 8 bits a value, known if the normalisation is; None for the whole range
            of 16 bits.
        fit: What was done with pictures that are not square.
    """

    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    sides: Sides = field(default_factory=dict)
    value_range: Range | None = None
    fit: Fit | None = None

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> "DataRecord":
        """The record in a checkpoint; without sides for version 0.1, which kept none.

        Raises:
            EverywhereError: The checkpoint has something else there.
        """
        found = checkpoint.get("data") or {}
        try:
            sides = found.get("pictures") or {}
            if sides and (set(sides) != set(SIDES) or any(keys.dtype != torch.int64 for keys in sides.values())):
                raise TypeError("pictures")
            mean = tuple(map(float, found.get("mean", ())))
            return cls(
                # Without a normalisation the names are only numbers: the data were no DataModule of ours.
                tuple(map(str, found["class_names"])) if mean else (),
                mean,
                tuple(map(float, found.get("std", ()))),
                {name: keys.cpu().numpy().reshape(-1) for name, keys in sides.items()},
                checked_range(found.get("value_range")),
                checked_fit(found.get("fit")),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EverywhereError(f"ckpt_path: expected what this program keeps of the data, got {error}") from None

    def plain(self) -> dict[str, Any]:
        """The record as plain values and tensors, for a checkpoint."""
        return {
            "class_names": self.class_names,
            "mean": self.mean,
            "std": self.std,
            "value_range": self.value_range,
            "fit": self.fit,
            "pictures": {name: torch.from_numpy(keys) for name, keys in self.sides.items()},
        }

    def differs_from(self, data: Any) -> str:
        """A message if the classes of ``data``, or their order, differ from the record's; otherwise empty.

        The outputs of a network are numbered, so that the order matters. Classes without names are accepted.
        """
        kept, found = self.class_names, tuple(getattr(data, "class_names", ()))
        if not kept or not found or kept == found:
            return ""
        if max(len(kept), len(found)) <= SHOWN:
            return f"data: expected the checkpoint's classes in their order, {', '.join(kept)}, got {', '.join(found)}"
        pairs = enumerate(zip_longest(kept, found, fillvalue="none"))
        number, (expected, got) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
        return (
            f"data: expected the checkpoint's {len(kept)} classes in their order, got {len(found)} which differ from "
            f"number {number} on: expected {expected}, got {got}"
        )

    def apply_to(self, data: Any, to_train: bool = False) -> None:
        """Have ``data`` treat its pictures as in the training: same sides, same normalisation.

        Args:
            data: A DataModule.
            to_train: Whether the training is resumed.

        Raises:
            EverywhereError: ``data`` has other classes, or another order of them, or a training would be resumed with
                another range of values or another ``fit``.
        """
        difference = self.differs_from(data)
        if difference:
            raise EverywhereError(difference)
        given = getattr(data, "given_range", None)
        if to_train and given is not None and self.mean and given != self.value_range:
            kept = "none" if self.value_range is None else "{:g} to {:g}".format(*self.value_range)
            raise EverywhereError(
                f"data.value_range: expected that of the checkpoint, {kept}, got {given[0]:g} to {given[1]:g}"
            )
        fit, kept_fit = getattr(data, "given_fit", None), self.fit or "squeeze"
        if to_train and fit is not None and self.mean and fit != kept_fit:
            raise EverywhereError(f"data.fit: expected that of the checkpoint, {kept_fit}, got {fit}")
        if hasattr(data, "go_on_from"):
            data.go_on_from(self)
        elif data is not None and self.mean:
            data.mean, data.std = self.mean, self.std
