"""The help, the aliases, the completion and the versions of the command line, held to the parsers themselves."""

import argparse
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import shtab
import yaml
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from cnn_lightning import cli, data
from cnn_lightning.classifier import Classifier
from cnn_lightning.classifier.module import Layers
from cnn_lightning.cli import COMMANDS, TRAINER, main
from cnn_lightning.layers.memory import MemoryFormat
from cnn_lightning.plain import flags as plain_flags
from cnn_lightning.tools import machine, versions
from cnn_lightning.tools import parser as tools_parser
from cnn_lightning.tools.check import arguments as check
from cnn_lightning.tools.check.surrogate import NAMED
from cnn_lightning.tools.completion import tree as completion
from cnn_lightning.tools.export.program import TOLERANCE
from cnn_lightning.train.aliases import ALIASES, spelled_out
from cnn_lightning.train.arguments import Parser
from cnn_lightning.train.configs import shipped
from cnn_lightning.train.full_help import brief, plain, whole
from cnn_lightning.train.help import DATA, OF_DATA, OPTIONS, PURPOSE, Option, short, typed
from cnn_lightning.train.listing import WIDTH, Row
from cnn_lightning.train.run import parsers
from cnn_lightning.train.run_folder import RUNS
from cnn_lightning.train.words import literals_of

MOST = 45
"""The lines of a screen."""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def built() -> dict[str, Parser]:
    """The parsers of fit, validate, test and predict, which take seconds to build."""
    return parsers()


def tool(name: str) -> Any:
    """The parser of a tool."""
    return import_module(f"cnn_lightning.tools.{name}.arguments").parser()


# ---- the short help is true


def mistakes(parser: Parser, command: str, options: Mapping[str, tuple[Option, ...]]) -> Iterator[str]:
    """What the short help says of an option that its parser doesn't."""
    actions = {action.dest: action for action in parser._actions}
    others = {
        "trainer.accelerator": ["auto", "gpu", *AcceleratorRegistry.available_accelerators()],
        "trainer.strategy": ["auto", *StrategyRegistry.available_strategies()],
    }
    classifier = inspect.signature(Classifier).parameters
    for option in (each for some in options.values() for each in some if command in each.commands):
        if option.name not in actions:
            yield f"{option.name} is no option"
            continue
        action = actions[option.name]
        if option.default is not None and option.default != action.default:
            yield f"{option.name} is {action.default} by default"
        group, _, name = option.name.partition(".")
        if group == "model" and option.default is not None and option.default != classifier[name].default:
            yield f"{option.name} is {classifier[name].default} in Classifier by default"
        known = others.get(option.name, literals_of(getattr(action, "_typehint", None)))
        if not {*option.choices} <= {*known} or ("{either}" in option.text and {*option.choices} != {*known}):
            yield f"{option.name} takes {known}"


@pytest.mark.parametrize("command", TRAINER)
def test_the_short_help_says_what_the_parser_does(command: str, built: dict[str, Parser]) -> None:
    assert list(mistakes(built[command], command, OPTIONS)) == []


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"name": "model.nets"}, "model.nets is no option"),
        ({"default": "resnet18"}, "model.net is simple_cnn by default"),
        ({"name": "model.optimizer", "default": "adam"}, "model.optimizer is adamw by default"),
        (
            {"name": "model.optimizer", "default": "adamw", "choices": ("adamw", "lion")},
            "model.optimizer takes ['adamw",
        ),
        (
            {"name": "model.optimizer", "default": "adamw", "choices": ("adamw",), "text": "{either}"},
            "model.optimizer t",
        ),
        ({"name": "trainer.strategy", "default": "auto", "choices": ("dpp",)}, "trainer.strategy takes ['auto'"),
    ],
)
def test_a_wrong_line_of_the_short_help_is_found(wrong: dict[str, Any], found: str, built: dict[str, Parser]) -> None:
    changed = {"network": (replace(OPTIONS["network"][0], **wrong),)}
    assert next(mistakes(built["fit"], "fit", changed)).startswith(found)


