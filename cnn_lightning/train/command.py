"""``cnn-lightning fit | validate | test | predict``: LightningCLI with our data, defaults and manners."""

import logging
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib.resources import files
from inspect import signature
from pathlib import Path
from types import FrameType
from typing import Any, cast

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO, LayerSync
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy, StrategyRegistry
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

import cnn_lightning.data.cifar10
import cnn_lightning.data.digits
import cnn_lightning.data.image_folder
import cnn_lightning.data.mnist  # noqa: F401 -- jsonargparse finds a data set by its short name once it is imported
from cnn_lightning import data
from cnn_lightning.callbacks.best import BestModelCheckpoint
from cnn_lightning.callbacks.curves import LearningCurves
from cnn_lightning.callbacks.metrics import RunLogger
from cnn_lightning.callbacks.pictures import Pictures
from cnn_lightning.callbacks.progress import Progress
from cnn_lightning.callbacks.report import LayerReport
from cnn_lightning.callbacks.results import Confusion, Predictions
from cnn_lightning.callbacks.resume import Resumable
from cnn_lightning.callbacks.snapshots import Snapshots
from cnn_lightning.callbacks.sync import SyncBatchNorm
from cnn_lightning.checkpoints import FOR_FIT, FOR_TRAINER, WholeFiles, go_on, newest, read_checkpoint, shown
from cnn_lightning.classifier import Classifier, hyper_parameters
from cnn_lightning.data.record import DataRecord
from cnn_lightning.errors import EverywhereError, Stopped, UserError
from cnn_lightning.files import unwritten
from cnn_lightning.signals import heard
from cnn_lightning.train.messages import (
    EXPECTED,
    Made,
    OneLine,
    check_name,
    check_number,
    checked,
    did_you_mean,
    original,
    readable,
)
from cnn_lightning.train.run_folder import OneWriter, RunFolder, SaveConfig, expect_written

RUNS = Path("runs")
CONFIG_FLAGS = ("--config", "-c")
FROM_DATA = ("num_classes", "in_channels", "image_size")
OF_THE_NETWORK = ("net", "channels", "hidden")
EPOCHS = 30
LOG_EVERY_N_STEPS = 10
OWN_CHECKPOINTS = "own_checkpoints"

# Lightning's advice for other situations than ours; what is left is worth reading.
NOISE = (
    ".*Be aware that when using `ckpt_path`.*",
    ".*dirpath has changed from.*",
    ".*LightningCLI.s args parameter is intended to run from within Python.*",
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*LeafSpec.*is deprecated.*",
    ".*Experiment logs directory.*exists and is not empty.*",
    ".*Checkpoint directory.*exists and is not empty.*",
    ".*Consider setting.*sync_dist.*",
    ".*trying to `self.log\\(\\)` but `Trainer\\(barebones=True\\)`.*",
    ".*`Trainer.fit_loop` was signaled to stop.*",
    ".*GPU available but not used.*",
    ".*lr_scheduler.step.*before.*optimizer.step.*",
    ".*using the WeightAveraging callback, but loading a checkpoint outside.*",  # what is tested are the file's weights
    ".*ModelCheckpoint.monitor='val_acc'.* could not find the monitored key.*",  # no validation: val_acc: nan says so
    ".*Using `DistributedSampler` with the dataloaders.*",  # what it repeats is not counted
    ".*The ``compute`` method of metric .* was called before.*",  # by a process that has no picture of a small split
    ".*Glyph .* missing from .*font.*",  # Matplotlib draws a box; the tables beside the picture have the name
)


# How gloo, NCCL and torch's store say that another process is gone.
LOST_KINDS = ("RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError", "DistError")
LOST = re.compile(r"gloo|NCCL|[Cc]onnection|[Bb]roken pipe|[Tt]imed out|recvValue|remote process")


def _rank() -> int:
    """This process's number, known before there is a Trainer."""
    rank: int = getattr(rank_zero_only, "rank", 0)
    return rank


