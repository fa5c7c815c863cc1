"""What the page of a run shows, as plain values, and how it comes from the page of a run that is resumed."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FORM = 2
"""The version of `Content`: a page of another version is not read."""
MOST_FRAMES = 16
"""The most epochs whose filters are kept."""
LARGEST = 1e100
"""Metrics from here on are left out, as those that are not finite, for which JSON has no sign."""
STORED = re.compile(r'<script type="application/json" id="run" data-digest="(\w+)">(.*?)</script>', re.DOTALL)


@dataclass
class Content:
    """All that the page shows; every value is one of JSON.

    Args:
        net: The network's name.
        data: The name of the data.
        folder: The run's folder, as in messages.
        state: running, finished, stopped, interrupted or failed.
        reason: Why it is not running any more, in words; empty while it runs.
        epoch: The number of finished epochs.
        epochs: The number of epochs of the whole run; None for no limit.
        step: The number of optimizer steps.
        history: Each metric's values by epoch; ``lr`` is the learning rate.
        test: The accuracy in the test; None before it.
        test_recall: The mean of the classes' recalls in the test; None before it.
        parameters: The number of parameters to train.
        layers: The rows of the layer table.
        config: The text of ``config.yaml``.
        where: The folder in which the commands can be given.
        checkpoint: The checkpoint that they use, as in messages; empty if there is none.
        commands: What one can do next: words and a command each.
        frames: The first filters after some epochs.
        confusion: Of the last validation.
        mistakes: The worst of the last validation.
        written: When the page was written, in words.
        form: `FORM`.
    """

    net: str
    data: str
    folder: str
    state: str = "running"
    reason: str = ""
    epoch: int = 0
    epochs: int | None = None
    step: int = 0
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    test: float | None = None
    test_recall: float | None = None
    parameters: int = 0
    layers: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""
    where: str = ""
    checkpoint: str = ""
    commands: list[dict[str, str]] = field(default_factory=list)
    frames: list[dict[str, Any]] = field(default_factory=list)
    confusion: dict[str, Any] | None = None
    mistakes: dict[str, Any] | None = None
    written: str = ""
    form: int = FORM

    def add(self, epoch: int, metrics: dict[str, float]) -> None:
        """Set the metrics of an epoch; those of the same epoch and of later ones are replaced."""
        for name, value in metrics.items():
            if not abs(value) < LARGEST:
                continue
            before = [point for point in self.history.get(name, []) if point[0] < epoch]
            self.history[name] = [*before, (epoch, value)]

    def begin_with(self, metrics: dict[str, list[tuple[int, float]]]) -> None:
        """Set the metrics of all epochs so far; of several values of an epoch the last one."""
        for name, points in metrics.items():
            last = {epoch: value for epoch, value in points if abs(value) < LARGEST}
            self.history[name] = sorted(last.items())

    def add_frame(self, frame: dict[str, Any]) -> None:
        """Add the filters after an epoch; of many epochs every second, fourth and so on stays, and the last."""
        last = frame["epoch"]
        every = 1
        while last // every >= MOST_FRAMES - 1:
            every *= 2
        before = [each for each in self.frames if each["epoch"] < last and each["epoch"] % every == 0]
        self.frames = [*before, frame]

    def go_on_from(self, before: "Content", epoch: int) -> None:
        """Take what the page of the same run showed up to the end of this epoch."""
        for name, points in before.history.items():
            self.history.setdefault(name, [(at, value) for at, value in points if at <= epoch])
        self.frames = [frame for frame in before.frames if frame["epoch"] <= epoch]
        for name in ("confusion", "mistakes"):
            found = getattr(before, name)
            if found is not None and found["epoch"] <= epoch:
                setattr(self, name, found)

    def stored(self) -> tuple[str, str]:
        """The text to keep in the page, and its digest."""
        text = json.dumps(asdict(self), separators=(",", ":")).replace("<", "\\u003c")
        return text, _digest(text)


def read_content(path: Path) -> Content | None:
    """The content of a page; None if there is no page, or if it was changed or comes from another version."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    found = STORED.search(text)
    if found is None or _digest(found[2]) != found[1]:
        return None
    values = json.loads(found[2])
    names = {each.name for each in fields(Content)}
    return Content(**values) if values.get("form") == FORM and values.keys() == names else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
