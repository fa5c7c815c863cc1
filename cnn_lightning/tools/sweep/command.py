"""``cnn-lightning sweep --config FILE``: train with options from a search space, and find the best ones."""

import multiprocessing
import os
import signal
import time
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from cnn_lightning.checkpoints import shown
from cnn_lightning.errors import UserError
from cnn_lightning.signals import stop_signals
from cnn_lightning.tools.sweep import arguments
from cnn_lightning.train.noise import keep_quiet

WAIT = 1.0
"""Seconds between two looks at the trials that other processes run."""
ASKED = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
"""The signals after which a trial can be continued."""


def main(args: list[str]) -> int:
    """Run the trials that are left, print the results and write them; 128 and its number after a signal.

    Raises:
        UserError: A mistake of the user, or no trial has a value.
    """
    own, flags = arguments.parser().parse_known_args(args)
    if not find_spec("optuna"):
        raise UserError("sweep: expected Optuna, which is not here: pip install 'cnn-lightning[sweep]'")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "sweep: expected to be started once, got several processes of a launcher; each trial starts its own"
        )
    from cnn_lightning.tools.sweep import results
    from cnn_lightning.tools.sweep.folder import Sweep, find, keep_optuna_quiet
    from cnn_lightning.tools.sweep.options import read_options

    keep_quiet()
    keep_optuna_quiet()
    options = read_options(flags, {name: value for name in arguments.OWN if (value := getattr(own, name)) is not None})
    folder = find(options, None if own.folder is None else Path(own.folder))
    sweep = Sweep(folder, options.settings)
    print(f"sweep: {shown(folder)}, {len(sweep.trials())} of {options.settings.trials} trials begun", flush=True)
    stopped = _Trials(sweep).run()
    if stopped:
        print("stopped; to go on: the same command", flush=True)
        return 128 + stopped
    results.write(sweep)
    return 0


class _Trials:
    """Runs the trials of a sweep, one after the other, each in a process of its own.

    Args:
        sweep: The sweep.
    """

    def __init__(self, sweep: Any) -> None:
        self.sweep = sweep
        self._process: BaseProcess | None = None
        self._signal = 0
        methods = multiprocessing.get_all_start_methods()
        # A fork of a process that has imported everything takes 0.15 s, a new process 5 s, nearly all imports.
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload(["cnn_lightning.tools.sweep.trial", "optuna"])

    def run(self) -> int:
        """Run all; the number of the signal that stopped them, or 0."""
        began = time.monotonic()
        timeout = self.sweep.settings.timeout
        handlers = {number: signal.signal(number, self._stop) for number in stop_signals()}
        try:
            while not self._signal and (timeout is None or time.monotonic() - began < timeout):
                work = self.sweep.work()
                if work == "none":
                    break
                if work == "others":
                    time.sleep(WAIT)
                else:
                    self._run_one()
            return self._signal
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Have the trial stop with a checkpoint, by SIGTERM: a terminal sends it Ctrl-C, too. Twice stops at once."""
        again, self._signal = bool(self._signal), number
        if self._process is not None and self._process.is_alive():
            self._process.kill() if again else self._process.terminate()

    def _run_one(self) -> None:
        from cnn_lightning.tools.sweep.folder import REASON
        from cnn_lightning.tools.sweep.reports import NO_METRIC
        from cnn_lightning.tools.sweep.results import ending, in_words
        from cnn_lightning.tools.sweep.trial import run_one

        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=run_one, args=(self.sweep.path, self.sweep.settings, Path.cwd(), sender))
        process.start()
        self._process = process
        sender.close()
        try:
            taken = receiver.recv()
        except EOFError:
            taken = None
        if taken is not None:
            number, resumed = taken
            trial = self.sweep.trials()[number]
            goes_on = "goes on" if resumed else in_words(self.sweep.values_of(trial))
            print(f"trial {number}: {goes_on}", flush=True)
        process.join()
        self._process = None
        code = process.exitcode
        if taken is None:
            if code and not self._signal:
                raise UserError(f"sweep: a process ended with code {code} before it had a trial")
            return
        if code in [128 + each for each in ASKED] or -code in (signal.SIGTERM, signal.SIGINT):
            self._signal = self._signal or (code - 128 if code > 0 else -code)
            return
        if code:
            reason = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with code {code}"
            reason += " (often for want of memory)" if code == -9 else ""
            if not self._signal:
                self.sweep.end_if_left(number, reason)
        trial = self.sweep.trials()[number]
        print(f"trial {number}: {ending(self.sweep, trial)}", flush=True)
        reason = trial.user_attrs.get(REASON, "")
        if reason.startswith(NO_METRIC):
            raise UserError(reason)  # so would all others
