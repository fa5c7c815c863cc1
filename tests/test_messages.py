"""What a command says about bad input: the true reason, in one line, about the very option."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnn_lightning.cli import main
from cnn_lightning.data import pictures
from cnn_lightning.train.failures import Made, original
from cnn_lightning.train.run import CLI
from cnn_lightning.train.suggestions import near, near_option
from cnn_lightning.train.words import words
from tests.stand_ins import write_pictures


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def _parsers() -> dict[str, Any]:
    return {}


@pytest.fixture(autouse=True)
def _built_once(_parsers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer's parsers, which take longer to build than to use, and which no mistake changes."""
    build = CLI.setup_parser

    def setup_parser(cli: CLI, *args: Any) -> None:
        if not _parsers:
            before = set(vars(cli))
            build(cli, *args)
            _parsers.update({name: value for name, value in vars(cli).items() if name not in before})
        vars(cli).update(_parsers)

    monkeypatch.setattr(CLI, "setup_parser", setup_parser)


def said(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    assert main(args) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("cnn-lightning: error: ")
    assert "\n" not in line
    assert len(line) < 500
    for text in ("Union", "subtypes", "<class", "typing.", "NestedArg", "Namespace", "\x02", "xpected Expected"):
        assert text not in line
    return line.removeprefix("cnn-lightning: error: ")


# ---- options that take a class: each kind of slip, by flags and in a config

CLASSES: list[tuple[str, str, str, Any, str]] = [
    # the option, the class, an option that it has, a value of a wrong type, what is expected
    ("data", "MNIST", "batch_size", "x", "a whole number"),
    ("data", "ImageFolder", "val_fraction", "x", "a number"),
    ("data", "CIFAR10", "augment", "x", "true, false, shift, rand or trivial"),
    ("trainer.callbacks", "EarlyStopping", "patience", "x", "a whole number"),
    ("trainer.callbacks", "ModelCheckpoint", "save_top_k", "x", "a whole number"),
    ("trainer.logger", "CSVLogger", "flush_logs_every_n_steps", "x", "a whole number"),
    ("trainer.strategy", "DDPStrategy", "start_method", "x", "popen, spawn, fork or forkserver"),
    ("trainer.strategy", "SingleDeviceStrategy", "accelerator", 3, "an Accelerator or null"),
    ("trainer.plugins", "MixedPrecision", "precision", "x", "16-mixed or bf16-mixed"),
    ("trainer.profiler", "SimpleProfiler", "extended", "x", "true or false"),
    ("optimizer", "SGD", "momentum", "x", "a number"),
    ("lr_scheduler", "StepLR", "step_size", "x", "a whole number"),
]
REQUIRED: dict[str, dict[str, Any]] = {
    "ImageFolder": {"root": "pictures"},
    "EarlyStopping": {"monitor": "val_acc"},
    "CSVLogger": {"save_dir": "logs"},
    "MixedPrecision": {"precision": "bf16-mixed", "device": "cpu"},
    "StepLR": {"step_size": 3},
}
WAYS = ("flags", "config", "in a list")
LISTS = ("trainer.callbacks", "trainer.logger", "trainer.plugins")


def given(key: str, kind: str, options: dict[str, Any], way: str) -> list[str]:
    """The class and its options, the required ones too, by flags or in a config."""
    if way == "flags":
        return [f"--{key}={kind}", *(f"--{key}.{name}={value}" for name, value in options.items())]
    content: Any = {"class_path": kind, "init_args": options}
    if way == "in a list":
        content = [{"class_path": "LearningRateMonitor"}, content] if key == "trainer.callbacks" else [content]
    for part in reversed(key.split(".")):
        content = {part: content}
    Path("my.yaml").write_text(yaml.safe_dump(content))
    return ["--config", "my.yaml"]


CASES = [
    pytest.param(way, *case, id=f"{case[0]}-{case[1]}-{way}")
    for case in CLASSES
    for way in WAYS
    if way != "in a list" or case[0] in LISTS
]


@pytest.mark.parametrize(("way", "key", "kind", "option", "wrong", "expected"), CASES)
def test_a_slip_inside_an_option_that_takes_a_class(
    way: str, key: str, kind: str, option: str, wrong: Any, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = REQUIRED.get(kind, {})
    text = way == "flags" and key in ("trainer.strategy", "trainer.profiler")  # which take any, so that none is a class

    def error(name: str = kind, **options: Any) -> str:
        return said(["fit", *given(key, name, options, way)], capsys)

    mistyped = kind[:-2] + kind[-1]
    assert error(mistyped).startswith(f"{key}: expected ")
    assert error(mistyped).endswith(f", got '{mistyped}'; did you mean {kind}?")
    line = error("nowhere.Thing")
    assert line.startswith(f"{key}: expected ")
    assert line.endswith(", got 'nowhere.Thing'" + ("" if text else ": No module named 'nowhere'"))
    line = error("torch.nn.ReLU")
    assert line.startswith(f"{key}: expected ")
    assert ", got 'torch.nn.ReLU'" + ("" if text else ", which is no ") in line

    slip = option[:-2] + option[-1]
    assert error(**{**needed, slip: 1}) == f"{key}.{slip}: expected an option of {kind}; did you mean {key}.{option}?"
    line = error(**needed, another_classes=1)
    assert line.startswith(f"{key}.another_classes: expected an option of {kind}")
    line = error(**{**needed, option: wrong})
    assert line.startswith(f"{key}.{option}: expected {expected}")
    assert "got " in line
    if needed:
        first = next(iter(needed))
        line = error()
        assert line.startswith(f"{key}.{first}: expected ")
        assert line.endswith(f", which {kind} needs, got nothing")


BAD_VALUES = [
    ("data", "ImageFolder", {"root": "nowhere"}, "data.root: expected a folder of class folders, got 'nowhere'"),
    ("data", "Digits", {"batch_size": 0}, "data.batch_size: expected at least 1, got 0"),
    ("data", "Digits", {"predict_dir": "nowhere"}, "data.predict_dir: expected a folder of pictures, got 'nowhere'"),
    (
        "trainer.callbacks",
        "EarlyStopping",
        {"monitor": "val_acc", "mode": "x"},
        "trainer.callbacks: expected options that EarlyStopping takes: `mode` can be min, max, got x",
    ),
    (
        "trainer.callbacks",
        "ModelCheckpoint",
        {"save_top_k": -3},
        "trainer.callbacks: expected options that ModelCheckpoint takes: "
        "Invalid value for save_top_k=-3. Must be >= -1",
    ),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("key", "kind", "options", "line"), BAD_VALUES, ids=[case[3][:30] for case in BAD_VALUES])
def test_a_value_that_the_class_refuses(
    key: str, kind: str, options: dict[str, Any], line: str, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if way == "in a list" and key not in LISTS:
        return
    assert said(["fit", *given(key, kind, options, way)], capsys) == line


def test_an_option_of_a_class_of_ones_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mine_for_messages.py").write_text(
        "from lightning.pytorch import Callback, LightningDataModule\n"
        "class Inner:\n"
        "    def __init__(self, size: int = 1) -> None: ...\n"
        "class Mine(Callback):\n"
        "    def __init__(self, inner: Inner | None = None) -> None: ...\n"
        "class Package(Callback):\n"
        "    def __init__(self) -> None:\n"
        "        import no_such_package\n"
        "class Data(LightningDataModule):\n"
        "    def __init__(self, share: float = 0.5) -> None:\n"
        "        raise KeyError('share')\n"
    )
    inner = {"class_path": "mine_for_messages.Inner", "init_args": {"sise": 3}}
    args = given("trainer.callbacks", "mine_for_messages.Mine", {"inner": inner}, "in a list")
    meant = "trainer.callbacks.inner.size"
    assert said(["fit", *args], capsys) == (
        f"trainer.callbacks.inner.sise: expected an option of Inner; did you mean {meant}?"
    )
    assert said(["fit", "--data", "mine_for_messages.Data"], capsys) == "data: KeyError: 'share'"
    assert said(["fit", "--trainer.callbacks", "mine_for_messages.Package"], capsys) == (
        "trainer.callbacks: expected a package that is not here: No module named 'no_such_package'"
    )
    sys.modules.pop("mine_for_messages")


def test_a_class_written_without_init_args(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text("data: {class_path: MNIST, batch_size: 3}")
    line = said(["fit", "--config", "my.yaml"], capsys)
    assert line == "data: expected class_path and init_args, with the options of the class below init_args"
    Path("my.yaml").write_text("data: {clas_path: MNIST}")
    assert said(["fit", "--config", "my.yaml"], capsys).endswith("did you mean data.class_path?")


# ---- plain options

VALUES = [
    ("--model.lr", "abc", "model.lr: expected a number, got 'abc'"),
    ("--model.lr", "", "model.lr: expected a number, got ''"),
    ("--model.lr", "[1, 2]", "model.lr: expected a number, got [1, 2]"),
    ("--model.lr", "null", "model.lr: expected a number, got null"),
    ("--model.hidden", "1.5", "model.hidden: expected a whole number, got 1.5"),
    ("--model.channels", "x", "model.channels: expected a list of whole numbers, got 'x'"),
    ("--model.channels", "[1, x]", "model.channels: expected a list of whole numbers, got 'x'"),
    ("--model.freeze", "maybe", "model.freeze: expected true or false, got 'maybe'"),
    ("--model.optimizer", "adm", "model.optimizer: expected adamw, adam or sgd, got 'adm'; did you mean adam?"),
    ("--model.layers", "nunpy", "model.layers: expected numpy, torch, or a mapping of patterns of layer names"),
    ("--pictures", "3", "pictures: expected true or false, got 3"),
    ("--early_stopping", "x", "early_stopping: expected a whole number or null, got 'x'"),
    ("--trainer.max_epochs", "x", "trainer.max_epochs: expected a whole number or null, got 'x'"),
    ("--trainer.max_epochs", "1.5", "trainer.max_epochs: expected a whole number or null, got 1.5"),
    ("--trainer.limit_train_batches", "x", "trainer.limit_train_batches: expected a whole number, a number or null"),
    ("--trainer.precision", "8", "trainer.precision: expected 64, 32, 16, transformer-engine, "),
    ("--trainer.precision", "bf16mixed", "did you mean bf16-mixed?"),
    ("--trainer.devices", "{}", "trainer: `devices` selected with `CPUAccelerator` should be an int > 0."),
    (
        "--trainer.logger",
        "yes please",
        "a list of Loggers, true, false or null (a class by its name or import path), got 'yes please'",
    ),
    ("--ckpt_path", "nowhere.ckpt", "nowhere.ckpt"),
    ("--data.seed", "null", "data.seed: expected a whole number, got null"),
    ("--data", "null", "data: expected Digits, MNIST, "),
    ("--model.num_classes", "3", "model.num_classes: expected no value, because data sets it, got one"),
    ("--model.num_classes", "x", "model.num_classes: expected no value, because data sets it, got one"),
    ("--model.lr", "-1", "model.lr: expected a finite number of at least 0, got -1.0"),
    ("--model.lr", ".inf", "model.lr: expected a finite number of at least 0, got inf"),
    ("--model.weight_decay", "-1", "model.weight_decay: expected a finite number of at least 0, got -1.0"),
    ("--model.label_smoothing", "-1", "model.label_smoothing: expected a number from 0 to 1, got -1.0"),
    ("--model.threads", "-1", "model.threads: expected at least 1, got -1"),
    ("--model.hidden", "99999999999", "model.hidden: expected a whole number of at most 2147483647, got 99999999999"),
    ("--model.net", "resnet81", "model.net: unknown network 'resnet81'; close to it: "),
    ("--early_stopping", "-1", "early_stopping: expected at least 1, got -1"),
    ("--trainer.devices", "99999999999999999999", "trainer: "),
    ("--trainer.fast_dev_run", "-1", "trainer: fast_dev_run=-1 is not a valid configuration. It should be >= 0."),
    ("--trainer.check_val_every_n_epoch", "0", "trainer.check_val_every_n_epoch: expected at least 1, got 0"),
    ("--trainer.gradient_clip_val", "-1", "trainer.gradient_clip_val: expected at least 0, got -1"),
    ("--trainer.val_check_interval", "0", "trainer.val_check_interval: expected above 0, got 0"),
    ("--trainer.strategy", "dpp", "; did you mean ddp?"),
    ("--trainer.accelerator", "cup", "; did you mean cpu?"),
    ("--model.lr", "\udcff", "model.lr: expected a number, got bytes that are no UTF-8"),
    ("--seed_everything", "-1", "seed_everything: expected a number from 0 to 4294967295, got -1"),
    ("--seed_everything", "x", "seed_everything: expected true, false or a whole number, got 'x'"),
]


@pytest.mark.parametrize(("flag", "value", "line"), VALUES, ids=[" ".join(case[:2]) for case in VALUES])
def test_a_value_of_a_wrong_type(flag: str, value: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert line in said(["fit", flag, value], capsys)


def test_an_option_without_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(["fit", "--model.lr"], capsys) == "model.lr: expected a number, got nothing"
    assert said(["fit", "--data.root"], capsys) == "data.root: expected one value, got nothing"
    assert said(["fit", "--config"], capsys) == "config: expected one value, got nothing"
    assert said(["fit", "--trainer.callbacks"], capsys).startswith("trainer.callbacks: expected a list of Callbacks, ")
    assert said(["parity", "--lr"], capsys) == "--lr: expected a number, got nothing"
    assert said(["export"], capsys).startswith("--ckpt_path: expected text, which export needs, got nothing")
    assert said(["check"], capsys).startswith("layer: expected my_file.py:MyLayer or my_package.MyLayer, or --kinks")


# ---- did you mean

MEANT = [
    (["fitt"], "did you mean fit?"),
    (["paritty"], "did you mean parity?"),
    (["fit", "--epoch", "3"], "--epoch: expected an option of fit; did you mean --epochs?"),
    (["fit", "--max_epochs", "3"], "--max_epochs: expected an option of fit; did you mean --trainer.max_epochs?"),
    (["fit", "--max_epochs=3"], "--max_epochs: expected an option of fit; did you mean --trainer.max_epochs?"),
    (["fit", "--batchsize", "3"], "--batchsize: expected an option of fit; did you mean --batch_size?"),
    (["fit", "--learning_rate", "3"], "--learning_rate: expected an option of fit; did you mean --model.lr?"),
    (["fit", "--lr", "x"], "model.lr: expected a number, got 'x'"),
    (["fit", "--stps", "3"], "--stps: expected an option of fit; did you mean --trainer.max_steps?"),
    (["fit", "--trainer.max_epoch", "3"], "did you mean --trainer.max_epochs?"),
    (["fit", "--train.max_epochs", "3"], "did you mean --trainer.max_epochs?"),
    (["fit", "--model.channel", "3"], "did you mean --model.channels?"),
    (["fit", "--data.batchsize", "3"], "data.batchsize: expected an option of Digits; did you mean data.batch_size?"),
    (["fit", "--ckpt", "last"], "did you mean --ckpt_path?"),
    (["fit", "--seed", "3"], "did you mean --seed_everything?"),
    (["fit", "--early", "3"], "--early: expected an option of fit"),
    (["fit", "--data", "mnist"], "got 'mnist'; did you mean MNIST?"),
    (["fit", "--data", "Imagefolder"], "got 'Imagefolder'; did you mean ImageFolder?"),
    (["fit", "--config", "minst"], "config: expected a file or one of "),
    (["fit", "--config", "minst"], "got 'minst'; did you mean mnist?"),
    (["fit", "--nothing_like_it", "3"], "--nothing_like_it: expected an option of fit, which --help all lists"),
    (["fit", "numpy"], "arguments: expected options that begin with --, got 'numpy'"),
    (["predict", "--layer", "torch"], "--layer: expected an option of predict; did you mean --layers?"),
    (["parity", "--stps", "3"], "--stps: expected an option of parity; did you mean --steps?"),
    (["parity", "--nett", "resnet18"], "--nett: expected an option of parity; did you mean --net?"),
    (["parity", "--epochs", "3"], "--epochs: expected an option of parity"),
    (["explain", "--lr", "3"], "--lr: expected an option of explain"),
    (["check", "a.py:A", "--epochs", "3"], "--epochs: expected an option of check"),
    (["export", "--ckpt_path", "a", "--net", "b"], "--net: expected an option of export"),
    (["learn", "1", "--lr", "3"], "learn: unrecognized arguments: --lr"),
    (["parity", "--data", "mnist"], "got 'mnist'; did you mean MNIST?"),
    (["parity", "--precision", "33"], "--precision: expected 32, 64, 16 or bf16, got 33"),
    (["parity", "--config", "minst"], "did you mean mnist?"),
    (["parity", "--steps", "x"], "--steps: expected a whole number, got 'x'"),
    (["benchmark", "--round", "3"], "--round: expected an option of benchmark; did you mean --rounds?"),
    (["benchmark", "--device", "cdua"], "--device: expected cpu or cuda, got 'cdua'; did you mean cuda?"),
    (["compare", "--max_epochs", "3"], "--max_epochs: expected an option of compare; did you mean --epochs?"),
    (["compare", "--data", "mnist"], "--data: expected Digits or MNIST, got 'mnist'; did you mean MNIST?"),
    (["explain", "--imgae", "a.png"], "--imgae: expected an option of explain; did you mean --image?"),
    (
        ["check", "torch.nn.Relu"],
        "expected torch.nn to define Relu, found no torch.nn.Module; did you mean ReLU?",
    ),
    (["parity", "--model.layers", "nunpy"], "--model.layers: unknown implementation 'nunpy'"),
    (["check", "a.py:A", "--shpae", "3"], "--shpae: expected an option of check; did you mean --shape?"),
    (["export", "--ckpt_path", "a", "--ouput", "b"], "--ouput: expected an option of export; did you mean --output?"),
    (["export", "--ckpt_path", "a", "--format", "onx"], "--format: expected one of onnx, pt2, numpy, got 'onx'"),
]


@pytest.mark.parametrize(("args", "line"), MEANT, ids=[" ".join(args) for args, _ in MEANT])
def test_what_was_meant(args: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert line in said(args, capsys)


# ---- configs

CONFIGS = [
    ("trainer: {max_epoch: 3}", "trainer.max_epoch: expected an option of fit; did you mean trainer.max_epochs?"),
    ("model: {lr: x}", "model.lr: expected a number, got 'x'"),
    ("model: {lr: null}", "model.lr: expected a number, got null"),
    ("model: {num_classes: 3}", "model.num_classes: expected no value, because data sets it, got 3"),
    ("data: {class_path: Digits, init_args: {batch_size: null}}", "data.batch_size: expected a whole number, got null"),
    ("model: {image_size: x}", "model.image_size: expected no value, because data sets it, got 'x'"),
    ("data: {class_path: Digits, init_args: 3}", "data.init_args: expected a mapping of options in my.yaml, got 3"),
    (
        "trainer: {callbacks: [{class_path: EarlyStopping, init_args: [1]}]}",
        "trainer.callbacks.init_args: expected a mapping of options in my.yaml, got a list",
    ),
    ("fit: {trainer: {max_epochs: 1}}", "fit.trainer.max_epochs: expected an option of fit; did you mean trainer.max"),
    ("lr: 3", "lr: expected an option of fit; did you mean model.lr?"),
    ("epochs: 3", "epochs: expected an option of fit; did you mean trainer.max_epochs?"),
    ("batchsize: 3", "batchsize: expected an option of fit; did you mean data.batch_size?"),
    ("fooo: 3", "fooo: expected an option of fit, which --help all lists"),
    ("trainer: 3", "trainer: expected a mapping of options in my.yaml, got 3"),
    ("model: [3]", "model: expected a mapping of options in my.yaml, got a list"),
    ("data: 3", "data: expected Digits, MNIST, "),
    ("- 3", "config: expected a mapping in my.yaml, got a list"),
    ("just text", "config: expected a mapping in my.yaml, got 'just text'"),
    ("a: [", "config: expected YAML in my.yaml: "),
]


@pytest.mark.parametrize(("content", "line"), CONFIGS, ids=[content for content, _ in CONFIGS])
def test_a_slip_in_a_config(content: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text(content)
    assert line in said(["fit", "--config", "my.yaml"], capsys)


@pytest.mark.parametrize(
    "content", ["", "trainer:", "trainer:\nmodel:\ndata:\n", "data: {}", "# nothing yet\n", "ckpt_path:"]
)
def test_an_empty_section_says_nothing(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text(content)
    args = ["fit", "--config", "my.yaml", "--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false"]
    assert main(args) == 0
    assert "test_acc: " in capsys.readouterr().out


# ---- pictures and processes


def test_a_single_class_is_told_in_our_words(capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(Path("pictures"), classes=("cat",))
    line = said(["fit", "--data", "ImageFolder", "--data.root", "pictures"], capsys)
    assert line == "data.root: expected folders of at least two classes in pictures, found only 'cat'"


def test_a_damaged_picture_is_named_by_a_process_that_reads_ahead(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "val", "test"):
        write_pictures(Path("pictures") / part)
    damaged = Path("pictures/val/dog/3.png")
    damaged.write_bytes(damaged.read_bytes()[:60])
    monkeypatch.setattr(pictures, "MEMORY", 0)
    args = ["fit", "--data", "ImageFolder", "--data.root", "pictures", "--model.channels", "[2]"]
    args += ["--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1"]
    assert main(args) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("cnn-lightning: error: pictures/val/dog/3.png: expected a picture, but it is damaged: ")
    assert "Traceback" not in line


@pytest.mark.ddp
@pytest.mark.slow
def test_an_error_of_a_spawned_process_is_its_own_line() -> None:
    for part in ("train", "val", "test"):
        write_pictures(Path("pictures") / part)
    damaged = Path("pictures/val/dog/3.png")
    damaged.write_bytes(damaged.read_bytes()[:60])
    args = ["fit", "--data", "ImageFolder", "--data.root", "pictures", "--trainer.enable_progress_bar", "false"]
    args += ["--trainer.accelerator", "cpu", "--trainer.strategy", "ddp_spawn", "--trainer.devices", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "cnn_lightning", *args], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 2, done.stderr[-2000:]
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("cnn-lightning: error: pictures/val/dog/3.png: expected a picture, but it is damaged: ")


def test_what_names_an_option_reaches_spawned_processes() -> None:
    made = pickle.loads(pickle.dumps(Made({"data": 1})))
    assert made.config == {"data": 1}


# ---- the parts


def test_words_of_a_type() -> None:
    assert words(int | float | None) == "a whole number, a number or null"
    assert words(list[int]) == "a list of whole numbers"
    assert words(dict[str, int] | bool) == "a mapping, true or false"
    assert words(float | int | None) == words(int | float | None) == "a whole number, a number or null"


def test_near_names() -> None:
    assert near("mnist", ["Digits", "MNIST", "FashionMNIST"]) == "MNIST"
    assert near("zzz", ["Digits"]) is None
    options = ["trainer.max_epochs", "trainer.min_epochs", "model.lr", "lr_scheduler"]
    assert near_option("epochs", options) == "trainer.max_epochs"
    assert near_option("epochs", ["epochs"]) == "epochs"
    assert near_option("lr", options) == "model.lr"
    assert near_option("lrr", options) == "model.lr"


def test_the_error_of_another_process_is_found_in_its_traceback() -> None:
    text = (
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "a.py", line 3, in f\n    raise UserError("x")\n'
        "cnn_lightning.errors.UserError: a.png: expected a picture\n"
    )
    assert original(ValueError(text)) == ("UserError", "a.png: expected a picture")
    two = text + "\nDuring handling:\nTraceback (most recent call last):\n  File\nKeyError\n"
    assert original(ValueError(two)) == ("KeyError", "")
    assert original(ValueError("a: expected b")) == ("ValueError", "a: expected b")


@pytest.mark.parametrize("call", ["exit(0)", "sys.exit()", "exit(3)", "sys.exit('bye')"])
def test_a_layer_that_calls_exit_ends_no_training_well(call: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"exits_{abs(hash(call))}"
    text = (
        f"import sys\n\nfrom torch import nn\n\n\nclass Own(nn.ReLU):\n    def forward(self, input):\n        {call}\n"
    )
    Path(f"{name}.py").write_text(text)
    sys.path.insert(0, "")
    try:
        line = said(["fit", "--epochs", "1", "--model.layers", f"{{'relu1': {name}.Own}}"], capsys)
    finally:
        sys.path.remove("")
        sys.modules.pop(name, None)
    code = call.partition("(")[2]
    assert line.startswith(f"fit: expected to run to the end, got a call of exit({code} in ")
    assert line.endswith(f"{name}.py, line 8")
