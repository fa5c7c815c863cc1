"""One run of a command: LightningCLI with our parser, our parts of the Trainer, and a folder for what it writes."""

import shlex
import signal
import sys
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from types import FrameType
from typing import Any, cast

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.multiprocessing.spawn import ProcessRaisedException

from cnn_lightning.callbacks.evaluation import Evaluation
from cnn_lightning.callbacks.metrics import RunLogger
from cnn_lightning.callbacks.run_page.callback import NAME as PAGE
from cnn_lightning.checkpoints import FOR_FIT, FOR_TRAINER, how_to_resume, newest, read_checkpoint, shown
from cnn_lightning.classifier import Classifier, hyper_parameters
from cnn_lightning.data.record import DataRecord
from cnn_lightning.errors import Stopped, UserError
from cnn_lightning.files import unwritten
from cnn_lightning.processes import is_first
from cnn_lightning.signals import stop_signals
from cnn_lightning.train.arguments import FROM_DATA, ConfigFlag, Parser, check_options
from cnn_lightning.train.failures import Made, call_of_exit, failed_logger, lost_process, original, readable
from cnn_lightning.train.run_folder import RunFolder, SaveConfig, expect_written
from cnn_lightning.train.trainer import DEFAULTS, Parts, assemble

OF_THE_NETWORK = ("net", "channels", "hidden")
"""Options that every command must keep as the checkpoint has them; `fit` also the next ones."""
OF_THE_TRAINING = ("optimizer", "freeze")