def main(args: list[str]) -> int:
    """Run one of Lightning's four commands."""
    _quiet()
    try:
        CLI(named_configs(args))
    except EverywhereError:
        if _rank() == 0:
            raise
        return 2
    except UserError as error:
        _, text = original(error)
        if text == str(error):
            raise
        raise UserError(text) from error  # of a process that loads data
    except Stopped as stop:
        if _rank() == 0:
            print(f"cnn-lightning: {stop}", file=sys.stderr)
        return 128 + stop.number
    except SIGTERMException:  # which Lightning raises outside training, with exit code 0
        return 128 + signal.SIGTERM
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning turns into 1
            return 128 + signal.SIGINT
        raise
    except MisconfigurationException as error:
        raise UserError(f"trainer: {_one_line(error)}") from error
    except ImportError as error:
        raise UserError(f"trainer: expected a package that is not here: {_one_line(error)}") from error
    except (ValueError, TypeError, RuntimeError, OSError, IndexError, NotImplementedError, OverflowError) as error:
        if os.environ.get("CNN_LIGHTNING_TRACEBACK"):
            raise
        raise UserError(readable(error)) from error
    return 0


def _quiet() -> None:
    for pattern in NOISE:
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # What is said before the first process is ended because another one is gone.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # which processes it ends; we say why


class Quiet(Callback):
    """Keeps noise off the screen in processes that are spawned, too: they begin by reading this from a pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _quiet_too, ()


def _quiet_too() -> Quiet:
    _quiet()
    return Quiet()


def _one_line(error: BaseException | str) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def named_configs(args: list[str]) -> list[str]:
    """``--config mnist`` with the path of the config of that name, from a checkout or from the wheel."""
    result = list(args)
    for index, arg in enumerate(result):
        flag, equals, name = arg.partition("=")
        if index and result[index - 1] in CONFIG_FLAGS:
            flag, equals, name = "", "", arg
        elif flag not in CONFIG_FLAGS or not equals:
            continue
        if not Path(name).is_file():
            result[index] = f"{flag}{equals}{_config(name)}"
    return result


def _config(name: str) -> Path:
    package = Path(str(files("cnn_lightning")))
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in ("configs", "../configs") for path in (package / folder).glob("*.yaml")})
    raise UserError(f"config: expected a file or one of {', '.join(known)}, got {name!r}{did_you_mean(name, known)}")


class Parser(OneLine, LightningArgumentParser):
    """LightningCLI's parser, with errors of one line."""

    dashes = ""

    def options(self) -> list[str]:
        """Those of the data sets, too, which depend on the set that is chosen."""
        names = super().options()
        kinds = [getattr(data, name) for name in data.__all__] if "data" in names else []
        return [*names, *(f"data.{name}" for name in dict.fromkeys(n for k in kinds for n in signature(k).parameters))]


