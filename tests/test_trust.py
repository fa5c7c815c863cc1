"""A checkpoint of somebody else, and the files in its folder, are data: nothing they name is imported or run."""

import contextlib
import csv
import inspect
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from cnn_lightning import data
from cnn_lightning.classifier import NOT_KEPT, Classifier, from_checkpoint, hyper_parameters
from cnn_lightning.cli import main
from cnn_lightning.errors import UserError

FAST = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--data.batch_size", "256"]
FAST += ["--model.hidden", "8", "--model.channels", "[2, 3]"]
VERSION = version("cnn-lightning")
PLANTED = (
    "evil.Layer",
    "evil.py",
    "subprocess.Popen",
    "os.system",
    "evil:Layer",
    "__import__('evil')",
    "!!python/name:evil.x",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *FAST]) == 0
    return folder / "runs/digits/version_0"


@pytest.fixture
def friend(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run in the current folder, which has an evil.py; the test fails if any of it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("evil.py").write_text("import pathlib\npathlib.Path('imported').touch()\n" + EVIL)
    shutil.copytree(made, "friend")
    return tmp_path / "friend"


EVIL = """
import torch

class Layer(torch.nn.ReLU):
    def forward(self, x):
        pathlib.Path("made").touch()
        return super().forward(x)
"""


class Watch:
    """What the interpreter was asked to import, run or open a process for, while it is on."""

    seen: list[str] = []  # noqa: RUF012 -- an audit hook can't be removed, so there is one for all tests
    on = False
    installed = False

    @classmethod
    def hook(cls, event: str, args: tuple[Any, ...]) -> None:
        if cls.on and (
            event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.startfile", "pty.spawn")
            or (event == "import" and str(args[0]).partition(".")[0] == "evil")
        ):
            cls.seen.append(f"{event} {args[0]!r}")

    def __enter__(self) -> list[str]:
        if not Watch.installed:
            sys.addaudithook(Watch.hook)
            Watch.installed = True
        Watch.seen, Watch.on = [], True
        return Watch.seen

    def __exit__(self, *args: object) -> None:
        Watch.on = False


def test_the_watch_sees_an_import_and_a_process(friend: Path) -> None:
    with Watch() as seen:
        __import__("evil")
        os.system("true")
    assert len(seen) == 2
    assert Path("imported").exists()
    del sys.modules["evil"]


def planted(content: Any, word: str, keep: Callable[[tuple[Any, ...]], bool], path: tuple[Any, ...] = ()) -> Any:
    """The same nest with ``word`` in place of every string that is a value and not kept."""
    if isinstance(content, dict):
        return {key: planted(value, word, keep, (*path, key)) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(planted(value, word, keep, (*path, index)) for index, value in enumerate(content))
    return word if isinstance(content, str) and not keep(path) else content


def poison(run: Path, word: str, keep: Callable[[tuple[Any, ...]], bool], more: dict[str, Any] | None = None) -> None:
    """Plant a word in all strings of a run's checkpoints, snapshots and texts, and wherever code was once read from."""
    for path in [*run.rglob("*.ckpt"), *run.rglob("*.pt")]:
        content = planted(torch.load(path, weights_only=True), word, keep)
        if more and path.suffix == ".ckpt":
            content["hyper_parameters"] |= more
            content |= {
                "hparams": dict(more),
                "module_arguments": dict(more),
                "hparams_type": word,
                "hparams_name": word,
            }
            content["Digits"] = {"class_path": word}
        torch.save(content, path)
    for path in (run / "config.yaml", run / "hparams.yaml"):
        path.write_text(yaml.safe_dump(planted(yaml.safe_load(path.read_text()), word, lambda _: False)))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] = {"class_path": word, "init_args": {"args": ["touch", "ran"], "root": word}}
    config["model"]["layers"] = {"*": word}
    config["trainer"]["callbacks"] = [{"class_path": word}]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    with (run / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*rows[:1], *([word] * len(row) for row in rows[1:])])


def none(path: tuple[Any, ...]) -> bool:
    return False


def sound(path: tuple[Any, ...]) -> bool:
    """What must stay for a checkpoint to be read at all: of other classes than the data's it is refused."""
    return path[0] in ("hyper_parameters", "pytorch-lightning_version", "data")


LAYERS: list[dict[str, Any]] = [
    {"layers": {"relu*": "evil.Layer"}},
    {"layers": "evil.Layer"},
    {"_instantiator": "evil.make", "_class_path": "evil.Layer"},
    {"callbacks": [{"class_path": "evil.Layer"}], "plugins": "evil.Layer"},
]


