"""``cnn-lightning explain``: one page that shows how a trained network processes a picture, layer by layer.

The picture is number ``--index`` of the test or validation split of the data that the checkpoint's run was trained on,
or of ``--data``, or a file (``--image``). The page needs no internet and opens from disk.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from torch import Tensor

from cnn_lightning import data
from cnn_lightning.aten import numpy_ops
from cnn_lightning.checkpoints import newest
from cnn_lightning.classifier import Classifier, from_checkpoint
from cnn_lightning.data.base import InMemory
from cnn_lightning.data.pictures import read_pictures
from cnn_lightning.digest import is_changed_text
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import expect_writable, written
from cnn_lightning.notices import tell
from cnn_lightning.tools import parser as parsers
from cnn_lightning.tools.explain import arguments, live, page, page_links, training
from cnn_lightning.tools.explain.record import record
from cnn_lightning.train.run_folder import RUNS
from cnn_lightning.train.suggestions import did_you_mean

RATE = 0.1
"""The learning rate of the page's gradient steps if the run's optimizer was not SGD, which needs larger ones."""


def main(args: list[str]) -> int:
    """Write the page and print its path."""
    options = arguments.parser().parse_args(parsers.data_by_name(args))
    page_links.make_folder(Path(options.output))
    expect_writable("--output", options.output)
    if options.image is not None and options.index is not None:
        raise UserError("--image, --index: expected one of the two, got both")
    if options.image is None and options.label is not None:
        raise UserError(f"--label: expected it with --image, got {options.label!r} alone")
    if options.ckpt_path is None:
        raise UserError("--ckpt_path: expected a checkpoint, such as runs/digits/version_0/checkpoints/best.ckpt")
    path = newest(RUNS) if options.ckpt_path == "last" else Path(options.ckpt_path)
    model = from_checkpoint(path, layers="numpy")
    picture = _from_file(options, model, path) if options.image is not None else _from_data(options, model, path)
    known = picture.label is not None
    label = picture.label
    if label is None:
        with torch.no_grad():
            label = int(model.eval()(picture.image).argmax())
    subject = page.Subject(
        net=model.hparams["net"],
        checkpoint=path.name,
        picture=picture.name,
        image=picture.image,
        pixels=picture.pixels,
        label=label,
        known=known,
        names=model.class_names,
    )
    try:
        with numpy_ops(options.model.functions == "numpy") as report:
            seen = record(model.net, model.loss, picture.image, label, details=True)
        shown = training.frames(training.moments(path, model.net), model.net, model.loss, picture.image, label)
    except RuntimeError as error:
        raise UserError(f"explain: {one_line(error, 300)}") from error
    rate = model.hparams["lr"] if model.hparams["optimizer"] == "sgd" else RATE
    found = live.Options(
        picture.mean, picture.std, rate, picture.module, len(model.class_names), model.picture_fit or "squeeze"
    )
    alive = live.of(seen, picture.image, found)
    text = page.render(subject, model.net, seen, shown, training.captions(model.net), alive)
    with written("--output", options.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    page_links.write(Path(options.output))
    predicted = int(seen.probabilities.argmax())
    probability = float(seen.probabilities[predicted])
    print(f"prediction: {model.class_names[predicted]} ({probability:.1%})" + _truth(known, predicted, label, model))
    if options.model.functions == "numpy":
        print(report)
    print(f"page: {options.output}")
    return 0


def _truth(known: bool, predicted: int, label: int, model: Classifier) -> str:
    if not known:
        return ""
    return ", which is right" if predicted == label else f", but it is {model.class_names[label]}"


# ---- the picture


@dataclass(frozen=True)
class _Picture:
    """A normalised picture (1, C, H, W), its class if that is known, and its name.

    With the mean and the standard deviation of each channel, for values from 0 to 1, and the data of the run if they
    are known and of this package.
    """

    image: Tensor
    label: int | None
    name: str
    mean: Sequence[float]
    std: Sequence[float]
    module: InMemory | None

    @property
    def pixels(self) -> Tensor:
        """The picture (C, H, W) with values from 0 to 1."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (self.image[0] * std + mean).clamp(0, 1)


def _from_file(options: Namespace, model: Classifier, checkpoint: Path) -> _Picture:
    path = Path(options.image)
    channels, size = model.hparams["in_channels"], model.hparams["image_size"]
    if not path.is_file():
        raise UserError(f"--image: expected a picture, found no file at {options.image!r}")
    if channels not in (1, 3):
        raise UserError(f"--image: expected a network for grey or colour pictures, got one for {channels} channels")
    label = None
    if options.label is not None:
        if options.label not in model.class_names:
            raise UserError(f"--label: expected one of {', '.join(model.class_names)[:200]}, got {options.label!r}")
        label = model.class_names.index(options.label)
    fit = model.picture_fit or "squeeze"
    pixels = torch.from_numpy(read_pictures([path], size, channels == 1, model.value_range, fit=fit)[0]).float() / 255
    statistics = _normalisation(model, model)
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
    module = _beside(options, model, checkpoint)
    return _Picture(((pixels - mean) / std)[None], label, path.name, *statistics, module)