class CLI(LightningCLI):
    """Classifier and data by flags; a run folder of its own for every run."""

    def __init__(self, args: list[str]) -> None:
        self.checkpoint: dict[str, Any] | None = None
        self.resumed: Path | None = None
        self.folder = RunFolder()
        self.best: BestModelCheckpoint | None = None
        self.resumable: Resumable | None = None
        self._handlers: dict[int, Any] = {}
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
                trainer_defaults={
                    "max_epochs": EPOCHS,
                    "devices": 1,
                    "enable_model_summary": False,
                    "num_sanity_val_steps": 0,
                    "log_every_n_steps": LOG_EVERY_N_STEPS,
                },
            )
            done = True
            expect_written()
        except BaseException as error:
            told = self._told(error)
            if told is None:
                raise
            raise told from error
        finally:
            self._let_go()
            self.folder.leave(empty=not done)

    def init_parser(self, **options: Any) -> LightningArgumentParser:
        """Our parser with Lightning's default options."""
        options.setdefault("dump_header", [])
        parser = Parser(prog="cnn-lightning", **options)
        parser.add_argument("-c", "--config", action="config", help="a config file, or the name of a shipped one")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What the network must know of the data comes from the data."""
        for name in FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        parser.add_argument("--early_stopping", type=int | None, default=None, help="stop after N epochs without gain")
        parser.add_argument(
            "--pictures", type=bool, default=True, help="draw filters, confusions, mistakes; keep weights"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """A checkpoint's network becomes the default of the flags, which win over it where they are given."""
        if not _names_data(args):
            args = [args[0], "--data=Digits", *args[1:]]
        self._subcommand_parsers[args[0]].set_defaults({"weights_only": True})
        path = _checkpoint(args)
        if path is not None:
            if path == "last":
                path = str(newest(Path(_root(args)), _data(args) if args[0] == "fit" else None))
                if args[0] == "fit":
                    self.resumed = Path(path).parent.parent
                    if _rank() == 0:
                        self.folder.take(self.resumed)
                args = _with_flag(args, "--ckpt_path", path)
            self.checkpoint = read_checkpoint(path, FOR_FIT if args[0] == "fit" else FOR_TRAINER)
            known = self.checkpoint["hyper_parameters"] = hyper_parameters(self.checkpoint, path)
            defaults = {
                f"model.{key}": value for key, value in known.items() if key not in FROM_DATA and key != "weights"
            }
            self._subcommand_parsers[args[0]].set_defaults(defaults)
        for config in _configs(args):
            for name in {*FROM_DATA} & {*config.get("model", {})}:  # which the parser would leave out unsaid
                raise UserError(f"model.{name}: expected no value, as data says it, got {config['model'][name]!r}")
        super().parse_arguments(parser, args)
        self._check_options()
        options = self.config[self.config.subcommand]
        if self.checkpoint is not None:
            model = options.model
            fixed = OF_THE_NETWORK if args[0] != "fit" else (*OF_THE_NETWORK, "optimizer", "freeze")
            for key in fixed:
                _same(f"model.{key}", model.get(key), self.checkpoint["hyper_parameters"].get(key))
        elif args[0] != "fit" and not options.model.get("weights") and not options.trainer.get("fast_dev_run"):
            raise UserError(_untrained(args[0], Path(_root(args))))

    def _check_options(self) -> None:
        """Refuse what the parser's types allow and what would be done silently or said obscurely later on."""
        config = self.config[self.config.subcommand]
        if config.data is None or config.data.class_path.rpartition(".")[2] == "LightningDataModule":
            raise UserError(f"data: expected {EXPECTED['data']}")
        check_number("early_stopping", config.early_stopping, 1)
        check_number("trainer.check_val_every_n_epoch", config.trainer.get("check_val_every_n_epoch"), 1)
        check_number("trainer.accumulate_grad_batches", config.trainer.get("accumulate_grad_batches"), 1)
        # One below 0 would turn the gradients round.
        check_number("trainer.gradient_clip_val", config.trainer.get("gradient_clip_val"), 0)
        if config.trainer.get("val_check_interval") in (0, "0"):
            raise UserError("trainer.val_check_interval: expected above 0, got 0")
        if not isinstance(config.seed_everything, bool):
            check_number("seed_everything", config.seed_everything, 0, 2**32 - 1)
        for key, names, base in (
            ("strategy", ["auto", *StrategyRegistry.available_strategies()], Strategy),
            ("accelerator", ["auto", "gpu", *AcceleratorRegistry.available_accelerators()], Accelerator),
            ("profiler", ["simple", "advanced", "pytorch", "xla"], Profiler),
        ):
            check_name(f"trainer.{key}", config.trainer.get(key), names, base)

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would put the checkpoint's hyper-parameters over the flags; `parse_arguments` did it."""

    def instantiate_classes(self) -> None:
        """Data, then a network that fits it, which a checkpoint must fit too."""
        try:
            super().instantiate_classes()
        except (UserError, MisconfigurationException):
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            line = readable(error)
            of_model = line.partition(":")[0] in signature(Classifier).parameters
            raise ValueError(f"model.{line}" if of_model else line) from error
        if self.checkpoint is not None:
            for key in FROM_DATA:
                if key != "image_size" or self.model.hparams["net"] == "simple_cnn":
                    _same(f"data.{key}", self.model.hparams[key], self.checkpoint["hyper_parameters"].get(key))
            # Before a run folder is made or written into.
            DataRecord.of(self.checkpoint).hand_to(self.datamodule, to_train=self.subcommand == "fit")

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """The Trainer with a folder for this run, and what writes into it."""
        config = self._get(self.config_init, "trainer", default={})
        own = _list(config.get("callbacks"))
        barebones = bool(config.get("barebones"))
        callbacks: list[Callback] = [Quiet(), OneWriter(self.folder.refused), LayerReport(), Confusion(), Predictions()]
        others_bar = any(isinstance(callback, ProgressBar) for callback in own)
        if config.get("enable_progress_bar") is not False and not barebones and not others_bar:
            callbacks.append(Progress())
        if barebones and config.get("log_every_n_steps") == LOG_EVERY_N_STEPS:
            options["log_every_n_steps"] = None  # any number is refused with it
        plugins = _list(config.get("plugins"))
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            options["plugins"] = [*plugins, WholeFiles()]
        if config.get("sync_batchnorm") and not any(isinstance(plugin, LayerSync) for plugin in plugins):
            options["plugins"] = [*options.get("plugins", plugins), SyncBatchNorm()]
        others = config.get("logger")
        if others is not False and not config.get("fast_dev_run") and not barebones:
            logger = self._logger(Path(config.get("default_root_dir") or RUNS))
            options["logger"] = [logger, *([] if others is True else _list(others))]
        elif others is True or others is None:
            options["logger"] = False  # which Lightning would look for TensorBoard to fill
        if self.subcommand == "fit" and options.get("logger"):
            run = Path(options["logger"][0].log_dir)
            callbacks.append(LearningCurves())
            if config.get("enable_checkpointing") is not False:
                self.best = BestModelCheckpoint(run / "checkpoints")
                self.resumable = Resumable(run / "checkpoints")
                callbacks += [self.best, self.resumable]
                for callback in own:
                    if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                        callback.dirpath = str((run / OWN_CHECKPOINTS).resolve())  # its files replace none of ours
            if self._get(self.config_init, "pictures"):
                callbacks += [Pictures(), Snapshots()]
        patience = self._get(self.config_init, "early_stopping")
        if patience:
            from lightning.pytorch.callbacks import EarlyStopping

            callbacks.append(EarlyStopping("val_acc", mode="max", patience=patience))
        if (
            config.get("enable_checkpointing") is None
            and self.best is None
            and not any(isinstance(callback, Checkpoint) for callback in own)
        ):
            options["enable_checkpointing"] = False  # Lightning's would write into the current folder
        self.trainer_defaults["callbacks"] = callbacks
        if self.resumed is not None:
            self.config[self.subcommand].ckpt_path = None  # in config.yaml, which describes the run from its start
        try:
            trainer = super().instantiate_trainer(**options)
        except (UserError, MisconfigurationException):
            raise
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"trainer: {readable(error)}") from error
        environment = trainer._accelerator_connector.cluster_environment
        if self.folder.refused and not (trainer.world_size > 1 and environment.creates_processes_externally):
            raise UserError(self.folder.refused)  # no other process waits for this one
        return trainer

    def _logger(self, root: Path) -> RunLogger:
        if self.resumed is not None:
            return RunLogger(self.resumed.parent.parent, self.resumed.parent.name, self.resumed.name)
        data = type(self.datamodule).__name__.lower()
        name = data if self.subcommand == "fit" else f"{data}-{self.subcommand}"
        return RunLogger(root, name, self.folder.make(root, name) if _rank() == 0 else None)

    def before_instantiate_classes(self) -> None:
        """Have errors of the classes name the options that took them."""
        self.parser.add_instantiator(Made(self.config[self.config.subcommand]), object)

    # ---- around Lightning's own

    def before_fit(self) -> None:
        """Keep the metrics of the run that goes on, and hand signals on to processes that are started here."""
        goes_on = self.resumed is not None and not self.folder.refused and self.trainer.is_global_zero
        if goes_on and self.resumed is not None and self.checkpoint is not None:
            step = int(self.checkpoint["global_step"])
            print(f"going on: {shown(self.resumed)}, after step {step}")
            cast(RunLogger, self.trainer.logger).go_on(step, self.checkpoint.get("metrics"))
        if isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher):
            self._handlers = {number: signal.signal(number, self._hand_on) for number in heard()}

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        """Ask the processes to stop; Ctrl-C in a terminal reaches them by itself, and SIGTERM is no second Ctrl-C."""
        self._signal = number
        launcher = self.trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGTERM)

    def _let_go(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _told(self, error: BaseException) -> Exception | None:
        """What stands behind an error of another process, or of the connection to one that is gone."""
        kind, text = original(error)
        if kind == "Stopped" and not isinstance(error, Stopped):
            return Stopped(self._signal, text)
        if isinstance(error, ProcessExitedException) or (kind in LOST_KINDS and LOST.search(text)):
            then = f"; {go_on(Path(str(self.best.dirpath)).parent)}" if self.best is not None else ""
            reason = _one_line(re.sub(r"\[[^\]]*/[^\]]*\]", "", text))  # gloo's own source file
            return UserError(f"another process of this run is gone ({reason[:160]}){then}")
        trainer: Trainer | None = getattr(self, "trainer", None)
        if (
            trainer is not None
            and trainer._checkpoint_connector._loaded_checkpoint  # only while it is taken in
            and isinstance(error, Exception)
            and not isinstance(error, UserError | ProcessRaisedException)
        ):
            return UserError(f"ckpt_path: {trainer.ckpt_path} does not fit: {readable(error)}")
        return UserError(readable(error)) if isinstance(error, ProcessRaisedException) else None

    def after_fit(self) -> None:
        """Test the best checkpoint, or the last one, and say what came out, and how to see it again where one can."""
        self._let_go()
        trainer = self.trainer
        tested, val = self._best()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Confusion):
                callback.loud = False
        found: Sequence[Any] = ()
        if is_overridden("test_dataloader", self.datamodule):
            found = trainer.test(self.model, self.datamodule, ckpt_path=tested, verbose=False, weights_only=True)
        if found and "test_acc" not in found[0]:  # trainer.barebones logs nothing; all processes take part
            found = [{"test_acc": self.model.test_acc.compute()}]
        log_dir = trainer.log_dir  # asks the first process, so that every process has to come by here
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
        sys.stdout.flush()

    def _best(self) -> tuple[str | None, Any]:
        """The best checkpoint and its accuracy in validation.

        Where no validation chose one, the checkpoint of the training's end; None where none was written.
        """
        best = self.best
        path = best.best_model_path if best is not None else ""
        if best is None or not self.trainer.strategy.broadcast(bool(path) and Path(path).is_file()):
            return self._last(), self.trainer.callback_metrics.get("val_acc")
        # Processes that were started for the training alone hand back no score.
        score = best.best_model_score
        return path, best.state_in(read_checkpoint(path))["best_model_score"] if score is None else score

    def _last(self) -> str | None:
        """The checkpoint of the training's end, if it could be written."""
        path = self.resumable.path if self.resumable is not None else None
        is_there = path is not None and path.resolve() not in unwritten and path.is_file()
        return str(path) if self.trainer.strategy.broadcast(is_there) else None