def commands(checkpoint: str) -> Iterator[list[str]]:
    """Every command that takes a checkpoint, and those that read its folder."""
    yield ["fit", *FAST, "--trainer.max_epochs", "2", "--ckpt_path", checkpoint]
    for command in ("validate", "test", "predict"):
        yield [command, *FAST, "--ckpt_path", checkpoint]
    yield ["parity", "--steps", "1", "--data.batch_size", "2", "--ckpt_path", checkpoint]
    yield ["explain", "--ckpt_path", checkpoint]
    yield ["explain", "--ckpt_path", checkpoint, "--image", "picture.png"]
    yield ["explain", "--ckpt_path", checkpoint, "--data", "Digits"]
    yield ["export", "--format", "pt2", "--output", "net.pt2", "--ckpt_path", checkpoint]


@pytest.mark.parametrize("keep", [none, sound], ids=["all strings", "all but what is needed"])
@pytest.mark.parametrize("word", [PLANTED[0], *(pytest.param(word, marks=pytest.mark.slow) for word in PLANTED[1:])])
def test_what_a_run_names_is_not_run(
    word: str, keep: Any, friend: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(friend, word, keep)
    Image.new("L", (8, 8)).save("picture.png")
    read = 0
    for args in commands("friend/checkpoints/best.ckpt"):
        with Watch() as seen:
            code = main(args)
        error = capfd.readouterr().err.strip()
        assert seen == [], args
        assert "evil" not in sys.modules
        assert not Path("imported").exists()
        assert code in (0, 2), args
        if code == 2:
            assert error.count("cnn-lightning: error: ") == 1, (args, error)
            assert "Traceback" not in error
        read += code == 0
    assert read >= (5 if keep is sound else 0)


@pytest.mark.parametrize("more", LAYERS, ids=str)
def test_options_that_no_checkpoint_keeps_are_refused_by_name(
    more: dict[str, Any], friend: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    poison(friend, "evil.Layer", sound, more)
    hidden = all(name.startswith("_") for name in more)
    chosen = list(commands("friend/checkpoints/best.ckpt"))
    for args in chosen[1::2] if hidden else chosen:  # those that read it take their time
        with Watch() as seen:
            code = main(args)
        error = capfd.readouterr().err.strip()
        assert seen == []
        assert "evil" not in sys.modules
        assert "Traceback" not in error
        if not hidden:
            assert code == 2
            last = error.splitlines()[-1]
            assert f"best.ckpt holds options that cnn-lightning {VERSION} doesn't know: {', '.join(more)}" in last
        else:
            assert code in (0, 2), (args, error)


def test_in_python_a_checkpoint_chooses_no_code_either(friend: Path) -> None:
    path = friend / "checkpoints/best.ckpt"
    for more in LAYERS:
        poison(friend, "evil.Layer", sound, more)
        for load in (Classifier.load_from_checkpoint, from_checkpoint):
            with Watch() as seen, contextlib.suppress(UserError, ValueError):
                load(path)
            assert seen == []
            assert "evil" not in sys.modules


def test_the_users_own_word_still_names_code(friend: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = "friend/checkpoints/best.ckpt"
    assert main(["test", *FAST, "--ckpt_path", checkpoint, "--model.layers", "{'relu*': evil.Layer}"]) == 0
    assert Path("made").exists()
    Path("own.py").write_text("from cnn_lightning.data import Digits\n\n\nclass Own(Digits):\n    pass\n")
    assert main(["explain", "--ckpt_path", checkpoint, "--data", "own.Own", "--output", "page.html"]) == 0
    assert "test picture 0 of Own" in Path("page.html").read_text()
    del sys.modules["evil"], sys.modules["own"]


# ---- what hyper_parameters may contain


def test_a_checkpoint_keeps_every_option_but_how_it_runs(made: Path) -> None:
    kept = torch.load(made / "checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]
    names = {name for name in kept if not name.startswith("_")}
    assert names == set(inspect.signature(Classifier).parameters) - set(NOT_KEPT)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("net", 3, "expected net to be str, got '3'"),
        ("hidden", "8", "expected hidden to be int, got '8'"),
        ("hidden", True, "expected hidden to be int, got 'True'"),
        ("channels", [2, "evil"], "expected channels to be Sequence[int], got"),
        ("optimizer", "evil", "expected optimizer to be Literal['adamw', 'adam', 'sgd'], got 'evil'"),
        ("lr", [0.1], "expected lr to be float"),
        ("weights", {"class_path": "evil.Layer"}, "expected weights to be str | None, got"),
        ("gamma", 0.5, f"holds options that cnn-lightning {VERSION} doesn't know: gamma"),
        ("layers", "numpy", "doesn't know: layers"),
    ],
)
def test_values_are_of_their_options_types(name: str, value: Any, words: str, made: Path) -> None:
    content = torch.load(made / "checkpoints/best.ckpt", weights_only=True)
    hyper_parameters(content, "a.ckpt")
    content["hyper_parameters"][name] = value
    with pytest.raises(UserError, match=r"^ckpt_path: a\.ckpt") as error:
        hyper_parameters(content, "a.ckpt")
    assert words in str(error.value)


# ---- other files in the folder


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ("subprocess.Popen", "got 'subprocess.Popen'; a class is imported only where --data names it"),
        ("evil.Digits", "got 'evil.Digits'"),
        ({"class_path": "os.system", "init_args": {"command": "touch ran"}}, "got 'os.system'"),
        ({"class_path": "cnn_lightning.data.base.InMemory"}, "got 'cnn_lightning.data.base.InMemory'"),
        ({"class_path": "cnn_lightning.data.Digits.mro"}, "got 'cnn_lightning.data.Digits.mro'"),
        ({"class_path": "Digits", "init_args": {"seed": {"class_path": "evil.x"}}}, "expected options of Digits in"),
        ({"class_path": "Digits", "init_args": {"sede": 1}}, "expected options of Digits in"),
        ({"class_path": "Digits", "init_args": ["evil.x"]}, "expected options of Digits in"),
        ({"class_path": ["evil.x"]}, "config.yaml names none"),
        (["evil.x"], "config.yaml names none"),
    ],
    ids=str,
)
def test_a_config_beside_a_checkpoint_names_data_of_this_package_alone(
    stated: Any, words: str, friend: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (friend / "config.yaml").write_text(yaml.safe_dump({"data": stated}))
    with Watch() as seen:
        assert main(["explain", "--ckpt_path", "friend/checkpoints/best.ckpt"]) == 2
    assert seen == []
    assert not Path("ran").exists()
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert words in error[0]


@pytest.mark.parametrize(
    "text", ["[" * 5000, "data: !!python/object/apply:os.system [touch ran]", "\0", "data: 2001-99-99", ""]
)
def test_a_file_that_is_no_config_is_reported_in_one_line(
    text: str, friend: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (friend / "config.yaml").write_text(text)
    assert main(["explain", "--ckpt_path", "friend/checkpoints/best.ckpt"]) == 2
    assert "config.yaml names none" in capsys.readouterr().err
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["Digits", "cnn_lightning.data.Digits", "cnn_lightning.data.digits.Digits"])
def test_this_packages_data_are_made(name: str, friend: Path) -> None:
    assert name.rpartition(".")[2] in data.__all__
    (friend / "config.yaml").write_text(yaml.safe_dump({"data": {"class_path": name, "init_args": {"batch_size": 3}}}))
    assert main(["explain", "--ckpt_path", "friend/checkpoints/best.ckpt"]) == 0


def test_a_checkpoint_names_no_file_to_delete_or_to_test(friend: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`ModelCheckpoint` keeps paths, which it deletes when something better comes."""
    mine = Path("precious.ckpt").resolve()
    mine.write_text("mine")
    path = friend / "checkpoints/last.ckpt"
    folder = Path("runs/digits/version_0/checkpoints").resolve()
    content = torch.load(path, weights_only=True)
    state = next(state for name, state in content["callbacks"].items() if name.startswith("BestModelCheckpoint"))
    zero = torch.tensor(0.0)
    state |= {"dirpath": str(folder), "best_model_path": str(mine), "kth_best_model_path": str(mine)}
    state |= {"best_k_models": {str(mine): zero}, "kth_value": zero, "best_model_score": zero}
    torch.save(content, path)
    for epochs in ("1", "2"):
        assert main(["fit", *FAST, "--trainer.max_epochs", epochs, "--ckpt_path", str(path)]) == 0
        assert str(mine) not in capsys.readouterr().out
        assert mine.read_text() == "mine"


def test_pickles_of_cifar_import_numpy_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cnn_lightning.data.cifar10 import _read

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "numpyevil.py").write_text("raise SystemExit")
    (tmp_path / "batch").write_bytes(b"cnumpyevil\nndarray\n.")
    with pytest.raises(UserError, match=r"numpyevil\.ndarray has no place in it"):
        _read(tmp_path / "batch")
