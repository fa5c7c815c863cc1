"""What parity compares: a network, its loss and a batch for each step, from a checkpoint, configs, data and flags."""

import inspect
import itertools
from dataclasses import dataclass
from typing import Any, get_args

import torch
import yaml
from jsonargparse import Namespace
from torch import nn

from cnn_lightning import data
from cnn_lightning.checkpoints import newest
from cnn_lightning.classifier import NOT_KEPT, Classifier, from_checkpoint
from cnn_lightning.classifier.weights import checked_weights, weights_from
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.layers.memory import MemoryFormat, arranged
from cnn_lightning.model import build_net, least_image_size
from cnn_lightning.tools.parity.layerwise.runner import Batch
from cnn_lightning.train.configs import checked, config_file
from cnn_lightning.train.failures import readable
from cnn_lightning.train.run_folder import RUNS
from cnn_lightning.train.suggestions import did_you_mean

_SHAPE = ("num_classes", "in_channels", "image_size")
_BUILD = ("net", *_SHAPE, "channels", "hidden", "weights")


@dataclass
class Subject:
    """What is compared: a network, its loss, and a batch for each step."""

    name: str
    net: nn.Module
    loss: nn.Module
    batches: list[Batch]
    source: str


def chosen_config(names: list[str]) -> dict[str, Any]:
    """The model and data of all configs; a later config overrides an earlier one."""
    merged: dict[str, Any] = {"model": {}, "data": None}
    for name in names:
        try:
            found = yaml.safe_load(config_file(name).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"--config: {name} can't be read: {one_line(error)}") from error
        found = checked(found, name)
        merged["model"] |= found.get("model", {})
        merged["data"] = found.get("data", merged["data"])
    return merged


def chosen_subject(options: Namespace, config: dict[str, Any]) -> Subject:
    """The network and its data. A checkpoint's values are fixed; flags override configs, and both override the data."""
    stated = {key: value for key, value in vars(options.model).items() if value is not None and key not in NOT_KEPT}
    classifier = None if options.ckpt_path is None else _checkpoint(options.ckpt_path)
    module, shape, source = _data(options, config["data"])
    if classifier is None:
        wanted = shape | {key: value for key, value in config["model"].items() if key in _BUILD} | stated
    else:
        wanted = {key: value for key, value in classifier.hparams.items() if key in _BUILD}
        for key, value in (shape | stated).items() if module is not None else stated.items():
            if value != wanted[key]:
                raise UserError(f"{key}: expected {wanted[key]!r}, that of the checkpoint, got {value!r}")
    try:
        name = wanted.setdefault("net", "simple_cnn")
        wanted.setdefault("num_classes", 10)
        wanted.setdefault("in_channels", 1 if name == "simple_cnn" else 3)
        if "image_size" not in wanted:
            wanted["image_size"] = 28 if name == "simple_cnn" else max(64, least_image_size(name))
        net = _build(wanted) if classifier is None else classifier.net
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise UserError(f"--model.{readable(error)}") from error
    try:
        batches = _noise(options, wanted) if module is None else _batches(module, options.steps)
    except RuntimeError as error:
        size = options.data.batch_size
        raise UserError(
            f"--data.batch_size: expected a batch that memory holds, got {size}: {readable(error)}"
        ) from error
    device, memory = options.device, _memory_format(options, config)
    batches = [(arranged(images.to(device), memory), labels.to(device)) for images, labels in batches]
    smoothing = config["model"].get("label_smoothing", 0.0)
    if not isinstance(smoothing, int | float):
        raise UserError(f"--config: expected a number in model.label_smoothing, got {smoothing!r}")
    weight = _class_weights(config["model"].get("class_weights"), module, wanted["num_classes"])
    loss = nn.CrossEntropyLoss(weight, label_smoothing=smoothing) if classifier is None else classifier.loss
    return Subject(name, net.to(options.device).train(), loss.to(options.device), batches, source)


def _class_weights(given: Any, module: Any, num_classes: int) -> torch.Tensor | None:
    """The weights of the loss that a config gives; of random pictures "auto" are equal ones."""
    try:
        found = checked_weights(given, num_classes)
    except (ValueError, TypeError) as error:
        raise UserError(f"--config: model.{readable(error)}") from error
    if found == "auto":
        found = None if module is None else tuple(weights_from(module, module.class_names))
    return None if found is None else torch.tensor(found)


def _memory_format(options: Namespace, config: dict[str, Any]) -> MemoryFormat:
    found: MemoryFormat = options.model.memory_format or config["model"].get("memory_format", "auto")
    if found not in get_args(MemoryFormat):
        known = ", ".join(get_args(MemoryFormat))
        raise UserError(f"--config: expected one of {known} in model.memory_format, got {found!r}")
    return found


def _build(wanted: dict[str, Any]) -> nn.Module:
    options = dict(wanted)
    return build_net(options.pop("net"), **options)


def _checkpoint(path: str) -> Classifier:
    if path == "last":
        path = str(newest(RUNS))
    return from_checkpoint(path)


def _data(options: Namespace, stated: Any) -> tuple[Any, dict[str, int], str]:
    """The data set, its shape and its name; None for random data, also where a config names a set that is not here."""
    given = dict(stated.get("init_args") or {}) if isinstance(stated, dict) else {}
    name = stated.get("class_path") if isinstance(stated, dict) else stated
    asked = options.data.name is not None or options.data.root is not None
    if options.data.name is not None:
        name, given = options.data.name, {}
    if name is None:
        if asked:
            raise UserError(f"--data.root: expected it with --data NAME, got {options.data.root!r} alone")
        return None, {}, "random pictures"
    name = str(name).rpartition(".")[2]
    if name not in data.__all__:
        raise UserError(
            f"--data: expected one of {', '.join(data.__all__)}, got {name!r}{did_you_mean(name, data.__all__)}"
        )
    kind = getattr(data, name)
    given |= {"batch_size": options.data.batch_size, "seed": options.seed}
    if options.data.root is not None:
        given["root"] = options.data.root
    try:
        known = inspect.signature(kind).parameters
        module = kind(**{key: value for key, value in given.items() if key in known})
        module.prepare_data()
        module.setup("fit")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        if asked:
            raise UserError(f"--data {name}: {readable(error)}") from error
        shape = {key: given.get(key, getattr(kind, key, None)) for key in _SHAPE}
        known_shape = {key: value for key, value in shape.items() if isinstance(value, int)}
        return None, known_shape, f"random pictures ({name} is not here)"
    return module, {key: getattr(module, key) for key in _SHAPE}, name


def _batches(module: Any, steps: int) -> list[Batch]:
    found: list[Batch] = []
    while len(found) < steps:
        before = len(found)
        found += itertools.islice(module.train_dataloader(), steps - before)
        if len(found) == before:
            raise UserError("--data: expected at least one training batch, found none")
    return found


def _noise(options: Namespace, wanted: dict[str, Any]) -> list[Batch]:
    generator = torch.Generator().manual_seed(options.seed)
    n, size = options.data.batch_size, wanted["image_size"]
    return [
        (
            torch.randn(n, wanted["in_channels"], size, size, generator=generator),
            torch.randint(wanted["num_classes"], (n,), generator=generator),
        )
        for _ in range(options.steps)
    ]