def _checkpoint(args: list[str]) -> str | None:
    """The checkpoint that a flag or a config names."""
    if _flags(args, "--ckpt_path"):
        return _flag(args, "--ckpt_path")
    return next((config["ckpt_path"] for config in reversed(_configs(args)) if config.get("ckpt_path")), None)


def _untrained(command: str, root: Path) -> str:
    """Why a command does nothing without a checkpoint, and which one there is."""
    try:
        remedy = f"--ckpt_path last takes the newest run, {shown(newest(root).parent.parent)}"
    except UserError:
        remedy = f"there is no run in {str(root)!r} yet: cnn-lightning fit trains one"
    return f"ckpt_path: expected a checkpoint to {command}, got none, and random weights know nothing; {remedy}"


def _data(args: list[str]) -> str | None:
    """The folder's name of the runs on this data; None where it is not said in one word."""
    named = [config["data"] for config in _configs(args) if "data" in config]
    found = _flag(args, "--data.class_path") or _flag(args, "--data") or (named[-1] if named else None)
    name = found.get("class_path") if isinstance(found, dict) else found
    return name.rpartition(".")[2].lower() if isinstance(name, str) and name.replace(".", "").isidentifier() else None


def _same(name: str, given: Any, kept: Any) -> None:
    if isinstance(given, list | tuple) and isinstance(kept, list | tuple):
        given, kept = tuple(given), tuple(kept)
    if kept is not None and given != kept:
        raise UserError(f"{name}: expected {kept!r}, that of the checkpoint, got {given!r}")


