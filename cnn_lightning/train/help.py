"""The short help of fit, validate, test and predict: what a newcomer needs, on one screen.

It is a list, not the parser's own text, so that nothing has to be loaded to print it. A test compares each flag,
default and choice with the parser's. To show another option, add it to `OPTIONS`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnn_lightning.train.aliases import ALIASES
from cnn_lightning.train.configs import shipped
from cnn_lightning.train.listing import Row, paragraph, section, usage

FIT = ("fit",)
TESTS = ("validate", "test", "predict")
DATA_TITLE = "data"
ALL = (*FIT, *TESTS)
PURPOSE = {
    "fit": "Train a network, and test it. Without options: on handwritten digits.",
    "validate": "Loss and accuracy of a trained network on the validation split.",
    "test": "Loss and accuracy of a trained network on the test split, and each class.",
    "predict": "Classes of the pictures of the test split or of a folder, by a trained network.",
}


@dataclass(frozen=True)
class Option:
    """An option of the parser.

    Args:
        name: Its name there; the help shows its alias, if it has one.
        value: What stands for its value.
        text: What it does; ``{either}`` is the place of the choices, ``{some}`` of a list that goes on.
        default: Its default there; None is not shown.
        choices: Values that it takes.
        commands: The commands whose help shows it.
    """

    name: str
    value: str
    text: str
    default: Any = None
    choices: tuple[str, ...] = ()
    commands: tuple[str, ...] = ALL

    @property
    def row(self) -> Row:
        """As the help shows it."""
        flag = SHORT.get(self.name, self.name)
        flag = f"-c, --{flag}" if flag == "config" else f"--{flag}"
        either = " or ".join(filter(None, (", ".join(self.choices[:-1]), *self.choices[-1:])))
        return Row(flag, self.value, self.text.format(either=either, some=", ".join(self.choices)), typed(self.default))


SHORT = {option: alias for alias, option in ALIASES.items()}

OPTIONS: dict[str, tuple[Option, ...]] = {
    "network": (
        Option("model.net", "NAME", "simple_cnn, or one of torchvision's", "simple_cnn"),
        Option("model.layers", "WHAT", "what runs them: {some} or a mapping", "numpy", ("numpy", "torch")),
        Option("model.functions", "WHAT", "torch's own operators: {either}", "torch", ("torch", "numpy")),
        Option("model.fast", "BOOL", "false: the formulas run, as you read them", True),
        Option("model.channels", "LIST", "of SimpleCNN's convolutions", (16, 32), commands=FIT),
        Option("model.freeze", "BOOL", "train the last layer alone", False, commands=FIT),
    ),
    "training": (
        Option("trainer.max_epochs", "N", "passes over the training pictures", 30, commands=FIT),
        Option("model.lr", "RATE", "learning rate; with a schedule its highest", 3e-3, commands=FIT),
        Option("model.optimizer", "NAME", "{either}", "adamw", ("adamw", "adam", "sgd"), commands=FIT),
        Option("model.schedule", "NAME", "{either}", "one_cycle", ("one_cycle", "cosine", "none"), commands=FIT),
        Option("early_stopping", "N", "stop after N epochs without gain", commands=FIT),
        Option("seed_everything", "N", "seed of weights and dropout", 0, commands=FIT),
    ),
    DATA_TITLE: (),
    "machine": (
        Option("trainer.accelerator", "NAME", "{some}, ...", "auto", ("auto", "cpu", "gpu")),
        Option("trainer.devices", "N", "number of devices", 1),
        Option("trainer.strategy", "NAME", "of several devices: {some}, ...", "auto", ("auto", "ddp", "fsdp")),
        Option("trainer.precision", "NAME", "{some}, ...", None, ("32-true", "64-true", "bf16-mixed", "16-mixed")),
    ),
    "files": (
        Option("config", "FILE", "options in YAML, or the name of a config below"),
        Option("ckpt_path", "FILE", "go on from a checkpoint; last: the newest run's", commands=FIT),
        Option("ckpt_path", "FILE", "the trained network; last: the newest run's", commands=TESTS),
        Option("trainer.default_root_dir", "DIR", "the folder of all runs, by default runs"),
        Option("pictures", "BOOL", "draw filters, confusions and mistakes", True, commands=FIT),
    ),
}
"""The options by the title of their section. Those of the data set, in `DATA`, are added to theirs."""

OF_DATA = {
    "root": ("DIR", "folder of the files"),
    "batch_size": ("N", "pictures in a step of one process"),
    "seed": ("N", "seed of the order and of augmentation"),
    "augment": ("WHAT", "random changes: true, false, rand, trivial"),
    "sampler": ("NAME", "shuffled, or balanced over classes"),
    "mixup": ("X", "alpha of mixup; --data.cutmix is alike"),
    "cutmix": ("X", "alpha of cutmix"),
    "image_size": ("N", "height and width that pictures are brought to"),
    "grey": ("BOOL", "read pictures in shades of grey"),
    "num_workers": ("N", "processes that read ahead"),
    "val_fraction": ("X", "part that validates"),
    "test_fraction": ("X", "part that tests"),
    "predict_dir": ("DIR", "folder of unlabelled pictures, for predict"),
    "value_range": ("LIST", "black and white, such as [0, 4095]"),
    "fit": ("NAME", "what is done to make them square: squeeze or pad"),
}
"""Placeholder and text of every option of a data set."""
_MIXING = {"sampler": "shuffled", "mixup": None, "cutmix": None}
_IMAGES = {"root": "data", "batch_size": 256, "seed": 0, "augment": True, "predict_dir": None, **_MIXING}
DATA: dict[str, Mapping[str, Any]] = {
    "Digits": {"batch_size": 32, "seed": 0, "augment": False, "predict_dir": None, **_MIXING},
    "MNIST": _IMAGES,
    "FashionMNIST": _IMAGES,
    "CIFAR10": {**_IMAGES, "batch_size": 128},
    "ImageFolder": {
        "root": None,
        "batch_size": 32,
        "seed": 0,
        "augment": True,
        "image_size": 64,
        "grey": False,
        "num_workers": 2,
        "val_fraction": 0.15,
        "test_fraction": 0.15,
        "predict_dir": None,
        "value_range": None,
        "fit": None,
        **_MIXING,
    },
}
"""The options of each data set, with their defaults."""
OF_TRAINING = ("augment", "sampler", "mixup")
"""Options of a data set that only a training uses."""
LEFT_OUT = ("seed", "cutmix", "num_workers", "value_range")
"""Options of a data set that the short help leaves out, to stay short."""
DEFAULT = "Digits"


def short(command: str, args: Sequence[str] = ()) -> str:
    """The help of a command; with ``--data NAME`` among the arguments, it shows the options of that data set."""
    lines = [*usage(command), *paragraph(PURPOSE[command]), ""]
    for title, options in OPTIONS.items():
        rows = [option.row for option in options if command in option.commands]
        lines += section(title, [*rows, *_data_rows(_data_in(args), command)] if title == DATA_TITLE else rows)
    lines += ["", *configs(), *short_names(SHORT)]
    return "\n".join([*lines, f"all options: cnn-lightning {command} --help all; as YAML: --print_config"])


def configs() -> list[str]:
    """The lines that name the shipped configs."""
    return paragraph(f"configs: {', '.join(shipped())}")


def short_names(options: Collection[str]) -> list[str]:
    """The lines that say which of the options the aliases stand for; none for none."""
    found = {f"--{alias}": f"--{option}" for alias, option in ALIASES.items() if option in options}
    be = "is" if len(found) == 1 else "are"
    return paragraph(f"{', '.join(found)} {be} short for {', '.join(found.values())}") if found else []


def _data_in(args: Sequence[str]) -> str:
    """The data set that the arguments name last; the default if they name none."""
    found = DEFAULT
    for flag, value in zip(args, [*args, ""][1:], strict=True):
        if flag == "--data" or flag.startswith("--data="):
            found = flag.partition("=")[2] or value
    return found.rpartition(".")[2] if found.startswith("cnn_lightning.") else found


def _data_rows(name: str, command: str) -> Iterator[Row]:
    is_default = name == DEFAULT
    yield Option("data", "NAME", "{some}", DEFAULT if is_default else None, tuple(DATA)).row
    if name not in DATA:
        yield Row("--data.help", name, "print its options")
        return
    left_out = {*LEFT_OUT, *(() if command in FIT else OF_TRAINING), *(() if command == "predict" else ["predict_dir"])}
    for key, default in DATA[name].items():
        if key not in left_out:
            yield Option(f"data.{key}", *OF_DATA[key], default).row
    if is_default:
        yield Row("--data.root", "DIR", "of the others; --data NAME --help: its options")


def typed(value: Any) -> str:
    """A value as it is typed on the command line; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    return str(value)