def _beside(options: Namespace, model: Classifier, checkpoint: Path) -> InMemory | None:
    """The data of the run, for the page of a picture file, which needs none; None without it."""
    try:
        module, _ = _data(options, checkpoint, "test", fetch=False)
        model.data_record.apply_to(module)
    except UserError:
        return None
    return module if isinstance(module, InMemory) else None


def _normalisation(model: Classifier, source: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation that ``source`` has; a file's values from 0 to 1 are taken as they are without."""
    channels = model.hparams["in_channels"]
    return getattr(source, "mean", ()) or (0.0,) * channels, getattr(source, "std", ()) or (1.0,) * channels


_SPLITS = {"test": "test", "val": "validation"}


def _from_data(options: Namespace, model: Classifier, path: Path) -> _Picture:
    module, name = _data(options, path, "test" if options.split == "test" else "validate")
    model.data_record.apply_to(module)
    index = options.index or 0
    if index < 0:
        raise UserError(f"--index: expected a number from 0 on, got {index}")
    seen = 0
    for images, labels in module.test_dataloader() if options.split == "test" else module.val_dataloader():
        if index < seen + len(labels):
            place = index - seen
            image = images[place : place + 1].float()
            if image.shape[1] != model.hparams["in_channels"]:
                raise UserError(
                    f"--data: expected pictures of {model.hparams['in_channels']} channels, those of the checkpoint, "
                    f"got {image.shape[1]}"
                )
            label = int(labels[place])
            if not 0 <= label < len(model.class_names):
                raise UserError(
                    f"--data: expected the checkpoint's {len(model.class_names)} classes, got class {label}"
                )
            name = f"{_SPLITS[options.split]} picture {index} of {name}"
            known = module if isinstance(module, InMemory) else None
            return _Picture(image, label, name, *_normalisation(model, module), known)
        seen += len(labels)
    raise UserError(f"--index: expected 0 to {seen - 1} for {name}, got {index}")


def _data(options: Namespace, path: Path, stage: str, *, fetch: bool = True) -> tuple[Any, str]:
    """The data of ``--data``, or that of the checkpoint's run; ``fetch`` allows a download."""
    given: dict[str, Any] = {}
    if options.data.name is not None:
        full = options.data.name
        name = full.rpartition(".")[2]
        kind = getattr(data, full) if full in data.__all__ else _imported(full)
        if kind is None:
            raise UserError(
                f"--data: expected one of {', '.join(data.__all__)}, got {full!r}{did_you_mean(name, data.__all__)}"
            )
    else:
        name, given = _of_the_run(path)
        kind = getattr(data, name)
    if options.data.root is not None:
        given["root"] = options.data.root
    try:
        module = kind(**given)
        if fetch:
            module.prepare_data()
        module.setup(stage)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"--data {name}: {one_line(error, 300)}") from error
    return module, name


def _of_the_run(path: Path) -> tuple[str, dict[str, Any]]:
    """The name and the options of the data in the run's config.yaml.

    The file beside the checkpoint is data: it may name only this package's data sets, and their options are values.
    """
    config = path.parent.parent / "config.yaml"
    try:
        content = config.read_bytes()
        found = yaml.safe_load(content.decode())
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        found = None
    else:
        if is_changed_text(content):
            tell(f"{config} was changed since it was written; the picture may be another one")
    stated = found.get("data") if isinstance(found, dict) else None
    stated = {"class_path": stated} if isinstance(stated, str) else stated
    if not isinstance(stated, dict) or not isinstance(stated.get("class_path"), str):
        raise UserError(
            f"--image: expected a picture, or data to take one from (--data NAME --data.root DIR), as {config} "
            "names none"
        )
    home, _, name = stated["class_path"].rpartition(".")
    if name not in data.__all__ or (home and home != data.__name__ and not home.startswith(f"{data.__name__}.")):
        raise UserError(
            f"--data: expected one of {', '.join(data.__all__)} in {config}, got {stated['class_path']!r}; "
            "a class is imported only where --data names it"
        )
    given = stated.get("init_args") or {}
    known = inspect.signature(getattr(data, name)).parameters
    for key, value in given.items() if isinstance(given, dict) else [("init_args", given)]:
        if key not in known or not isinstance(value, str | int | float | None):
            raise UserError(f"--data: expected options of {name} in {config}, got {key}: {str(value)[:80]!r}")
    return name, dict(given)


def _imported(full: str) -> Any:
    """A DataModule of the user's own; None if there is none of that name."""
    home, _, name = full.rpartition(".")
    try:
        return getattr(import_module(home), name, None) if home else None
    except ImportError:
        return None
