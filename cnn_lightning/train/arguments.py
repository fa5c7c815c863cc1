"""The arguments of a command: LightningCLI's parser with errors of one line, and the options that the user gave.

The parser reads the command line once. It reads each config file once, when it reaches the flag of the file, so that
the later of a flag and a config wins. The result has no defaults: it is `Given`. The command takes from it what
decides the defaults, such as the checkpoint, and adds the defaults after that.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]  # exported by a star
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy, StrategyRegistry

import cnn_lightning.data.cifar10
import cnn_lightning.data.digits
import cnn_lightning.data.image_folder
import cnn_lightning.data.mnist  # noqa: F401 -- jsonargparse finds a data set by its short name once it is imported
from cnn_lightning import data
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.train.aliases import spelled_out
from cnn_lightning.train.configs import checked, config_file
from cnn_lightning.train.full_help import of_trainer, whole
from cnn_lightning.train.help import DATA, PURPOSE
from cnn_lightning.train.messages import EXPECTED, OneLine
from cnn_lightning.train.run_folder import RUNS
from cnn_lightning.train.suggestions import did_you_mean
from cnn_lightning.train.words import LONGEST, a, subclasses_of

FROM_DATA = ("num_classes", "in_channels", "image_size")
"""Options of the network whose values come from the data."""
DEFAULT_DATA = "--data=Digits"
"""Comes before all flags, which replace it. The default of an option would pass its own options to another class."""


@dataclass(frozen=True)
class Given:
    """The options that the user gave a command by flags and configs, without defaults.

    Args:
        options: The parsed values.
    """

    options: Namespace

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint's file, or ``last``; None if no checkpoint is given."""
        path = self.options.get("ckpt_path")
        return str(path) if path else None

    @property
    def root(self) -> Path:
        """The folder of all runs."""
        return Path(self.options.get("trainer.default_root_dir") or RUNS)

    @property
    def data(self) -> str | None:
        """The name of the folder that contains the runs on this data; None if ``data`` is no class."""
        path = getattr(self.options.get("data"), "class_path", None)
        return path.rpartition(".")[2].lower() if isinstance(path, str) else None


class ConfigFlag(ActionConfigFile):
    """The flag ``--config``, which takes a file or the name of a shipped config."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read the file and merge its options into ``cfg``."""
        path = str(config_file(values))
        super().__call__(parser, cfg, path, option_string)  # type: ignore[no-untyped-call]  # of jsonargparse


class Parser(OneLine, LightningArgumentParser):
    """LightningCLI's parser, with errors of one line."""

    dashes = ""
    _config = "the config"
    _without_defaults = False

    def given(self, args: Sequence[str]) -> Given:
        """Read the arguments and the configs that they name.

        Raises:
            UserError: An unknown option, a value of a wrong type, or a config that can't be read.
        """
        self._without_defaults = True
        try:
            options = self.parse_args([DEFAULT_DATA, *spelled_out(args, self.options())], defaults=False)
        finally:
            self._without_defaults = False
        _refuse_from_data(options.get("model") or {})
        return Given(options)

    def options(self) -> list[str]:
        """The names of all options, also those of every data set."""
        names = super().options()
        kinds = [getattr(data, name) for name in data.__all__] if "data" in names else []
        return [*names, *(f"data.{name}" for name in dict.fromkeys(n for k in kinds for n in signature(k).parameters))]

    def format_help(self, formatter: Any = None) -> str:
        """All options, without the markup of docstrings; also of a class that an option takes."""
        if self.prog.split()[-1] in PURPOSE:
            return of_trainer(self, data_parsers()) + "\n"
        return whole(self) + "\n"

    def parse_path(self, path: Any, *args: Any, **options: Any) -> Namespace:
        """Read a config file, for messages with its name.

        Raises:
            UserError: It can't be read.
        """
        before, self._config = self._config, str(path)
        try:
            found: Namespace = super().parse_path(path, *args, **options)
            return found
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"config: expected YAML in {path}: {one_line(error)}") from None
        finally:
            self._config = before

    def parse_string(self, content: str, *args: Any, **options: Any) -> Namespace:
        """Read the text of a config, without its empty sections: jsonargparse reads some of them as text or null.

        Raises:
            UserError: It is no YAML, or has another shape than a config.
        """
        try:
            config = yaml.safe_load(content)
        except yaml.YAMLError as error:
            raise UserError(f"config: expected YAML in {self._config}: {one_line(error)}") from None
        sections = checked(config, self._config)
        _refuse_from_data(sections.get("model", {}))
        if config is None or None in config.values():
            content = yaml.safe_dump(sections, sort_keys=False)
        found: Namespace = super().parse_string(content, *args, **options)
        return found

    def validate(self, namespace: Any, *args: Any, **options: Any) -> None:
        """Check all values, except in `given`, where required ones may be missing."""
        if not self._without_defaults:
            super().validate(namespace, *args, **options)


