"""Ten thousand training steps with NumPy layers: memory, threads and open files stay where they were."""

import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from cnn_lightning import Classifier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.filterwarnings(
        "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:You defined a .validation_step."
    ),
]
SIZES = (32, 7, 64, 1, 20, 48, 3)
"""Of the batches, one after the other."""
SLACK_MIB = 2.0
"""Over 8,000 steps: two hundred and sixty bytes a step, less than a gradient of the smallest weight."""


class Readings(Callback):
    """What the process holds, every ``every`` steps: MiB of memory, threads, open files."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.values: list[tuple[float, int, int]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.every == 0:
            process = Path("/proc/self")
            pages = int((process / "statm").read_text().split()[1])
            threads, files = (len(os.listdir(process / name)) for name in ("task", "fd"))
            self.values.append((pages * os.sysconf("SC_PAGE_SIZE") / 2**20, threads, files))

    def grown(self, warm_up: int) -> list[str]:
        """Which of the three is larger at some time after the warm-up than at its end."""
        memory, threads, files = zip(*self.values[warm_up // self.every - 1 :], strict=True)
        rows = [("memory", memory, SLACK_MIB), ("threads", threads, 0), ("files", files, 0)]
        return [f"{name}: {values}" for name, values, slack in rows if max(values) > values[0] + slack]


def soak(steps: int, every: int, folder: Path, *more: Callback) -> Readings:
    """The readings of a training of so many steps."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(max(SIZES), 1, 12, 12, generator=generator)
    y = torch.randint(10, (max(SIZES),), generator=generator)

    def batch(size: Any) -> tuple[Tensor, Tensor]:
        return x[:size], y[:size]

    sizes: Any = [SIZES[step % len(SIZES)] for step in range(steps)]
    readings = Readings(every)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*more, readings],
    )
    model = Classifier(layers="numpy", image_size=12, channels=(4, 8), hidden=16, threads=2)
    trainer.fit(model, DataLoader(sizes, batch_size=None, collate_fn=batch))
    assert trainer.global_step == steps
    return readings


def test_ten_thousand_steps_hold_no_more_than_two_thousand(tmp_path: Path) -> None:
    assert not soak(10_000, 500, tmp_path).grown(warm_up=2000)


class Keeping(Callback):
    """Keeps an object of each step: a leak."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.kept: list[Any] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.kept.append(self.make())


def waiting(event: threading.Event) -> threading.Thread:
    thread = threading.Thread(target=event.wait)
    thread.start()
    return thread


@pytest.mark.parametrize("name", ["memory", "threads", "files"])
def test_a_leak_is_seen(name: str, tmp_path: Path) -> None:
    done = threading.Event()
    leaks: dict[str, Callable[[], Any]] = {
        "memory": lambda: torch.ones(20, 10, 12),
        "threads": lambda: waiting(done),
        "files": tempfile.TemporaryFile,
    }
    leak = Keeping(leaks[name])
    steps = 1000 if name == "memory" else 40
    try:
        grown = soak(steps, steps // 10, tmp_path, leak).grown(warm_up=steps // 2)
    finally:
        done.set()
        for kept in leak.kept:
            if name != "memory":
                (kept.join if name == "threads" else kept.close)()
    assert any(line.startswith(name) for line in grown)