def _names_data(args: list[str]) -> bool:
    """Whether a flag or a config says which data: a default class would hand its options on to the one chosen."""
    if _flag(args, "--data") is not None or "--data.class_path" in args:
        return True
    return any("data" in config for config in _configs(args))


def _root(args: list[str]) -> str:
    """The folder of all runs."""
    roots = [(config.get("trainer") or {}).get("default_root_dir") for config in _configs(args)]
    return _flag(args, "--trainer.default_root_dir") or next(filter(None, reversed(roots)), str(RUNS))


def _configs(args: list[str]) -> list[dict[str, Any]]:
    found = []
    for path in (value for flag in CONFIG_FLAGS for value in _flags(args, flag)):
        try:
            config = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"config: expected YAML in {path}: {_one_line(error)}") from None
        found.append(checked(config, path))
    return found


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _flags(args: list[str], name: str) -> list[str]:
    """Every value that the flag is given."""
    after = [args[index + 1] for index, arg in enumerate(args[:-1]) if arg == name]
    return after + [arg.partition("=")[2] for arg in args if arg.startswith(f"{name}=")]


def _flag(args: list[str], name: str) -> str | None:
    """The last value that the flag is given; None for none, or for null."""
    values = _flags(args, name)
    return None if not values or values[-1] == "null" else values[-1]


def _with_flag(args: list[str], name: str, value: str) -> list[str]:
    kept = [
        arg for index, arg in enumerate(args) if name not in (arg, args[index - 1]) and not arg.startswith(f"{name}=")
    ]
    return [*kept, name, value]