def test_the_options_of_the_data_sets_are_theirs() -> None:
    assert {*DATA} == {*data.__all__}
    for name, options in DATA.items():
        parameters = inspect.signature(getattr(data, name)).parameters
        assert list(options) == list(parameters), name
        for key, default in options.items():
            real = parameters[key].default
            assert default == (None if real is inspect.Parameter.empty else real), f"{name}: {key}"
    assert {*OF_DATA} == {key for options in DATA.values() for key in options}
    fits = literals_of(inspect.signature(data.ImageFolder).parameters["fit"].annotation)
    assert all(fit in OF_DATA["fit"][1] for fit in fits)


def test_words_that_repeat_a_constant() -> None:
    assert PURPOSE.keys() == TRAINER.keys()
    folder = next(each for each in OPTIONS["files"] if each.name == "trainer.default_root_dir")
    assert folder.text.endswith(f" {RUNS}")
    assert list(shipped()) == sorted(
        path.stem for path in (Path(cli.__file__).parent.parent / "configs").glob("*.yaml")
    )
    assert tools_parser.MemoryFormat == MemoryFormat
    assert tools_parser.Layers == Layers
    assert tuple(NAMED) == check.SURROGATES
    assert tool("export").get_default("tolerance") == TOLERANCE


# ---- it is short, and takes no time


def fits_on_a_screen(text: str) -> bool:
    lines = text.splitlines()
    return len(lines) <= MOST and max(map(len, lines)) <= WIDTH < 80


@pytest.mark.parametrize("command", TRAINER)
@pytest.mark.parametrize("name", [*DATA, "mine.Data"])
def test_the_short_help_fits_on_a_screen(command: str, name: str) -> None:
    text = short(command, ["--data", name])
    assert fits_on_a_screen(text), text
    assert all(line.startswith(("  ", " ")) or line.endswith(":") for line in text.splitlines()[3:20]), text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_tool_fits_on_a_screen(name: str) -> None:
    parser = tool(name)
    text = brief(parser)
    assert fits_on_a_screen(text), text
    for action in parser._actions:
        flags = {*action.option_strings, *(f"--{alias}" for alias, name in ALIASES.items() if name == action.dest)}
        if action.dest == "data.name":
            flags = {"--data"}
        assert action.dest == "help" or any(flag in text for flag in flags or {action.dest}), action.dest


def test_the_list_of_commands_fits_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert fits_on_a_screen(text), text
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in (*TRAINER, *COMMANDS))


ASK = """
import sys
from cnn_lightning.cli import main
for command in {commands}:
    code = main([*command.split()])
    assert code == 0, command
loaded = {heavy} & set(sys.modules)
sys.exit(f"{{loaded}} loaded" if loaded else 0)
"""


@pytest.mark.parametrize(
    ("commands", "heavy"),
    [
        ([f"{name} --help" for name in TRAINER], {"torch", "lightning", "jsonargparse", "numpy", "yaml"}),
        ([f"{name} --help" for name in COMMANDS], {"torch", "lightning"}),
        (["check a.py:A --help all", "--help", "--version"], {"torch", "lightning"}),
    ],
    ids=["trainer", "tools", "others"],
)
def test_help_loads_nothing_large(commands: list[str], heavy: set[str]) -> None:
    program = ASK.format(commands=commands, heavy=heavy)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_command_that_loads_torch_is_noticed() -> None:
    program = ASK.format(commands=["--help"], heavy={"cnn_lightning.errors"})
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 1


# ---- where --help stands, and what follows it


def test_help_shows_the_options_of_the_data_set_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--data", "MNIST", "--help"]) == 0
    of_mnist = capsys.readouterr().out
    assert re.search(r"--data.root DIR +folder of the files \[data\]", of_mnist)
    assert "one process [256]" in of_mnist
    for args in (["--data=Digits", "--lr", "3", "--data", "cnn_lightning.data.MNIST", "-h"], ["-h", "--data=MNIST"]):
        assert main(["fit", *args]) == 0
        assert capsys.readouterr().out == of_mnist
    assert main(["fit", "--help", "--lr", "nothing that is read"]) == 0
    assert "one process [32]" in capsys.readouterr().out


