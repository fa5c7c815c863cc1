"""The options of a sweep, read and checked by the parser of ``fit`` before anything trains."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from cnn_lightning.errors import UserError
from cnn_lightning.tools.sweep.settings import Settings, read_settings
from cnn_lightning.tools.sweep.space import flag
from cnn_lightning.train.arguments import ConfigFlag, Parser
from cnn_lightning.train.configs import SWEEP
from cnn_lightning.train.run import CLI

NEEDED, REFUSED = ("logger", "enable_checkpointing"), ("fast_dev_run", "barebones")
"""Options of the Trainer that must not be off, or on: a trial leaves a folder that can be continued and repeated."""


@dataclass(frozen=True)
class Options:
    """A sweep that can run.

    Args:
        settings: The section ``sweep``.
        base: The options of ``fit`` that all trials share, without defaults, as YAML has them.
        root: The folder of all runs.
        data: The name of the folder of the runs on this data.
    """

    settings: Settings
    base: dict[str, Any]
    root: Path
    data: str


def read_options(flags: Sequence[str], above: Mapping[str, Any]) -> Options:
    """Read configs and flags, and check every option of the space by the parser of ``fit``.

    Args:
        flags: Those of ``fit``, with ``--config``.
        above: Settings that replace those of the section ``sweep``.

    Raises:
        UserError: The first mistake.
    """
    try:
        _Reader(["fit", *flags], above)
    except _Read as read:
        return read.options
    raise AssertionError


class _Read(Exception):
    """Ends LightningCLI's work before it makes objects."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options


class _SweepParser(Parser):
    """The parser of ``fit``, which takes the section ``sweep`` out of configs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sections: list[Any] = []

    def parse_string(self, content: str, *args: Any, **options: Any) -> Any:
        """Read the text of a config."""
        try:
            config = yaml.safe_load(content)
        except yaml.YAMLError:
            config = None  # the parser says what is wrong
        if isinstance(config, dict) and SWEEP in config:
            self.sections.append(config.pop(SWEEP))
            content = yaml.safe_dump(config, sort_keys=False)
        return super().parse_string(content, *args, **options)


class _Reader(CLI):
    """Reads the options as ``fit`` does, and raises `_Read` with them before it makes anything of them."""

    def __init__(self, args: list[str], above: Mapping[str, Any]) -> None:
        self._above = above
        super().__init__(args)

    def init_parser(self, **options: Any) -> LightningArgumentParser:
        """The parser that knows the section ``sweep``."""
        options.setdefault("dump_header", [])
        parser = _SweepParser(prog="cnn-lightning", **options)
        parser.add_argument("-c", "--config", action=ConfigFlag, help="a config file, or the name of a shipped one")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the arguments once; the parser of ``fit`` has then seen all sections."""
        own = cast(_SweepParser, self._subcommand_parsers["fit"])
        given = own.given(args[1:])
        sections, own.sections = own.sections, []
        if not sections:
            raise UserError("sweep: expected a config with a section sweep, as --config sweep has one, got none")
        section: dict[str, Any] = {}
        for each in sections:
            if not isinstance(each, dict):
                raise UserError(f"sweep: expected a mapping with space, got {each!r}")
            section |= each
        settings = read_settings({**section, **self._above})
        base = yaml.safe_load(own.dump(given.options, skip_validation=True, skip_none=False))
        base.pop("config", None)
        if given.checkpoint is not None:
            raise UserError(f"ckpt_path: expected none, because trials begin anew, got {given.checkpoint!r}")
        for option in settings.space:
            if _is_in(base, option):
                raise UserError(
                    f"{option}: expected no value, because sweep.space has it, got one; leave one of both out"
                )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "base.yaml"
            file.write_text(yaml.safe_dump(base, sort_keys=False), encoding="utf-8")
            self._check(parser, ["fit", f"--config={file}"])
            for option, values in settings.space.items():
                for value in values.candidates:
                    try:
                        self._check(parser, ["fit", f"--config={file}", flag(option, value)])
                    except UserError as error:
                        raise UserError(f"sweep.space: {error.head}") from None
        raise _Read(Options(settings, base, given.root, given.data or "data"))

    def _check(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """Read the arguments of one trial as ``fit`` does."""
        super().parse_arguments(parser, args)
        options = self.config["fit"]
        for name in (*NEEDED, *REFUSED):
            value = options.trainer.get(name)
            if value is False if name in NEEDED else value:
                raise UserError(f"trainer.{name}: expected trials that leave a folder each, got {str(value).lower()}")
        if options.get("ckpt_path"):
            raise UserError("ckpt_path: expected none, because trials begin anew, got one")


def _is_in(base: Mapping[str, Any], option: str) -> bool:
    """Whether the options have one, or a part of one, of that name."""
    found: Any = base
    for part in option.split("."):
        if isinstance(found, Mapping) and "class_path" in found and part not in found:
            found = found.get("init_args")
        if not isinstance(found, Mapping) or part not in found:
            return False
        found = found[part]
    return option != "data"  # the default of which is there always
