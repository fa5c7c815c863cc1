"""The command line and the configs are read once, in their order."""

import builtins
import io
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnn_lightning.cli import main
from cnn_lightning.train.arguments import Given, Parser
from cnn_lightning.train.run import CLI

QUICK = ["--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Built(Exception):
    """Ends a command when its parsers are built."""


@pytest.fixture(scope="module")
def fit() -> Parser:
    """The parser of fit."""

    def end(cli: CLI, *args: Any) -> None:
        raise Built(cli._subcommand_parsers["fit"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLI, "parse_arguments", end)
        with pytest.raises(Built) as built:
            CLI(["fit"])
    parser = built.value.args[0]
    assert isinstance(parser, Parser)
    return parser


def printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    """The configuration that the arguments lead to."""
    assert main([*args, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def write(name: str, **content: Any) -> str:
    Path(name).write_text(yaml.safe_dump(content))
    return name


# ---- once


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each file is opened, by its name."""
    found: Counter[str] = Counter()

    def count(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | os.PathLike):
            found[Path(args[0]).name] += counting[0]

    counting = [1]
    sys.addaudithook(count)
    yield found
    counting[0] = 0


def test_each_config_is_opened_once(opened: Counter[str]) -> None:
    one = write("one.yaml", trainer={"max_epochs": 3})
    two = write("two.yaml", data={"class_path": "Digits", "init_args": {"batch_size": 64}})
    part = write("part.yaml", max_epochs=5)
    opened.clear()
    assert main(["fit", "--config", one, f"--config={two}", "--trainer", part, *QUICK]) == 0
    assert {name: opened[name] for name in (one, two, part)} == {one: 1, two: 1, part: 1}


def test_a_config_from_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_text("model: {lr: 0.5}\n"))
    writer.start()
    found = printed(["fit", "--config", "pipe"], capsys)
    writer.join()
    assert found["model"]["lr"] == 0.5


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="bash has process substitution")
def test_a_config_from_a_process_substitution() -> None:
    command = f"{sys.executable} -m cnn_lightning fit --config <(echo 'model: {{hidden: 7}}') --print_config"
    done = subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["model"]["hidden"] == 7


def test_a_config_that_changes_while_it_is_read(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """The first text decides everything: the checkpoint that is looked for, and the options."""
    path = write("my.yaml", ckpt_path="first.ckpt")
    read = io.open

    def change(file: Any, *args: Any, **options: Any) -> Any:
        found = read(file, *args, **options)
        if str(file).endswith(path):
            text = found.read()
            found.close()
            os.replace(write("other.yaml", ckpt_path="second.ckpt"), path)
            return io.StringIO(text)
        return found

    monkeypatch.setattr(builtins, "open", change)
    assert main(["fit", "--config", path]) == 2
    assert capsys.readouterr().err.endswith("found none at 'first.ckpt'\n")


# ---- facts


CLASS = {"class_path": "MNIST", "init_args": {"batch_size": 7}}


@pytest.mark.parametrize(
    ("args", "checkpoint", "root", "data"),
    [
        ([], None, "runs", "digits"),
        (["--ckpt_path", "a"], "a", "runs", "digits"),
        (["--ckpt_path=a", "--ckpt_path", "b"], "b", "runs", "digits"),
        (["--ckpt_path", "a", "--ckpt_path=b"], "b", "runs", "digits"),
        (["--ckpt_path", "a", "--ckpt_path", "null"], None, "runs", "digits"),
        (["--config", "one.yaml"], "one", "of_one", "mnist"),
        (["--config", "one.yaml", "--ckpt_path", "a"], "a", "of_one", "mnist"),
        (["--ckpt_path", "a", "--config", "one.yaml"], "one", "of_one", "mnist"),
        (["-c", "one.yaml", "--config=two.yaml"], "two", "of_two", "mnist"),
        (["-cone.yaml"], "one", "of_one", "mnist"),
        (["--config", "two.yaml"], "two", "of_two", "digits"),
        (["--config", "two.yaml", "--trainer.default_root_dir", "r"], "two", "r", "digits"),
        (["--trainer", "{default_root_dir: r}"], None, "r", "digits"),
        (["--data", "CIFAR10"], None, "runs", "cifar10"),
        (["--data.class_path", "CIFAR10"], None, "runs", "cifar10"),
        (["--data.class_path=CIFAR10"], None, "runs", "cifar10"),
        (["--data", "{class_path: CIFAR10}"], None, "runs", "cifar10"),
        (["--data.batch_size", "4"], None, "runs", "digits"),
        (["--data.batch_size", "4", "--data", "MNIST"], None, "runs", "mnist"),
        (["--model.net=--ckpt_path"], None, "runs", "digits"),
        (["--model.net=--ckpt_path=a", "--model.weights=--data=MNIST"], None, "runs", "digits"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_last_one_wins_as_the_parser_decides(
    args: list[str], checkpoint: str | None, root: str, data: str, fit: Parser
) -> None:
    write("one.yaml", ckpt_path="one", trainer={"default_root_dir": "of_one"}, data=CLASS)
    write("two.yaml", ckpt_path="two", trainer={"default_root_dir": "of_two"})
    given = fit.given(args)
    assert isinstance(given, Given)
    assert (given.checkpoint, given.root, given.data) == (checkpoint, Path(root), data)


def test_a_flag_in_the_place_of_a_value_is_no_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model.net=--ckpt_path", "last"]) == 2
    assert "arguments: expected options that begin with --, got 'last'" in capsys.readouterr().err
    assert main(["fit", "--config", "--ckpt_path", "last"]) == 2
    assert "config: expected one value, got nothing" in capsys.readouterr().err
    assert main(["fit", "--", "--ckpt_path", "last"]) == 2
    assert "arguments: expected " in capsys.readouterr().err


def test_options_of_data_that_another_class_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(["fit", "--data", "MNIST"], capsys)["data"]
    assert found["class_path"].endswith("MNIST")
    assert found["init_args"]["batch_size"] == 256, "MNIST's own default, not that of Digits"
    found = printed(["fit", "--data.batch_size", "4", "--data", "MNIST"], capsys)["data"]
    assert found["init_args"]["batch_size"] == 4


def test_an_option_from_the_data_is_refused_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    path = write("my.yaml", model={"num_classes": 3})
    for args in (["--config", path], ["--model", "{num_classes: 3}"], ["--model", path]):
        assert main(["fit", *args]) == 2
        assert "num_classes: expected " in capsys.readouterr().err, args