@pytest.mark.parametrize("args", [["fit", "--help", "x"], ["fit", "--help=mnist"], ["learn", "-h", "1"]])
def test_another_word_after_help_is_one_line(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    flag, _, word = args[1].partition("=")
    line = f"cnn-lightning: error: {flag}: expected all, or nothing, got {(word or args[-1])!r}\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("asked", [["--help", "all"], ["--help=all"], ["--lr", "3", "-h", "all"]])
def test_help_all_asks_the_parser(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, list[str]]] = []

    def run(where: str, args: list[str]) -> int:
        ran.append((where, args))
        return 0

    monkeypatch.setattr(cli, "_run", run)
    assert main(["fit", *asked]) == 0
    assert ran == [("train", ["fit", "--help"])]


# ---- the whole help

MARKUP = re.compile(r"``|:\w+:`|`|<class|Union|Literal\[|known subclasses|\(type: |[Dd]efault: ``|<http|\.\. \w+::")


@pytest.mark.parametrize("command", TRAINER)
def test_the_whole_help_has_every_option_and_no_markup(command: str, built: dict[str, Parser]) -> None:
    text = built[command].format_help()
    assert MARKUP.findall(text) == []
    shown = {*re.findall(r"(?<!\S)--?[a-z][\w.]*", text)}
    for action in built[command]._actions:
        for flag in action.option_strings:
            assert flag in shown or flag.endswith("+") or "-->" in flag or action.help == argparse.SUPPRESS, flag
    assert {f"--data.{name}" for name in OF_DATA} <= shown
    assert {f"--{alias}" for alias in ALIASES} <= shown
    assert max(len(line) for line in text.splitlines()) <= WIDTH


@pytest.mark.parametrize("name", COMMANDS)
def test_the_whole_help_of_a_tool_has_every_option_and_no_markup(name: str) -> None:
    parser = tool(name)
    text = whole(parser)
    assert MARKUP.findall(text) == []
    assert all(flag in text for action in parser._actions for flag in action.option_strings if not flag.endswith("+"))