def data_parsers() -> Iterator[Parser]:
    """A parser of the options of each data set."""
    for name in DATA:
        parser = Parser(description=f"--data {name}", add_help=False)
        parser.add_class_arguments(getattr(data, name), "data")
        yield parser


def _refuse_from_data(model: Any) -> None:
    """Raise for an option of the network that only the data may give: the parser drops it silently."""
    for name in FROM_DATA:
        if name in model:
            raise UserError(f"model.{name}: expected no value, because data sets it, got {model[name]!r}")


# ---- options that the types of the parser allow and a run can't use


def check_options(config: Any) -> None:
    """Return if a run can use the options of its command.

    Raises:
        UserError: An option that Lightning would ignore, or refuse later with an unclear message.
    """
    if config.data is None or config.data.class_path.rpartition(".")[2] == "LightningDataModule":
        raise UserError(f"data: expected {EXPECTED['data']}")
    _check_number("early_stopping", config.early_stopping, 1)
    _check_number("trainer.check_val_every_n_epoch", config.trainer.get("check_val_every_n_epoch"), 1)
    _check_number("trainer.accumulate_grad_batches", config.trainer.get("accumulate_grad_batches"), 1)
    _check_number("trainer.gradient_clip_val", config.trainer.get("gradient_clip_val"), 0)  # below 0 it turns gradients
    if config.trainer.get("val_check_interval") in (0, "0"):
        raise UserError("trainer.val_check_interval: expected above 0, got 0")
    if not isinstance(config.seed_everything, bool):
        _check_number("seed_everything", config.seed_everything, 0, 2**32 - 1)
    for key, names, base in (
        ("strategy", ["auto", *StrategyRegistry.available_strategies()], Strategy),
        ("accelerator", ["auto", "gpu", *AcceleratorRegistry.available_accelerators()], Accelerator),
        ("profiler", ["simple", "advanced", "pytorch", "xla"], Profiler),
    ):
        _check_name(f"trainer.{key}", config.trainer.get(key), names, base)


def _check_number(key: str, value: Any, least: float, most: float = math.inf) -> None:
    """Raise for a number outside the range; None is none."""
    if value is not None and not least <= value <= most:
        expected = f"at least {least}" if most == math.inf else f"a number from {least} to {most}"
        raise UserError(f"{key}: expected {expected}, got {value}")


def _check_name(key: str, value: Any, names: Iterable[str], base: type) -> None:
    """Raise for a text that is no known name: an option that takes names beside classes accepts any text."""
    if isinstance(value, str) and value.casefold() not in (name.casefold() for name in names):
        meant = did_you_mean(value, [*names, *(kind.__name__ for kind in subclasses_of(base))])
        expected = f"{', '.join(names)[:LONGEST]} or {a(base.__name__)} by its name or import path"
        raise UserError(f"{key}: expected {expected}, got {value!r}{meant}")