class CLI(LightningCLI):
    """Runs a command: the Classifier and its data by flags and configs, and a folder of its own for every run.

    Args:
        args: The command and its arguments.

    Raises:
        UserError: A mistake of the user, or a file that could not be written.
        Stopped: A signal asked the training to stop.
    """

    def __init__(self, args: list[str]) -> None:
        self.checkpoint: dict[str, Any] | None = None
        self.resumed: Path | None = None
        self.folder = RunFolder()
        self.parts = Parts([])
        self._handlers: dict[int, Any] = {}
        self._tells = True
        self._signal = int(signal.SIGTERM)
        unwritten.clear()
        done = False
        try:
            super().__init__(
                Classifier,
                LightningDataModule,
                args=args,
                subclass_mode_data=True,
                seed_everything_default=0,
                save_config_callback=SaveConfig,
                trainer_defaults=dict(DEFAULTS),
            )
            done = True
            expect_written()
        except BaseException as error:
            cause = self._cause(error)
            if cause is None:
                raise
            raise cause from error
        finally:
            self._restore_handlers()
            self.folder.leave(empty=not done)

    # ---- arguments

    def init_parser(self, **options: Any) -> LightningArgumentParser:
        """Our parser with Lightning's default options."""
        options.setdefault("dump_header", [])
        parser = Parser(prog="cnn-lightning", **options)
        parser.add_argument("-c", "--config", action=ConfigFlag, help="a config file, or the name of a shipped one")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the options that the network takes from the data, and add options of our own."""
        for name in FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        parser.add_argument("--early_stopping", type=int | None, default=None, help="stop after N epochs without gain")
        parser.add_argument(
            "--pictures", type=bool, default=True, help="draw filters, confusions, mistakes; keep weights"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the arguments, and put the defaults below them; a checkpoint's network replaces the usual defaults."""
        command, *flags = args
        fits = command == "fit"
        own = cast(Parser, self._subcommand_parsers[command])
        given = own.given(flags)
        # The table of a test says what its lines would.
        own.set_defaults({"weights_only": True, **({"verbose": False} if command == "test" else {})})
        path = given.checkpoint
        if path == "last":
            path = given.options.ckpt_path = str(newest(given.root, given.data if fits else None))
            if fits:
                self.resumed = Path(path).parent.parent
                if is_first():
                    self.folder.take(self.resumed)
        if path is not None:
            self.checkpoint = read_checkpoint(path, FOR_FIT if fits else FOR_TRAINER)
            known = self.checkpoint["hyper_parameters"] = hyper_parameters(self.checkpoint, path)
            defaults = {name: value for name, value in known.items() if name not in (*FROM_DATA, "weights")}
            own.set_defaults({f"model.{name}": value for name, value in defaults.items()})
        options = Namespace({"subcommand": command, command: given.options})  # type: ignore[no-untyped-call]
        super().parse_arguments(parser, options)
        options = self.config[command]
        check_options(options)
        if self.checkpoint is not None:
            for name in (*OF_THE_NETWORK, *(OF_THE_TRAINING if fits else ())):
                _expect_same(f"model.{name}", options.model.get(name), self.checkpoint["hyper_parameters"].get(name))
        elif not fits and not options.model.get("weights") and not options.trainer.get("fast_dev_run"):
            raise UserError(_untrained(command, given.root))

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would put the checkpoint's options above the flags; `parse_arguments` read them."""

    # ---- objects

    def before_instantiate_classes(self) -> None:
        """Have errors of the classes name the options that took them."""
        self.parser.add_instantiator(Made(self.config[self.config.subcommand]), object)

    def instantiate_classes(self) -> None:
        """The data, then a network for it; both must fit the checkpoint."""
        try:
            super().instantiate_classes()
        except (UserError, MisconfigurationException):
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            line = readable(error)
            of_model = line.partition(":")[0] in signature(Classifier).parameters
            raise ValueError(f"model.{line}" if of_model else line) from error
        if self.checkpoint is not None:
            kept = self.checkpoint["hyper_parameters"]
            for name in FROM_DATA:
                if name != "image_size" or self.model.hparams["net"] == "simple_cnn":
                    _expect_same(f"data.{name}", self.model.hparams[name], kept.get(name))
            # Before a run folder is made or written into.
            DataRecord.of(self.checkpoint).apply_to(self.datamodule, to_train=self.subcommand == "fit")

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """The Trainer with our parts."""
        command = str(self.subcommand)
        self.parts = assemble(command, self.config_init[command], self.folder.refused, self._make_logger)
        self.trainer_defaults["callbacks"] = self.parts.callbacks
        if self.resumed is not None:
            self.config[command].ckpt_path = None  # in config.yaml, which describes the run from its beginning
        try:
            trainer = super().instantiate_trainer(**options, **self.parts.options)
        except (UserError, MisconfigurationException):
            raise
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"trainer: {readable(error)}") from error
        environment = trainer._accelerator_connector.cluster_environment
        if self.folder.refused and not (trainer.world_size > 1 and environment.creates_processes_externally):
            raise UserError(self.folder.refused)  # no other process waits for this one
        return trainer

    def _make_logger(self, root: Path) -> RunLogger:
        if self.resumed is not None:
            return RunLogger(self.resumed.parent.parent, self.resumed.parent.name, self.resumed.name)
        data = type(self.datamodule).__name__.lower()
        name = data if self.subcommand == "fit" else f"{data}-{self.subcommand}"
        return RunLogger(root, name, self.folder.make(root, name) if is_first() else None)

    # ---- around the training

    def before_fit(self) -> None:
        """Keep the metrics of a run that is resumed, and pass signals on to processes that the Trainer starts."""
        resumes = self.resumed is not None and not self.folder.refused and self.trainer.is_global_zero
        if resumes and self.resumed is not None and self.checkpoint is not None:
            step = int(self.checkpoint["global_step"])
            print(f"going on: {shown(self.resumed)}, after step {step}")
            cast(RunLogger, self.trainer.logger).resume_at(step, self.checkpoint.get("metrics"))
        if isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher):
            self._handlers = {number: signal.signal(number, self._pass_on) for number in stop_signals()}

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Ask the processes to stop; by SIGTERM, because a terminal sends them Ctrl-C too, and twice stops at once."""
        self._signal = number
        launcher = self.trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGTERM)

    def _restore_handlers(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _cause(self, error: BaseException) -> Exception | None:
        """The error behind one of another process, of a lost connection, of a call of exit, or of a checkpoint."""
        kind, text = original(error)
        if kind == "Stopped" and not isinstance(error, Stopped):
            return Stopped(self._signal, text)
        reason = lost_process(error)
        if reason:
            best = self.parts.best
            remedy = f"; {how_to_resume(Path(str(best.dirpath)).parent)}" if best is not None else ""
            return UserError(f"another process of this run has ended ({reason}){remedy}")
        trainer: Trainer | None = getattr(self, "trainer", None)
        if trainer is not None:
            call = call_of_exit(error)
            if call:  # its exit code could say that the command ended well
                return UserError(f"{self.subcommand}: expected to run to the end, got {call}")
        logger = failed_logger(error, trainer.loggers[1:] if trainer is not None else ())
        if logger is not None:
            return UserError(f"trainer.logger: {type(logger).__name__}: {readable(error)}")
        if (
            trainer is not None
            and trainer._checkpoint_connector._loaded_checkpoint  # only while Lightning restores it
            and isinstance(error, Exception)
            and not isinstance(error, UserError | ProcessRaisedException)
        ):
            return UserError(f"ckpt_path: {trainer.ckpt_path} does not fit: {readable(error)}")
        return UserError(readable(error)) if isinstance(error, ProcessRaisedException) else None

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Lightning's arguments, without its table: it has 16 digits, and the test's own tables have the rest."""
        options = super()._prepare_subcommand_kwargs(subcommand)
        if "verbose" in options:
            self._tells, options["verbose"] = options["verbose"], False
        return options

    def after_validate(self) -> None:
        """Print the metrics of the split, a line each, if the option ``verbose`` is true."""
        found = {name: float(value) for name, value in self.trainer.callback_metrics.items()}  # a collective call
        if self._tells and self.trainer.is_global_zero:
            print("".join(f"{name}: {found[name]:.4f}\n" for name in sorted(found)), end="", flush=True)

    after_test = after_validate

    def after_fit(self) -> None:
        """Test the best checkpoint, or the last one; print accuracies, folder, how to repeat the test, and the page."""
        self._restore_handlers()
        trainer = self.trainer
        tested, val = self._best()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evaluation):
                callback.loud = False
        found: Sequence[Any] = ()
        if is_overridden("test_dataloader", self.datamodule):
            found = trainer.test(self.model, self.datamodule, ckpt_path=tested, verbose=False, weights_only=True)
        if found and "test_acc" not in found[0]:  # trainer.barebones logs nothing; all processes take part
            found = [{"test_acc": self.model.test_acc.compute()}]
        log_dir = trainer.log_dir  # a collective call
        if not trainer.is_global_zero:
            return
        folder = shown(str(log_dir))
        print(f"val_acc: {float(val) if val is not None else float('nan'):.4f}")
        print(f"test_acc: {found[0]['test_acc'] if found else float('nan'):.4f}")
        if trainer.loggers:
            print(f"run: {folder}")
        if tested is not None and found and (Path(folder) / "config.yaml").is_file():
            again = [Path(sys.argv[0]).name if sys.argv[0].endswith("cnn-lightning") else "cnn-lightning", "test"]
            again += ["--config", f"{folder}/config.yaml", "--ckpt_path", shown(tested)]
            print(f"again: {shlex.join(again)}")
        if trainer.loggers and (Path(folder) / PAGE).is_file():
            print(f"see: {folder}/{PAGE}")
        sys.stdout.flush()

    def _best(self) -> tuple[str | None, Any]:
        """The best checkpoint and its accuracy in validation.

        If no validation chose one, the checkpoint of the training's end; None if none was written.
        """
        best = self.parts.best
        path = best.best_model_path if best is not None else ""
        if best is None or not self.trainer.strategy.broadcast(bool(path) and Path(path).is_file()):
            return self._last(), self.trainer.callback_metrics.get("val_acc")
        # Processes that were started for the training alone return no score.
        score = best.best_model_score
        return path, best.state_in(read_checkpoint(path))["best_model_score"] if score is None else score

    def _last(self) -> str | None:
        """The checkpoint of the training's end, if it could be written."""
        path = self.parts.resumable.path if self.parts.resumable is not None else None
        is_there = path is not None and path.resolve() not in unwritten and path.is_file()
        return str(path) if self.trainer.strategy.broadcast(is_there) else None


class _Built(Exception):
    """The parsers are built, and nothing is to be run."""


class _Parsers(CLI):
    """Builds the parsers of all commands, and stops."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Stop.

        Raises:
            _Built: Always.
        """
        raise _Built(self._subcommand_parsers)


def parsers() -> dict[str, Parser]:
    """The parser of each command, for completion and for the test of the help."""
    try:
        _Parsers(["fit"])
    except _Built as built:
        found: dict[str, Parser] = built.args[0]
    return found


def _untrained(command: str, root: Path) -> str:
    """Why a command does nothing without a checkpoint, and which checkpoint there is."""
    try:
        remedy = f"--ckpt_path last takes the newest run, {shown(newest(root).parent.parent)}"
    except UserError:
        remedy = f"there is no run in {str(root)!r} yet: cnn-lightning fit trains one"
    return f"ckpt_path: expected a checkpoint to {command}, got none, and the weights would be random; {remedy}"


def _expect_same(name: str, given: Any, kept: Any) -> None:
    if isinstance(given, list | tuple) and isinstance(kept, list | tuple):
        given, kept = tuple(given), tuple(kept)
    if kept is not None and given != kept:
        raise UserError(f"{name}: expected {kept!r}, that of the checkpoint, got {given!r}")
