"""A validation as plain values for the page: the confusion and the worst mistakes."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from cnn_lightning.callbacks.confusion import IN_ORDER, accuracy, colors, in_words, most_confused, order_by_confusion
from cnn_lightning.callbacks.pictures import Validation
from cnn_lightning.callbacks.tiles import Normalisation, percent, pixels
from cnn_lightning.draw import as_uri

LARGEST = 160
"""The most pixels of a side of a mistake's picture; larger ones are made smaller."""


def confusion_of(validation: Validation, names: Sequence[str]) -> dict[str, Any] | None:
    """The confusion: for up to 20 classes the numbers of a table, else a picture with a pixel for each cell."""
    counts = validation.counts
    if not counts.any():
        return None
    n = len(counts)
    order = order_by_confusion(counts) if n > IN_ORDER else list(range(n))
    shown = counts[order][:, order]
    rows, columns = shown.nonzero()
    return {
        "epoch": validation.epoch,
        "accuracy": accuracy(counts),
        "names": [names[index] for index in order],
        "cells": [[int(row), int(column), int(shown[row, column])] for row, column in zip(rows, columns, strict=True)],
        "totals": shown.sum(1).tolist(),
        "pairs": [in_words(pair, names) for pair in most_confused(counts)],
        "uri": as_uri(Image.fromarray(colors(shown))) if n > IN_ORDER else "",
    }


def mistakes_of(validation: Validation, names: Sequence[str], normalisation: Normalisation) -> dict[str, Any] | None:
    """The worst mistakes, the worst first."""
    if not validation.counts.any():
        return None
    entries = []
    for number, (picture, fact) in enumerate(zip(validation.pictures.numpy(), validation.facts.tolist(), strict=True)):
        _, label, guess, probability = fact
        image = pixels(picture, normalisation)
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
        entries.append(
            {
                "index": None if validation.indices is None else validation.indices[number],
                "uri": as_uri(image),
                "true": names[int(label)],
                "guess": names[int(guess)],
                "probability": percent(probability),
            }
        )
    return {"epoch": validation.epoch, "entries": entries}
