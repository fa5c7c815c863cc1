"""Real processes for tests that kill them: forked from a clean one that has imported everything, so that they start
in no time and share no thread or lock with the tests."""

import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

START = "forkserver"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["cnn_lightning.train.command", "tests.processes"])

Before = Callable[[], None]


class Run:
    """``cnn-lightning`` with ``args`` in ``folder``, in a process of its own.

    Args:
        before: Called first, in that process.
        variables: Of its environment.
    """

    def __init__(
        self, args: Sequence[str], folder: Path, before: Before | None = None, variables: dict[str, str] | None = None
    ) -> None:
        variables = variables or {}
        self.screen = folder / f"screen-{variables.get('LOCAL_RANK', '0')}.txt"
        self.screen.unlink(missing_ok=True)
        options = (list(args), folder, self.screen, before, variables)
        self.process: BaseProcess = FORKS.Process(target=_run, args=options)
        self.process.start()

    def wait(self, seconds: float = 120) -> int:
        """The exit code, negative for a signal."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"not at its end after {seconds} s:\n{self.text}")
        return self.process.exitcode

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    @property
    def text(self) -> str:
        """What is on its screen."""
        return self.screen.read_text() if self.screen.is_file() else ""


def ranks(n: int, args: Sequence[str], folder: Path, before: Before | None = None) -> list[Run]:
    """The processes of one run, started from outside as a cluster does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", str(n)]
    cluster = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(n)}
    return [Run([*args, *flags], folder, before, {**cluster, "LOCAL_RANK": str(rank)}) for rank in range(n)]


def until(met: Callable[[], Any], seconds: float = 120) -> None:
    """Wait until a condition is met."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def noise(text: str) -> list[str]:
    """The lines of a screen that no user should see."""
    return [line for line in text.splitlines() if re.search(r"[Ww]arning|Traceback|Error:|deprecated|\.py:\d+", line)]


def _run(args: list[str], folder: Path, screen: Path, before: Before | None, variables: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    target = os.open(screen, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    sys.argv = ["cnn-lightning", *args]
    import torch
    from lightning.pytorch.utilities import rank_zero_only

    from cnn_lightning.cli import main

    # Lightning looks at the variable when it is imported.
    rank_zero_only.rank = int(variables.get("LOCAL_RANK", 0))  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    if before is not None:
        before()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