def test_help_of_a_class_that_an_option_takes(built: dict[str, Parser], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        built["fit"].given(["--data.help", "ImageFolder"])
    text = capsys.readouterr().out
    assert "--data.value_range" in text
    assert MARKUP.findall(text) == []


def test_markup_becomes_text() -> None:
    text = "Set ``max_steps`` of :class:`~lightning.Trainer`, see `Notes <https://a.b/c>`_. Default: ``None``."
    assert plain(text) == "Set max_steps of Trainer, see Notes."
    assert plain("Stop then. Disabled by default (-1). If ``x = -1``, never.") == "Stop then. If x = -1, never."


def test_a_row_is_cut_between_words_alone() -> None:
    assert list(Row("--lr", "X", "rate", "1").lines()) == ["  --lr X".ljust(29) + "rate [1]"]
    assert next(Row("--" + "long" * 8, "X", "word " * 20).lines()) == "  --" + "long" * 8 + " X"
    assert [typed(value) for value in (None, True, (1, 2), 0.003, "auto")] == ["", "true", "[1,2]", "0.003", "auto"]


# ---- aliases

VALUES = {"net": "resnet18", "layers": "torch", "lr": "0.1", "epochs": "7", "batch_size": "5"}


@pytest.mark.parametrize("command", TRAINER)
@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_its_option(command: str, alias: str, built: dict[str, Parser]) -> None:
    value, option, given = VALUES[alias], ALIASES[alias], built[command].given
    expected = given([f"--{option}", value]).options
    assert given([f"--{alias}", value]).options == expected
    assert given([f"--{alias}={value}"]).options == expected
    other = {"net": "alexnet", "layers": "numpy"}.get(alias, "3")
    assert given([f"--{option}", other, f"--{alias}", value]).options == expected
    assert given([f"--{alias}={other}", f"--{option}", value]).options == expected
    assert given([f"--{alias}", other]).options != expected


def test_the_later_of_an_alias_and_a_config_wins(built: dict[str, Parser]) -> None:
    Path("my.yaml").write_text(yaml.safe_dump({"model": {"lr": 0.5}, "trainer": {"max_epochs": 5}}))
    before = built["fit"].given(["--lr", "0.1", "--epochs=1", "--config", "my.yaml"]).options
    after = built["fit"].given(["--config", "my.yaml", "--lr", "0.1", "--epochs=1"]).options
    assert (before.model.lr, before.trainer.max_epochs) == (0.5, 5)
    assert (after.model.lr, after.trainer.max_epochs) == (0.1, 1)


def test_an_alias_reaches_the_data_set_that_is_named(built: dict[str, Parser]) -> None:
    given = built["fit"].given(["--data", "MNIST", "--batch_size", "9", "--data.root", "here"])
    assert given.options.data.init_args.batch_size == 9


TOOLS = [
    ("parity", ["--net", "resnet18", "--layers=torch", "--batch_size", "3"], {"model.net": "resnet18", "lr": 0.01}),
    ("parity", ["--lr", "0.5", "--batch_size=3"], {"lr": 0.5, "data.batch_size": 3}),
    ("benchmark", ["--net=resnet18", "--batch_size", "3"], {"model.net": "resnet18", "data.batch_size": 3}),
    ("compare", ["--epochs", "2", "--lr", "0.5", "--batch_size", "3"], {"epochs": 2, "lr": 0.5, "data.batch_size": 3}),
    ("replay", ["a.pt", "--layers", "torch"], {"model.layers": "torch"}),
    ("benchmark", ["--data.batch_size", "4", "--batch_size", "3"], {"data.batch_size": 3}),
]


@pytest.mark.parametrize(("name", "args", "expected"), TOOLS)
def test_a_tool_takes_the_aliases_of_its_options(name: str, args: list[str], expected: dict[str, Any]) -> None:
    given = tool(name).parse_args(args)
    assert {key: given[key] for key in expected} == expected


@pytest.mark.parametrize(
    "args",
    [["benchmark", "--layers", "torch"], ["explain", "--lr", "3"], ["check", "--net=a"], ["export", "--epochs", "3"]],
)
def test_a_tool_without_the_option_has_no_alias(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    flag = args[1].partition("=")[0]
    line = capsys.readouterr().err
    assert line.startswith(f"cnn-lightning: error: {flag}: expected an option of {args[0]}")
    assert line.count("\n") == 1


def test_what_is_no_flag_stays() -> None:
    known = {"model.lr", "lr_scheduler"}
    args = ["--lr", "lr", "--lr=--lr=1", "-lr", "--lrs", "--epochs", "--", "--lr"]
    spelled = ["--model.lr", "lr", "--model.lr=--lr=1", "-lr", "--lrs", "--epochs", "--", "--lr"]
    assert spelled_out(args, known) == spelled
    assert spelled_out(["--lr"], {"lr", "model.lr"}) == ["--lr"]


def test_the_plain_programs_have_those_that_they_need() -> None:
    for program in ("train_numpy", "train_torch"):
        given = plain_flags.parse(program, "", ["--epochs", "7", "--lr=0.1", "--batch_size", "5"])
        assert (given.epochs, given.lr, given.batch_size) == (7, 0.1, 5)


def test_a_run_by_aliases(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--epochs", "1", "--lr=0.01", "--batch_size", "64", "--layers", "torch", "--net", "simple_cnn"]
    args += ["--trainer.limit_train_batches", "2", "--trainer.enable_progress_bar", "false", "--pictures", "false"]
    assert main(["fit", *args]) == 0
    config = yaml.safe_load(Path("runs/digits/version_0/config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 1
    assert config["data"]["init_args"]["batch_size"] == 64
    assert (config["model"]["lr"], config["model"]["layers"]) == (0.01, "torch")


# ---- completion


@pytest.fixture(scope="module")
def root(built: dict[str, Parser]) -> argparse.ArgumentParser:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completion, "parsers", lambda: built)
        return completion.tree()


COMPLETE = """
source script.bash
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMPREPLY=()
_shtab_cnn_lightning 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""

COMPLETED = [
    (["fi"], {"fit"}),
    ([""], {*TRAINER, *COMMANDS}),
    (["fit", "--model.n"], {"--model.net"}),
    (["fit", "--model.layers", ""], {"numpy", "torch"}),
    (["fit", "--layers", "n"], {"numpy"}),
    (["fit", "--lr", "0.1", "--net", "resnet5"], {"resnet50"}),
    (["fit", "--data", "M"], {"MNIST"}),
    (["test", "--data", "MNIST", "--data.roo"], {"--data.root"}),
    (["fit", "--data.root", "pict"], {"pictures"}),
    (["fit", "--config", "m"], {"mnist", "mixed", "mine.yaml"}),
    (["predict", "--ckpt_path", "l"], {"last"}),
    (["fit", "--model.schedule", ""], {"one_cycle", "cosine", "none"}),
    (["fit", "--model.fast", "f"], {"false"}),
    (["fit", "--trainer.max_e"], {"--trainer.max_epochs"}),
    (["fit", "--ep"], {"--epochs"}),
    (["fit", "--help", ""], {"all"}),
    (["parity", "--against", "ch"], {"channels_last"}),
    (["parity", "--data", "D"], {"Digits"}),
    (["benchmark", "--batch"], {"--batch_size"}),
    (["check", "mi"], {"mine.yaml"}),
    (["learn", "1", "--so"], {"--solution"}),
    (["completion", "z"], {"zsh"}),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(root: argparse.ArgumentParser) -> None:
    Path("script.bash").write_text(shtab.complete(root, "bash"))
    Path("complete.bash").write_text(COMPLETE)
    Path("mine.yaml").write_text("")
    Path("pictures").mkdir()
    subprocess.run(["bash", "-n", "script.bash"], check=True)
    for words, expected in COMPLETED:
        command = ["bash", "complete.bash", "cnn-lightning", *words]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert {*found} == expected, words


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_script_is_one_of_the_shell(shell: str, root: argparse.ArgumentParser) -> None:
    text = shtab.complete(root, shell)
    assert "model.net" in text
    assert "data.root" in text
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    Path("script").write_text(text)
    subprocess.run([shell, "-n", "script"], check=True)


def test_every_flag_is_completed(root: argparse.ArgumentParser, built: dict[str, Parser]) -> None:
    (commands,) = (action.choices for action in root._actions if isinstance(action, argparse._SubParsersAction))
    assert {*commands} == {*TRAINER, *COMMANDS}
    for name in commands:
        completed = {flag for action in commands[name]._actions for flag in action.option_strings}
        shown = {flag for action in (built.get(name) or tool(name))._actions for flag in action.option_strings}
        assert {flag for flag in shown if flag.startswith("-") and flag != "--data.name"} <= completed, name


def test_completion_prints_a_script(
    root: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "tree", lambda: root)
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == shtab.complete(root, "bash") + "\n"
    command = import_module("cnn_lightning.tools.completion.command")
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main(["completion", "fish"]) == 2
    line = "completion: expected the package shtab, not found; pip install 'cnn-lightning[completion]'"
    assert capsys.readouterr().err == f"cnn-lightning: error: {line}\n"
    assert main(["completion", "tcsh"]) == 2
    assert "shell: expected bash, zsh or fish, got 'tcsh'" in capsys.readouterr().err
    assert main(["completion"]) == 2


# ---- versions


class Driver:
    """NVIDIA's driver with two devices, of which one gives no handle."""

    def __init__(self, error: int = 0) -> None:
        self.error = error

    def cuInit(self, flags: int) -> int:
        return self.error

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return index

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        assert size == len(name)
        name.value = b"NVIDIA H100 80GB HBM3"
        return 0


def test_versions(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(machine.FORCED, raising=False)
    monkeypatch.setattr(versions, "_driver", lambda: None)
    assert main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:6]] == [
        "cnn-lightning",
        "python",
        "numpy",
        "torch",
        "torchvision",
        "lightning",
    ]
    assert re.search(r"numpy \d+\.\S+, BLAS kernel \w+", lines[2])
    assert lines[-1] == "CUDA: no device"
    monkeypatch.setenv(machine.FORCED, "Haswell")
    if "openblas" in machine.blas_kernel():
        assert f"  {machine.FORCED}=Haswell forces the BLAS kernel" in versions.text()
    monkeypatch.setattr(versions, "PACKAGES", ("no-such-package",))
    assert "no-such-package is not installed" in versions.text()


def test_devices_are_those_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_driver", Driver)
    assert versions.text().endswith("CUDA: NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(versions, "_driver", lambda: Driver(error=100))
    assert versions.text().endswith("CUDA: no device")
